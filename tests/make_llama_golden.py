#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/llama: tiny random models of each kind as Hugging Face folders, and what `transformers` computes.

Needs torch, transformers and safetensors; run once, by hand. Each folder holds config.json, model.safetensors (BF16) and
golden.safetensors: ids [2, 40], logits [2, 40, vocab] in float32, prompt [8], greedy [12].
"""
import json
import os
import sys

import torch
from safetensors.torch import save_file
from transformers import (LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config,
                          Qwen2ForCausalLM)

SIZES = dict(vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=16, max_position_embeddings=256, rms_norm_eps=1e-5, bos_token_id=1,
             eos_token_id=2, pad_token_id=None, attention_dropout=0.0)
MIN_MARGIN = 1e-3  # of a greedy step: best logit over the second best

CASES = {
    "tied": (LlamaConfig, LlamaForCausalLM, dict(tie_word_embeddings=True, rope_theta=10000.0)),
    "llama3": (LlamaConfig, LlamaForCausalLM,
               dict(tie_word_embeddings=False, rope_theta=500000.0,
                    rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                      original_max_position_embeddings=64))),
    "linear": (LlamaConfig, LlamaForCausalLM,
               dict(tie_word_embeddings=True, rope_theta=10000.0, attention_bias=True, mlp_bias=True,
                    rope_scaling=dict(rope_type="linear", factor=4.0))),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM,
              dict(tie_word_embeddings=True, rope_theta=1000000.0, use_sliding_window=False)),
    "mistral": (MistralConfig, MistralForCausalLM,
                dict(tie_word_embeddings=False, rope_theta=10000.0, sliding_window=None)),
}


def fill(model, seed):
    """Weights large enough that attention is not flat, gains and biases that are not trivial; all exact in BF16."""
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=gen)
            if "norm" in name:
                value = 1.0 + 0.3 * noise
            elif name.endswith("bias"):
                value = 0.3 * noise
            elif "q_proj" in name or "k_proj" in name:
                value = 0.25 * noise
            elif "embed" in name:
                value = 0.5 * noise
            else:
                value = 0.15 * noise
            p.copy_(value.to(torch.bfloat16).to(torch.float32))


def make(name, out):
    config_class, model_class, options = CASES[name]
    for seed in range(1, 100):
        config = config_class(**SIZES, **options)
        config._attn_implementation = "eager"
        model = model_class(config).to(torch.float32).eval()
        fill(model, seed)
        gen = torch.Generator().manual_seed(1000 + seed)
        ids = torch.randint(3, SIZES["vocab_size"], (2, 40), generator=gen)
        prompt = ids[0, :8].clone()
        with torch.no_grad():
            logits = model(ids).logits
            tokens, margin = prompt.tolist(), []
            for _ in range(12):
                last = model(torch.tensor([tokens])).logits[0, -1]
                top = torch.topk(last, 2)
                margin.append(float(top.values[0] - top.values[1]))
                tokens.append(int(top.indices[0]))
        if min(margin) > MIN_MARGIN and 2 not in tokens[8:]:
            break
    else:
        sys.exit(f"{name}: no seed gives clear margins")
    folder = os.path.join(out, name)
    os.makedirs(folder, exist_ok=True)
    tied = options["tie_word_embeddings"]
    state = {k: v.to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()
             if not (tied and k == "lm_head.weight")}
    save_file(state, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    save_file({"ids": ids.to(torch.int32), "logits": logits.contiguous(), "prompt": prompt.to(torch.int32),
               "greedy": torch.tensor(tokens[8:], dtype=torch.int32)}, os.path.join(folder, "golden.safetensors"))
    settings = config.to_dict()
    settings["architectures"] = [model_class.__name__]
    settings["torch_dtype"] = "bfloat16"
    for key in ("transformers_version", "_name_or_path", "dtype", "attn_implementation", "_attn_implementation"):
        settings.pop(key, None)
    if name in ("linear", "qwen2"):  # most checkpoints still say it the older way
        rope = settings.pop("rope_parameters")
        settings["rope_theta"] = rope.pop("rope_theta")
        settings["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    for file in ("model.safetensors", "golden.safetensors"):
        os.chmod(os.path.join(folder, file), 0o644)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f:
        json.dump(settings, f, indent=1, sort_keys=True)
        f.write("\n")
    print(f"{name}: seed {seed}, smallest margin {min(margin):.4f}, largest logit {float(logits.abs().max()):.3f}")


if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    for case in CASES:
        make(case, os.path.join(here, "golden", "llama"))
