#!/usr/bin/env python3
"""Pieces of scripts/bench/cpu_llama: rows, a bf16 GGUF of a Hugging Face directory, a run of llama.cpp, a comparison.

    llama_rows.py rows --out ROWS [--count 96] [--vocab 49152]
    llama_rows.py convert --model DIR --out GGUF        Llama architecture, bf16 safetensors, one file
    llama_rows.py run --gguf GGUF --rows ROWS --out OUT [--threads 2] [--sequences 32] [--batch 512] [--cache both|split|one]
    llama_rows.py report --report JSON --ours OUT --theirs OUT

run drives llama.cpp through its C API: continuous batching over a fixed number of sequences, decode rows first, prompts in
chunks, greedy, end tokens ignored; it keeps the better of the two KV modes (one shared cache, one a sequence).
"""
import argparse
import json
import os
import random
import struct
import sys
import time

import numpy as np


def make_rows(a):
    rng = random.Random(1)
    with open(a.out, "w", encoding="utf-8") as f:
        for _ in range(a.count):
            ids = rng.choices(range(1000, a.vocab - 1000), k=rng.randint(32, 256))
            f.write(json.dumps({"prompt_token_ids": ids, "max_tokens": rng.randint(32, 128), "ignore_eos": True,
                                "temperature": 0}) + "\n")


def read_safetensors(path):
    with open(path, "rb") as f:
        length, = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(length))
        base = 8 + length
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] != "BF16":
                sys.exit("%s: %s is %s, only BF16 is converted" % (path, name, entry["dtype"]))
            begin, end = entry["data_offsets"]
            f.seek(base + begin)
            yield name, np.frombuffer(f.read(end - begin), np.uint16).reshape(entry["shape"])


def permute(weight, num_heads):
    """Rows of q and k from Hugging Face's two halves to the pairs of llama.cpp's rope."""
    rows, cols = weight.shape
    return weight.reshape(num_heads, 2, rows // num_heads // 2, cols).swapaxes(1, 2).reshape(rows, cols)


def convert(a):
    import gguf
    with open(os.path.join(a.model, "config.json"), encoding="utf-8") as f:
        c = json.load(f)
    with open(os.path.join(a.model, "tokenizer.json"), encoding="utf-8") as f:
        tokenizer = json.load(f)
    heads, kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
    w = gguf.GGUFWriter(a.out, "llama")
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_block_count(c["num_hidden_layers"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(heads)
    w.add_head_count_kv(kv_heads)
    w.add_rope_dimension_count(c.get("head_dim") or c["hidden_size"] // heads)
    w.add_rope_freq_base(c["rope_theta"])
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_vocab_size(c["vocab_size"])
    w.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    special = {t["id"] for t in tokenizer["added_tokens"]}
    vocab = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    w.add_token_list([token for token, _ in vocab])
    w.add_token_types([3 if i in special else 1 for _, i in vocab])
    w.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]])
    w.add_bos_token_id(c["bos_token_id"])
    w.add_eos_token_id(c["eos_token_id"])
    names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
             "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, value in read_safetensors(os.path.join(a.model, "model.safetensors")):
        stem = name[:-len(".weight")]
        if stem in top:
            target = top[stem]
        else:
            _, _, layer, rest = stem.split(".", 3)
            target = "blk.%s.%s" % (layer, names[rest])
            if rest == "self_attn.q_proj":
                value = permute(value, heads)
            elif rest == "self_attn.k_proj":
                value = permute(value, kv_heads)
        if value.ndim == 1:
            w.add_tensor(target + ".weight", (value.astype(np.uint32) << 16).view(np.float32))
        else:
            raw = np.ascontiguousarray(value).view(np.uint8)
            w.add_tensor(target + ".weight", raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


class Llama:
    """A context of llama.cpp and a batch to fill."""

    def __init__(self, a, longest, unified):
        import llama_cpp
        self.api = llama_cpp
        self.batch_tokens = a.batch
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(a.gguf.encode(), model_params)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = a.sequences * ((longest + 255) // 256 * 256)
        params.n_batch = params.n_ubatch = a.batch
        params.n_seq_max = a.sequences
        params.n_threads = params.n_threads_batch = a.threads
        if hasattr(params, "kv_unified"):
            params.kv_unified = unified
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            sys.exit("llama.cpp refused the context")
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(a.batch, 0, 1)

    def add(self, token, position, sequence, wants_logits):
        b, i = self.batch, self.batch.n_tokens
        b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = token, position, 1, wants_logits
        b.seq_id[i][0] = sequence
        b.n_tokens += 1
        return i

    def decode(self):
        if self.api.llama_decode(self.context, self.batch) != 0:
            sys.exit("llama_decode failed")

    def best_token(self, i):
        logits = self.api.llama_get_logits_ith(self.context, i)
        return int(np.ctypeslib.as_array(logits, shape=(self.vocab,)).argmax())

    def forget(self, sequence):
        self.api.llama_memory_seq_rm(self.api.llama_get_memory(self.context), sequence, -1, -1)

    def close(self):
        self.api.llama_batch_free(self.batch)
        self.api.llama_free(self.context)
        self.api.llama_model_free(self.model)


class Running:
    def __init__(self, index, row):
        self.index, self.prompt, self.left = index, row["prompt_token_ids"], row["max_tokens"]
        self.position, self.output = 0, []


def generate(llama, rows, sequences):
    """Answers of all rows, the seconds, and the CPU seconds (which a busy machine disturbs less)."""
    waiting = [Running(i, row) for i, row in enumerate(rows)][::-1]
    slots, answers = [None] * sequences, [None] * len(rows)
    start, cpu_start = time.monotonic(), time.process_time()
    while waiting or any(slots):
        llama.batch.n_tokens = 0
        emits = []
        for s, r in enumerate(slots):
            if r and r.output:
                emits.append((llama.add(r.output[-1], r.position, s, True), s))
                r.position += 1
        for s in range(sequences):
            if slots[s] is None and waiting and llama.batch.n_tokens < llama.batch_tokens:
                slots[s] = waiting.pop()
            r = slots[s]
            while r and not r.output and r.position < len(r.prompt) and llama.batch.n_tokens < llama.batch_tokens:
                last = r.position + 1 == len(r.prompt)
                i = llama.add(r.prompt[r.position], r.position, s, last)
                r.position += 1
                if last:
                    emits.append((i, s))
        llama.decode()
        for i, s in emits:
            r = slots[s]
            r.output.append(llama.best_token(i))
            if len(r.output) == r.left:
                answers[r.index] = r.output
                llama.forget(s)
                slots[s] = None
    return answers, time.monotonic() - start, time.process_time() - cpu_start


def run(a):
    with open(a.rows, encoding="utf-8") as f:
        rows = [json.loads(line) for line in f]
    longest = max(len(r["prompt_token_ids"]) + r["max_tokens"] for r in rows)
    tokens = sum(len(r["prompt_token_ids"]) + r["max_tokens"] for r in rows)
    best = None
    for unified in {"both": (False, True), "split": (False,), "one": (True,)}[a.cache]:
        llama = Llama(a, longest, unified)
        answers, seconds, cpu_seconds = generate(llama, rows, a.sequences)
        llama.close()
        print("llama.cpp %-20s %8.2f s  %8.1f total tok/s  %8.1f a CPU second" %
              ("(one cache)" if unified else "(cache a sequence)", seconds, tokens / seconds, tokens / cpu_seconds),
              flush=True)
        if best is None or seconds < best[1]:
            best = answers, seconds
    with open(a.out, "w", encoding="utf-8") as f:
        for answer in best[0]:
            f.write(json.dumps({"output_token_ids": answer, "tokens_per_second": tokens / best[1]}) + "\n")


def report(a):
    with open(a.report, encoding="utf-8") as f:
        ours = json.load(f)
    with open(a.ours, encoding="utf-8") as f:
        our_rows = [json.loads(line) for line in f]
    with open(a.theirs, encoding="utf-8") as f:
        their_rows = [json.loads(line) for line in f]
    equal = sum(x["output_token_ids"] == y["output_token_ids"] for x, y in zip(our_rows, their_rows))
    first = sum(x["output_token_ids"][0] == y["output_token_ids"][0] for x, y in zip(our_rows, their_rows))
    totals = ours["totals"]
    steady = (totals["prompt_tokens"] + totals["completion_tokens"]) / ours["seconds"]["generate"]
    theirs = their_rows[0]["tokens_per_second"]
    print("mpinfer %31.1f total tok/s: %.2f x llama.cpp; %d of %d answers equal, %d first tokens equal" %
          (steady, steady / theirs, equal, len(our_rows), first), flush=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = ap.add_subparsers(dest="command", required=True)
    p = sub.add_parser("rows")
    p.add_argument("--out", required=True)
    p.add_argument("--count", type=int, default=96)
    p.add_argument("--vocab", type=int, default=49152)
    p = sub.add_parser("convert")
    p.add_argument("--model", required=True)
    p.add_argument("--out", required=True)
    p = sub.add_parser("run")
    p.add_argument("--gguf", required=True)
    p.add_argument("--rows", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--sequences", type=int, default=32)
    p.add_argument("--batch", type=int, default=512)
    p.add_argument("--cache", choices=("both", "split", "one"), default="both")
    p = sub.add_parser("report")
    p.add_argument("--report", required=True)
    p.add_argument("--ours", required=True)
    p.add_argument("--theirs", required=True)
    a = ap.parse_args()
    {"rows": make_rows, "convert": convert, "run": run, "report": report}[a.command](a)


if __name__ == "__main__":
    main()
