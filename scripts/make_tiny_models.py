#!/usr/bin/env python3
"""Writes tiny random checkpoints, one folder each, for the golden and layout tests.

Needs PyPI's torch, transformers, tokenizers and safetensors in a venv (versions that made the committed
ones: torch 2.9.1, transformers 5.23.0). Seeds are fixed: the same versions give the same bytes.

    make_tiny_models.py [--out tests/golden] [NAME ...]
"""

import argparse
import json
import pathlib
import shutil

import torch
import transformers

COMMON = dict(vocab_size=256, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0)
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


def rope(kind, theta, **more):
    return dict(rope_type=kind, rope_theta=theta, **more)


# name: (family, dtype, fields, what the folder gets besides); the place in the list is the seed.
MODELS = {
    "granite": ("Granite", "bf16", dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, embedding_multiplier=6.0, logits_scaling=4.0,
        residual_multiplier=0.22, attention_multiplier=0.2,
        rope_parameters=rope("default", 10000.0)), {"old"}),
    "llama-8h2kv": ("Llama", "f16", dict(
        vocab_size=259, hidden_size=48, intermediate_size=84, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=2, head_dim=8, tie_word_embeddings=True, attention_bias=True, mlp_bias=True,
        rope_parameters=rope("llama3", 500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                             original_max_position_embeddings=32)), {"tokenizer"}),
    "llama-8h4kv": ("Llama", "bf16", dict(
        vocab_size=259, hidden_size=48, intermediate_size=80, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, head_dim=8, tie_word_embeddings=False,
        rope_parameters=rope("default", 10000.0)), {"tokenizer"}),
    "llama-linear": ("Llama", "f32", dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, tie_word_embeddings=False,
        rope_parameters=rope("linear", 10000.0, factor=4.0)), {"sharded", "old"}),
    "mistral-window": ("Mistral", "bf16", dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=8, tie_word_embeddings=False,
        rope_parameters=rope("default", 1000000.0)), {"old"}),
    "phi3-partial": ("Phi3", "f16", dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False, sliding_window=20,
        rope_parameters=rope("default", 10000.0, partial_rotary_factor=0.5)), set()),
    "qwen2-window": ("Qwen2", "bf16", dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=4, tie_word_embeddings=True, use_sliding_window=True, sliding_window=12,
        max_window_layers=1, rope_parameters=rope("default", 1000000.0)), set()),
    "qwen3-yarn": ("Qwen3", "bf16", dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, tie_word_embeddings=False,
        rope_parameters=rope("yarn", 10000.0, factor=4.0, original_max_position_embeddings=32)), set()),
    "smollm3-nope": ("SmolLM3", "bf16", dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, no_rope_layer_interval=2,
        rope_parameters=rope("default", 2000000.0)), set()),
    # An original maximum of 1: transformers takes the long factors at every position that turns.
    "phi3-longrope": ("Phi3", "f16", dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, tie_word_embeddings=True, original_max_position_embeddings=1,
        rope_parameters=rope("longrope", 10000.0, attention_factor=1.19, partial_rotary_factor=1.0,
                             short_factor=[1.0, 1.1, 1.2, 1.3], long_factor=[1.0, 1.5, 3.0, 8.0])), set()),
    "mixtral": ("Mixtral", "bf16", dict(
        hidden_size=32, intermediate_size=28, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2,
        tie_word_embeddings=False, rope_parameters=rope("default", 1000000.0)), set()),
    "olmoe": ("Olmoe", "f16", dict(
        hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, num_experts=6, num_experts_per_tok=3, norm_topk_prob=False,
        tie_word_embeddings=False, rope_parameters=rope("default", 10000.0)), set()),
    "qwen2-moe": ("Qwen2Moe", "bf16", dict(
        hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=20,
        shared_expert_intermediate_size=36, norm_topk_prob=False, mlp_only_layers=[1],
        tie_word_embeddings=False, rope_parameters=rope("default", 1000000.0)), set()),
    "qwen3-moe": ("Qwen3Moe", "bf16", dict(
        vocab_size=259, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, head_dim=8, num_experts=10, num_experts_per_tok=3, moe_intermediate_size=16,
        norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[0], tie_word_embeddings=False,
        rope_parameters=rope("default", 1000000.0)), {"tokenizer"}),
    "glm4-moe": ("Glm4Moe", "bf16", dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=12,
        n_shared_experts=1, first_k_dense_replace=1, n_group=4, topk_group=2, norm_topk_prob=True,
        routed_scaling_factor=1.5, attention_bias=True, use_qk_norm=True, tie_word_embeddings=False,
        rope_parameters=rope("default", 10000.0, partial_rotary_factor=0.5)), set()),
    "gpt-oss": ("GptOss", "bf16", dict(
        hidden_size=32, intermediate_size=24, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=12,
        tie_word_embeddings=False, rope_parameters=rope(
            "yarn", 150000.0, factor=8.0, beta_fast=32.0, beta_slow=1.0, truncate=False,
            original_max_position_embeddings=16)), set()),
    "deepseek-v2": ("DeepseekV2", "bf16", dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, q_lora_rank=None, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8,
        v_head_dim=8, head_dim=8, n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=12,
        n_shared_experts=2, first_k_dense_replace=1, topk_method="group_limited_greedy", n_group=4,
        topk_group=2, norm_topk_prob=False, routed_scaling_factor=2.0, tie_word_embeddings=False,
        rope_parameters=rope("default", 10000.0)), set()),
    "deepseek-v3": ("DeepseekV3", "bf16", dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4,
        v_head_dim=6, n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=12, n_shared_experts=1,
        first_k_dense_replace=1, n_group=4, topk_group=2, norm_topk_prob=True, routed_scaling_factor=2.5,
        tie_word_embeddings=False, rope_parameters=rope(
            "yarn", 10000.0, factor=8.0, mscale=1.0, mscale_all_dim=1.0,
            original_max_position_embeddings=16)), set()),
}


def randomize(model, seed, transposed):
    """Weights wide enough that attention and logits differ clearly between positions."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            drawn = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter.copy_(1.0 + 0.2 * drawn)
            elif parameter.dim() == 1:
                parameter.copy_(0.1 * drawn)
            elif parameter.dim() == 3 and not transposed:  # experts [expert, out, in]
                parameter.copy_(drawn / parameter.shape[2] ** 0.5)
            else:
                parameter.copy_(drawn / parameter.shape[1] ** 0.5)
        for name, buffer in sorted(model.named_buffers()):
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))


def old_spelling(folder):
    """config.json as transformers 4 wrote it: rope_theta, rope_scaling, torch_dtype."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    parameters = config.pop("rope_parameters")
    config["torch_dtype"] = config.pop("dtype")
    config["rope_theta"] = parameters.pop("rope_theta")
    config["rope_scaling"] = None if parameters["rope_type"] == "default" else parameters
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_tokenizer(folder):
    """Byte-level BPE without merges: 3 special tokens and the 256 bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    specials = ["<pad>", "<s>", "</s>"]
    vocab = {token: i for i, token in enumerate(specials + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in specials])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>",
         "tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n")


def write(name, folder):
    family, dtype, fields, extras = MODELS[name]
    config = getattr(transformers, family + "Config")(**{**COMMON, **fields})
    model = getattr(transformers, family + "ForCausalLM")(config)
    randomize(model, seed=list(MODELS).index(name) + 1, transposed=family == "GptOss")
    model = model.to(DTYPES[dtype])
    kept = folder / "golden.safetensors"
    golden = kept.read_bytes() if kept.exists() else None
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, max_shard_size="30KB" if "sharded" in extras else "1GB")
    if golden is not None:
        kept.write_bytes(golden)
    if "old" in extras:
        old_spelling(folder)
    if "tokenizer" in extras:
        write_tokenizer(folder)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{name}: {sum(p.numel() for p in model.parameters())} parameters, {size} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path,
                        default=pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden")
    parser.add_argument("names", nargs="*", default=[], metavar="NAME")
    arguments = parser.parse_args()
    for name in arguments.names or MODELS:
        write(name, arguments.out / name)


if __name__ == "__main__":
    main()
