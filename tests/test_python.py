# SPDX-License-Identifier: Apache-2.0
"""test_python.py LIBRARY REQUITE TESTS: the Python package, run from python/ with LIBRARY as its librequite.so.

quantize_linear against `requite layer` on golden layers (same bytes) and against its own definition in float64; Gram against
its definition; Model against golden logits; and what each refuses, by the argument's name. Skipped without NumPy. The part
about PyTorch's tensors and hooks runs where PyTorch is."""
import gc
import json
import os
import struct
import subprocess
import sys
import tempfile

from check_common import SKIP, example, printed_as

try:
    import numpy as np
except ImportError:
    print("test_python: skipped: this Python has no NumPy")
    sys.exit(SKIP)
try:
    import torch
except ImportError:
    torch = None

LIBRARY, REQUITE, TESTS = (os.path.abspath(a) for a in sys.argv[1:4])
PACKAGE = os.path.join(os.path.dirname(TESTS), "python")
os.environ["RQ_LIBRARY"] = LIBRARY
# NumPy may have loaded the same OpenBLAS before the library could choose its kernels: the command is to use those too.
os.environ["RQ_OPENBLAS_CORETYPE"] = "env"
sys.path.insert(0, PACKAGE)
import requite  # noqa: E402  (from PACKAGE)

WORK = tempfile.TemporaryDirectory(prefix="requite-python-")
TYPES = {"F32": np.float32, "F64": np.float64, "F16": np.float16, "I64": np.int64, "I32": np.int32, "I8": np.int8, "U8": np.uint8}


def load(path):
    """Tensors of a safetensors file, those of TYPES."""
    with open(path, "rb") as f: raw = f.read()
    n = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:8 + n])
    return {name: np.frombuffer(raw, TYPES[t["dtype"]], int(np.prod(t["shape"])), 8 + n + t["data_offsets"][0]).reshape(t["shape"])
            for name, t in header.items() if name != "__metadata__" and t["dtype"] in TYPES}


def refused(kind, words, call, *args, **kw):
    """The exception that call raises: of that kind, its sentence holding every one of the words."""
    try:
        call(*args, **kw)
    except kind as e:
        assert type(e) is kind, f"{e!r} is not a {kind.__name__}"
        for word in words.split("|"): assert word in str(e), f"{str(e)!r} does not say {word!r}"
        return e
    raise AssertionError(f"{kind.__name__} ({words}) was not raised")


def golden(name):
    t = load(os.path.join(TESTS, "golden", "layers", name + ".safetensors"))
    return t["W"], t["H"], t["dXXT"]


def problem(n_out=24, n_in=64, seed=1):
    """A small layer: weights, and the Gram matrices of inputs and of the original model's."""
    r = np.random.default_rng(seed)
    x = r.standard_normal((4 * n_in, n_in)) * np.exp(r.standard_normal(n_in))
    x_fp = x + 0.1 * r.standard_normal(x.shape)
    return r.standard_normal((n_out, n_in)).astype(np.float32), x.T @ x, (x_fp - x).T @ x


def test_same_as_command():
    for name, flags, options in (
            ("L5_q", [], {}),
            ("L5_q", ["--no-act-order", "--no-static-groups", "--cd-sweeps", "0"],
             {"act_order": False, "static_groups": False, "cd_sweeps": 0}),
            ("L5_gate", ["--comp", "gptq", "--bits", "2", "--group", "64", "--sym"],
             {"comp": "gptq", "bits": 2, "group": 64, "sym": True}),
            ("L11_down", ["--preset", "reference", "--comp", "rescomp", "--bits", "4", "--damp", "0.02"],
             {"comp": "rescomp", "bits": 4, "damp": 0.02, "preset": "reference"}),
            ("L9_down", ["--round", "ssvq", "--kmeans-iters", "3", "--cd-sweeps", "1"],
             {"round": "ssvq", "kmeans_iters": 3, "cd_sweeps": 1}),
            ("L9_down", ["--round", "w4a8"], {"round": "w4a8"})):
        case, out = os.path.join(TESTS, "golden", "layers", name + ".safetensors"), os.path.join(WORK.name, "out.safetensors")
        p = subprocess.run([REQUITE, "layer", case, "-o", out, "--json", *flags], capture_output=True, text=True, check=False)
        assert p.returncode == 0, p.stderr
        report, w, h, d = json.loads(p.stdout), *golden(name)
        r = requite.quantize_linear(w, h, d, **options)
        assert r.q.dtype == np.float32 and r.q.tobytes() == load(out)["Q"].tobytes(), f"{name} {options}"
        for key, value in (("loss_sym", r.info.loss_sym), ("loss_asym", r.info.loss_asym), ("rel_loss", r.info.rel_loss),
                           ("bpw", r.info.bpw), ("damp_used", r.info.damp_used), ("damp_retries", r.info.damp_retries),
                           ("dead_columns", r.info.n_dead)):
            assert abs(report[key] - value) <= 1e-8 * abs(value), f"{name} {options}: {key} {value}, not {report[key]}"
        assert (r.codes is None) == ("round" in options) and r.packed.entry["format"] == options.get("round", "grid")


def write_case(path, w, h, d):
    """What `requite layer` reads."""
    header, at, arrays = {}, 0, {"W": w, "H": h, "dXXT": d}
    for name, a in arrays.items():
        header[name] = {"dtype": {4: "F32", 8: "F64"}[a.itemsize], "shape": a.shape, "data_offsets": [at, at + a.nbytes]}
        at += a.nbytes
    text = json.dumps(header).encode()
    with open(path, "wb") as f: f.write(struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for a in arrays.values()))


FORMATS = (("grid", ["--group", "32"], {"group": 32}),
           ("grid", "--comp gptq --bits 4 --group 0 --sym --scale-dtype f32".split(), {"comp": "gptq", "bits": 4, "group": 0, "sym": True, "scale_dtype": "f32"}),
           ("grid", "--bits 2 --group 20 --act-order --no-static-groups".split(), {"bits": 2, "group": 20, "act_order": True, "static_groups": False}),
           ("ssvq", "--round ssvq --codes 20 --vec-len 4 --outliers 2 --outlier-min 0".split(),
            {"round": "ssvq", "codes": 20, "vec_len": 4, "outliers": 2, "outlier_min": 0}),
           ("ssvq", "--round ssvq --codes 16 --book-dtype f16".split(), {"round": "ssvq", "codes": 16, "book_dtype": "f16"}),
           ("vq", "--round vq --codes 32 --codes2 16 --outliers 1 --outlier-min 0".split(),
            {"round": "vq", "codes": 32, "codes2": 16, "outliers": 1, "outlier_min": 0}),
           ("vq", "--round vq --codes 18 --vec-axis out --vec-len 5 --comp gptaq".split(),
            {"round": "vq", "codes": 18, "vec_axis": "out", "vec_len": 5, "comp": "gptaq"}),
           ("vq", "--preset vptq --vec-len 4 --codes 16 --codes2 16 --book-cols 20 --book-order hdiag".split(),
            {"preset": "vptq", "vec_len": 4, "codes": 16, "codes2": 16, "book_cols": 20, "book_order": "hdiag"}),
           ("w4a8", "--round w4a8 --group 32".split(), {"round": "w4a8", "group": 32}),
           ("w4a8", "--round w4a8 --group 0".split(), {"round": "w4a8", "group": 0}))


def test_packed():
    """The tensors of every format: what `requite layer` writes, name by name and byte by byte; and saved, the same file."""
    w, h, d = problem(23, 60)
    case, out, saved = (os.path.join(WORK.name, name) for name in ("case.safetensors", "packed.safetensors", "saved.safetensors"))
    write_case(case, w, h, d)
    for name, flags, options in FORMATS:
        p = subprocess.run([REQUITE, "layer", case, "-o", out, *flags], capture_output=True, text=True, check=False)
        assert p.returncode == 0, p.stderr
        r, want = requite.quantize_linear(w, h, d, **options), load(out)
        assert r.packed.entry["format"] == name
        assert {"W." + n: (a.dtype, a.shape, a.tobytes()) for n, a in r.packed.tensors.items()} == {
            n: (a.dtype, a.shape, a.tobytes()) for n, a in want.items() if n != "Q"}, options
        requite.save(saved, {"W": r.packed}, {"Q": r.q})
        with open(out, "rb") as f, open(saved, "rb") as g: assert f.read() == g.read(), options
        assert os.listdir(WORK.name).count("saved.safetensors.tmp") == 0
    p = subprocess.run([REQUITE, "inspect", saved], capture_output=True, text=True, check=False)
    assert p.returncode == 0 and "w4a8" in p.stdout, p.stdout + p.stderr
    with open(out, "rb") as f: before = f.read()
    refused(TypeError, "matrices: W is a Result", requite.save, out, {"W": r})
    refused(ValueError, "others: W.weight_scale is a part", requite.save, out, {"W": r.packed}, {"W.weight_scale": w})
    refused(TypeError, "Q has dtype complex64", requite.save, out, {"W": r.packed}, {"Q": w.astype(np.complex64)})
    refused(TypeError, "Q is a list", requite.save, out, {"W": r.packed}, {"Q": [1.]})
    os.mkdir(saved + ".d")
    refused(IsADirectoryError, "saved.safetensors.d", requite.save, saved + ".d", {"W": r.packed})
    assert not os.path.exists(saved + ".d.tmp")
    with open(out, "rb") as f: assert before == f.read(), "a refused file was written over"


def test_definition():
    w, h, d = golden("L5_q")
    for options in ({}, {"comp": "gptq", "bits": 4, "group": 0, "sym": True}, {"bits": 2, "group": 32, "act_order": True,
                                                                             "static_groups": False}):
        r = requite.quantize_linear(w, h, d, **options)
        bits, group = options.get("bits", 3), options.get("group", 128) or w.shape[1]
        groups = -(-w.shape[1] // group)
        assert r.codes.dtype == r.zero.dtype == np.uint8 and r.g_idx.dtype == np.int32 and r.scale.dtype == np.float32
        assert r.codes.shape == w.shape and r.scale.shape == r.zero.shape == (len(w), groups), r.scale.shape
        assert r.codes.max() < 2**bits and sorted(set(r.g_idx)) == list(range(groups))
        if options.get("sym"): assert (r.zero == 2**(bits - 1)).all()
        q = r.scale[:, r.g_idx] * (r.codes.astype(np.float32) - r.zero[:, r.g_idx])
        assert np.abs(q - r.q).max() <= 1e-6 * np.abs(w).max()
        e, h64, d64 = w.astype(np.float64) - r.q, h.astype(np.float64), d.astype(np.float64)
        sym = np.einsum("ij,jk,ik", e, h64, e, optimize=True)
        asym = sym + 2 * np.einsum("ij,jk,ik", w.astype(np.float64), d64, e, optimize=True)
        whw = np.einsum("ij,jk,ik", w.astype(np.float64), h64, w.astype(np.float64), optimize=True)
        assert abs(r.info.loss_sym - sym) < 1e-6 * whw and abs(r.info.loss_asym - asym) < 1e-6 * whw, (r.info, sym, asym)
        assert abs(r.info.rel_loss - sym / whw) < 1e-6 and bits < r.info.bpw < bits + 2, (options, r.info)
    threads = requite.get_threads()
    one = []
    for n in (1, 3):
        requite.set_threads(n)
        assert requite.get_threads() == n
        one.append(requite.quantize_linear(w, h, d).q.tobytes())
    requite.set_threads(threads)
    assert one[0] == one[1]


class Dlpack:
    """An array that shows itself through DLPack alone."""

    def __init__(self, array, device=(1, 0)): self.array, self.device = array, device

    def __dlpack__(self, **kw): return self.array.__dlpack__(**kw)

    def __dlpack_device__(self): return self.device


class Unreadable:
    """And one of a type that NumPy has not."""

    def __dlpack__(self, **_kw): raise BufferError("bfloat16")

    def __dlpack_device__(self): return (1, 0)


class Interface:
    """And one through __array_interface__ alone."""

    def __init__(self, array): self.array, self.__array_interface__ = array, array.__array_interface__


def test_arrays():
    w, h, d = problem()
    options = {"group": 32, "bits": 3}
    want = requite.quantize_linear(w, h, d, **options).q.tobytes()
    before = w.tobytes(), h.tobytes(), d.tobytes()
    wide = np.zeros((2 * w.shape[0], 3 * w.shape[1]), np.float32)
    wide[::2, ::3] = w
    odd = np.frombuffer(b"\0" + w.tobytes(), np.uint8)[1:].view(np.float32).reshape(w.shape)
    for name, again in (("Fortran order", np.asfortranarray(w)), ("strides", wide[::2, ::3]), ("float64", w.astype(np.float64)),
                        ("big-endian", w.astype(">f4")), ("unaligned", odd), ("DLPack", Dlpack(w)), ("interface", Interface(w))):
        assert requite.quantize_linear(again, h, d, **options).q.tobytes() == want, name
    assert requite.quantize_linear(Dlpack(w), Interface(np.asfortranarray(h)), Dlpack(d), **options).q.tobytes() == want
    half = w.astype(np.float16)
    a = requite.quantize_linear(half, h, d, **options).q
    assert a.tobytes() == requite.quantize_linear(half.astype(np.float32), h, d, **options).q.tobytes()
    assert before == (w.tobytes(), h.tobytes(), d.tobytes()), "an input was written to"
    # Nothing of the caller's is needed once the call is over, nor of the library's.
    r = requite.quantize_linear(w.copy(), h.copy(), d.copy(), **options)
    gc.collect()
    np.empty(w.shape, np.float32).fill(9)
    assert r.q.tobytes() == want and r.q.flags.owndata


def test_refused_arrays():
    w, h, d = problem()

    def call(w=w, h=h, d=d, **kw): return requite.quantize_linear(w, h, d, **{"group": 32, **kw})

    def spoilt(a, value, at=(3, 5)):
        a = a.copy()
        a[at] = value
        return a

    refused(TypeError, "w is a list", call, w=w.tolist())
    refused(TypeError, "w has dtype int32", call, w=w.astype(np.int32))
    refused(TypeError, "h has dtype complex128", call, h=h.astype(complex))
    refused(TypeError, "d has dtype uint8", call, d=d.astype(np.uint8))
    refused(ValueError, "w has shape (64,)", call, w=w[0])
    refused(ValueError, "w has shape (0, 64)|empty", call, w=w[:0])
    refused(ValueError, "h has shape (63, 63), not (64, 64)", call, h=h[1:, 1:])
    refused(ValueError, "d has shape (64,), not (64, 64)", call, d=d[0])
    refused(ValueError, "w[3, 5] is nan", call, w=spoilt(w, np.nan))
    refused(ValueError, "w[3, 5] is inf", call, w=spoilt(w, np.inf))
    refused(ValueError, "h[3, 5] is nan", call, h=spoilt(h, np.nan))
    refused(ValueError, "d[3, 5] is -inf", call, d=spoilt(d, -np.inf))
    refused(ValueError, "w holds a number that float32 cannot: 1e+300", call, w=spoilt(w.astype(np.float64), 1e300))
    refused(ValueError, "h is not symmetric: h[", call, h=h + 30 * np.triu(np.abs(d)))
    refused(ValueError, "h is not symmetric: h[3, 5]", call, h=spoilt(h, h[5, 3] + np.sqrt(h[3, 3] * h[5, 5])))
    refused(ValueError, "h[7, 7] is -1", call, h=spoilt(h, -1, (7, 7)))
    refused(ValueError, "w is on DLPack device (2, 0)", call, w=Dlpack(w, (2, 0)))
    refused(TypeError, "h: its DLPack data cannot be read: bfloat16", call, h=Unreadable())
    refused(TypeError, "w has dtype int64", call, w=Dlpack(w.astype(np.int64)))
    refused(ValueError, "d has shape (63, 63), not (64, 64)", call, d=Dlpack(d[1:, 1:]))
    refused(ValueError, "w[3, 5] is nan", call, w=Dlpack(spoilt(w, np.nan)))
    big_w, big_h, big_d = problem(4, 600)  # h is looked at in blocks of rows
    refused(ValueError, "h is not symmetric: h[550, 590]", call, w=big_w, d=big_d, h=spoilt(big_h, 1e9, (590, 550)))


def test_refused_options():
    w, h, d = problem()

    def call(h=h, d=d, **kw): return requite.quantize_linear(w, h, d, **{"group": 32, **kw})

    arg = requite.Status.ARG
    for words, options in (("--bits 5", {"bits": 5}), ("'no-such' is not a quantization option", {"no_such": 1}),
                           ("--group 65|64 inputs", {"group": 65}), ("no compensator 'best'", {"comp": "best"}),
                           ("sym=2", {"sym": 2}), ("--damp 0", {"damp": 0.0}), ("no rounder 'up'", {"round": "up"})):
        assert refused(requite.Error, words, call, **options).status is arg
    refused(TypeError, "bits is [3]", call, bits=[3])
    refused(ValueError, "comp is 'gptq,bits=2'", call, comp="gptq,bits=2")
    # The library's own checks of what NumPy cannot know: matrices that a compensator wants, and of no use at all.
    assert refused(requite.Error, "dXXT", call, d=None).status is arg
    refused(requite.Error, "H", call, h=None)
    assert call(d=None, comp="gptq").info.damp_retries == 0
    assert requite.quantize_linear(w, None, comp="rtn", clip_weights="none", group=32).info.loss_sym == 0
    # A singular h is worked with: its own damping does.
    one = np.outer(h[0], h[0])
    r = requite.quantize_linear(w, one, comp="gptq", group=32)
    assert np.isfinite(r.q).all() and r.info.damp_used > 0
    r = requite.quantize_linear(w, np.zeros_like(h), comp="gptq", group=32)
    assert np.isfinite(r.q).all() and r.info.n_dead == w.shape[1]
    refused(TypeError, "n is 1.5", requite.set_threads, 1.5)
    refused(ValueError, "n is 1025", requite.set_threads, 1025)


def test_gram():
    r = np.random.default_rng(3)
    x = r.standard_normal((2, 50, 12)).astype(np.float32)
    x_fp = x + r.standard_normal(x.shape).astype(np.float32)
    g = requite.Gram(12)
    assert g.add(x[0], x_fp[0]) is g
    g.add(Dlpack(x[1:]), Interface(np.ascontiguousarray(x_fp[1:])))
    h, d = np.zeros((12, 12)), np.zeros((12, 12))
    for a, b in zip(x.reshape(-1, 12).astype(float), x_fp.reshape(-1, 12).astype(float)):
        h += np.outer(a, a)
        d += np.outer(b - a, a)
    assert g.count == 100 and np.allclose(g.h, h, rtol=1e-12) and np.allclose(g.d, d, rtol=1e-12, atol=1e-12)
    before = g.h.tobytes(), g.d.tobytes(), g.count
    refused(ValueError, "x has shape (3, 11)|12", g.add, np.zeros((3, 11)), np.zeros((3, 11)))
    refused(ValueError, "x_fp has shape (2, 12)|(3, 12)", g.add, np.zeros((3, 12)), np.zeros((2, 12)))
    refused(ValueError, "x[0, 3] is nan", g.add, np.where(np.arange(12) == 3, np.nan, 0.)[None])
    refused(ValueError, "with every batch or with none", g.add, np.zeros((3, 12)))
    refused(TypeError, "x has dtype int64", g.add, np.zeros((3, 12), np.int64))
    assert before == (g.h.tobytes(), g.d.tobytes(), g.count)
    many = r.standard_normal((9000, 4))  # more than are widened at once
    assert np.allclose(requite.Gram(4).add(many).h, many.T @ many, rtol=1e-12) and requite.Gram(4).add(many).d is None
    refused(ValueError, "n is 0", requite.Gram, 0)
    refused(TypeError, "n is 2.0", requite.Gram, 2.0)


def test_model():
    for name in ("tied", "qwen2"):
        folder = os.path.join(TESTS, "golden", "llama", name)
        want = load(os.path.join(folder, "golden.safetensors"))
        with requite.Model(folder) as m:
            assert m.n_vocab == 320 and m.bpw == 16
            for ids, logits in zip(want["ids"], want["logits"]):
                out = m.logits(ids)
                assert out.dtype == np.float32 and out.shape == logits.shape
                assert np.abs(out - logits).max() < 1e-4 * np.abs(logits).max()
                assert out.tobytes() == m.logits(ids.tolist()).tobytes() == m.logits(ids.astype(np.int64)).tobytes()
            assert refused(requite.Error, "320", m.logits, [1, 320]).status is requite.Status.INPUT
            refused(requite.Error, "-1", m.logits, [-1])
            refused(TypeError, "ids has dtype float64", m.logits, [1.5])
            refused(ValueError, "ids is empty", m.logits, [])
            refused(ValueError, "ids has shape (1, 2)", m.logits, [[1, 2]])
            refused(ValueError, "ids holds 4294967296", m.logits, [1, 2**32])
            refused(ValueError, "ids holds -4294967295", m.logits, [-2**32 + 1])
        m.close()
        for use in (lambda: m.logits([1]), lambda: m.bpw, lambda: m.n_vocab): refused(ValueError, "the model is closed", use)
    assert refused(requite.Error, "no-such-folder", requite.Model, os.path.join(WORK.name, "no-such-folder")).status < 0


def python(code, **env):
    path = os.pathsep.join(filter(None, [PACKAGE, os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, **env}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)


def test_import():
    with open(os.path.join(os.path.dirname(TESTS), "host", "rq.h"), encoding="utf-8") as f:
        version = f.read().split('#define RQ_VERSION "')[1].split('"')[0]
    assert requite.__version__ == requite.version() == version
    p = python("import sys; sys.modules['numpy'] = None; import requite")
    assert "ImportError: requite needs NumPy" in p.stderr, p.stderr
    p = python("import sys, requite; assert 'torch' not in sys.modules; sys.modules['torch'] = None; requite.hooks(None)")
    assert "ImportError: requite.hooks needs PyTorch" in p.stderr, p.stderr
    other = os.path.join(WORK.name, "other.so")
    p = python("import requite; print(requite.library_path()); requite.version()", RQ_LIBRARY=other)
    assert p.stdout.strip() == other and "LibraryError: librequite.so is not there: RQ_LIBRARY names" in p.stderr, p.stderr
    with open(other, "w", encoding="utf-8") as f: f.write("no library")
    p = python("import requite; requite.version()", RQ_LIBRARY=other)
    assert f"LibraryError: {other} cannot be loaded" in p.stderr, p.stderr
    assert "Without it Gram and hooks work" in p.stderr, p.stderr
    from numpy.linalg import _umath_linalg
    p = python("import requite; requite.version()", RQ_LIBRARY=_umath_linalg.__file__)
    assert "it is not Requite's library, or of another version" in p.stderr, p.stderr
    p = python("import requite; requite.__version__ = '9.9'; requite.version()")
    assert f"is version {version} and this package is version 9.9" in p.stderr, p.stderr


WORKS = """
import numpy as np, requite
x = np.random.default_rng(1).standard_normal((256, 64))
r = requite.quantize_linear(x[:8].astype(np.float32), requite.Gram(64).add(x).h, comp="gptq", round="ssvq", vec_len=4, codes=16)
assert set(r.packed.tensors) >= {"weight_codes", "weight_signs", "weight_book"}
"""


def test_import_of_torch():
    """With no PyTorch, one that is too old and one that cannot be loaded: what needs it says so, the rest works."""
    for number, (source, says) in enumerate(((None, "{} PyTorch|which this Python does not have: pip install torch"),
                                            ("__version__ = '2.4.0+cu121'", "{} PyTorch 2.10 or later for its stable ABI; this is 2.4.0+cu121"),
                                            ("raise ImportError('libcudart.so.12: cannot open shared object file')",
                                             "{} PyTorch|the one of this Python cannot be imported: libcudart.so.12: cannot open"),
                                            ("raise OSError('libtorch_cuda.so: undefined symbol: x')", "{} PyTorch|libtorch_cuda.so: undefined symbol: x"))):
        folder = os.path.join(WORK.name, f"torch{number}")
        os.makedirs(os.path.join(folder, "torch"), exist_ok=True)
        missing = "import sys; sys.modules['torch'] = None" if source is None else "import sys"
        if source is not None:
            with open(os.path.join(folder, "torch", "__init__.py"), "w", encoding="utf-8") as f: f.write(source + "\n")
        path = os.pathsep.join(filter(None, [folder, PACKAGE, os.environ.get("PYTHONPATH")]))
        uses = [("ops", "requite.ops and requite.nn need"), ("nn", "requite.ops and requite.nn need"), ("load", "need"), ("Checkpoint", "need")]
        if source is None or source.startswith("raise"):
            uses += [("hooks(None)", "requite.hooks needs"), ("ssvq", "requite.ssvq needs"), ("__path__; import requite.finetune", "requite.finetune needs")]
        for use, who in uses:
            p = subprocess.run([sys.executable, "-c", f"{missing}{WORKS}requite.{use}"], capture_output=True, text=True, check=False,
                               env={**os.environ, "PYTHONPATH": path})
            last = p.stderr.strip().split("\n")[-1]
            assert p.returncode and last.startswith("ImportError: "), p.stderr
            for words in says.format(who).split("|"): assert words in last, last
            assert "without it" in last, last


def test_readme():
    """The example of python/README.md prints what the page says."""
    code, printed = example("python/README.md")
    p = python(code)
    assert p.returncode == 0, p.stderr
    assert printed_as(p.stdout, printed), p.stdout
    assert not printed_as(p.stdout.replace("3.149", "3.5"), printed) and not printed_as(p.stdout + " more", printed)


def test_torch():
    if torch is None:
        print("test_python: skips tensors and hooks: this Python has no PyTorch")
        return
    w, h, d = problem()
    want = requite.quantize_linear(w, h, d, group=32)
    r = requite.quantize_linear(torch.from_numpy(w).requires_grad_(), torch.from_numpy(h), torch.from_numpy(d), group=32)
    assert isinstance(r.q, torch.Tensor) and r.codes.dtype == torch.uint8 and r.q.numpy().tobytes() == want.q.tobytes()
    brief = torch.from_numpy(w).bfloat16()
    a, b = requite.quantize_linear(brief, h, d, group=32).q, requite.quantize_linear(brief.float(), h, d, group=32).q
    assert torch.equal(a, b)
    assert requite.quantize_linear(Dlpack(torch.from_numpy(w)), h, d, group=32).q.tobytes() == want.q.tobytes()
    strided = torch.zeros(2 * w.shape[0], w.shape[1], dtype=torch.float64)[::2].copy_(torch.from_numpy(w))
    assert torch.equal(requite.quantize_linear(strided, h, d, group=32).q, r.q)
    freed = torch.from_numpy(h).clone()
    freed.untyped_storage().resize_(8)
    refused(ValueError, "h has no memory for its shape (64, 64)", requite.quantize_linear, w, freed, d, group=32)
    refused(ValueError, "x has no memory for its shape (64, 64)", requite.Gram(64).add, freed)
    refused(ValueError, "w is on meta", requite.quantize_linear, torch.from_numpy(w).to("meta"), h, d, group=32)
    refused(TypeError, "w has layout torch.sparse_coo: a dense tensor is wanted", requite.quantize_linear, torch.from_numpy(w).to_sparse(), h, d, group=32)
    refused(TypeError, "w: this tensor cannot be read as an array", requite.quantize_linear, torch.ones(4, 64, dtype=torch.complex64).conj().imag, h, d, group=32)
    refused(TypeError, "d has dtype int8", requite.quantize_linear, w, h, torch.zeros(64, 64, dtype=torch.int8), group=32)
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    fp = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    batches = [torch.randn(5, 3, 8) for _ in range(2)]
    with requite.hooks(model, fp=fp) as taken:
        for x in batches:
            fp(x)
            model(x)
    model(batches[0])  # no longer counted
    x = torch.cat(batches).reshape(-1, 8)
    a, b = (m[:2](x).detach().double().numpy() for m in (model, fp))
    assert list(taken.grams) == ["0", "2"] and taken.grams["2"].count == 30
    assert np.allclose(taken.grams["2"].h, a.T @ a) and np.allclose(taken.grams["2"].d, (b - a).T @ a)
    assert np.abs(taken.grams["0"].d).max() == 0
    with requite.hooks(model, ["2"], fp=fp): refused(RuntimeError, "run fp on each batch first", model, x)
    refused(ValueError, "model has no module 'x'", requite.hooks, model, ["x"])
    refused(TypeError, "'1' of model is a ReLU", requite.hooks, model, ["1"])


def main():
    tests = [(name, f) for name, f in globals().items() if name.startswith("test_")]
    failed = 0
    for name, test in tests:
        try:
            test()
        except Exception:  # each is reported, and the next still runs
            import traceback
            failed += 1
            print(f"FAILED {name}")
            traceback.print_exc(file=sys.stdout)
    print(f"test_python: {len(tests) - failed} of {len(tests)} passed")
    WORK.cleanup()
    sys.exit(1 if failed else 0)


main()
