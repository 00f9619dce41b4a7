# SPDX-License-Identifier: Apache-2.0
"""A folder that `requite quantize` wrote (docs/formats.md): its tensors as NumPy arrays, and a copy of it with other values.

A copy keeps header, types and sizes: only the bytes of the tensors that are given change, so that a copy with nothing given is
the same file.
"""
import json
import os
import shutil
import struct

import numpy as np

_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64, "I32": np.int32,
          "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_}
_MAX_HEADER = 100_000_000


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


class Container:
    """folder/model.safetensors, mapped.

    linears   {matrix: entry} of the packed matrices, from the metadata
    config    config.json
    rotated   whether the residual stream is
    """

    def __init__(self, folder):
        self.folder = os.fspath(folder)
        self.path = os.path.join(self.folder, "model.safetensors")
        with open(os.path.join(self.folder, "config.json"), encoding="utf-8") as f: self.config = json.load(f)
        size = os.path.getsize(self.path)
        with open(self.path, "rb") as f:
            head = f.read(8)
            n = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            if not 2 <= n <= min(size - 8, _MAX_HEADER): raise ValueError(f"{self.path} is no safetensors file: a header of {n} bytes")
            header = json.loads(f.read(n))
        meta = header.pop("__metadata__", {})
        if "requite" not in meta: raise ValueError(f"{self.path} was not written by `requite quantize`: it has no metadata \"requite\"")
        said = json.loads(meta["requite"])
        if said.get("version") != 1: raise ValueError(f"{self.path}: metadata \"requite\" is of version {said.get('version')}; this package reads 1")
        self.tensors, self.linears, self.rotated = header, said["linears"], said.get("rotation") is not None
        self._start = 8 + n
        self._map = np.memmap(self.path, np.uint8, "r")
        for name, t in header.items():
            begin, end = t["data_offsets"]
            wanted = int(np.prod(t["shape"], dtype=np.int64)) * np.dtype(_TYPES[t["dtype"]]).itemsize if t["dtype"] in _TYPES else -1
            if not 0 <= begin <= end <= size - self._start or end - begin != wanted:
                raise ValueError(f"{self.path}: {name} ({t['dtype']}, {t['shape']}) does not fit its place, bytes {begin} to {end}")

    def array(self, name: str) -> np.ndarray:
        """A tensor as it is stored (bfloat16 as uint16), read-only."""
        if name not in self.tensors: raise ValueError(f"{self.path} has no tensor {name}")
        t = self.tensors[name]
        begin, end = t["data_offsets"]
        return self._map[self._start + begin:self._start + end].view(_TYPES[t["dtype"]]).reshape(t["shape"])

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
                f.seek(self._start + self.tensors[name]["data_offsets"][0])
                f.write(np.ascontiguousarray(array).tobytes())
            f.flush()
            os.fsync(f.fileno())
        if report:
            path, old = os.path.join(partial, "report.json"), {}
            if os.path.exists(path):
                with open(path, encoding="utf-8") as f: old = json.load(f)
            with open(path, "w", encoding="utf-8") as f: json.dump({**old, **report}, f, indent=1)
        os.rename(partial, out)
