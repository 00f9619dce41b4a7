# SPDX-License-Identifier: Apache-2.0
"""A folder that `requite quantize` wrote (docs/formats.md): its tensors as NumPy arrays, and a copy of it with other values.

A copy keeps header, types and sizes: only the bytes of the tensors that are given change, so that a copy with nothing given is
the same file.
"""
import json
import os
import shutil

import numpy as np

from ._safetensors import File


def unpack_bits(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """int32 words [n, ceil(count bits / 32)], each row one stream with the least significant bit first, as uint32 codes [n, count]."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")[:, :count * bits]
    stream = stream.reshape(len(words), count, bits)
    codes = np.zeros((len(words), count), np.uint32)
    for b in range(bits): codes |= stream[:, :, b].astype(np.uint32) << np.uint32(b)
    return codes


def pack_signs(negative: np.ndarray) -> np.ndarray:
    """Booleans [n, count] as int32 words, one bit each."""
    padded = np.zeros((len(negative), -(-negative.shape[1] // 32) * 32), np.bool_)
    padded[:, :negative.shape[1]] = negative
    return np.packbits(padded, axis=1, bitorder="little").view(np.int32)


def widen_bf16(a: np.ndarray) -> np.ndarray:
    return (a.astype(np.uint32) << 16).view(np.float32)


def round_bf16(a: np.ndarray) -> np.ndarray:
    """float32 to the nearest bfloat16, ties to even, as its uint16."""
    u = np.ascontiguousarray(a, np.float32).view(np.uint32)
    return ((u + 0x7fff + ((u >> 16) & 1)) >> 16).astype(np.uint16)


class Container(File):
    """folder/model.safetensors, mapped, and beside its tensors and matrices

    config    config.json
    rotated   whether the residual stream is
    """

    def __init__(self, folder):
        self.folder = os.fspath(folder)
        with open(os.path.join(self.folder, "config.json"), encoding="utf-8") as f: self.config = json.load(f)
        super().__init__(os.path.join(self.folder, "model.safetensors"))
        self.rotated = self.rotation is not None

    def floats(self, name: str) -> np.ndarray:
        """A tensor of floats in float32."""
        a, dtype = self.array(name), self.tensors[name]["dtype"]
        if dtype == "BF16": return widen_bf16(a)
        if dtype not in ("F16", "F32"): raise ValueError(f"{self.path}: {name} is {dtype}; F32, F16 or BF16 is wanted")
        return a.astype(np.float32)

    def matrix(self, name: str) -> np.ndarray:
        """Matrix `name` in float32, dense in the file or of format grid."""
        if name not in self.linears: return self.floats(name + ".weight")
        entry = self.linears[name]
        if entry["format"] != "grid":
            raise ValueError(f"{self.path}: {name} is of format {entry['format']}; beside ssvq, dense matrices and format grid can be read")
        n_out, n_in = (int(n) for n in self.array(name + ".weight_shape"))
        codes = unpack_bits(self.array(name + ".weight_packed"), entry["bits"], n_in).astype(np.float32)
        scale = self.floats(name + ".weight_scale")
        group = np.arange(n_in) // entry["group"]
        if name + ".weight_g_idx" in self.tensors: group = self.array(name + ".weight_g_idx")
        if entry["sym"]: return scale[:, group] * (codes - np.float32(1 << (entry["bits"] - 1)))
        down = self.array(name + ".weight_zero_point")  # for each group a stream down the rows
        zero = unpack_bits(np.ascontiguousarray(down.T), entry["bits"], n_out).T.astype(np.float32)
        return scale[:, group] * (codes - zero[:, group])

    def copy(self, out: str, changed: dict, report: dict) -> None:
        """The folder as `out`, with `changed` {tensor: array of its stored type and shape} and report.json's keys of `report`.

        Everything is written to out + ".partial" and renamed. `out` must not exist.
        """
        if os.path.exists(out): raise ValueError(f"{out} exists already")
        partial = out + ".partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(self.folder, partial)
        with open(os.path.join(partial, "model.safetensors"), "r+b") as f:
            for name, array in changed.items():
                old = self.array(name)
                if array.dtype != old.dtype or array.shape != old.shape:
                    raise ValueError(f"{name} is {array.dtype} {array.shape}, in {self.path} {old.dtype} {old.shape}")
                f.seek(self.place(name))
                f.write(np.ascontiguousarray(array).tobytes())
            f.flush()
            os.fsync(f.fileno())
        if report:
            path, old = os.path.join(partial, "report.json"), {}
            if os.path.exists(path):
                with open(path, encoding="utf-8") as f: old = json.load(f)
            with open(path, "w", encoding="utf-8") as f: json.dump({**old, **report}, f, indent=1)
        os.rename(partial, out)
