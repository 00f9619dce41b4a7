# SPDX-License-Identifier: Apache-2.0
"""safetensors files with the metadata of packed matrices (docs/formats.md): reading and writing."""
import json
import os
import struct

import numpy as np

TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64, "I32": np.int32,
         "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_}  # NumPy has no bfloat16: its bits
_MAX_HEADER = 100_000_000


class File:
    """A file that `requite` wrote, mapped. path: of the file, or of a folder with a model.safetensors.

    tensors   {name: {"dtype", "shape", "data_offsets"}}
    linears   {matrix: entry} of the packed matrices
    rotation  of the residual stream, or None
    """

    def __init__(self, path):
        path = os.fspath(path)
        self.path = os.path.join(path, "model.safetensors") if os.path.isdir(path) else path
        with open(self.path, "rb") as f:
            size = os.fstat(f.fileno()).st_size
            head = f.read(8)
            n = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            if not 2 <= n <= min(size - 8, _MAX_HEADER): raise ValueError(f"{self.path} is no safetensors file: a header of {n} bytes")
            header = json.loads(f.read(n))
        meta = header.pop("__metadata__", {})
        if "requite" not in meta:
            raise ValueError(f"{self.path} was not written by `requite quantize`: it has no metadata \"requite\". "
                             "`requite convert --to requite` makes such a folder of another tool's")
        said = json.loads(meta["requite"])
        if said.get("version") != 1: raise ValueError(f"{self.path}: metadata \"requite\" is of version {said.get('version')}; this package reads 1")
        self.tensors, self.linears, self.rotation = header, said["linears"], said.get("rotation")
        self._start = 8 + n
        self._map = np.memmap(self.path, np.uint8, "r")
        for name, t in header.items():
            begin, end = t["data_offsets"]
            wanted = int(np.prod(t["shape"], dtype=np.int64)) * np.dtype(TYPES[t["dtype"]]).itemsize if t["dtype"] in TYPES else -1
            if not 0 <= begin <= end <= size - self._start or end - begin != wanted:
                raise ValueError(f"{self.path}: {name} ({t['dtype']}, {t['shape']}) does not fit its place, bytes {begin} to {end}")

    def place(self, name: str) -> int:
        """Where in the file a tensor begins."""
        return self._start + self.tensors[name]["data_offsets"][0]

    def array(self, name: str) -> np.ndarray:
        """A tensor as it is stored (bfloat16 as uint16), read-only."""
        if name not in self.tensors: raise ValueError(f"{self.path} has no tensor {name}")
        t = self.tensors[name]
        begin, end = t["data_offsets"]
        return self._map[self._start + begin:self._start + end].view(TYPES[t["dtype"]]).reshape(t["shape"])


def write(path, tensors: dict, linears: dict) -> None:
    """{name: array} as a file, `linears` in its metadata; laid out as the C library does: large elements first, then by name.

    Written aside and renamed, so that a reader sees the old file or the whole new one.
    """
    types = {np.dtype(v): k for k, v in TYPES.items() if k != "BF16"}
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header, at = {"__metadata__": {"requite": json.dumps({"version": 1, "linears": linears}, separators=(",", ":")), "format": "pt"}}, 0
    for name in order:
        a = tensors[name]
        if a.dtype not in types: raise TypeError(f"{name} has dtype {a.dtype}, which is none of {sorted(types.values())}")
        header[name] = {"dtype": types[a.dtype], "shape": list(a.shape), "data_offsets": [at, at + a.nbytes]}
        at += a.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path = os.fspath(path)
    try:
        with open(path + ".tmp", "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text)
            for name in order: f.write(np.ascontiguousarray(tensors[name]).tobytes())
            f.flush()
            os.fsync(f.fileno())
        os.rename(path + ".tmp", path)
    except OSError:
        if os.path.exists(path + ".tmp"): os.unlink(path + ".tmp")
        raise
