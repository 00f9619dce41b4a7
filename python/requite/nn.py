# SPDX-License-Identifier: Apache-2.0
"""Linear layers over packed weights, for PyTorch.

QuantLinear  one layer of any of our formats. Its buffers have the names and contents of the tensors in a file that `requite quantize`
             wrote (docs/formats.md), so that load_state_dict takes them as they are.

What the operators read is made of those buffers when they are loaded: zero points as bytes, columns in the order of their groups,
codebooks of a power of two entries. It moves with the module and is not saved. A module on a CUDA device has there what the kernels
read, and keeps the file's tensors on the CPU.
"""
from typing import Optional

from .ops import torch, why_no_cuda  # first: it says what is missing
from . import _bits

_ops = torch.ops.requite
_FLOATS = {"F16": torch.float16, "F32": torch.float32}


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


class QuantLinear(torch.nn.Module):
    """y = x W^T + bias for packed W. x may be of any float type and shape [..., in_features]; the product is computed in float32
    and y has the type of x.

    entry      the matrix's entry in the metadata of the file: {"format": "grid", "bits": 3, "group": 128, "sym": False}
    tensors    {"weight_packed": tensor, ...}, the file's without the matrix's name; None for empty buffers, to be filled by
               load_state_dict (then scale_dtype, act_order and book_dtype say what is not in the entry)
    bias       [out_features] or None; True for an empty one
    book_from  QuantLinear whose codebook this one takes (entry["book"] names another matrix)
    """

    def __init__(self, in_features: int, out_features: int, entry: dict, tensors: Optional[dict] = None, bias=None, book_from=None,
                 *, scale_dtype: str = "F16", act_order: bool = False, book_dtype: str = "F16"):
        super().__init__()
        if entry.get("format") not in _KINDS: raise ValueError(f"entry: format {entry.get('format')!r} is none of {sorted(_KINDS)}")
        self.in_features, self.out_features, self.entry = int(in_features), int(out_features), dict(entry)
        self.kind = _KINDS[entry["format"]]
        self._book_from = None if book_from is None else (book_from,)  # in a tuple: no module of this one
        expected = self.kind.buffers(self, scale_dtype, act_order, book_dtype)
        shape = torch.tensor([self.out_features, self.in_features])
        for name, (dtype, size) in expected.items():
            first = {"weight_shape": shape, "weight_g_idx": torch.arange(self.in_features, dtype=torch.int32) // (entry.get("group") or 1)}
            self.register_buffer(name, first.get(name, torch.zeros(size, dtype=dtype)))
        self.register_buffer("bias", None if bias is None or bias is False else
                             torch.zeros(self.out_features) if bias is True else bias.detach().clone())
        for name in self.kind.derived: self.register_buffer("run_" + name, None, persistent=False)
        # On a CUDA device: what its kernels read. The file's tensors stay on the CPU then.
        for name in ("tiles", "tiles_perm"): self.register_buffer("run_" + name, None, persistent=False)
        self._layout = None
        if tensors is not None: self._take(tensors)
        self.refresh()

    def _take(self, tensors: dict) -> None:
        for name in tensors:
            if name not in self._buffers: raise ValueError(f"tensors: {name} is not part of a matrix {self.entry}")
        for name, buffer in list(self._buffers.items()):
            if name == "bias" or name.startswith("run_"): continue
            if name not in tensors: raise ValueError(f"tensors: {name} is missing")
            self._buffers[name] = self._fitting(name, tensors[name], buffer)

    @staticmethod
    def _fitting(name, tensor, buffer):
        if tensor.dtype != buffer.dtype: raise ValueError(f"{name} has dtype {tensor.dtype}, not {buffer.dtype}")
        if tensor.shape != buffer.shape: raise ValueError(f"{name} has shape {list(tensor.shape)}, not {list(buffer.shape)}")
        if name == "weight_shape" and not torch.equal(tensor.cpu(), buffer.cpu()):
            raise ValueError(f"weight_shape is {tensor.tolist()}, and the layer [out, in] {buffer.tolist()}")
        return tensor.detach().contiguous()

    @property
    def book_owner(self) -> "QuantLinear":
        return self if self._book_from is None else self._book_from[0]

    def refresh(self) -> None:
        """Work out again what the operators read. Done by load_state_dict and on every move; call it after writing to a buffer."""
        if self.weight_shape.is_meta: return
        for name, value in self.kind.derive(self).items(): self._buffers["run_" + name] = value
        if self.run_tiles is not None: self._fill_tiles(self.run_tiles.device)

    def _fill_tiles(self, device) -> None:
        tiles, layout = self.kind.tiles(self)
        self._layout = layout.tolist()
        self.run_tiles = tiles.to(device)
        perm = self._buffers.get("run_perm")
        self.run_tiles_perm = None if perm is None else perm.to(device)

    def _apply(self, fn, recurse=True):
        device = fn(torch.empty(0)).device
        if device.type == "cuda":
            reason = why_no_cuda()
            if reason is not None: raise RuntimeError(f"the layer cannot go to {device}: {reason}")
            if self.bias is not None: self.bias = fn(self.bias)
            if self.run_tiles is None or self.run_tiles.device != device: self._fill_tiles(device)
            return self
        self.run_tiles = self.run_tiles_perm = None
        # Scales and codebooks keep their type: model.bfloat16() is about activations.
        for name, buffer in self._buffers.items():
            if buffer is None: continue
            moved = fn(buffer)
            self._buffers[name] = moved if moved.dtype == buffer.dtype else buffer.to(moved.device)
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args, **kw):
        super()._load_from_state_dict(state_dict, prefix, *args, **kw)
        self.refresh()

    def forward(self, x):
        if x.shape[-1] != self.in_features: raise ValueError(f"x has shape {list(x.shape)}: rows of {self.in_features} are wanted")
        if x.device.type == "cuda":
            if self.run_tiles is None: raise RuntimeError(f"x is on {x.device}, and the layer is not: layer.to(x.device)")
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return _ops.linear_tiles(x.contiguous(), self.run_tiles, self.run_tiles_perm, bias, self._layout)
        if self.run_tiles is not None: raise RuntimeError(f"x is on {x.device}, and the layer on {self.run_tiles.device}")
        bias = None if self.bias is None else self.bias.float()
        return self.kind.linear(self, x.float().contiguous(), bias).to(x.dtype)

    def dequantize(self):
        """The dense weights, float32 [out_features, in_features], on the CPU."""
        return self.kind.unpack(self)

    def extra_repr(self) -> str:
        settings = ", ".join(f"{k}={v}" for k, v in self.entry.items() if k not in ("book", "book_users"))
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, {settings}"

    @classmethod
    def from_packed(cls, packed, bias=None, book_from=None) -> "QuantLinear":
        """From quantize_linear(...).packed, of any format. bias: [n_out], an array or a tensor; book_from: as above."""
        tensors = {name: torch.as_tensor(t) for name, t in packed.tensors.items()}
        if "weight_shape" not in tensors: raise ValueError("packed: weight_shape is missing")
        n_out, n_in = tensors["weight_shape"].tolist()
        scale, book = tensors.get("weight_scale"), tensors.get("weight_book")
        return cls(n_in, n_out, packed.entry, tensors, None if bias is None else torch.as_tensor(bias), book_from, act_order="weight_g_idx" in tensors,
                   scale_dtype="F32" if scale is not None and scale.dtype == torch.float32 else "F16",
                   book_dtype="U8" if book is not None and book.dtype == torch.uint8 else "F16")

    @classmethod
    def from_codes(cls, codes, scale, zero, g_idx=None, *, bits: int, group: int = 0, bias=None) -> "QuantLinear":
        """From codes of a grid, one a byte: codes uint8 [n_out, n_in], scale and zero [n_out, n_group], g_idx [n_in]."""
        codes, scale, zero = (torch.as_tensor(t) for t in (codes, scale, zero))
        n_out, n_in = codes.shape
        group = group or n_in
        if scale.shape != (n_out, _ceil(n_in, group)): raise ValueError(f"scale has shape {list(scale.shape)}, and groups of {group} make {[n_out, _ceil(n_in, group)]}")
        if zero.shape != scale.shape: raise ValueError(f"zero has shape {list(zero.shape)}, not {list(scale.shape)}")
        if int(codes.max()) >= 1 << bits: raise ValueError(f"codes hold {int(codes.max())}: that is no code of {bits} bits")
        half = scale.half()
        exact = torch.equal(half.float(), scale.float())
        sym = bool((zero == 1 << (bits - 1)).all())
        tensors = {"weight_packed": _bits.pack(codes, bits), "weight_scale": half if exact else scale.float(),
                   "weight_shape": torch.tensor([n_out, n_in])}
        if not sym: tensors["weight_zero_point"] = _bits.pack(zero.T, bits).T.contiguous()
        ordered = g_idx is not None and not torch.equal(torch.as_tensor(g_idx).long(), torch.arange(n_in) // group)
        if ordered: tensors["weight_g_idx"] = torch.as_tensor(g_idx).int()
        entry = {"format": "grid", "bits": bits, "group": group, "sym": sym}
        return cls(n_in, n_out, entry, tensors, bias, scale_dtype="F16" if exact else "F32", act_order=ordered)


class _Kind:
    """What is a format's own: buffers as in the file, what derive() makes of them, and what the operators take. All operators of a
    format take _args first, then (bias,) `rows`, for weights alone n_in, and the values of `sizes`."""
    derived: tuple = ()
    n_tiled = None  # how many of _args go into tiles; None: all

    def __init_subclass__(cls, name: str, sizes: tuple):
        cls.name, cls.sizes = name, sizes
        cls.linear_op, cls.unpack_op, cls.tiles_op = (getattr(_ops, f"{verb}_{name}") for verb in ("linear", "unpack", "tiles"))

    @staticmethod
    def derive(_m):
        return {}

    @staticmethod
    def rows(_m):
        return ()

    @classmethod
    def settings(cls, m):
        return tuple(m.entry[key] for key in cls.sizes)

    @classmethod
    def linear(cls, m, x, bias):
        return cls.linear_op(x, *cls._args(m), bias, *cls.rows(m), *cls.settings(m))

    @classmethod
    def unpack(cls, m):
        return cls.unpack_op(*cls._args(m), *cls.rows(m), m.in_features, *cls.settings(m))

    @classmethod
    def tiles(cls, m):
        return cls.tiles_op(*cls._args(m)[:cls.n_tiled], *cls.rows(m), m.in_features, *cls.settings(m))


class _Grid(_Kind, name="grid", sizes=("bits", "group")):
    derived = ("words", "zero", "perm")
    n_tiled = 3  # columns are in order there, and perm goes beside

    @staticmethod
    def buffers(m, scale_dtype, act_order, _book_dtype):
        bits, groups = m.entry["bits"], _ceil(m.in_features, m.entry["group"])
        if bits not in (2, 3, 4, 8): raise ValueError(f"entry: bits is {bits}: 2, 3, 4 or 8 is wanted")
        out = {"weight_packed": (torch.int32, (m.out_features, _ceil(m.in_features * bits, 32))),
               "weight_scale": (_FLOATS[scale_dtype], (m.out_features, groups)), "weight_shape": (torch.int64, (2,))}
        if not m.entry["sym"]: out["weight_zero_point"] = (torch.int32, (_ceil(m.out_features * bits, 32), groups))
        if act_order: out["weight_g_idx"] = (torch.int32, (m.in_features,))
        return out

    @staticmethod
    def derive(m):
        bits, out = m.entry["bits"], {"words": None, "zero": None, "perm": None}
        if not m.entry["sym"]:
            out["zero"] = _bits.unpack(m.weight_zero_point.T.contiguous(), bits, m.out_features).T.to(torch.uint8).contiguous()
        if "weight_g_idx" in m._buffers:  # columns of a group together, in their order
            order, perm = torch.sort(m.weight_g_idx, stable=True)
            if not torch.equal(order.long(), torch.arange(m.in_features, device=order.device) // m.entry["group"]):
                raise ValueError(f"weight_g_idx: groups are of {m.entry['group']} columns each, but the last")
            out["perm"] = perm.int()
            out["words"] = _bits.pack(_bits.unpack(m.weight_packed, bits, m.in_features)[:, perm], bits)
        return out

    @staticmethod
    def _args(m):
        return (m.weight_packed if m.run_words is None else m.run_words), m.weight_scale, m.run_zero, m.run_perm


def _outlier_buffers(m):
    k = m.entry.get("n_outlier", 0)
    if not k: return {}
    return {"weight_outlier": (torch.int8, (m.out_features, k)), "weight_outlier_cols": (torch.int32, (k,)),
            "weight_outlier_scale": (torch.float32, (k,))}


def _outliers(m):
    return tuple(m._buffers.get("weight_outlier" + end) for end in ("", "_cols", "_scale"))


def _padded(book, bits: int):
    """A codebook with 2^bits entries: those that no code picks are zeros. None where it has them all."""
    if book is None or book.shape[1] == 1 << bits: return None
    return torch.nn.functional.pad(book, (0, 0, 0, (1 << bits) - book.shape[1]))


class _Ssvq(_Kind, name="ssvq", sizes=("book_cols", "group")):
    derived = ("book",)

    @staticmethod
    def buffers(m, _scale_dtype, _act_order, book_dtype):
        e, words = m.entry, _ceil(m.in_features, m.entry["vec_len"])
        books = _ceil(m.in_features, e["book_cols"])
        out = {"weight_codes": (torch.int32, (m.out_features, _ceil(words * e["code_bits"], 32))),
               "weight_signs": (torch.int32, (m.out_features, _ceil(words * e["vec_len"], 32))),
               "weight_scale": (torch.float16, (m.out_features, _ceil(m.in_features, e["group"]))), "weight_shape": (torch.int64, (2,)),
               **_outlier_buffers(m)}
        if m._book_from is None:
            out["weight_book"] = (torch.uint8 if book_dtype == "U8" else torch.float16, (books, e["n_codes"], e["vec_len"]))
            if book_dtype == "U8": out["weight_book_scale"] = (torch.float32, (books,))
        return out

    @staticmethod
    def derive(m):
        return {"book": _padded(m._buffers.get("weight_book"), m.entry["code_bits"])}

    @staticmethod
    def _args(m):
        owner = m.book_owner
        book = owner.weight_book if owner.run_book is None else owner.run_book
        return (m.weight_codes, m.weight_signs, book, owner._buffers.get("weight_book_scale"), m.weight_scale, *_outliers(m))


class _Vq(_Kind, name="vq", sizes=()):
    derived = ("book", "book2")

    @staticmethod
    def buffers(m, _scale_dtype, _act_order, _book_dtype):
        e, vec_out = m.entry, m.entry["vec_axis"] == "out"
        lines = _ceil(m.out_features, e["vec_len"]) if vec_out else m.out_features
        n_code = m.in_features if vec_out else _ceil(m.in_features, e["vec_len"])
        books = _ceil(m.in_features, e["book_cols"])
        out = {"weight_shape": (torch.int64, (2,)), **_outlier_buffers(m)}
        for i, (bits, n) in enumerate(zip(e["code_bits"], e["n_codes"])):
            end = "2" if i else ""
            out["weight_codes" + end] = (torch.int32, (lines, _ceil(n_code * bits, 32)))
            if m._book_from is None: out["weight_book" + end] = (torch.float16, (books, n, e["vec_len"]))
        if e.get("book_of") and m._book_from is None: out["weight_book_of"] = (torch.uint8, (m.in_features,))
        if e["scales"]: out["weight_scale"] = (torch.float16, (m.out_features, _ceil(m.in_features, e["group"])))
        if e["columns"]: out.update({name: (torch.float16, (m.in_features,)) for name in ("weight_col_scale", "weight_col_bias")})
        return out

    @staticmethod
    def derive(m):
        return {"book" + end: _padded(m._buffers.get("weight_book" + end), m.entry["code_bits"][i]) if i < len(m.entry["code_bits"]) else None
                for i, end in enumerate(("", "2"))}

    @staticmethod
    def _args(m):
        owner = m.book_owner

        def book(end): return owner._buffers.get("weight_book" + end) if owner._buffers["run_book" + end] is None else owner._buffers["run_book" + end]

        rest = (m._buffers.get("weight_" + n) for n in ("scale", "col_scale", "col_bias"))
        return (m.weight_codes, book(""), m._buffers.get("weight_codes2"), book("2"), owner._buffers.get("weight_book_of"), *rest, *_outliers(m))

    @staticmethod
    def rows(m):
        return (m.out_features,)

    @classmethod
    def settings(cls, m):
        return m.entry["book_cols"], m.entry["group"], m.entry["vec_axis"] == "out"


class _W4a8(_Kind, name="w4a8", sizes=("group", "hadamard")):
    @staticmethod
    def buffers(m, _scale_dtype, _act_order, _book_dtype):
        e = m.entry
        out = {"weight_packed": (torch.int32, (m.out_features, _ceil(m.in_features, 8))), "weight_scale": (torch.float32, (m.out_features,)),
               "weight_shape": (torch.int64, (2,))}
        if e["group"]:
            levels = (m.out_features, _ceil(m.in_features, e["group"]))
            out.update({"weight_step": (torch.uint8, levels), "weight_base": (torch.int8, levels)})
        elif not e["sym"]: out["weight_zero"] = (torch.uint8, (m.out_features,))
        if e["in_scale"]: out["weight_in_scale"] = (torch.float32, (m.in_features,))
        return out

    @staticmethod
    def _args(m):
        return (m.weight_packed, m.weight_scale, *(m._buffers.get("weight_" + n) for n in ("zero", "step", "base", "in_scale")))


_KINDS = {kind.name: kind for kind in (_Grid, _Ssvq, _Vq, _W4a8)}
