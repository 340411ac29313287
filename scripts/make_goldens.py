#!/usr/bin/env python3
"""Writes golden.safetensors beside each tiny checkpoint: what transformers answers, in f32.

For every prompt i: tokens_i (prompt and 16 greedy tokens), prompt_length_i, positions_i and
logits_i [positions, vocab], and gaps_i (best minus second-best logit of each greedy step).
Beside the folders rope_cases.json: inverse frequencies and attention factors of published models' ropes.
Needs the packages of make_tiny_models.py.

    make_goldens.py [--models tests/golden] [NAME ...]
"""

import argparse
import json
import pathlib

import torch
import transformers
from safetensors.torch import save_file

PROMPT_LENGTHS = (1, 5, 23, 50)
NEW_TOKENS = 16


# Head sizes and rope fields of published models, and YaRN's options.
ROPES = {
    "llama-3.1-8b": dict(max_position_embeddings=131072, rope_theta=500000.0, rope_scaling=dict(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=8192)),
    "llama-3.2-1b": dict(head_dim=64, max_position_embeddings=131072, rope_theta=500000.0, rope_scaling=dict(
        rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=8192)),
    "linear": dict(max_position_embeddings=16384, rope_theta=10000.0,
                   rope_scaling=dict(rope_type="linear", factor=8.0)),
    "qwen-yarn": dict(max_position_embeddings=131072, rope_theta=1000000.0, rope_scaling=dict(
        rope_type="yarn", factor=4.0, original_max_position_embeddings=32768)),
    "yarn-mscale": dict(head_dim=64, max_position_embeddings=163840, rope_theta=10000.0, rope_scaling=dict(
        rope_type="yarn", factor=40.0, beta_fast=32, beta_slow=1, mscale=0.7, mscale_all_dim=1.0,
        original_max_position_embeddings=4096)),
    "yarn-untruncated": dict(head_dim=64, max_position_embeddings=131072, rope_theta=150000.0, rope_scaling=dict(
        rope_type="yarn", factor=32.0, beta_fast=32.0, beta_slow=1.0, truncate=False,
        original_max_position_embeddings=4096)),
}


def write_ropes(path):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    cases = []
    for name, fields in ROPES.items():
        config = {"architectures": ["LlamaForCausalLM"], "hidden_size": 1024, "intermediate_size": 1024,
                  "num_hidden_layers": 1, "num_attention_heads": 8, "vocab_size": 256,
                  "head_dim": 128, "torch_dtype": "bfloat16", **fields}
        kind = fields["rope_scaling"]["rope_type"]
        frequencies, factor = ROPE_INIT_FUNCTIONS[kind](transformers.LlamaConfig(**json.loads(json.dumps(config))))
        cases.append({"name": name, "config": config, "attention_factor": factor,
                      "inverse_frequencies": frequencies.tolist()})
    lines = ",\n".join(json.dumps(case) for case in cases)
    path.write_text(f"[\n{lines}\n]\n")


def greedy(model, prompt):
    tokens, gaps = list(prompt), []
    for _ in range(NEW_TOKENS):
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -1]
        top = logits.topk(2)
        gaps.append((top.values[0] - top.values[1]).item())
        tokens.append(top.indices[0].item())
    return tokens, gaps


def write(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(7)
    out, smallest = {}, float("inf")
    for i, length in enumerate(PROMPT_LENGTHS):
        prompt = torch.randint(3, model.config.vocab_size, (length,), generator=generator).tolist()
        tokens, gaps = greedy(model, prompt)
        last = length + NEW_TOKENS - 1
        positions = sorted({0, length // 2, length - 1, length, last - 1})
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0, positions]
        out[f"tokens_{i}"] = torch.tensor(tokens, dtype=torch.int32)
        out[f"prompt_length_{i}"] = torch.tensor([length], dtype=torch.int32)
        out[f"positions_{i}"] = torch.tensor(positions, dtype=torch.int32)
        out[f"logits_{i}"] = logits.contiguous()
        out[f"gaps_{i}"] = torch.tensor(gaps)
        smallest = min(smallest, *gaps)
    save_file(out, folder / "golden.safetensors")
    print(f"{folder.name}: largest logit {max(out[f'logits_{i}'].abs().max().item() for i in range(4)):.2f}, "
          f"smallest gap {smallest:.2e}, {(folder / 'golden.safetensors').stat().st_size} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", type=pathlib.Path,
                        default=pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden")
    parser.add_argument("names", nargs="*", default=[], metavar="NAME")
    models, names = parser.parse_args().models, parser.parse_args().names
    write_ropes(models / "rope_cases.json")
    with torch.no_grad():
        for folder in sorted(path.parent for path in models.glob("*/config.json")):
            if names and folder.name not in names:
                continue
            write(folder)


if __name__ == "__main__":
    main()
