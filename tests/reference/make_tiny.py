#!/usr/bin/env python3
"""Tiny random models in safetensors, with the logits that Hugging Face transformers computes for them in float32.

usage: make_tiny.py --out DIR

Writes DIR/<name>/{config.json, model.safetensors, expected.bin} for each entry of MODELS. Weights are random but far from their usual
initial values (norms away from 1, biases away from 0, attention sharp), so that a wrong frequency, layout or bias changes the logits.
config.json is written in the words of published checkpoints (rope_theta, rope_scaling). The folder of qwen3 also holds
config-rope-parameters.json: the same facts in the words that transformers 5 saves.

expected.bin, little endian: num_tokens u32, vocab_size u32, ids u32 x num_tokens, logits f32 x num_tokens x vocab_size, row by row.

Versions are pinned in requirements.txt.
"""

import argparse
import json
import pathlib
import struct

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

NUM_TOKENS = 64

# Small enough for the repository, odd enough to catch a confusion of sizes: 4 query heads share 2 key heads of 16 channels.
# The epsilon of the norms is larger than usual, so that a wrong one changes the logits.
COMMON = {
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-3,
    "vocab_size": 96,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}

MODELS = {
    # Wavelengths of the 8 frequencies run from 6 to 2e6 tokens: below 32 / 4 kept, above 32 / 1 divided by 8, between them blended.
    "llama3": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    # bfloat16 on disk: twice the layers in the same space, and the loader's conversion is exact.
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "num_hidden_layers": 3,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "rope_theta": 1000000.0,
        "torch_dtype": "bfloat16",
    },
    # A window is declared but not in use, as in every published Qwen2.
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "use_sliding_window": False,
        "sliding_window": 32,
        "max_window_layers": 2,
        "tie_word_embeddings": True,
        "rope_theta": 1000000.0,
    },
    # Heads of 16 channels that do not add up to the hidden size of 48, as in Qwen3-0.6B.
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 48,
        "intermediate_size": 96,
        "head_dim": 16,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "rope_theta": 5000.0,
        "rms_norm_eps": 1e-2,
    },
    # Two layers see 16 positions and rotate by another base; scores are not divided by the root of the 16 channels.
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "num_hidden_layers": 3,
        "hidden_act": None,
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": 16,
        "query_pre_attn_scalar": 24,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "sliding_window": 16,
        "rope_theta": 5000.0,
        "rope_local_base_freq": 100.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    },
}


def random_weight(name, shape, generator):
    """Values that leave no part of the computation near the identity."""
    noise = torch.randn(shape, generator=generator)
    if name.endswith("norm.weight"):
        return 1.0 + 0.3 * noise
    if name.endswith("bias"):
        return 0.5 * noise
    if "embed_tokens" in name:
        return noise
    return 1.5 * noise / shape[-1] ** 0.5


def fill(model, stored, generator):
    """Random weights in `model`, each a value that dtype `stored` holds exactly. A tied head stays tied."""
    for name, weight in sorted(dict(model.named_parameters()).items()):
        weight.copy_(random_weight(name, weight.shape, generator).to(stored))


def rope_parameters(facts):
    """The same configuration as transformers 5 saves it: one table for RoPE, `dtype` for `torch_dtype`."""
    renamed = {key: value for key, value in facts.items() if key not in ("rope_theta", "rope_scaling", "torch_dtype")}
    scaling = facts.get("rope_scaling") or {"rope_type": "default"}
    return {**renamed, "dtype": facts["torch_dtype"], "rope_parameters": {"rope_theta": facts["rope_theta"], **scaling}}


def write_config(path, facts):
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def make(folder, facts):
    """One model: its files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder / "config.json", facts)
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(sum(facts["model_type"].encode()))
    stored = getattr(torch, facts["torch_dtype"])
    fill(model, stored, generator)
    weights = {name: weight.to(stored).contiguous() for name, weight in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    ids = torch.randint(3, facts["vocab_size"], (1, NUM_TOKENS), generator=generator)
    logits = model(ids).logits[0]
    header = struct.pack("<II", NUM_TOKENS, facts["vocab_size"])
    (folder / "expected.bin").write_bytes(header + ids.int().numpy().tobytes() + logits.numpy().tobytes())
    return logits


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    for name, differences in MODELS.items():
        facts = {key: value for key, value in {**COMMON, **differences}.items() if value is not None or key == "sliding_window"}
        folder = args.out / name
        logits = make(folder, facts)
        if name == "qwen3":
            write_config(folder / "config-rope-parameters.json", rope_parameters(facts))
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{folder}: {size} bytes, logits {logits.min():.2f} .. {logits.max():.2f}, standard deviation {logits.std():.2f}")


if __name__ == "__main__":
    main()
