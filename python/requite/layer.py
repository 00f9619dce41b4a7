# SPDX-License-Identifier: Apache-2.0
"""One linear layer: rq_layer_quantize of host/rq.h."""
import ctypes
import json
import os
from dataclasses import dataclass, fields
from typing import Any, Optional

import numpy as np

from . import _safetensors
from ._arrays import as_numpy, floats, like
from ._library import LayerInfo, LayerTensor, library

SYMMETRIC = 1e-3  # of sqrt(h[i][i] h[j][j]): float32 sums pass, a matrix that is no Gram matrix does not


@dataclass(frozen=True)
class Info:
    """What quantizing cost. With E = w - q, H = h and D = d:"""
    loss_sym: float    # tr(E H E^T)
    loss_asym: float   # the same + 2 tr(w D E^T): how far outputs are from the original model's
    rel_loss: float    # loss_sym / tr(w H w^T)
    bpw: float         # bits per weight as packed, all side data counted
    damp_used: float   # what was added to the diagonal of h
    damp_retries: int  # times the damping had to be raised: h was not positive definite
    n_dead: int        # inputs that never were anything but 0


@dataclass(frozen=True)
class Packed:
    """A matrix as files have it (docs/formats.md): what requite.nn.QuantLinear.from_packed and requite.save take."""
    entry: dict    # its entry in the metadata: {"format": "grid", "bits": 3, "group": 128, "sym": False}
    tensors: dict  # {"weight_packed": int32 [n_out, words], "weight_scale": ...}, names without the matrix's


@dataclass(frozen=True)
class Result:
    """A quantized layer. On the grid q[i][j] = scale[i][g] * (codes[i][j] - zero[i][g]) with g = g_idx[j]; with another
    rounder codes, scale, zero and g_idx are None, and packed has what there is. Tensors where w was one, else NumPy arrays."""
    q: Any      # float32 [n_out, n_in], what the codes stand for
    codes: Any  # uint8 [n_out, n_in], 0 to 2^bits - 1
    scale: Any  # float32 [n_out, n_group]
    zero: Any   # uint8 [n_out, n_group]
    g_idx: Any  # int32 [n_in], the group of each input
    info: Info
    packed: Packed


def _word(name: str, value) -> str:
    """An option's value as the library reads it."""
    if isinstance(value, (bool, np.bool_)): return "true" if value else "false"
    if isinstance(value, (int, float, np.integer, np.floating)): return repr(value.item() if hasattr(value, "item") else value)
    if not isinstance(value, str): raise TypeError(f"{name} is {value!r}: a number, a word or True/False is wanted")
    if not value or set(value) & set(",=\0"): raise ValueError(f"{name} is {value!r}: that is no option's value")
    return value


def option_text(options: dict) -> str:
    """{"act_order": True, "bits": 3} as "act-order=true,bits=3"; None is left out, a preset comes first."""
    given = {name.replace("_", "-"): _word(name, value) for name, value in options.items() if value is not None}
    names = sorted(given, key=lambda name: name != "preset")  # stable: otherwise as given
    return ",".join(f"{name}={given[name]}" for name in names)


def _check_gram(h: np.ndarray) -> None:
    """h must be symmetric with no negative diagonal. Row blocks bound the memory that the question takes."""
    diagonal = np.diag(h)
    if diagonal.min() < 0:
        j = int(diagonal.argmin())
        raise ValueError(f"h[{j}, {j}] is {diagonal[j]:g}: the diagonal of a sum of x x^T is not negative")
    root = np.sqrt(diagonal)
    for begin in range(0, len(h), 512):
        rows = slice(begin, begin + 512)
        # Beside an input that is always 0 anything but 0 counts, up to what rounding leaves.
        over = np.abs(h[rows] - h[:, rows].T) - SYMMETRIC * root[rows, None] * root[None, :]
        if over.max() > 1e-12 * diagonal.max():
            i, j = (int(k) for k in np.unravel_index(over.argmax(), over.shape))
            raise ValueError(f"h is not symmetric: h[{i + begin}, {j}] is {h[i + begin, j]:g} and h[{j}, {i + begin}] is "
                             f"{h[j, i + begin]:g}")


def _pointer(array: Optional[np.ndarray], c_type):
    return None if array is None else array.ctypes.data_as(ctypes.POINTER(c_type))


def _arrays_of(lib, layer) -> dict:
    """{name: array} of a quantized layer, in memory of their own."""
    out, t = {}, LayerTensor(struct_size=ctypes.sizeof(LayerTensor))
    for i in range(lib.rq_layer_count(layer)):
        lib.rq_layer_at(layer, i, ctypes.byref(t))
        a = np.empty(tuple(t.shape[:t.rank]), _safetensors.TYPES[t.dtype.decode()])
        ctypes.memmove(a.ctypes.data, t.data, a.nbytes)
        out[t.name.decode()] = a
    return out


def quantize_linear(w, h, d=None, *, comp: Optional[str] = None, bits: Optional[int] = None, group: Optional[int] = None,
                    round: Optional[str] = None, **options) -> Result:
    """Quantize w column by column, the columns still open making up for the error of those already rounded.

    w        [n_out, n_in], float32; float16, bfloat16 and float64 are converted (float64 rounds to nearest)
    h        [n_in, n_in], float64 (the others are converted exactly): any multiple of the sum of x x^T over the inputs x of
             this layer in the model quantized so far; None only for comp="rtn", clip_weights="none"
    d        [n_in, n_in], the same multiple of the sum of (x_fp - x) x^T, x_fp being the original model's inputs; wanted by
             comp="qep", "gptaq" and "rescomp" (Gram computes both)
    comp     compensator: "qep" unless a preset says otherwise; "gptq", "gptaq", "rescomp", "rtn"
    round    rounder: "grid" unless a preset says otherwise; "ssvq", "vq", "w4a8"
    bits     2, 3, 4 or 8; on the grid 3 unless given
    group    inputs that share a scale, 0 for all; on the grid 128 unless given
    options  the long options of `requite layer`, with underscores: act_order=True, cd_sweeps=0, vec_len=4, ..., and
             preset="reference" or "vptq"

    Arrays: see requite's own docstring; any strides. Same inputs give the same bytes for any number of threads. Raises
    TypeError or ValueError naming the argument that is wrong, and Error with the library's sentence for what it refuses.
    The GIL is not held while the library works; the arrays must not be written to meanwhile.
    """
    lib = library()
    text = option_text({**options, "comp": comp, "bits": bits, "group": group, "round": round}).encode()
    weights = floats(w, "w", np.float32)
    n_out, n_in = weights.shape
    gram = None if h is None else floats(h, "h", np.float64, (n_in, n_in))
    drift = None if d is None else floats(d, "d", np.float64, (n_in, n_in))
    if gram is not None: _check_gram(gram)
    info, layer = LayerInfo(struct_size=ctypes.sizeof(LayerInfo)), ctypes.c_void_p()
    lib.rq_layer_quantize(ctypes.byref(layer), _pointer(weights, ctypes.c_float), _pointer(gram, ctypes.c_double),
                          _pointer(drift, ctypes.c_double), n_out, n_in, text, ctypes.byref(info))
    try:
        entry, arrays = json.loads(lib.rq_layer_entry(layer)), {n: like(a, w) for n, a in _arrays_of(lib, layer).items()}
    finally:
        lib.rq_layer_free(layer)
    return Result(*(arrays.get(name) for name in ("q", "codes", "scale", "zero", "g_idx")),
                  Info(**{f.name: getattr(info, f.name) for f in fields(Info)}),
                  Packed(entry, {n: a for n, a in arrays.items() if n.startswith("weight_")}))


def save(path, matrices: dict, others: Optional[dict] = None) -> None:
    """Write {name: Packed} to a safetensors file that requite.Checkpoint reads, matrix `name` as NAME.weight_packed and so on.

    others  {name: array}, written as they are (bfloat16 as float32): biases as NAME.bias, embeddings, norms
    An older file at `path` is replaced.
    """
    tensors = {}
    for name, packed in matrices.items():
        if not isinstance(packed, Packed): raise TypeError(f"matrices: {name} is a {type(packed).__name__}, not what quantize_linear(...).packed is")
        for part, t in packed.tensors.items(): tensors[f"{name}.{part}"] = as_numpy(t, f"{name}.{part}")
    for name, a in (others or {}).items():
        if name in tensors: raise ValueError(f"others: {name} is a part of a packed matrix")
        tensors[name] = as_numpy(a, name)
    _safetensors.write(os.fspath(path), tensors, {name: packed.entry for name, packed in matrices.items()})
