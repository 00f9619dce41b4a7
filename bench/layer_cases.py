#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Layers of a Llama-family GGUF as cases for `requite layer`, with the statistics of two texts.

usage: layer_cases.py MODEL.gguf OUT_FOLDER --calib IDS.safetensors --held IDS.safetensors [--blocks 4,14]

For each block BLOCK_qkv, _o, _gateup and _down.safetensors: W F32 [n_out, n_in] (q k v, and gate up, stacked), H = sum x x^T over the calibration
windows' inputs and H_held over the other text's, both without the first token of a window. Weights of type F32, Q4_1 or Q8_0, tied or not; interleaved rotary
positions, as GGUF orders rows. The forward pass is plain numpy, in fp32, and only as deep as the last block wanted."""
import argparse, json, os, struct

import numpy as np

FIXED = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class Gguf:
    def __init__(self, path):
        with open(path, "rb") as f:
            assert f.read(4) == b"GGUF", path
            _, n_tensors, n_kv = self.unpack(f, "IQQ")
            self.meta = {self.text(f): self.value(f, self.unpack(f, "I")[0]) for _ in range(n_kv)}
            self.tensors = {}
            for _ in range(n_tensors):
                name, rank = self.text(f), self.unpack(f, "I")[0]
                self.tensors[name] = (self.unpack(f, f"{rank}Q")[::-1], *self.unpack(f, "IQ"))
            align = self.meta.get("general.alignment", 32)
            self.base = -(-f.tell() // align) * align
        self.bytes = np.memmap(path, np.uint8, "r")

    @staticmethod
    def unpack(f, form):
        return struct.unpack("<" + form, f.read(struct.calcsize("<" + form)))

    def text(self, f):
        return f.read(self.unpack(f, "Q")[0]).decode("utf-8", "replace")

    def value(self, f, kind):
        if kind == 8: return self.text(f)
        if kind != 9: return self.unpack(f, FIXED[kind])[0]
        kind, n = self.unpack(f, "IQ")
        return [self.value(f, kind) for _ in range(n)]

    def blocks(self, at, n, size):
        b = np.array(self.bytes[at:at + n // 32 * size]).reshape(-1, size)
        half = lambda c: b[:, c:c + 2].copy().view(np.float16).astype(np.float32)
        if size == 34: return b[:, 2:].copy().view(np.int8) * half(0)
        return np.concatenate([b[:, 4:] & 15, b[:, 4:] >> 4], 1) * half(0) + half(2)

    def get(self, name):
        shape, kind, offset = self.tensors[name]
        n, at = int(np.prod(shape)), self.base + offset
        if kind == 0: return np.array(self.bytes[at:at + 4 * n]).view(np.float32).reshape(shape)
        assert kind in (3, 8), f"{name}: type {kind}; F32, Q4_1 and Q8_0 are read"
        return self.blocks(at, n, 20 if kind == 3 else 34).astype(np.float32).reshape(shape)


def ids_of(path):
    with open(path, "rb") as f:
        n = struct.unpack("<Q", f.read(8))[0]
        entry = [v for k, v in json.loads(f.read(n)).items() if k != "__metadata__"][0]
        kind = {"I32": np.int32, "I64": np.int64, "U16": np.uint16, "U32": np.uint32}[entry["dtype"]]
        return np.frombuffer(f.read(), kind).reshape(entry["shape"]).astype(np.int64)


def save(path, tensors):
    entries, at = {}, 0
    for name, v in tensors.items():
        entries[name] = {"dtype": "F32", "shape": list(v.shape), "data_offsets": [at, at + 4 * v.size]}
        at += 4 * v.size
    head = json.dumps(entries).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head)
        for v in tensors.values(): f.write(np.ascontiguousarray(v, np.float32).tobytes())


def statistics(g, ids, wanted):
    """{(block, name): H}"""
    meta = lambda key, default=None: g.meta.get("llama." + key, default)
    n_head, eps = meta("attention.head_count"), meta("attention.layer_norm_rms_epsilon")
    n_kv = meta("attention.head_count_kv", n_head)
    embedding = g.get("token_embd.weight")
    x, (n_window, length) = embedding[ids], ids.shape
    dim = x.shape[-1] // n_head
    angle = np.arange(length)[:, None] * meta("rope.freq_base", 1e4) ** (-np.arange(0, dim, 2) / dim)
    cos, sin = np.cos(angle).astype(np.float32)[:, None], np.sin(angle).astype(np.float32)[:, None]
    norm = lambda v, gain: v / np.sqrt((v * v).mean(-1, keepdims=True) + eps) * gain
    mask = np.triu(np.full((length, length), -1e9, np.float32), 1)
    out = {}

    def rotated(v):
        even, odd, to = v[..., 0::2], v[..., 1::2], np.empty_like(v)
        to[..., 0::2], to[..., 1::2] = even * cos - odd * sin, even * sin + odd * cos
        return to

    def keep(block, name, v):
        v = v[:, 1:].reshape(-1, v.shape[-1]).astype(np.float64)
        if block in wanted: out[block, name] = v.T @ v

    for b in range(max(wanted) + 1):
        w = lambda name: g.get(f"blk.{b}.{name}.weight")
        h = norm(x, w("attn_norm"))
        keep(b, "qkv", h)
        heads = lambda name, n: (h @ w(name).T).reshape(n_window, length, n, dim)
        q, k, v = rotated(heads("attn_q", n_head)), rotated(heads("attn_k", n_kv)), heads("attn_v", n_kv)
        k, v = np.repeat(k, n_head // n_kv, 2), np.repeat(v, n_head // n_kv, 2)
        for i in range(n_window):
            p = q[i].transpose(1, 0, 2) @ k[i].transpose(1, 2, 0) / np.float32(np.sqrt(dim)) + mask
            p = np.exp(p - p.max(-1, keepdims=True))
            q[i] = (p / p.sum(-1, keepdims=True) @ v[i].transpose(1, 0, 2)).transpose(1, 0, 2)
        a = q.reshape(n_window, length, -1)
        keep(b, "o", a)
        x = x + a @ w("attn_output").T
        h = norm(x, w("ffn_norm"))
        keep(b, "gateup", h)
        gate = h @ w("ffn_gate").T
        f = gate / (1 + np.exp(-gate)) * (h @ w("ffn_up").T)
        keep(b, "down", f)
        x = x + f @ w("ffn_down").T
    return out


PARTS = {"qkv": ("attn_q", "attn_k", "attn_v"), "o": ("attn_output",), "gateup": ("ffn_gate", "ffn_up"), "down": ("ffn_down",)}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("model"), p.add_argument("out")
    p.add_argument("--calib", required=True), p.add_argument("--held", required=True), p.add_argument("--blocks", default="4,14")
    args = p.parse_args()
    g, wanted = Gguf(args.model), [int(b) for b in args.blocks.split(",")]
    os.makedirs(args.out, exist_ok=True)
    calib, held = (statistics(g, ids_of(path), wanted) for path in (args.calib, args.held))
    for (block, name), h in calib.items():
        w = np.concatenate([g.get(f"blk.{block}.{part}.weight") for part in PARTS[name]])
        save(os.path.join(args.out, f"b{block}_{name}.safetensors"), {"W": w, "H": h, "H_held": held[block, name]})


if __name__ == "__main__":
    main()
