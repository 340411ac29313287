#!/usr/bin/env python3
"""Writes golden.safetensors beside each tiny checkpoint: what transformers answers, in f32.

For every prompt i: tokens_i (prompt and 16 greedy tokens), prompt_length_i, positions_i and
logits_i [positions, vocab], and gaps_i (best minus second-best logit of each greedy step).
Needs the packages of make_tiny_models.py.

    make_goldens.py [--models tests/golden]
"""

import argparse
import pathlib

import torch
import transformers
from safetensors.torch import save_file

PROMPT_LENGTHS = (1, 5, 23, 50)
NEW_TOKENS = 16


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
    with torch.no_grad():
        for folder in sorted(path.parent for path in parser.parse_args().models.glob("*/config.json")):
            write(folder)


if __name__ == "__main__":
    main()
