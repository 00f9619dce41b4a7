# SPDX-License-Identifier: Apache-2.0
"""The forward pass of a Llama (Mistral, Qwen2) in PyTorch, over a folder that `requite quantize` wrote: ssvq matrices as
SSVQLinear, everything else as it is in the file. Whole windows from position 0, no cache; host/llama.h is the same in C."""
import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ._container import Container
from .ssvq import load_ssvq, power_of_two

LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


class Norm(nn.Module):
    """RMSNorm; `gain` is in units of `unit`, so that one learning rate fits all."""

    def __init__(self, gain, eps: float):
        super().__init__()
        self.unit, self.eps = power_of_two(gain), eps
        self.gain = nn.Parameter(torch.from_numpy(gain) / self.unit)

    def forward(self, x):
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * (self.gain * self.unit)


class Dense(nn.Module):
    """A matrix that is not trained."""

    def __init__(self, weight, bias=None):
        super().__init__()
        self.register_buffer("weight", torch.from_numpy(weight), persistent=False)
        self.register_buffer("bias", None if bias is None else torch.from_numpy(bias), persistent=False)

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


def rope_frequencies(config: dict, head_dim: int):
    """[head_dim / 2] angles per position: plain, linear or llama3 scaling."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    base = config.get("rope_theta") or scaling.get("rope_theta") or 10000.0
    freq = base ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "linear": freq = freq / scaling["factor"]
    elif kind == "llama3":
        low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
        turns = scaling["original_max_position_embeddings"] * freq / (2 * math.pi)  # in the original context
        smooth = ((turns - low) / (high - low)).clamp(0, 1)
        freq = freq / factor * (1 - smooth) + freq * smooth
    elif kind != "default": raise ValueError(f"rope_scaling is of type {kind}: default, linear and llama3 can be run")
    return freq


class Block(nn.Module):
    def __init__(self, file: Container, prefix: str, linears: dict):
        super().__init__()
        c = file.config
        self.n_head = c["num_attention_heads"]
        self.n_kv = c.get("num_key_value_heads") or self.n_head
        eps = c["rms_norm_eps"]
        self.norm1 = Norm(file.floats(prefix + "input_layernorm.weight"), eps)
        self.norm2 = Norm(file.floats(prefix + "post_attention_layernorm.weight"), eps)
        for suffix in LINEARS:
            name = prefix + suffix
            bias = file.floats(name + ".bias") if name + ".bias" in file.tensors else None
            setattr(self, suffix.split(".")[1][:-5], linears[name] if name in linears else Dense(file.matrix(name), bias))

    def forward(self, x, cos, sin):
        n, length, _ = x.shape
        u = self.norm1(x)
        q, k, v = (lin(u).view(n, length, heads, -1).transpose(1, 2)
                   for lin, heads in ((self.q, self.n_head), (self.k, self.n_kv), (self.v, self.n_kv)))
        q, k = turn(q, cos, sin), turn(k, cos, sin)
        k, v = (t.repeat_interleave(self.n_head // self.n_kv, 1) for t in (k, v))
        a = F.scaled_dot_product_attention(q, k, v.to(q.dtype), is_causal=True)
        x = x + self.o(a.transpose(1, 2).reshape(n, length, -1))
        u = self.norm2(x)
        return x + self.down(F.silu(self.gate(u)) * self.up(u))


def turn(x, cos, sin):
    """Rotary embedding of [n, heads, length, head_dim]: feature i turns with feature i + head_dim / 2."""
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


class Llama(nn.Module):
    """hidden(ids) is what the head multiplies; logits are hidden @ head.weight^T."""

    def __init__(self, folder, alpha: float = 1.0):
        super().__init__()
        self.file = file = Container(folder)
        c = file.config
        if file.rotated: raise ValueError(f"{file.path}: the residual stream is rotated (--rotate), which fine-tuning does not know")
        if c.get("model_type") not in ("llama", "mistral", "qwen2"):
            raise ValueError(f"{folder}/config.json: model_type is {c.get('model_type')}; llama, mistral and qwen2 can be run")
        linears = load_ssvq(file, alpha)
        if not linears: raise ValueError(f"{file.path} has no matrix of format ssvq: there are no signs to train")
        self.register_buffer("embedding", torch.from_numpy(file.matrix("model.embed_tokens")), persistent=False)
        self.blocks = nn.ModuleList(Block(file, f"model.layers.{i}.", linears) for i in range(c["num_hidden_layers"]))
        self.norm = Norm(file.floats("model.norm.weight"), c["rms_norm_eps"])
        tied = c.get("tie_word_embeddings", False)
        self.register_buffer("head", self.embedding if tied else torch.from_numpy(file.matrix("lm_head")), persistent=False)
        unused = set(linears) - {f"model.layers.{i}.{s}" for i in range(len(self.blocks)) for s in LINEARS}
        if unused: raise ValueError(f"{file.path}: no part of a Llama multiplies by {sorted(unused)[0]}")
        self.linears = linears
        self.head_dim = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
        self.frequencies = rope_frequencies(c, self.head_dim)

    def hidden(self, ids, recompute: bool = False):
        """[n, length, d_model] for ids [n, length]. recompute: keep no inner activations, run blocks again in the backward pass."""
        angle = torch.arange(ids.shape[1], dtype=torch.float64)[:, None] * self.frequencies
        cos, sin = angle.cos().float(), angle.sin().float()
        x = self.embedding[ids]
        for block in self.blocks:
            x = checkpoint(block, x, cos, sin, use_reentrant=False) if recompute else block(x, cos, sin)
        return self.norm(x)

    @property
    def norms(self) -> dict:
        """{tensor: Norm}."""
        out = {"model.norm.weight": self.norm}
        for i, b in enumerate(self.blocks):
            out[f"model.layers.{i}.input_layernorm.weight"] = b.norm1
            out[f"model.layers.{i}.post_attention_layernorm.weight"] = b.norm2
        return out

    @torch.no_grad()
    def window_losses(self, ids, rows: int = 128):
        """Mean negative log likelihood of each window's predictions, [n], as `requite eval` counts them."""
        losses = []
        for window in ids:
            h, total = self.hidden(window[None])[0, :-1].float(), 0.0
            for i in range(0, len(h), rows):
                total += F.cross_entropy(h[i:i + rows] @ self.head.T, window[1 + i:1 + i + rows], reduction="sum").double()
            losses.append(total / len(h))
        return torch.stack(losses)
