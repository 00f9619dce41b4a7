# SPDX-License-Identifier: Apache-2.0
"""test_torch.py LIBRARY REQUITE TESTS: torch.ops.requite, requite.nn and requite.load on the CPU.

Matrices of every format come from `requite quantize` on tiny models. Dense forms are compared, bit for bit, with decoders written here
from docs/formats.md; products with the C library's bytes and with float64; int8 rows with their definition; whole models with
rq_model_logits. Then opcheck, torch.compile without a graph break, gradients, and what is refused, by the argument's name.
With `installed` as LIBRARY the package is the one that this Python has. Skipped without PyTorch 2.10 or requite_torch.so."""
import copy
import ctypes
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile

from check_common import SKIP, example, printed_as

LIBRARY, REQUITE, TESTS = sys.argv[1], os.path.abspath(sys.argv[2]), os.path.abspath(sys.argv[3])
PACKAGE = os.path.join(os.path.dirname(TESTS), "python")
if LIBRARY != "installed":
    os.environ["RQ_LIBRARY"] = os.path.abspath(LIBRARY)
    sys.path.insert(0, PACKAGE)
try:
    import numpy as np
    import requite
    from requite import nn
except ImportError as missing:
    print(f"test_torch: skipped: {missing}")
    sys.exit(SKIP)
import torch  # noqa: E402  (requite.nn has found it)

ops = torch.ops.requite
WORK = tempfile.TemporaryDirectory(prefix="requite-torch-")
ENV = {**os.environ, "RQ_OPENBLAS_CORETYPE": "env"}
f32 = np.float32


def refused(says, call, *args, **kw):
    """The exception that call raises has each of the words."""
    try:
        call(*args, **kw)
    except (RuntimeError, TypeError, ValueError, KeyError, ImportError, NotImplementedError) as e:
        for word in says.split("|"): assert word in str(e), f"{str(e)!r} does not say {word!r}"
        return
    raise AssertionError(f"{says}: nothing was raised")


# ---- models, one for each way that a matrix can be stored -----------------------------------------------------------------

def ids_file():
    """Calibration ids, as a safetensors file written by hand."""
    path = os.path.join(WORK.name, "ids.safetensors")
    r = random.Random(1)
    ids = np.array([[r.randrange(256) for _ in range(64)] for _ in range(8)], np.int32)
    head = b'{"ids":{"dtype":"I32","shape":[8,64],"data_offsets":[0,2048]}}'
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as f: f.write(len(head).to_bytes(8, "little") + head + ids.tobytes())
    return path


CODEBOOK = ["--outliers", "2", "--outlier-min", "0"]
MODELS = {  # name: (model, options)
    "grid3": ("tied", "--bits 3 --group 32"),
    "grid4-f32": ("qwen2", "--bits 4 --group 0 --scale-dtype f32 --sym --comp gptq"),
    "grid2-ordered": ("mistral", "--bits 2 --group 32 --act-order --no-static-groups --comp gptq"),
    "grid8": ("tied", "--bits 8 --group 32 --comp rtn --rotate residual"),
    "ssvq": ("tied", "--round ssvq --codes 32 --vec-len 4 --outliers 2 --outlier-min 0"),
    "ssvq-odd": ("qwen2", "--round ssvq --comp rtn --codes 20 --vec-len 8 --book-dtype f16 --no-share-books"),
    "vq": ("tied", "--round vq --codes 32 --codes2 16 --comp rescomp --outliers 2 --outlier-min 0"),
    "vq-out": ("tied", "--round vq --codes 18 --vec-axis out --vec-len 5 --comp gptaq --outliers 1 --outlier-min 0"),
    "vq-vptq": ("tied", "--round vq --preset vptq --vec-len 4 --codes 16 --codes2 16 --book-cols 20 --share-books --book-order hdiag"),
    "w4a8-two": ("tied", "--round w4a8 --group 32 --comp rescomp"),
    "w4a8-row": ("llama3", "--round w4a8 --group 0 --comp gptq"),
    "w4a8-sym": ("qwen2", "--round w4a8 --group 0 --sym --rotate none --comp rtn"),
    "w4a8-full": ("linear", "--round w4a8 --group 32 --rotate full --hadamard 0,48 --cross .85 --factors-at gateup,down --comp rescomp"),
    "mixed": ("tied", "--round w4a8 --group 32 --override k_proj:round=grid,bits=4,group=32"),
}
_made = {}


def quantized(name):
    if name not in _made:
        model, options = MODELS[name]
        out = os.path.join(WORK.name, name)
        p = subprocess.run([REQUITE, "quantize", os.path.join(TESTS, "golden", "llama", model), out, *options.split(), "--calib", _made["ids"],
                            "--progress", "none"], capture_output=True, text=True, env=ENV, check=False)
        assert p.returncode == 0, f"{name}: {p.stderr}"
        _made[name] = out
    return _made[name]


_made["ids"] = ids_file()


def checkpoint(name):
    return requite.Checkpoint(quantized(name))


# ---- the formats' definitions, from docs/formats.md --------------------------------------------------------------------------

def stream(words, bits, count):
    """[n, count] codes of rows of 32-bit words, a bit at a time."""
    raw = np.ascontiguousarray(words).view(np.uint8).reshape(len(words), -1)
    flat = np.unpackbits(raw, axis=1, bitorder="little")[:, :bits * count].reshape(len(words), count, bits)
    return (flat.astype(np.int64) << np.arange(bits)).sum(-1)


def outliers(w, t):
    for o, j in enumerate(t.get("weight_outlier_cols", [])): w[:, j] = t["weight_outlier_scale"][o] * t["weight_outlier"][:, o].astype(f32)
    return w


def decode_grid(e, t, n_out, n_in):
    codes, bits, j = stream(t["weight_packed"], e["bits"], n_in), e["bits"], np.arange(n_in)
    group = t["weight_g_idx"] if "weight_g_idx" in t else j // e["group"]
    zero = np.full(t["weight_scale"].shape, 1 << (bits - 1))
    if "weight_zero_point" in t: zero = stream(t["weight_zero_point"].T, bits, n_out).T
    return t["weight_scale"].astype(f32)[:, group] * (codes - zero[:, group]).astype(f32)


def decode_ssvq(e, t, n_out, n_in):
    v, j = e["vec_len"], np.arange(n_in)
    codes, signs = stream(t["weight_codes"], e["code_bits"], -(-n_in // v)), stream(t["weight_signs"], 1, n_in)
    book = t["weight_book"].astype(f32)
    if "weight_book_scale" in t: book = t["weight_book_scale"][:, None, None] * book
    m = book[j // e["book_cols"], codes[:, j // v], j % v]
    return outliers(t["weight_scale"].astype(f32)[:, j // e["group"]] * np.where(signs, -m, m), t)


def decode_vq(e, t, n_out, n_in):
    i, j, v = np.arange(n_out)[:, None], np.arange(n_in)[None], e["vec_len"]
    book_of = t["weight_book_of"][j] if "weight_book_of" in t else j // e["book_cols"]
    total = None
    for s, end in enumerate(["", "2"][:len(e["code_bits"])]):
        out = e["vec_axis"] == "out"
        codes = stream(t["weight_codes" + end], e["code_bits"][s], n_in if out else -(-n_in // v))
        part = t["weight_book" + end].astype(f32)[book_of, codes[i // v, j] if out else codes[i, j // v], (i if out else j) % v]
        total = part if total is None else total + part
    if "weight_scale" in t: total = t["weight_scale"].astype(f32)[i, j // e["group"]] * total
    if "weight_col_scale" in t: total = total * t["weight_col_scale"].astype(f32) + t["weight_col_bias"].astype(f32)
    return outliers(total, t)


def levels_w4a8(e, t, n_out, n_in):
    codes = stream(t["weight_packed"], 4, n_in)
    if e["group"]:
        k = np.arange(n_in) // e["group"]
        return codes * t["weight_step"].astype(int)[:, k] + t["weight_base"].astype(int)[:, k]
    return codes - (t["weight_zero"].astype(int)[:, None] if "weight_zero" in t else 8)


def decode_w4a8(e, t, n_out, n_in):
    w = t["weight_scale"][:, None] * levels_w4a8(e, t, n_out, n_in).astype(f32)
    return w * t["weight_in_scale"] if e["in_scale"] else w  # a Hadamard matrix is left to the caller


DECODE = {"grid": decode_grid, "ssvq": decode_ssvq, "vq": decode_vq, "w4a8": decode_w4a8}


def int8_rows(h):
    """q, scale and sum of fp32 rows: host/fmt_act.h."""
    scale = (np.abs(h).max(1) / f32(127)).astype(f32)
    q = np.rint(h / np.where(scale > 0, scale, 1)[:, None].astype(f32)).clip(-127, 127).astype(np.int8)
    return q, scale, q.sum(1, dtype=np.int32)


def matrices(name):
    """(name, entry, the file's tensors as NumPy's, module) of each packed matrix."""
    file = checkpoint(name)
    modules = file.all_linears()
    for matrix, module in modules.items():
        owner = file.linears[matrix].get("book", matrix)
        tensors = {n[len(prefix) + 1:]: file.tensor(n).numpy() for prefix in {matrix, owner} for n in file.names if n.startswith(prefix + ".weight_")
                   and (prefix == matrix or "weight_book" in n)}
        yield matrix, file.linears[matrix], tensors, module


# ---- tests ------------------------------------------------------------------------------------------------------------------

def test_dense_forms():
    """unpack_* of every matrix of every model is its definition, to the last bit."""
    seen = {}
    for name in MODELS:
        for matrix, entry, tensors, module in matrices(name):
            n_out, n_in = module.out_features, module.in_features
            want = DECODE[entry["format"]](entry, tensors, n_out, n_in)
            if entry.get("hadamard"):  # w (H x) = (w H) x: rows times the transposed matrix of x's order
                want = ops.hadamard(torch.from_numpy(want), entry["hadamard"], True).numpy()
            got = module.dequantize().numpy()
            assert got.tobytes() == want.astype(f32).tobytes(), f"{name} {matrix}: {np.abs(got - want).max()}"
            seen.setdefault(entry["format"], set()).add(name)
    assert {k: len(v) for k, v in seen.items()} == {"grid": 5, "ssvq": 2, "vq": 3, "w4a8": 5}, seen
    ordered = dict((m, mod) for m, _e, _t, mod in matrices("grid2-ordered"))
    assert all(mod.run_perm is not None and mod.run_zero is not None for mod in ordered.values())
    assert any(mod.run_book is not None for _m, _e, _t, mod in matrices("ssvq-odd"))  # 20 entries


def test_products():
    """linear_* near float64 for 1 to 40 tokens, with a bias and without; w4a8 exactly, from its integers."""
    r = np.random.default_rng(1)
    for name in MODELS:
        for matrix, entry, tensors, module in list(matrices(name))[:7]:
            n_out, n_in = module.out_features, module.in_features
            dense = module.dequantize().numpy().astype(np.float64)
            for n_tok in (1, 3, 17, 40):
                x, bias = r.standard_normal((n_tok, n_in)).astype(f32), r.standard_normal(n_out).astype(f32)
                module.bias = None
                y = module(torch.from_numpy(x)).numpy()
                module.bias = torch.from_numpy(bias)
                assert (module(torch.from_numpy(x)).numpy() == y + bias).all() or n_tok > 16, f"{name} {matrix}"
                assert np.abs(module(torch.from_numpy(x)).numpy() - (y + bias)).max() <= 1e-5 * np.abs(y).max()
                assert module(torch.from_numpy(x)[:, None]).shape == (n_tok, 1, n_out)
                if entry["format"] != "w4a8":
                    bound = 1e-5 * (np.abs(x) @ np.abs(dense).T)
                    assert (np.abs(y - x @ dense.T) <= bound).all(), f"{name} {matrix} {n_tok}"
                    continue
                h = x if not entry["hadamard"] else ops.hadamard(torch.from_numpy(x), entry["hadamard"], False).numpy()
                if entry["in_scale"]: h = h * tensors["weight_in_scale"]
                q, scale, total = int8_rows(h)
                acc = q.astype(np.int64) @ levels_w4a8(entry, tensors, n_out, n_in).T
                want = acc.astype(f32) * tensors["weight_scale"] * scale[:, None]
                assert want.tobytes() == y.tobytes(), f"{name} {matrix} {n_tok}: {np.abs(want - y).max()}"
                args = module.kind._args(module)
                factor = args[5]
                mine = ops.quantize_rows(torch.from_numpy(x), factor, entry["hadamard"])
                assert mine[0].numpy().tobytes() == q.tobytes() and mine[1].numpy().tobytes() == scale.tobytes() and (mine[2].numpy() == total).all()
                assert ops.gemm_w4a8(*mine, *args[:5], None, entry["group"]).numpy().tobytes() == y.tobytes()
    assert module(torch.zeros(0, n_in)).shape == (0, n_out)


LAYERS = {  # format: options of quantize_linear
    "grid": [{"group": 32}, {"bits": 2, "group": 20, "comp": "gptq", "act_order": True, "static_groups": False},
             {"bits": 8, "group": 0, "sym": True, "comp": "rtn", "scale_dtype": "f32"}],
    "ssvq": [{"codes": 32, "vec_len": 4, "outliers": 2, "outlier_min": 0}, {"codes": 20, "book_dtype": "f16"}],
    "vq": [{"codes": 32, "codes2": 16, "outliers": 1, "outlier_min": 0}, {"codes": 18, "vec_axis": "out", "vec_len": 5, "comp": "gptaq"},
           {"preset": "vptq", "vec_len": 4, "codes": 16, "codes2": 16, "book_cols": 20, "book_order": "hdiag"}],
    "w4a8": [{"group": 32}, {"group": 0}, {"group": 0, "sym": True, "comp": "gptq"}],
}


def test_packed():
    """quantize_linear to a layer, for every format: its tensors decoded here are q to the last bit, and so is the layer; y = x q^T + bias."""
    r = np.random.default_rng(6)
    n_out, n_in, saved = 23, 60, os.path.join(WORK.name, "layers.safetensors")
    x_fp = r.standard_normal((300, n_in)) * np.exp(r.standard_normal(n_in))
    gram = requite.Gram(n_in).add(x_fp + 0.1 * r.standard_normal(x_fp.shape), x_fp)
    w, bias, x = r.standard_normal((n_out, n_in)).astype(f32), torch.from_numpy(r.standard_normal(n_out).astype(f32)), torch.from_numpy(r.standard_normal((3, n_in)).astype(f32))
    done = {}
    for fmt, options in LAYERS.items():
        for i, o in enumerate(options):
            given = torch.from_numpy(w) if i else w  # tensors for a tensor, arrays for an array
            q = requite.quantize_linear(given, gram.h, gram.d, **(o if "preset" in o else {"round": fmt, **o}))
            assert q.packed.entry["format"] == fmt and all(isinstance(t, torch.Tensor) == bool(i) for t in q.packed.tensors.values())
            tensors, dense = {n: np.asarray(t) for n, t in q.packed.tensors.items()}, np.asarray(q.q)
            assert DECODE[fmt](q.packed.entry, tensors, n_out, n_in).astype(f32).tobytes() == dense.tobytes(), f"{fmt} {o}"
            m = nn.QuantLinear.from_packed(q.packed, bias)
            assert m.dequantize().numpy().tobytes() == dense.tobytes(), f"{fmt} {o}"
            y, want = m(x).double(), x.double() @ torch.from_numpy(dense).double().T + bias
            inputs = x.abs() if fmt != "w4a8" else x.abs().max(1, keepdim=True)[0].expand_as(x)  # int8: half a step of 127 to the largest
            bound = (1e-5 if fmt != "w4a8" else .51 / 127) * inputs.double() @ torch.from_numpy(dense).double().abs().T + 1e-5
            assert ((y - want).abs() <= bound).all(), f"{fmt} {o}: {(y - want).abs().max()}"
            done[f"{fmt}.{i}"] = (q, m)
    requite.save(saved, {n: q.packed for n, (q, _m) in done.items()}, {n + ".bias": bias for n in done})
    again = requite.Checkpoint(saved).all_linears()
    assert list(again) == list(done)
    for name, (_q, m) in done.items():
        assert torch.equal(again[name](x), m(x)) and {k: v.dtype for k, v in again[name].state_dict().items()} == {k: v.dtype for k, v in m.state_dict().items()}
    q = done["ssvq.0"][0].packed
    refused("weight_shape is missing", nn.QuantLinear.from_packed, requite.Packed(q.entry, {}))
    refused("weight_signs is missing", nn.QuantLinear.from_packed, requite.Packed(q.entry, {n: t for n, t in q.tensors.items() if n != "weight_signs"}))


class Grid(ctypes.Structure):  # rq_grid of host/fmt_grid.h
    _fields_ = [("n_out", ctypes.c_int64), ("n_in", ctypes.c_int64), ("bits", ctypes.c_int), ("group", ctypes.c_int64),
                ("n_group", ctypes.c_int64), ("row_words", ctypes.c_int64), ("words", ctypes.c_void_p), ("scale_f16", ctypes.c_void_p),
                ("scale_f32", ctypes.c_void_p), ("zero", ctypes.c_void_p), ("perm", ctypes.c_void_p)]


def test_bytes_of_the_library():
    """What an operator gives is what a call of the C function gives, for any number of threads."""
    lib = ctypes.CDLL(requite.library_path())
    for name in ("grid3", "grid2-ordered"):
        for _matrix, entry, _tensors, m in list(matrices(name))[:7]:
            words, scale, zero, perm = m.kind._args(m)
            grid = Grid(m.out_features, m.in_features, entry["bits"], entry["group"], 0, 0, words.data_ptr(), scale.data_ptr(), None,
                        zero.data_ptr() if zero is not None else None, perm.data_ptr() if perm is not None else None)
            for n_tok in (1, 16, 33):
                x = torch.randn(n_tok, m.in_features)
                y = torch.empty(n_tok, m.out_features)
                assert lib.rq_grid_linear(ctypes.c_void_p(y.data_ptr()), ctypes.byref(grid), None, ctypes.c_void_p(x.data_ptr()),
                                          ctypes.c_int64(n_tok)) == 0
                for threads in (1, 3):
                    requite.set_threads(threads)
                    assert torch.equal(m(x), y), f"{name} {n_tok} tokens, {threads} threads"
    requite.set_threads(0)
    grid.bits = 5
    assert lib.rq_grid_linear(ctypes.c_void_p(y.data_ptr()), ctypes.byref(grid), None, ctypes.c_void_p(x.data_ptr()), ctypes.c_int64(1)) == -1


def test_activations():
    r = np.random.default_rng(2)
    x, res = r.standard_normal((2, 5, 96)).astype(f32), r.standard_normal((2, 5, 96)).astype(f32)
    weight, factor = r.standard_normal(96).astype(f32), np.exp(r.standard_normal(96)).astype(f32)
    x[0, 1] = 0
    tx, tr, tw, tf = map(torch.from_numpy, (x, res, weight, factor))

    def same(out, h):
        for a, b in zip(out, int8_rows(h.reshape(-1, 96))): assert a.numpy().tobytes() == b.tobytes()

    same(ops.quantize_rows(tx, None, 0), x)
    same(ops.quantize_rows(tx, tf, 0), x * factor)
    same(ops.quantize_rows(tx, tf, 32), ops.hadamard(tx, 32, False).numpy() * factor)
    q, scale, total, flow = ops.quantize_rmsnorm(tx, tr, tw, 1e-5, None, 0)
    assert flow.numpy().tobytes() == (x + res).tobytes()
    s = (x + res).astype(np.float64).reshape(-1, 96)
    h = s / np.sqrt((s * s).mean(1, keepdims=True) + 1e-5) * weight
    assert np.abs(q.numpy() * scale.numpy()[:, None] - h).max() <= 0.5001 * scale.numpy().max() and (total.numpy() == q.numpy().sum(1)).all()
    assert ops.quantize_rmsnorm(tx, None, None, 1e-5, None, 0)[3].numel() == 0
    q, scale, total = ops.quantize_gated(tx, tr, None, 0)
    h = (x / (1 + np.exp(-x.astype(np.float64))) * res).reshape(-1, 96)
    assert np.abs(q.numpy() * scale.numpy()[:, None] - h).max() <= 0.5001 * scale.numpy().max()
    for order in (2, 32, 12, 96):
        y = ops.hadamard(tx, order, False)
        assert torch.allclose(ops.hadamard(y, order, True), tx, atol=1e-5) and y.data_ptr() != tx.data_ptr()
        eye = ops.hadamard(torch.eye(96), order, False)[:order, :order] * order**0.5
        assert torch.allclose(eye.abs(), torch.ones(order, order), atol=1e-5)
    for kind, seed in (("hadamard", 7), ("orthogonal", 3), ("plain", 0)):
        turn = ops.rotate(torch.eye(96), kind, seed, False)
        assert torch.allclose(turn @ turn.T, torch.eye(96), atol=1e-6) and torch.allclose(tx @ turn, ops.rotate(tx, kind, seed, False), atol=1e-5)
        assert torch.allclose(ops.rotate(ops.rotate(tx, kind, seed, False), kind, seed, True), tx, atol=1e-5)
    refused("unknown kind of rotation", ops.rotate, tx, "odd", 0, False)
    h = np.array([[1]], f32)
    while len(h) < 32: h = np.block([[h, h], [h, -h]])
    assert np.allclose(ops.hadamard(tx, 32, False).numpy().reshape(-1, 32), x.reshape(-1, 32) @ h / np.sqrt(32), atol=1e-5)


# What the CUDA kernels' layout cannot hold, and why.
NO_TILES = {"grid4-f32": "not exact in fp16", "vq-out": "vectors", "vq-vptq": "vectors down the rows"}


def test_tiles():
    """Matrices repacked for CUDA: codes of 4 bits where host/fmt_tile.h says, sizes by kind, factors of x, and what has no place there."""
    for name in MODELS:
        if name in NO_TILES:
            refused(NO_TILES[name], lambda: [m.kind.tiles(m) for _n, _e, _t, m in matrices(name)])
            continue
        for matrix, e, t, m in list(matrices(name))[:7]:
            tiles, layout = m.kind.tiles(m)
            n_out, n_in, layout = m.out_features, m.in_features, layout.tolist()
            assert tiles.dtype == torch.uint8 and layout[:3] == [["grid", "ssvq", "vq", "w4a8"].index(e["format"]), n_out, n_in], f"{name} {matrix}"
            blocks = -(-n_out // 16) * -(-n_in // 128)
            if e["format"] == "grid": assert layout[3] == e["bits"] and tiles.numel() >= blocks * 256 * e["bits"]
            if e["format"] == "w4a8":
                assert layout[18:] == [int(e["in_scale"]), e["hadamard"]]
                if e["in_scale"]: assert t["weight_in_scale"].tobytes() in tiles.numpy().tobytes()
            if e.get("bits") != 4: continue
            words = tiles.numpy()[:blocks * 1024].view(np.uint32).reshape(-(-n_out // 16), -(-n_in // 128), 2, 32, 2, 2)
            lane, nibble = np.arange(32), np.array([0, 4, 1, 5, 2, 6, 3, 7])  # of columns 0 .. 7
            codes = (words[..., None] >> (4 * nibble).astype(np.uint32) & 15)  # [rb][kb][part][lane][step of part][row half][column]
            got = np.zeros((words.shape[0] * 16, words.shape[1] * 128), np.int64)
            for part, step, half in np.ndindex(2, 2, 2):
                for g, q in zip(lane // 4, lane % 4):
                    for rb, kb in np.ndindex(words.shape[:2]):
                        at = kb * 128 + (2 * part + step) * 32 + 8 * q
                        got[rb * 16 + g + 8 * half, at:at + 8] = codes[rb, kb, part, 4 * g + q, step, half]
            assert (got[:n_out, :n_in] == stream(t["weight_packed"], 4, n_in)).all(), f"{name} {matrix}"


def calls():
    """One call of each operator: (operator, arguments)."""
    for name in ("grid3", "grid2-ordered", "grid4-f32", "ssvq", "ssvq-odd", "vq", "vq-out", "vq-vptq", "w4a8-two", "w4a8-row", "w4a8-full"):
        module = [m for n, _e, _t, m in matrices(name) if "down_proj" in n][0]
        e, args, n_in = module.entry, module.kind._args(module), module.in_features
        x, bias, fmt = torch.randn(3, n_in), torch.randn(module.out_features), module.entry["format"]
        rest = {"grid": (e.get("bits"), e.get("group")), "ssvq": (e.get("book_cols"), e.get("group")),
                "vq": (e.get("book_cols"), e.get("group"), e.get("vec_axis") == "out"), "w4a8": (e.get("group"), e.get("hadamard"))}[fmt]
        n_out = (module.out_features,) if fmt == "vq" else ()
        for b in (bias, None): yield getattr(ops, "linear_" + fmt), (x, *args, b, *n_out, *rest)
        yield getattr(ops, "linear_" + fmt), (x.clone().requires_grad_(), *args, bias.clone().requires_grad_(), *n_out, *rest)
        yield getattr(ops, "unpack_" + fmt), (*args, *n_out, n_in, *rest)
        if name not in NO_TILES: yield getattr(ops, "tiles_" + fmt), (*(args[:3] if fmt == "grid" else args), *n_out, n_in, *rest)
        if fmt == "w4a8": yield ops.gemm_w4a8, (*ops.quantize_rows(x, None, 0), *args[:5], bias, e["group"])
    x, weight = torch.randn(2, 3, 96), torch.randn(96)
    yield ops.quantize_rows, (x, None, 0)
    yield ops.quantize_rows, (x, weight, 48)
    yield ops.quantize_rmsnorm, (x, x.clone(), weight, 1e-5, None, 0)
    yield ops.quantize_rmsnorm, (x, None, None, 1e-5, weight, 32)
    yield ops.quantize_gated, (x, x.clone(), weight, 96)
    yield ops.hadamard, (x, 48, True)
    yield ops.hadamard, (x.clone().requires_grad_(), 32, False)
    for kind in ("hadamard", "orthogonal", "plain"): yield ops.rotate, (x.clone().requires_grad_(), kind, 7, kind == "plain")


def test_opcheck():
    seen = set()
    for operator, args in calls():
        torch.library.opcheck(operator, args)
        seen.add(str(operator))
    every = {f"requite.{s.name.split('::')[1]}" for s in torch._C._jit_get_all_schemas() if s.name.startswith("requite::")}
    every -= {"requite.linear_tiles", "requite.gemm_tiles", "requite.unpack_tiles"}  # test_cuda
    assert len(every) == 18 and every == seen, every ^ seen


def test_gradients():
    """Of x and bias: those of the dense layer."""
    for operator, args in calls():
        if not any(isinstance(a, torch.Tensor) and a.requires_grad for a in args): continue
        name = str(operator).split(".")[1]
        y = operator(*args)
        g = torch.randn_like(y)
        grads = torch.autograd.grad(y, [a for a in args if isinstance(a, torch.Tensor) and a.requires_grad], g)
        if name in ("hadamard", "rotate"):
            assert torch.equal(grads[0], operator(g, *args[1:-1], not args[-1]))
            continue
        plain = [a.detach() if isinstance(a, torch.Tensor) else a for a in args]
        at = {"linear_grid": 5, "linear_ssvq": 9, "linear_vq": 12, "linear_w4a8": 7}[name]
        sizes = plain[at + 1:]
        unpack = getattr(ops, name.replace("linear", "unpack"))
        dense = unpack(*plain[1:at], *(sizes[:1] if name == "linear_vq" else ()), args[0].shape[-1], *(sizes[1:] if name == "linear_vq" else sizes))
        assert torch.allclose(grads[0], g @ dense, atol=1e-5) and torch.allclose(grads[1], g.sum(0), atol=1e-5), name


def test_compile():
    """No graph break, the same bytes, and any number of tokens without compiling again."""
    for name in ("grid3", "ssvq", "vq-out", "w4a8-full"):
        found = {n.rsplit(".", 1)[1]: m for n, _e, _t, m in matrices(name) if n.startswith("model.layers.0.mlp")}

        class Mlp(torch.nn.Module):
            def __init__(self, parts):
                super().__init__()
                for n, part in parts.items(): setattr(self, n, part)

            def forward(self, x): return self.down_proj(torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))

        mlp = Mlp(found)
        graphs = []

        def backend(graph, _example):
            graphs.append(graph)
            return graph.forward

        run = torch.compile(mlp, fullgraph=True, dynamic=True, backend=backend)
        for n_tok in (5, 7, 30):
            x = torch.randn(2, n_tok, 64)
            assert torch.equal(run(x), mlp(x)), name
        assert len(graphs) == 1, f"{name}: {len(graphs)} graphs"
        half = torch.compile(mlp, fullgraph=True, backend="aot_eager")
        x = torch.randn(4, 64, dtype=torch.bfloat16)
        y = half(x)
        assert y.dtype == torch.bfloat16 and torch.equal(y, mlp(x))
    exported = torch.export.export(mlp, (torch.randn(2, 3, 64),))
    x = torch.randn(2, 3, 64)
    assert torch.equal(exported.module()(x), mlp(x))


def test_module():
    """Buffers by the file's names, load_state_dict, moves, copies, and what a wrong file gets."""
    file = checkpoint("grid3")
    matrix = "model.layers.0.mlp.down_proj"
    made = file.linear(matrix)
    assert {f"{matrix}.{n}" for n in made.state_dict()} == {n for n in file.names if n.startswith(matrix + ".")}
    empty = nn.QuantLinear(made.in_features, made.out_features, file.linears[matrix])
    assert not torch.equal(empty.dequantize(), made.dequantize())
    empty.load_state_dict(made.state_dict())
    x = torch.randn(4, made.in_features)
    assert torch.equal(empty(x), made(x)) and torch.equal(copy.deepcopy(made)(x), made(x))
    lower = copy.deepcopy(made).bfloat16()
    assert lower.weight_scale.dtype == torch.float16 and torch.equal(lower(x), made(x)) and lower(x.bfloat16()).dtype == torch.bfloat16
    owner, user = (checkpoint("ssvq").all_linears()[f"model.layers.0.self_attn.{n}_proj"] for n in "qk")
    modules = checkpoint("ssvq").all_linears()
    q, k = (modules[f"model.layers.0.self_attn.{n}_proj"] for n in "qk")
    shared = k if "weight_book" not in dict(k.named_buffers()) else q
    before = shared.dequantize()
    shared.book_owner.weight_book.mul_(0)
    shared.book_owner.refresh()
    assert before.abs().sum() > 0 and torch.equal(shared.dequantize()[:, 3:60].abs().sum(), torch.tensor(0.)) or shared.entry["n_outlier"]
    w, h = np.random.default_rng(4).standard_normal((24, 96)).astype(f32), np.eye(96) + 0.1
    for options in ({"bits": 3, "group": 32}, {"bits": 2, "group": 0, "sym": True}, {"bits": 4, "group": 48, "act_order": True, "static_groups": False},
                    {"bits": 8, "group": 96, "scale_dtype": "f32"}):
        r = requite.quantize_linear(torch.from_numpy(w), h, comp="gptq", **options)
        m = nn.QuantLinear.from_codes(r.codes, r.scale, r.zero, r.g_idx, bits=options["bits"], group=options["group"], bias=torch.ones(24))
        assert m.dequantize().numpy().tobytes() == r.q.numpy().tobytes() and torch.equal(m.bias, torch.ones(24)), options
    refused("format 'no'", nn.QuantLinear, 8, 8, {"format": "no"})
    state = made.state_dict()
    refused("weight_scale is missing", nn.QuantLinear, 96, 64, file.linears[matrix], {k: v for k, v in state.items() if k != "weight_scale"})
    refused("weight_packed has shape", nn.QuantLinear, 96, 64, file.linears[matrix], {**state, "weight_packed": state["weight_packed"][:-1]})
    refused("weight_scale has dtype torch.float32", nn.QuantLinear, 96, 64, file.linears[matrix], {**state, "weight_scale": state["weight_scale"].float()})
    refused("weight_odd is not part", nn.QuantLinear, 96, 64, file.linears[matrix], {**state, "weight_odd": x})
    refused("no tensor x", file.tensor, "x")
    other = next(m for n, _e, _t, m in matrices("grid2-ordered") if "down_proj" in n)
    empty = nn.QuantLinear(other.in_features, other.out_features, other.entry, act_order=True)
    empty.load_state_dict(other.state_dict())
    assert torch.equal(empty.dequantize(), other.dequantize())
    refused("weight_g_idx: groups are of 32", empty.load_state_dict, {**other.state_dict(), "weight_g_idx": torch.zeros(other.in_features, dtype=torch.int32)})
    refused("was not written by `requite quantize`", requite.Checkpoint, os.path.join(TESTS, "golden", "llama", "tied"))
    assert "format=grid" in repr(made) and "bits=3" in repr(made)
    del owner, user


def test_refused():
    """Wrong dtype, shape, stride, device and freed memory: an exception that names the argument."""
    e, m = next((e, m) for n, e, _t, m in matrices("grid3") if "down_proj" in n)
    words, scale, zero, perm = m.kind._args(m)
    n_in, x = m.in_features, torch.randn(2, m.in_features)

    def call(x=x, words=words, scale=scale, zero=zero, perm=perm, bias=None, bits=e["bits"], group=e["group"]):
        return ops.linear_grid(x, words, scale, zero, perm, bias, bits, group)

    refused("x has dtype float64, not float32", call, x=x.double())
    refused("words has shape|not", call, x=x[:, :-32].contiguous())
    refused("x has shape [2, 95]: rows of 96", m, x[:, 1:])
    refused("x is not contiguous|strides", call, x=torch.randn(n_in, 2).T)
    refused("words has dtype int64", call, words=words.long())
    refused("words is not contiguous", call, words=torch.cat([words, words], 1)[:, ::2])
    refused("words has shape", call, words=words[0])
    refused("scale has dtype bfloat16", call, scale=scale.bfloat16())
    refused("scale has shape", call, scale=scale[:, :1].contiguous())
    refused("zero has dtype int32", call, zero=zero.int())
    refused("perm has shape [1], not [96]", call, perm=torch.zeros(1, dtype=torch.int32))
    refused("perm[0] is 96", call, perm=torch.full((96,), 96, dtype=torch.int32))
    refused("bias has dtype float16", call, bias=torch.zeros(m.out_features).half())
    refused("bits is 5", call, bits=5)
    refused("group is 0", call, group=0)
    refused("x|meta", call, x=x.to("meta"))
    gone = words.clone()
    gone.untyped_storage().resize_(0)
    refused("words|freed", call, words=gone)
    freed = x.clone()
    freed.untyped_storage().resize_(8)
    refused("x of shape [2, 96] has no memory", call, x=freed)
    refused("Tensor", ops.linear_grid, x.numpy(), words, scale, zero, perm, None, 3, 32)
    s = next(mod for n, _e, _t, mod in matrices("ssvq-odd") if "down_proj" in n)
    codes, signs, book, book_scale, scale, *rest = s.kind._args(s)

    def ssvq(book=book, book_scale=None, rest=rest):
        return ops.linear_ssvq(torch.randn(1, s.in_features), codes, signs, book, book_scale, scale, *rest, None, s.entry["book_cols"], s.entry["group"])

    ssvq()
    refused("book has 20 entries: a power of two", ssvq, book=s.weight_book)
    refused("book_scale is missing", ssvq, book=book.to(torch.uint8))
    refused("book_scale is for a book of uint8", ssvq, book_scale=torch.ones(1))
    refused("outlier, outlier_cols and outlier_scale go together", ssvq, rest=[torch.zeros(1, dtype=torch.int8), None, None])
    k = [torch.zeros(s.out_features, 1, dtype=torch.int8), torch.tensor([s.in_features], dtype=torch.int32), torch.ones(1)]
    refused("outlier column", ssvq, rest=k)
    refused("order is 0", ops.hadamard, x, 0, False)
    refused("order 20", ops.hadamard, x, 20, False)
    refused("hadamard is -1", ops.quantize_rows, x, None, -1)
    refused("factor has shape [95]", ops.quantize_rows, x, torch.ones(95), 0)
    refused("up has shape", ops.quantize_gated, x, x[:1].clone(), None, 0)
    fake = torch.compile(lambda v: call(x=v), fullgraph=True, backend="eager")
    refused("x has dtype float64", fake, x.double())


def test_refused_by_all():
    """Each tensor of each operator with another type, between gaps, freed, one dimension more, or on another device: the exception names it."""
    for operator, args in calls():
        if any(isinstance(a, torch.Tensor) and a.requires_grad for a in args): continue  # the same calls
        names = [a.name for a in operator.default._schema.arguments]
        for i, t in enumerate(args):
            if not isinstance(t, torch.Tensor): continue
            freed = t.clone()
            freed.untyped_storage().resize_(0)
            wrong = {"another type": t.double() if t.dtype != torch.float64 else t.float(), "freed": freed}
            if sum(isinstance(a, torch.Tensor) for a in args) > 1: wrong["on meta"] = t.to("meta")  # alone it is a question about shapes
            if t.numel() > 1: wrong["between gaps"] = torch.stack([t, t], -1)[..., 0]
            if names[i] not in ("x", "gate"): wrong["one dimension more"] = t[None]
            for what, bad in wrong.items():
                try:
                    operator(*args[:i], bad, *args[i + 1:])
                except (RuntimeError, ValueError, TypeError, NotImplementedError) as e:
                    assert names[i] in str(e), f"{operator}: {names[i]} {what}: {e}"
                else: raise AssertionError(f"{operator}: {names[i]} {what}: nothing was raised")


def test_cuda():
    """Shapes and refusals on fake CUDA tensors anywhere; on a GPU also the numbers, and a captured graph."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    _matrix, e, _t, m = next(iter(matrices("w4a8-two")))
    tiles, layout = m.kind.tiles(m)
    layout = layout.tolist()
    with FakeTensorMode():
        def like(shape, dtype, device="cuda"): return torch.empty(shape, dtype=dtype, device=device)

        w = like(tiles.shape, torch.uint8)
        for dtype in (torch.float16, torch.bfloat16):
            y = ops.linear_tiles(like((2, 3, m.in_features), dtype), w, None, None, layout)
            assert y.shape == (2, 3, m.out_features) and y.dtype == dtype and y.device.type == "cuda"
            q = ops.quantize_rmsnorm(like((2, 3, 64), dtype), like((2, 3, 64), dtype), None, 1e-5, None, 0)
            assert [(t.dtype, tuple(t.shape)) for t in q] == [(torch.int8, (6, 64)), (torch.float32, (6,)), (torch.int32, (6,)), (dtype, (2, 3, 64))]
            assert ops.unpack_tiles(w, layout, dtype == torch.bfloat16).dtype == dtype
            y = ops.gemm_tiles(like((5, m.in_features), torch.int8), like((5,), torch.float32), like((5,), torch.int32), w, None, layout, True)
            assert y.shape == (5, m.out_features) and y.dtype == torch.bfloat16
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            for y in (ops.hadamard(like((2, 96), dtype), 32, False), ops.rotate(like((2, 96), dtype), "hadamard", 7, True)):
                assert y.shape == (2, 96) and y.dtype == dtype and y.device.type == "cuda"
        refused("x has dtype float64", ops.hadamard, like((2, 96), torch.float64), 32, False)
        refused("x has dtype float32: float16 or bfloat16", ops.linear_tiles, like((2, m.in_features), torch.float32), w, None, None, layout)
        refused("tiles is on cpu", ops.linear_tiles, like((2, m.in_features), torch.half), like(tiles.shape, torch.uint8, "cpu"), None, None, layout)
        refused("x has rows of 7", ops.linear_tiles, like((2, 7), torch.half), w, None, None, layout)
        refused("x is on cuda:0, and the layer is not", m, like((2, m.in_features), torch.half))
    refused("linear_tiles|CPU", ops.linear_tiles, torch.zeros(1, m.in_features).half(), tiles, None, None, layout)
    reason = requite.ops.why_no_cuda()
    if reason is not None:
        moving = copy.deepcopy(m)
        with FakeTensorMode(): refused("the layer cannot go to cuda:0: |" + reason, moving.to, "cuda")
        print(f"test_torch: skips a GPU's numbers: {reason}")
        return
    for name in sorted(set(MODELS) - set(NO_TILES)):
        for matrix, entry, _tensors, module in list(matrices(name))[:7]:
            dense, there = module.dequantize().double(), copy.deepcopy(module).cuda()
            for n_tok in (1, 5, 40):
                x = torch.randn(n_tok, module.in_features).half()
                y = there(x.cuda())
                want = module(x.float()).double() if entry["format"] == "w4a8" else x.double() @ dense.T
                assert ((y.cpu().double() - want).abs() <= 2e-3 * (x.double().abs() @ dense.abs().T) + 1e-3).all(), f"{name} {matrix} {n_tok}"
                held, graph = x.cuda(), torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph): out = there(held)
                for _again in range(3):
                    held.copy_(torch.randn_like(held))
                    graph.replay()
                    torch.cuda.synchronize()
                    assert torch.equal(out, there(held)), f"{name} {matrix} {n_tok}: a graph's result"
                for a, b in zip(ops.quantize_rows(x.cuda(), None, 0), ops.quantize_rows(x.float(), None, 0)): assert torch.equal(a.cpu(), b)
            assert torch.equal(there.cpu()(x.float()), module(x.float()))
    x = torch.randn(4, 1536)
    for flag in (False, True):
        assert torch.equal(ops.hadamard(x.cuda(), 1536, flag).cpu(), ops.hadamard(x, 1536, flag))
        for kind in ("hadamard", "plain"): assert torch.equal(ops.rotate(x.cuda(), kind, 7, flag).cpu(), ops.rotate(x, kind, 7, flag))


def aligned(t, by=256):
    """A copy that begins at a multiple of `by` bytes, as memory of a device does."""
    room = torch.empty(t.numel() * t.element_size() + by, dtype=torch.uint8)
    begin = -room.data_ptr() % by
    return room[begin:begin + t.numel() * t.element_size()].copy_(t.flatten().view(torch.uint8)).view(t.dtype).reshape(t.shape)


def test_simulated():
    """The CUDA operators on the simulator of tests/gpusim, where this build has it: their numbers, and what they refuse."""
    path = os.path.join(os.path.dirname(os.path.abspath(requite.library_path())), "requite_torch_sim.so")
    if not os.path.isfile(path):
        print("test_torch: skips the simulator: this build has no requite_torch_sim.so")
        return
    os.environ["GPUSIM_EAGER"] = "1"  # work is done when it is queued
    torch.ops.load_library(path)
    for name in sorted(set(MODELS) - set(NO_TILES)):
        for matrix, entry, _tensors, m in list(matrices(name))[:7:2]:
            tiles, layout = m.kind.tiles(m)
            tiles, layout, dense, perm = aligned(tiles), layout.tolist(), m.dequantize(), m._buffers.get("run_perm")
            w4a8 = entry["format"] == "w4a8"
            for n_tok, dtype in ((1, torch.float16), (7, torch.bfloat16), (16, torch.float16), *([(40, torch.float16)] if w4a8 else [])):
                x, bias = torch.randn(n_tok, m.in_features).to(dtype), torch.randn(m.out_features).to(dtype)
                books = m.book_owner._buffers.get("weight_book")
                if dtype == torch.bfloat16 and entry["format"] == "ssvq" and books.dtype == torch.float16:
                    refused("bfloat16", ops.linear_tiles, aligned(x), tiles, perm, bias, layout)
                    continue
                y = ops.linear_tiles(aligned(x), tiles, perm, bias, layout)
                m.bias = None
                want = (m(x.float()) if w4a8 else x.float() @ dense.T) + bias.float()
                # Sums are fp32 or of integers; a result is rounded to its type once, and w4a8's inputs are the same int8 as on the CPU.
                step = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-11
                bound = step * want.abs() + (0 if w4a8 and not entry["hadamard"] else 2e-3 if w4a8 else step * (x.float().abs() @ dense.abs().T)) + 1e-5
                assert y.dtype == dtype and ((y.float() - want).abs() <= bound).all(), f"{name} {matrix} {n_tok}: {(y.float() - want).abs().max()}"
            if w4a8: continue
            whole = ops.unpack_tiles(tiles, layout, False).float()
            if perm is not None: whole = torch.empty_like(whole).index_copy_(1, perm.long(), whole)
            assert torch.equal(whole, dense.half().float()), f"{name} {matrix}: dense"
    x, res, factor = (torch.randn(s).half() for s in ((6, 96), (6, 96), (96,)))
    for a, b in zip(ops.sim_quantize_rows(x, factor.float(), 32), ops.quantize_rows(x.float(), factor.float(), 32)): assert torch.equal(a, b)
    rows = ops.sim_quantize_rmsnorm(x, res, factor, 1e-5, None, 0)
    flow = (x.float() + res.float()).half()
    for a, b in zip(rows[:3], ops.quantize_rmsnorm(flow.float(), None, factor.float(), 1e-5, None, 0)): assert torch.equal(a, b)
    assert torch.equal(rows[3], flow)
    for residual in (None, res):
        rows = ops.sim_quantize_rmsnorm(x, residual, factor, 1e-5, factor.float(), 12)
        for a, b in zip(rows[:3], ops.quantize_rmsnorm((x if residual is None else flow).float(), None, factor.float(), 1e-5, factor.float(), 12)): assert torch.equal(a, b)
        assert rows[3].numel() == 0 if residual is None else torch.equal(rows[3], flow)
    for a, b in zip(ops.sim_quantize_gated(x, res, None, 96), ops.quantize_gated(x.float(), res.float(), None, 96)): assert torch.equal(a, b)
    for order, n in ((32, 96), (12, 96), (96, 96), (2048, 2048)):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            rows = torch.randn(2, 3, n).to(dtype)
            for flag in (False, True):
                assert torch.equal(ops.sim_hadamard(rows, order, flag), ops.hadamard(rows.float(), order, flag).to(dtype)), f"hadamard {order} {dtype}"
                for kind, seed in (("hadamard", 7), ("plain", 0), ("orthogonal", 3)):
                    if kind == "orthogonal" and n > 96: continue
                    got, want = ops.sim_rotate(rows, kind, seed, flag), ops.rotate(rows.float(), kind, seed, flag).to(dtype)
                    if kind != "orthogonal": assert torch.equal(got, want), f"{kind} {n} {dtype}"
                    assert got.dtype == dtype and torch.allclose(got.float(), want.float(), rtol=0, atol=1e-5 if dtype == torch.float32 else 2e-2), f"{kind} {n} {dtype}"
    assert ops.sim_hadamard(torch.zeros(0, 96), 32, False).shape == (0, 96)
    refused("order is 36, which does not divide rows of 96", ops.sim_hadamard, rows[..., :96].contiguous(), 36, False)
    refused("x has dtype float64", ops.sim_hadamard, torch.zeros(1, 96).double(), 32, False)
    refused("no Hadamard matrix of order 92|order 92", ops.sim_rotate, torch.zeros(1, 92), "hadamard", 1, False)
    refused("unknown kind of rotation", ops.sim_rotate, torch.zeros(1, 96), "odd", 1, False)
    _name, e, _t, m = next(t for t in matrices("w4a8-row") if "down_proj" in t[0])
    tiles, layout = m.kind.tiles(m)
    tiles, layout = aligned(tiles), layout.tolist()
    q = [aligned(t) for t in ops.quantize_rows(torch.randn(20, m.in_features), None, 0)]
    want = ops.gemm_w4a8(*q, *m.kind._args(m)[:5], None, e["group"])
    assert torch.equal(ops.gemm_tiles(*q, tiles, None, layout, False), want.half()) and torch.equal(ops.gemm_tiles(*q, tiles, None, layout, True), want.bfloat16())
    good = aligned(torch.randn(2, m.in_features).half())
    refused("tiles has shape", ops.linear_tiles, good, tiles[:-256], None, None, layout)
    refused("layout has 3 numbers", ops.linear_tiles, good, tiles, None, None, layout[:3])
    refused("that is no matrix", ops.linear_tiles, good, tiles, None, None, [9, *layout[1:]])
    refused("perm is for a grid", ops.linear_tiles, good, tiles, torch.zeros(m.in_features, dtype=torch.int32), None, layout)
    refused("bias has dtype float32, not float16", ops.linear_tiles, good, tiles, None, torch.zeros(m.out_features), layout)
    refused("x has dtype float32: float16 or bfloat16", ops.linear_tiles, good.float(), tiles, None, None, layout)
    refused("q has shape [20]", ops.gemm_tiles, q[0][:, 0].contiguous(), *q[1:], tiles, None, layout, False)


def transformers_or_none():
    try:
        import transformers
        return transformers
    except ImportError:
        print("test_torch: skips whole models: this Python has no transformers")
        return None


def test_load():
    """A transformers model on our operators gives the C library's logits; compiled, its own."""
    if transformers_or_none() is None: return
    ids = torch.tensor([[3, 1, 200, 17, 99, 5, 6, 7, 250, 31] * 3])
    for name in MODELS:
        folder = quantized(name)
        model = requite.load(folder)
        packed = [m for m in model.modules() if isinstance(m, nn.QuantLinear)]
        assert len(packed) == len([n for n in requite.Checkpoint(folder).linears if "embed" not in n]), name
        for n in (1, 30):
            with torch.no_grad(): y = model(ids[:, :n]).logits[0]
            with requite.Model(folder) as ours: want = torch.from_numpy(ours.logits(ids[0, :n].numpy()))
            # The same weights; norms and attention round otherwise, and int8 inputs carry a rounding across a step.
            error = (y - want).norm() / want.norm()
            assert error < (2e-2 if "w4a8" in name or name == "mixed" else 1e-4), f"{name}, {n} tokens: {error}"
    with torch.no_grad():
        a, b = model(ids[:, :8]).logits, torch.compile(model, fullgraph=True, backend="aot_eager")(ids[:, :8]).logits
        assert torch.allclose(a, b, atol=1e-5)
        out = model.generate(ids[:, :5], max_new_tokens=4, do_sample=False)
    assert out.shape == (1, 9)
    assert requite.load(quantized("grid3"), torch.bfloat16)(ids).logits.dtype == torch.bfloat16


def python(code, cwd=None, **env):
    places = [PACKAGE] if LIBRARY != "installed" else []
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(places + [os.environ.get("PYTHONPATH", "")]), **env}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=cwd, check=False)


def with_driver(base, library):
    """requite_torch_cuda.so of one CUDA release and a driver of another: a library that says so stands for the kernels."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        print("test_torch: skips CUDA releases: there is no C compiler")
        return
    source, path = os.path.join(WORK.name, "releases.c"), os.path.join(os.path.dirname(library), "requite_torch_cuda.so")
    for linked, driver, device, says in ((13000, 12080, True, "is built with CUDA 13, and this machine's NVIDIA driver runs CUDA 12.8|CPU work without"),
                                         (12040, 0, False, "this machine has no NVIDIA driver"), (12080, 12020, True, "None"), (12080, 13000, True, "None"),
                                         (12080, 13000, False, "PyTorch finds no CUDA device")):
        with open(source, "w", encoding="utf-8") as f: f.write(f"void requite_torch_cuda_releases(int *l, int *d) {{ *l = {linked}; *d = {driver}; }}\n")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", path, source], check=True)
        p = python(base + f"import torch; torch.version.cuda = '13'; torch.cuda.is_available = lambda: {device}; print(requite.ops.why_no_cuda())",
                   RQ_LIBRARY=library)
        for word in says.split("|"): assert word in p.stdout, p.stdout + p.stderr


def test_import():
    """What is missing is said, and what still works works."""
    base = "import sys, requite; assert 'torch' not in sys.modules; requite.version(); "
    p = python(base + "sys.modules['torch'] = None; requite.nn")
    assert "ImportError: requite.ops and requite.nn need PyTorch 2.10 or later, which this Python does not have" in p.stderr, p.stderr
    assert "Quantizing and Model work without it" in p.stderr
    p = python(base + "import torch; torch.__version__ = '2.9.1'; requite.load")
    assert "this is 2.9.1" in p.stderr, p.stderr
    if LIBRARY != "installed":
        alone = os.path.join(WORK.name, "librequite.so")
        with open(requite.library_path(), "rb") as f, open(alone, "wb") as g: g.write(f.read())
        p = python(base + "requite.ops", RQ_LIBRARY=alone)
        assert re.search(r"ImportError: torch.ops.requite is not there: .*requite_torch.so was not built", p.stderr), p.stderr
        for name, content in (("requite_torch.so", b""), ("requite_torch_cuda.so", b"of another make")):
            with open(os.path.join(WORK.name, name), "wb") as f: f.write(content)
        p = python(base + "requite.ops", RQ_LIBRARY=alone)
        assert re.search(r"ImportError: .*requite_torch.so cannot be loaded: .*Quantizing and Model work without it", p.stderr), p.stderr
        with open(os.path.join(os.path.dirname(requite.library_path()), "requite_torch.so"), "rb") as f: real = f.read()
        with open(os.path.join(WORK.name, "requite_torch.so"), "wb") as g: g.write(real)
        p = python(base + "import torch; torch.version.cuda = '13'; requite.ops.torch.ops.requite.linear_grid; print(requite.ops.why_no_cuda())",
                   RQ_LIBRARY=alone)
        assert "requite_torch_cuda.so cannot be loaded" in p.stdout, p.stdout + p.stderr  # and the CPU's operators are there
        with_driver(base, alone)
    p = python("import requite; requite.nonsense")
    assert "has no attribute 'nonsense'" in p.stderr, p.stderr


def test_examples():
    """The examples of python/README.md and docs/python.md print what the pages say; as they are typed, with the default compiler."""
    for page, after in (("python/README.md", "## With PyTorch"), ("docs/python.md", "## A module that is no language model")):
        code, printed = example(page, after)
        p = python(code, cwd=WORK.name)
        assert p.returncode == 0, p.stderr
        assert printed_as(p.stdout, printed), p.stdout


def main():
    tests = [(name, f) for name, f in globals().items() if name.startswith("test_")]
    wanted = sys.argv[4:]
    failed = 0
    tests = [(n, f) for n, f in tests if not wanted or n in wanted]
    for name, test in tests:
        try:
            test()
        except Exception:  # each is reported, and the next still runs
            import traceback
            failed += 1
            print(f"FAILED {name}")
            traceback.print_exc(file=sys.stdout)
    print(f"test_torch: {len(tests) - failed} of {len(tests)} passed, torch {torch.__version__}")
    WORK.cleanup()
    sys.exit(1 if failed else 0)


main()
