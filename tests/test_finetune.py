# SPDX-License-Identifier: Apache-2.0
"""test_finetune.py LIBRARY REQUITE TESTS: requite.ssvq and requite.finetune on the CPU.

Weights and gradients of SSVQLinear against the format's definition in float64, written here from docs/formats.md; straight-through
signs; freezing; the forward pass, before and after an export, against `requite eval`; an untouched model's bytes; a run of the
script, one that is stopped and resumed, and what is refused. Models come from `requite quantize` on tiny ones. Skipped without PyTorch."""
import contextlib
import filecmp
import io
import json
import math
import os
import random
import subprocess
import sys
import tempfile

SKIP = 77
LIBRARY, REQUITE, TESTS = (os.path.abspath(a) for a in sys.argv[1:4])
os.environ["RQ_LIBRARY"] = LIBRARY
os.environ["RQ_OPENBLAS_CORETYPE"] = "env"  # NumPy may have loaded the same OpenBLAS before the library could choose
sys.path.insert(0, os.path.join(os.path.dirname(TESTS), "python"))
try:
    import numpy as np
    import torch
except ImportError as missing:
    print(f"test_finetune: skipped: {missing}")
    sys.exit(SKIP)
from requite import finetune  # noqa: E402
from requite._container import Container, pack_signs, round_bf16, unpack_bits, widen_bf16  # noqa: E402
from requite._llama import Llama, rope_frequencies  # noqa: E402
from requite.ssvq import SignFreezer, SSVQBook, SSVQLinear, load_ssvq  # noqa: E402

torch.set_num_threads(1)
WORK = tempfile.TemporaryDirectory(prefix="requite-finetune-")


def path(name):
    return os.path.join(WORK.name, name)


def tiny(name="tied"):
    return os.path.join(TESTS, "golden", "llama", name)


def ids_file(name, n, length=64, seed=1):
    r = random.Random(seed)
    ids = np.array([[r.randrange(256) for _ in range(length)] for _ in range(n)], np.int32)
    head = json.dumps({"ids": {"dtype": "I32", "shape": [n, length], "data_offsets": [0, ids.nbytes]}}).encode()
    head += b" " * (-len(head) % 8)
    with open(path(name), "wb") as f: f.write(len(head).to_bytes(8, "little") + head + ids.tobytes())
    return path(name)


def command(*words):
    p = subprocess.run([REQUITE, *map(str, words), "--json", "--progress", "none"], capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    return json.loads(p.stdout)


def quantized(name, *options, model="tied"):
    """A quantized tiny model; made once."""
    if not os.path.exists(path(name)):
        command("quantize", tiny(model), path(name), "--round", "ssvq", "--comp", "rtn", "--outliers", 2, "--outlier-min", 0,
                "--calib", ids_file("calib.safetensors", 8), *options)
    return path(name)


def refused(says, call, *args, **kw):
    try:
        call(*args, **kw)
    except (ValueError, TypeError) as e:
        for word in says.split("|"): assert word in str(e), f"{str(e)!r} does not say {word!r}"
        return
    raise AssertionError(f"{says}: nothing was raised")


def finetune_words(*words):
    """The script's exit code, what it printed, and what it said."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = finetune.main([str(w) for w in words])
    return code, out.getvalue(), err.getvalue()


# ---- one matrix -------------------------------------------------------------------------------------------------------------

def random_matrix(rng, n_out, n_in, v, code_bits, n_codes, book_cols, group, n_outlier, u8):
    """The entry and the tensors of a matrix, as in a file."""
    n_vec, n_book, n_group = -(-n_in // v), -(-n_in // book_cols), -(-n_in // group)
    codes = rng.integers(0, n_codes, (n_out, n_vec))
    bits = ((codes[:, :, None] >> np.arange(code_bits)) & 1).astype(bool).reshape(n_out, -1)
    book = rng.integers(0, 256, (n_book, n_codes, v)).astype(np.uint8) if u8 else np.abs(rng.standard_normal((n_book, n_codes, v))).astype(np.float16)
    book[0, 0, 0] = 0
    tensors = {"weight_shape": np.array([n_out, n_in]), "weight_codes": pack_signs(bits), "weight_signs": pack_signs(rng.random((n_out, n_vec * v)) < 0.5),
               "weight_scale": (0.1 + rng.random((n_out, n_group))).astype(np.float16)}
    if n_outlier:
        tensors.update(weight_outlier_cols=np.sort(rng.choice(n_in, n_outlier, replace=False)).astype(np.int32),
                       weight_outlier=rng.integers(-127, 128, (n_out, n_outlier)).astype(np.int8),
                       weight_outlier_scale=rng.random(n_outlier).astype(np.float32))
    entry = {"format": "ssvq", "vec_len": v, "code_bits": code_bits, "n_codes": n_codes, "book_cols": book_cols, "group": group, "n_outlier": n_outlier}
    return entry, tensors, book, (rng.random(n_book) / 100).astype(np.float32) if u8 else np.ones(n_book, np.float32), codes


def defined(entry, tensors, codes, latent, magnitude, scale):
    """W by docs/formats.md in float64, differentiable in the magnitudes [n_book, n_codes, V], the scales and, with the sign's
    derivative taken for one, the latents."""
    n_out, n_in = tensors["weight_shape"]
    sign = torch.where(latent < 0, -1.0, 1.0).double()
    sign = (sign - latent).detach() + latent  # straight through
    rows = []
    for i in range(n_out):
        row = [scale[i, j // entry["group"]] * sign[i, j] * magnitude[j // entry["book_cols"], codes[i, j // entry["vec_len"]], j % entry["vec_len"]]
               for j in range(n_in)]
        for o, j in enumerate(tensors.get("weight_outlier_cols", ())):
            row[j] = torch.tensor(float(tensors["weight_outlier_scale"][o]) * float(tensors["weight_outlier"][i, o]), dtype=torch.float64)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def test_matrix():
    """Weights and all three gradients against the definition: short rows, several codebooks and groups, outliers, both types."""
    rng = np.random.default_rng(1)
    for shape in ((5, 16, 8, 4, 16, 16, 16, 0, False), (6, 21, 4, 5, 20, 8, 21, 2, True), (3, 40, 8, 12, 300, 16, 24, 3, False), (7, 13, 8, 6, 33, 8, 8, 1, True)):
        entry, tensors, book, book_scale, codes = random_matrix(rng, *shape)
        lin = SSVQLinear(entry, tensors, SSVQBook(book, book_scale))
        n_out, n_in = tensors["weight_shape"]
        negative = unpack_bits(tensors["weight_signs"], 1, lin.n_pad).astype(bool)
        assert (torch.signbit(lin.latent).numpy() == negative).all()
        latent = lin.latent.detach().double()[:, :n_in].requires_grad_()
        magnitude = torch.from_numpy(book.astype(np.float64) * book_scale[:, None, None]).requires_grad_()
        scale = torch.from_numpy(tensors["weight_scale"].astype(np.float64)).requires_grad_()
        want = defined(entry, tensors, codes, latent, magnitude, scale)
        g = torch.from_numpy(rng.standard_normal((n_out, n_in)))
        (want * g).sum().backward()
        w = lin.weight()
        (w * g.float()).sum().backward()

        def near(a, b, what): assert torch.allclose(a.detach().double(), b.detach(), rtol=2e-5, atol=2e-6 * b.detach().abs().max().item()), (shape, what)
        near(w, want, "weight")
        near(lin.scale_ratio.grad, scale.grad * scale.detach(), "scale")
        near(lin.book.magnitude.grad, magnitude.grad.reshape(-1, shape[2]) * lin.book.unit, "codebook")
        # A latent's unit is its sign's: the weight is scale magnitude sign(latent) whatever the latent's own size.
        near(lin.latent.grad[:, :n_in], latent.grad, "latent")
        assert (lin.latent.grad[:, n_in:] == 0).all()
        x = torch.randn(4, n_in)
        assert torch.equal(lin(x), torch.nn.functional.linear(x, w))


def test_signs_turn():
    """A sign turns where its latent passes zero, and nowhere else; what is written says so."""
    rng = np.random.default_rng(2)
    entry, tensors, book, book_scale, _ = random_matrix(rng, 4, 20, 4, 4, 16, 20, 20, 2, False)
    lin = SSVQLinear(entry, tensors, SSVQBook(book, book_scale))
    before, w0 = lin.tensors(), lin.weight().detach().clone()
    assert all((before[k] == tensors[k]).all() for k in before)
    with torch.no_grad(): lin.latent[1, 3] *= 0.5
    assert torch.equal(lin.weight(), w0)
    column = next(j for j in range(20) if j not in tensors["weight_outlier_cols"])
    with torch.no_grad(): lin.latent[2, column] *= -0.01
    turned = (lin.weight() != w0).nonzero().tolist()
    assert turned == [[2, column]] and lin.weight()[2, column] == -w0[2, column]
    flips = unpack_bits(lin.tensors()["weight_signs"] ^ tensors["weight_signs"], 1, 20)
    assert flips.nonzero()[0].tolist() == [2] and flips.nonzero()[1].tolist() == [column]


def test_books():
    """Codebooks keep their bytes until they change; then fp16 rounds to nearest and bytes get the largest entry for 255."""
    rng = np.random.default_rng(3)
    for u8 in (False, True):
        _, _, book, book_scale, _ = random_matrix(rng, 2, 16, 4, 4, 16, 8, 16, 0, u8)
        b = SSVQBook(book, book_scale)
        t = b.tensors()
        assert (t["weight_book"] == book).all() and (not u8 or (t["weight_book_scale"] == book_scale).all())
        with torch.no_grad(): b.magnitude[16:].mul_(1.37).sub_(0.01)  # the second codebook
        b.clamp()
        assert b.magnitude.min() == 0
        t = b.tensors()
        assert (t["weight_book"][0] == book[0]).all() and (t["weight_book"][1] != book[1]).any()
        want = (b.magnitude.detach().double() * b.unit).numpy().reshape(book.shape)
        got = t["weight_book"].astype(np.float64) * (t["weight_book_scale"][:, None, None] if u8 else 1)
        limit = want[1].max() / 255 if u8 else np.maximum(want[1], 2.0**-14) / 1024  # one step of the type, at each entry
        assert (np.abs(got[1] - want[1]) <= 0.51 * limit).all()
        if u8: assert t["weight_book"][1].max() == 255


def test_freezing():
    """What keeps turning is frozen at its majority sign and stays; what turned once does not."""
    class One:
        latent = torch.nn.Parameter(torch.tensor([[1.0, 1.0, 1.0, -1.0]]))
    f = SignFreezer([One], steps=40, every=9, first=0.3, last=0.3, decay=0.9)
    for t in range(40):
        with torch.no_grad():
            if t % 3 == 2: One.latent[0, 0] = -1.0  # turns twice in three steps, mostly positive
            else: One.latent[0, 0] = 1.0
            if t == 4: One.latent[0, 1] = -2.0
            One.latent[0, 3] = 1.0 if t % 3 == 2 else -1.0
        f.step()
        if t == 8: assert f.counts()["frozen"] == 2, f.counts()  # at the sign that they do not have at that moment
        if t >= 8: assert One.latent[0].tolist() == [1, -2, 1, -1], (t, One.latent)
    assert f.counts() == {"signs": 4, "frozen": 2, "turned": 1}
    f.step_count, f.first, f.last = 0, 0.5, 0.1
    assert abs(f.threshold() - 0.5) < 1e-12
    f.step_count = 20
    assert abs(f.threshold() - 0.3) < 1e-12
    f.step_count = 40
    assert abs(f.threshold() - 0.1) < 1e-12
    refused("decay", SignFreezer, [], 1, decay=1.0)


def test_bits():
    rng = np.random.default_rng(4)
    for bits in (1, 3, 5, 8, 12):
        codes = rng.integers(0, 1 << bits, (3, 37))
        stream = ((codes[:, :, None] >> np.arange(bits)) & 1).astype(bool).reshape(3, -1)
        assert (unpack_bits(pack_signs(stream), bits, 37) == codes).all()
    x = rng.standard_normal(1000).astype(np.float32)
    assert (round_bf16(x) == torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16)).all()
    assert (widen_bf16(round_bf16(x)) == torch.from_numpy(x).bfloat16().float().numpy()).all()


# ---- models -----------------------------------------------------------------------------------------------------------------

MODELS = {"u8": ("tied", "--codes", 32, "--vec-len", 4), "f16": ("llama3", "--codes", 16, "--book-dtype", "f16", "--group", 16),
          "qwen": ("qwen2", "--codes", 16, "--book-cols", 16), "lin": ("linear", "--codes", 16), "mistral": ("mistral", "--codes", 16)}


def test_forward():
    """The same loss as `requite eval` for every kind of model; a copy with nothing changed is the same file."""
    text = ids_file("text.safetensors", 3, seed=2)
    for name, (model, *options) in MODELS.items():
        folder = quantized(name, *options, model=model)
        m = Llama(folder)
        ids = finetune.read_ids(text, len(m.head))
        mine, its = float(m.window_losses(ids).mean()), command("eval", folder, "--text", text)["nll_mean"]
        assert abs(mine - its) < 2e-5 * its, (name, mine, its)
        m.file.copy(path(name + "-copy"), finetune.export_tensors(m), {})
        assert filecmp.cmp(os.path.join(folder, "model.safetensors"), path(name + "-copy/model.safetensors"), shallow=False), name
        refused("exists already", m.file.copy, path(name + "-copy"), {}, {})
    factor = rope_frequencies({"rope_theta": 100.0, "rope_scaling": {"type": "linear", "factor": 4.0}}, 8)
    assert torch.allclose(factor, torch.tensor([100.0 ** -(i / 4) / 4 for i in range(4)], dtype=torch.float64))
    refused("yarn", rope_frequencies, {"rope_scaling": {"rope_type": "yarn"}}, 8)


def test_divergence():
    """KL and its gradient against float64."""
    torch.manual_seed(5)
    h, head, t = torch.randn(7, 12, requires_grad=True), torch.randn(30, 12), torch.randn(7, 30) * 3
    for rows in (3, 100):
        h.grad = None
        d = finetune.divergence(h, head, t, rows)
        (d * 0.5).backward()
        h64 = h.detach().double().requires_grad_()
        p = torch.softmax(t.double(), -1)
        want = (p * (p.log() - torch.log_softmax(h64 @ head.double().T, -1))).sum()
        (want * 0.5).backward()
        assert abs(float(d.detach()) - float(want.detach())) < 1e-4 and torch.allclose(h.grad.double(), h64.grad, atol=1e-5)


def test_training():
    """A run lowers the divergence it trains on; the file gives in `requite eval` what the model gives here."""
    folder, text = quantized("u8", *MODELS["u8"][1:]), ids_file("train.safetensors", 6, 32, seed=3)
    common = ["--teacher", tiny(), "--text", text, "--epochs", 4, "--dtype", "fp32", "--freeze-every", 4, "--lr-signs", 0.05, "--holdout", 1]
    code, out, err = finetune_words(folder, path("tuned"), *common)
    assert code == 0, err
    report = json.loads(out)
    written = json.load(open(path("tuned/report.json")))["finetune"]
    assert report["steps"] == 12 and written["steps"] == 12 and len(written["train_kld"]) == 12
    assert report["signs"]["turned"] > 0 and math.isfinite(report["holdout_after"])
    before, after = (command("eval", f, "--text", text, "--ref", tiny()) for f in (folder, path("tuned")))
    assert after["kld_mean"] < 0.8 * before["kld_mean"] and after["bpw"] == before["bpw"], (before["kld_mean"], after["kld_mean"])
    m = Llama(path("tuned"))
    mine = float(m.window_losses(finetune.read_ids(text, len(m.head))).mean())
    assert abs(mine - after["nll_mean"]) < 2e-5 * mine, (mine, after)
    command("verify", path("tuned"))
    old, new = Container(folder), Container(path("tuned"))
    changed = {n for n in old.tensors if not np.array_equal(old.array(n), new.array(n))}
    assert {n.rsplit(".", 1)[1] for n in changed} <= {"weight_signs", "weight_scale", "weight_book", "weight_book_scale", "weight"}
    assert any(n.endswith("weight_signs") for n in changed) and any(n.endswith("layernorm.weight") for n in changed)

    # The same again, stopped after a step and resumed, with blocks run again in the backward pass: the same file.
    words = [folder, path("resumed"), *common, "--state", path("state"), "--recompute"]
    code, _, err = finetune_words(*words, "--minutes", 0)
    assert code == finetune.INTERRUPTED and "after step 1 of 12" in err and not os.path.exists(path("resumed")), err
    code, _, err = finetune_words(*words, "--resume", "--seed", 9)
    assert code == 1 and "--seed 0, not 9" in err, err
    code, _, err = finetune_words(*words, "--resume")
    assert code == 0, err
    assert filecmp.cmp(path("tuned/model.safetensors"), path("resumed/model.safetensors"), shallow=False)

    # Rates of 0: only what has one moves, and in bfloat16 it does too.
    code, _, err = finetune_words(folder, path("gains"), *common[:4], "--lr-signs", 0, "--lr-books", 0, "--lr-scales", 0)
    assert code == 0, err
    new = Container(path("gains"))
    assert {n.rsplit(".", 1)[1] for n in old.tensors if not np.array_equal(old.array(n), new.array(n))} == {"weight"}


def test_refused():
    folder, text = quantized("u8", *MODELS["u8"][1:]), ids_file("few.safetensors", 2, 16)
    def says(words, *args):
        code, _, err = finetune_words(*args)
        assert code == 1 and all(w in err for w in words.split("|")), err
    grid = path("grid")
    command("quantize", tiny(), grid, "--bits", 4, "--group", 32, "--comp", "rtn", "--rotate", "none", "--calib", text)
    says("no matrix of format ssvq", grid, path("no"), "--teacher", tiny(), "--text", text)
    says("exists already", folder, grid, "--teacher", tiny(), "--text", text)
    says("--holdout 2", folder, path("no"), "--teacher", tiny(), "--text", text, "--holdout", 2)
    says("nothing to train", folder, path("no"), "--teacher", tiny(), "--text", text, "--lr-signs", 0, "--lr-books", 0, "--lr-scales", 0, "--lr-gains", 0)
    says("nowhere", folder, path("no"), "--teacher", path("nowhere"), "--text", text)
    np.save(path("far.npy"), np.array([[1, 2, 100000]]))
    says("token 100000", folder, path("no"), "--teacher", tiny(), "--text", path("far.npy"))
    np.save(path("flat.npy"), np.arange(4))
    says("windows [n, length]", folder, path("no"), "--teacher", tiny(), "--text", path("flat.npy"))
    says("metadata", tiny(), path("no"), "--teacher", tiny(), "--text", text)
    assert not os.path.exists(path("no"))
    lin = next(iter(load_ssvq(Container(folder)).values()))
    refused("a code is", SSVQLinear, {"vec_len": 4, "code_bits": 5, "n_codes": 16, "book_cols": 64, "group": 64},
            {"weight_shape": np.array([1, 4]), "weight_codes": np.array([[17]], np.int32)}, lin.book)


for name, test in list(globals().items()):
    if name.startswith("test_"):
        test()
        print(f"{name}: ok", flush=True)
