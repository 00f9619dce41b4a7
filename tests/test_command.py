#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The command `requite` as a user meets it: golden layers, whole small models, resume, threads, memory, bad input.

usage: test_command.py REQUITE TEST_DIR [name of a test ...]

Python's standard library only. Prints one line per test; skips say why. With RQ_SMOLLM2 set to the SmolLM2-135M GGUF file, the
real model is quantized too (minutes)."""
import array, hashlib, json, math, os, random, re, resource, shutil, signal, struct, subprocess, sys, tempfile, time

REQUITE, TEST_DIR = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
WORK = tempfile.mkdtemp(prefix="requite-test-")
ENV = dict(os.environ)


class Skip(Exception):
    pass


def run(*args, code=0, stdin=None, preexec=None, timeout=600):
    p = subprocess.run([REQUITE, *map(str, args)], input=stdin, capture_output=True, text=True, preexec_fn=preexec,
                       timeout=timeout, env=ENV, errors="replace")
    if code is not None and p.returncode != code:
        raise AssertionError(f"requite {' '.join(map(str, args))}\n  exit code {p.returncode}, wanted {code}\n  {p.stderr.strip()[-800:]}")
    return p


def run_json(*args, **kw):
    return json.loads(run(*args, "--json", "--progress", "none", **kw).stdout)


def sentence(p):
    """A failure says one thing, in words, to people."""
    lines = [l for l in p.stderr.strip().splitlines() if l.startswith("requite:") and "warning" not in l]
    assert lines and len(lines[-1]) > 25, f"no sentence: {p.stderr!r}"
    assert "Traceback" not in p.stderr and "Sanitizer" not in p.stderr, p.stderr
    return lines[-1]


def save(path, tensors, metadata=None):
    """tensors: name -> (dtype, shape, bytes)."""
    header, at = {}, 0
    if metadata:
        header["__metadata__"] = metadata
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(t[2] for t in tensors.values()))


def load(path):
    with open(path, "rb") as f:
        raw = f.read()
    n = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:8 + n])
    meta = header.pop("__metadata__", {})
    return {k: (v["dtype"], v["shape"], raw[8 + n + v["data_offsets"][0]:8 + n + v["data_offsets"][1]]) for k, v in header.items()}, meta


def floats(t):
    assert t[0] == "F32", t[0]
    a = array.array("f")
    a.frombytes(t[2])
    return a


def path(*names):
    return os.path.join(WORK, *names)


def ids_file(name, n, length, vocab=256, seed=1):
    r = random.Random(seed)
    data = array.array("i", [r.randrange(vocab) for _ in range(n * length)])
    save(path(name), {"ids": ("I32", [n, length], data.tobytes())})
    return path(name)


def tiny(name="tied"):
    return os.path.join(TEST_DIR, "golden", "llama", name)


def with_tokenizer(name):
    """A copy of the tiny model with a byte-level tokenizer of 256 tokens and no merges."""
    folder = path(name)
    shutil.copytree(tiny(), folder)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    char = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    vocab = {char[b]: b for b in range(256)}
    with open(os.path.join(folder, "tokenizer.json"), "w") as f:
        json.dump({"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                   "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
                   "post_processor": None, "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
                   "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": []}}, f)
    return folder


def digest(folder):
    with open(os.path.join(folder, "model.safetensors"), "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


QUANT = ["--bits", "3", "--group", "32"]


def quantize(model, out, *args, **kw):
    return run("quantize", model, out, *QUANT, "--progress", "none", *args, **kw)


# ---- tests -----------------------------------------------------------------------------------------------------------------


def test_help():
    for sub in ("quantize", "eval", "generate", "tokenize", "inspect", "verify", "layer", "convert"):
        assert "usage: requite " + sub in run(sub, "--help").stdout
        assert sub in run("--help").stdout
    assert "0.1.0" in run("--version").stdout
    run(code=2)
    run("nothing", code=2)
    run("quantize", code=2)
    run("quantize", "a", "b", "--no-such-flag", code=2)
    for round, line in (("grid", "2, 3, 4 or 8 (3)"), ("ssvq", "entries of a codebook (256)"), ("w4a8", "rounder (round.def) (w4a8)")):
        assert line in run("quantize", "--round", round, "--help").stdout
    assert "(0)" not in [line for line in run("quantize", "--help").stdout.split("\n") if "--codes " in line][0]


def test_layer_reproduces_the_references():
    worst = 0
    for name in ("L5_q", "L5_gate", "L9_down", "edge", "L11_down"):
        case = os.path.join(TEST_DIR, "golden", "layers", name + ".safetensors")
        tensors, meta = load(case)
        for setting, s in json.loads(meta["settings"]).items():
            args = ["--preset", "reference", "--comp", s["method"], "--bits", s["bits"], "--group", max(0, s["group"]),
                    "--sym" if s["sym"] else "--asym", "--clip", "mse" if s["clip_search"] else "none"]
            if "act_order" in s:
                args += ["--act-order" if s["act_order"] else "--no-act-order",
                         "--static-groups" if s["static_groups"] else "--no-static-groups", "--block", s["block"], "--damp", s["percdamp"]]
                if s["method"] in ("gptaq", "rescomp"):
                    args += ["--alpha", s["alpha"]]
                if s["method"] == "rescomp":
                    args += ["--alpha2", s["alpha2"], "--update", s["mode"]]
            j = run_json("layer", case, "-o", path("layer.safetensors"), *args)
            assert abs(j["loss_sym"] / s["loss_sym"] - 1) < 0.01 or "block128" in setting, (name, setting, j["loss_sym"])
            got, want = floats(load(path("layer.safetensors"))[0]["Q"]), floats(tensors["Q." + setting])
            bound = 1e-4 * max(map(abs, want))
            bad = sum(not abs(a - b) <= bound for a, b in zip(got, want)) / len(want)
            if "g64_act_block128" in setting:
                assert j["loss_sym"] <= 1.01 * s["loss_sym"]
            elif s.get("frac_diff_fp64", 0) == 0:
                assert bad == 0, (name, setting, bad)
                assert abs(j["loss_asym"] - s["loss_asym"]) <= 0.01 * abs(s["loss_asym"]) + 1e-4 * s["loss_sym"]
            else:
                assert bad <= 0.03 and abs(j["loss_sym"] / s["loss_sym"] - 1) < 1e-3, (name, setting, bad)
            if "g64_act_block128" not in setting:
                worst = max(worst, bad)
    return f"70 settings, at most {100 * worst:.1f} % of the entries differ (massive activations)"


def test_quantize_eval_generate():
    calib, text = ids_file("c.safetensors", 8, 64), ids_file("t.safetensors", 4, 64, seed=2)
    model = with_tokenizer("small")
    full = run_json("eval", model, "--text", text)
    assert full["n_windows"] == 4 and full["n_tokens"] == 256 and full["bpw"] in (16, 32)
    for comp in ("rtn", "gptq", "gptaq", "rescomp", "qep"):
        for extra in (["--preset", "reference"], [], ["--rotate", "none", "--no-static-groups"]):
            out = path("out-" + comp)
            shutil.rmtree(out, ignore_errors=True)
            q = run_json("quantize", model, out, *QUANT, "--calib", calib, "--comp", comp, *extra)
            e = run_json("eval", out, "--text", text, "--ref", model)
            i = run_json("inspect", out)
            assert abs(q["bpw"] - i["bpw"]) < 1e-9 and abs(e["bpw"] - i["bpw"]) < 1e-9
            bits = sum(t["bpw"] * t["shape"][0] * t["shape"][1] for t in i["tensors"] if "format" in t)
            n = sum(t["shape"][0] * t["shape"][1] for t in i["tensors"] if "format" in t)
            assert abs(bits / n - q["bpw"]) < 1e-9 and q["n_weights"] == n
            assert abs(e["ref_ppl"] - full["ppl"]) < 1e-6 * full["ppl"]
            assert 0 < e["kld_mean"] and 0 <= e["top1_agree_frac"] <= 1
            assert len(open(os.path.join(out, "quantize_log.jsonl")).read().splitlines()) == q["n_matrices"] == 14
            for line in open(os.path.join(out, "quantize_log.jsonl")):
                assert json.loads(line)["comp"] == comp
            assert json.load(open(os.path.join(out, "report.json")))["options"]["comp"] == comp
            run("verify", out, "--ref", model)
            g = run_json("generate", out, "--prompt", "hello", "-n", 8, "--ignore-eos")
            assert g["n_new"] == 8 and g["decode_tok_s"] > 0
            assert g == {**g, **{k: v for k, v in run_json("generate", out, "--prompt", "hello", "-n", 8, "--ignore-eos").items() if k in ("text", "ids")}}
            assert not os.path.exists(out + ".partial")


def test_codebooks():
    """ssvq and vq from quantize to eval: sizes to the bit, codebooks shared in a set and not across options, resume, threads."""
    calib, text = ids_file("cb.safetensors", 8, 64), ids_file("cbt.safetensors", 2, 64, seed=2)
    for name, options in {"ssvq": ["--codes", 32, "--vec-len", 4], "ssvq-rtn": ["--comp", "rtn", "--codes", 16, "--book-dtype", "f16"],
                          "vq": ["--codes", 32, "--codes2", 16, "--comp", "rescomp", "--refit", 1],
                          "vq-out": ["--codes", 16, "--vec-axis", "out", "--vec-len", 5, "--comp", "gptaq"],
                          "vq-vptq": ["--preset", "vptq", "--vec-len", 4, "--codes", 16, "--codes2", 16, "--book-cols", 20, "--share-books"]}.items():
        out, words = path("cb-" + name), ["--round", name.split("-")[0], *options, "--outliers", 2, "--outlier-min", 0, "--calib", calib]
        dry = run_json("quantize", tiny(), out, *words, "--dry-run")
        q = run_json("quantize", tiny(), out, *words, "--threads", 1)
        assert q["rotate"] == "none" and abs(q["bpw"] - dry["bpw"]) < 1e-6, (q["bpw"], dry["bpw"])
        e, i = run_json("eval", out, "--text", text, "--ref", tiny()), run_json("inspect", out)
        assert abs(q["bpw"] - i["bpw"]) < 1e-9 and abs(e["bpw"] - i["bpw"]) < 1e-9 and 0 < e["kld_mean"]
        rows = {t["name"]: t for t in i["tensors"] if "format" in t}
        assert len(rows) == 14 and all(t["n_outlier"] == 2 and "dead_codes" in t for t in rows.values())
        run("verify", out, "--ref", tiny())
        books = [k for k in load(os.path.join(out, "model.safetensors"))[0] if k.endswith(".weight_book")]
        assert len(books) == 8, books  # q k v; o; gate up; down, of two blocks
        run("quantize", tiny(), out + "2", *words, "--threads", 3, "--progress", "none")
        assert digest(out + "2") == digest(out)
        tuned = ["tune", out, out + "-tuned", "--ref", tiny(), "--calib", calib, "--epochs", 1, "--holdout", 0]
        if name in ("vq-out", "vq-vptq"):
            assert "scales" in sentence(run(*tuned, code=2))  # of columns, which tune leaves alone
            continue
        run(*tuned, "--progress", "none")
        before, after = (load(os.path.join(o, "model.safetensors"))[0] for o in (out, out + "-tuned"))
        changed = {k for k in before if after[k] != before[k]}
        assert {k for k in before if k.endswith(".weight_scale")} <= changed and not any("codes" in k for k in changed)
        assert all(k in changed or k + "_scale" in changed for k in books)  # of bytes, after one epoch, maybe the scale alone
        assert run_json("eval", out + "-tuned", "--text", text)["bpw"] == e["bpw"]
    words = ["--round", "ssvq", "--codes", 16, "--calib", calib]
    run("quantize", tiny(), path("cb-split"), *words, "--override", "k_proj:outliers=0", "--progress", "none")
    books = {k for k in load(os.path.join(path("cb-split"), "model.safetensors"))[0] if k.endswith(".weight_book")}
    assert len(books) == 10 and "model.layers.0.self_attn.k_proj.weight_book" in books
    calib = ids_file("cbi.safetensors", 1500, 64)
    out, words = path("cb-stopped"), ["--round", "ssvq", "--codes", 16, "--calib", calib]
    p = subprocess.Popen([REQUITE, "quantize", tiny(), out, *map(str, words), "--progress", "none"], stderr=subprocess.PIPE, text=True, env=ENV)
    while not any(f.endswith(".safetensors") for f in (os.listdir(out + ".partial") if os.path.isdir(out + ".partial") else [])):
        assert p.poll() is None, p.stderr.read()
        time.sleep(0.01)
    p.send_signal(signal.SIGTERM)
    p.communicate()
    assert p.returncode == 75
    assert run_json("quantize", tiny(), out, *words, "--resume")["n_resumed"] >= 1
    run("quantize", tiny(), out + "2", *words, "--progress", "none")
    assert digest(out) == digest(out + "2")
    assert "multiple" in sentence(run("quantize", tiny(), path("cb-bad"), *words, "--group", 12, code=2))


def test_w4a8():
    """4-bit weights for 8-bit inputs from quantize to eval: sizes to the bit, resume, threads, and a place beside the 4-bit grid."""
    calib, text = ids_file("w4.safetensors", 8, 64), ids_file("w4t.safetensors", 2, 64, seed=2)
    kld = {}
    for name, options in {"rtn": ["--comp", "rtn", "--group", 32], "two": ["--group", 32, "--comp", "rescomp"],
                          "row": ["--group", 0, "--comp", "gptq"], "sym": ["--group", 0, "--sym", "--rotate", "none"]}.items():
        out, words = path("w4-" + name), ["--round", "w4a8", *options, "--calib", calib]
        dry = run_json("quantize", tiny(), out, *words, "--dry-run")
        q = run_json("quantize", tiny(), out, *words, "--threads", 1)
        assert abs(q["bpw"] - dry["bpw"]) < 1e-6, (q["bpw"], dry["bpw"])
        e, i = run_json("eval", out, "--text", text, "--ref", tiny()), run_json("inspect", out)
        assert abs(q["bpw"] - i["bpw"]) < 1e-9 and abs(e["bpw"] - i["bpw"]) < 1e-9
        kld[name] = e["kld_mean"]
        rows = [t for t in i["tensors"] if "format" in t]
        assert len(rows) == 14 and all(t["format"] == "w4a8" and t["sym"] == (name == "sym") for t in rows)
        assert run_json("eval", out, "--text", text, "--threads", 3)["ppl"] == e["ppl"]
        run("verify", out, "--ref", tiny())
        run("quantize", tiny(), out + "2", *words, "--threads", 3, "--progress", "none")
        assert digest(out + "2") == digest(out)
    run("quantize", tiny(), path("w4-grid"), "--bits", 4, "--group", 32, "--comp", "rtn", "--calib", calib, "--progress", "none")
    kld["grid"] = run_json("eval", path("w4-grid"), "--text", text, "--ref", tiny())["kld_mean"]
    assert max(kld["two"], kld["rtn"]) < 1.3 * kld["grid"] and max(kld["two"], kld["rtn"]) < kld["row"], kld  # these random models are touchy
    run("quantize", tiny(), path("w4-mixed"), "--round", "w4a8", "--group", 32, "--override", "k_proj:round=grid,bits=4,group=32", "--calib", calib, "--progress", "none")
    formats = [t["format"] for t in run_json("inspect", path("w4-mixed"))["tensors"] if "format" in t]
    assert sorted(formats) == ["grid"] * 2 + ["w4a8"] * 12
    run_json("eval", path("w4-mixed"), "--text", text)
    run("tune", path("w4-mixed"), path("w4-tuned"), "--ref", tiny(), "--calib", calib, "--epochs", 1, "--holdout", 0, "--progress", "none")
    before, after = (load(os.path.join(path(o), "model.safetensors"))[0] for o in ("w4-mixed", "w4-tuned"))
    changed = {k.split(".")[-2] for k in before if after[k] != before[k] and "proj" in k}
    assert changed == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}, changed
    run_json("eval", path("w4-tuned"), "--text", text)
    assert "multiple" in sentence(run("quantize", tiny(), path("w4-bad"), "--round", "w4a8", "--group", 20, "--calib", calib, code=2))
    return ", ".join(f"{k} {v:.4f}" for k, v in kld.items())


def test_w4a8_inputs():
    """Full rotation and column factors from quantize to eval and generate: sizes to the bit, resume, threads, what inspect says, refusals."""
    calib, text = ids_file("in.safetensors", 8, 64), ids_file("int.safetensors", 2, 64, seed=2)
    base = ["--round", "w4a8", "--group", 32, "--calib", calib]
    for name, options, orders in (("full", ["--rotate", "full", "--comp", "gptq"], (64, 96)), ("cross", ["--rotate", "full", "--hadamard", "0,48", "--cross", ".85", "--factors-at", "gateup,down", "--comp", "rescomp"], (0, 48)),
                                  ("smooth", ["--rotate", "none", "--smooth", ".3,.7", "--comp", "rtn", "--skip", r"0\..*(v|down)_proj"], (0, 0))):
        out, words = path("in-" + name), [*base, *options]
        dry = run_json("quantize", tiny("linear"), out, *words, "--dry-run")
        q = run_json("quantize", tiny("linear"), out, *words, "--threads", 1)
        if "--skip" not in words:
            assert abs(q["bpw"] - dry["bpw"]) < 1e-6, (q["bpw"], dry["bpw"])
        i = {t["name"].split(".", 2)[2]: t for t in run_json("inspect", out)["tensors"] if "format" in t}
        assert (i["1.self_attn.o_proj"]["hadamard"], i["1.mlp.down_proj"]["hadamard"]) == orders and i["1.mlp.up_proj"]["hadamard"] == 0
        assert i["1.mlp.down_proj"]["in_scale"] == (name != "full") and i["1.self_attn.o_proj"]["in_scale"] == (name == "smooth") and not i["1.mlp.up_proj"]["in_scale"]
        log = {l["name"].split(".", 2)[2]: l for l in map(json.loads, open(os.path.join(out, "quantize_log.jsonl")))}
        assert all((l["hadamard"], l["in_scale"]) == (i[k]["hadamard"], i[k]["in_scale"]) for k, l in log.items()) and len(log) == len(i)
        row = next(l for l in run("inspect", out).stdout.splitlines() if "1.mlp.down_proj " in l)
        assert (f"H of {orders[1]}," in row) == (orders[1] > 0) and ("input factors" in row) == (name != "full"), row
        e = run_json("eval", out, "--text", text, "--ref", tiny("linear"), "--threads", 1)
        assert e["kld_mean"] < 2 and run_json("eval", out, "--text", text, "--threads", 3)["ppl"] == e["ppl"]
        report = json.load(open(os.path.join(out, "report.json")))
        assert report["rotate"] == q["rotate"] == options[options.index("--rotate") + 1]
        assert report["options"].get("cross") == (.85 if name == "cross" else None) and report["options"].get("smooth") == ([.3, .7] if name == "smooth" else None)
        assert report["options"].get("hadamard-down") == (48 if name == "cross" else None)
        run("verify", out, "--ref", tiny("linear"))
        run("quantize", tiny("linear"), out + "2", *words, "--threads", 3, "--progress", "none")
        assert digest(out + "2") == digest(out)
    loss = {}
    for clip in ("mse", "output"):
        run("quantize", tiny("linear"), path("in-clip-" + clip), *base, "--comp", "rtn", "--rotate", "none", "--clip", clip, "--progress", "none")
        loss[clip] = [l["rel_loss"] for l in map(json.loads, open(path("in-clip-" + clip, "quantize_log.jsonl")))][:3]  # q k v of block 0: the same inputs
    assert all(b <= a * 1.001 for a, b in zip(loss["mse"], loss["output"])) and loss["mse"] != loss["output"], loss
    words = [*base, "--rotate", "full", "--smooth", "0.5", "--comp", "rescomp"]
    p = subprocess.Popen([REQUITE, "quantize", tiny(), path("in-cut"), *map(str, words), "--progress", "none"], stderr=subprocess.PIPE, text=True, env=ENV)
    part = path("in-cut.partial", "00000.3.safetensors")
    while p.poll() is None and not os.path.exists(part):
        time.sleep(0.002)
    p.send_signal(signal.SIGINT)
    p.communicate()
    if p.returncode == 75:  # stopped before it was done
        assert "other" in sentence(run("quantize", tiny(), path("in-cut"), *base, "--rotate", "full", "--smooth", "0.6", "--comp", "rescomp", "--resume", code=2))
        assert run_json("quantize", tiny(), path("in-cut"), *words, "--resume")["n_resumed"] >= 1
    run("quantize", tiny(), path("in-whole"), *words, "--progress", "none")
    assert digest(path("in-cut")) == digest(path("in-whole"))
    for bad, word in ((["--hadamard", "20", "--rotate", "full"], "divide"), (["--hadamard", "16"], "full"), (["--hadamard", "x", "--rotate", "full"], "order"),
                      (["--smooth", "0.5", "--cross", "0.5"], "one of them"), (["--smooth", "2"], "0..1"), (["--cross", "0.1,0.2"], "number"), (["--smooth", "a"], "A or"), (["--smooth", ".5", "--factors-at", "o,up"], "gateup"), (["--factors-at", "o"], "--smooth"),
                      (["--rotate", "full", "--bpw", "4"], "--bpw"), (["--rotate", "full", "--override", "down:round=grid,bits=4,group=32"], "down_proj"),
                      (["--smooth", "0.5", "--override", "k_proj:round=grid,bits=4,group=32"], "k_proj")):
        said = sentence(run("quantize", tiny(), path("in-bad"), *base, *bad, code=2))
        assert word in said, (bad, said)
    for bad in (["--rotate", "full"], ["--cross", "0.85"]):
        assert "w4a8" in sentence(quantize(tiny(), path("in-bad"), "--calib", calib, *bad, code=2))
    assert "--calib" in sentence(run("quantize", tiny(), path("in-bad"), "--round", "w4a8", "--group", 32, "--comp", "rtn", "--clip", "none", "--smooth", "0.5", code=2))


def test_eight_bits_are_nearly_exact():
    """At 8 bits a model must give nearly the original's logits, rotated or not: catches any mix-up of matrices or rotations."""
    calib, text = ids_file("c8.safetensors", 8, 64), ids_file("t8.safetensors", 2, 64, seed=3)
    for name in ("tied", "llama3", "linear", "qwen2", "mistral"):
        for rotate in ("none", "residual"):
            out = path(f"eight-{name}-{rotate}")
            run("quantize", tiny(name), out, "--bits", 8, "--group", 32, "--comp", "gptq", "--calib", calib, "--rotate", rotate, "--progress", "none", "--seed", 5)
            e = run_json("eval", out, "--text", text, "--ref", tiny(name))
            assert e["kld_mean"] < 0.02 and e["top1_agree_frac"] > 0.9, (name, rotate, e)  # these random models are touchy
            for m in run_json("verify", out, "--ref", tiny(name))["matrices"]:  # a rotation keeps norms
                assert m["sqnr_db"] > 30 if rotate == "none" else abs(m["gain_db"]) < 0.03, (name, rotate, m)


def test_calibration_from_text():
    model = with_tokenizer("texty")
    with open(path("calib.txt"), "w") as f:
        f.write("The quick brown fox jumps over the lazy dog. " * 40)
    with open(path("calib.jsonl"), "w") as f:
        for i in range(30):
            f.write(json.dumps({"body": f"line {i} of a small file with some words in it " * 3}) + "\n\n")
    quantize(model, path("from-txt"), "--calib", path("calib.txt"), "--seq-len", 64, "-n", 4)
    quantize(model, path("from-jsonl"), "--calib", path("calib.jsonl"), "--calib-field", "body", "--seq-len", 64)
    p = quantize(model, path("no"), "--calib", path("calib.jsonl"), "--seq-len", 64, code=4)
    assert "text" in sentence(p)
    e = run_json("eval", path("from-txt"), "--text", path("calib.txt"), "--ctx", 64)
    assert e["n_windows"] == 45 * 40 // 64
    ids = json.loads(run("tokenize", model, "--text", "-", "--json", stdin="héllo").stdout)["ids"]
    assert json.loads(run("tokenize", model, "--decode", ",".join(map(str, ids)), "--json").stdout)["text"] == "héllo"


def test_config_override_skip():
    calib = ids_file("cfg.safetensors", 4, 64)
    with open(path("cfg.json"), "w") as f:
        json.dump({"bits": 4, "group": 16, "sym": True, "comp": "gptq", "calib": calib, "rotate": "none"}, f)
    j = run_json("quantize", tiny(), path("cfg"), "--config", path("cfg.json"), "--bits", 2, "--override", r"layers\.0\.mlp.*:bits=8,group=32",
                 "--skip", r"o_proj$")
    assert j["options"]["comp"] == "gptq" and j["options"]["bits"] == 2 and j["n_matrices"] == 12
    bits = {t["name"]: t["bits"] for t in run_json("inspect", path("cfg"))["tensors"] if "format" in t}
    assert bits["model.layers.0.mlp.up_proj"] == 8 and bits["model.layers.1.mlp.up_proj"] == 2 and "model.layers.0.self_attn.o_proj" not in bits
    text = ids_file("cfgt.safetensors", 2, 64, seed=9)
    run_json("eval", path("cfg"), "--text", text)
    for bad in (["--override", "x"], ["--override", "(:bits=2"], ["--override", "q:bits=9"], ["--skip", "("], ["--config", path("none.json")]):
        # A rule must match something to be applied, so aim it at every matrix.
        bad = [b.replace("q:", ".:") for b in bad]
        sentence(quantize(tiny(), path("bad"), "--calib", calib, *bad, code=2))
    for keys, word in (({"bitss": 4}, "bitss"), ({"bits": 4, "config": "x"}, "config"), ([4], "object"), ({"bits": [4]}, "bits")):
        with open(path("keys.json"), "w") as f: json.dump(keys, f)
        assert word in sentence(quantize(tiny(), path("bad"), "--calib", calib, "--config", path("keys.json"), code=2))
    assert not os.path.exists(path("bad")) and not os.path.exists(path("bad.partial"))


def test_threads_give_the_same_bytes():
    calib = ids_file("thr.safetensors", 8, 64)
    want = None
    for threads in (1, 2, 3):
        out = path(f"thr{threads}")
        quantize(tiny("qwen2"), out, "--calib", calib, "--comp", "rescomp", "--threads", threads)
        want = want or digest(out)
        assert digest(out) == want, threads


def test_token_weights():
    """Weights of 1 change nothing, others do; the same bytes for any number of threads; a line in the report."""
    calib = ids_file("tok.safetensors", 6, 70)
    args = ["--calib", calib, "--comp", "rescomp", "--skip-tokens", "1"]
    quantize(tiny("llama3"), path("tok-none"), *args)
    digests = {digest(path("tok-none"))}
    for how in ("attention", "norm"):
        quantize(tiny("llama3"), path("tok-flat"), *args, "--token-weights", how, "--token-min", "1", "--force")
        assert digest(path("tok-flat")) == digest(path("tok-none"))
        for threads in (1, 3):
            j = run_json("quantize", tiny("llama3"), path(f"tok-{how}-{threads}"), *QUANT, *args, "--token-weights", how, "--threads", threads)
            assert j["bpw"] > 3
            digests.add(digest(path(f"tok-{how}-{threads}")))
        with open(path(f"tok-{how}-1", "report.json")) as f:
            options = json.load(f)["options"]
        assert options["token-weights"] == how and options["token-min"] == 0.005
    assert len(digests) == 3
    # Where both streams still have the same input D is 0, weighted or not: q of the first block is gptq's.
    first = []
    for comp in ("gptq", "gptaq"):
        quantize(tiny("llama3"), path("tok-" + comp), "--calib", calib, "--comp", comp, "--token-weights", "norm")
        tensors = load(path("tok-" + comp, "model.safetensors"))[0]
        first.append({k: v for k, v in tensors.items() if k.startswith("model.layers.0.self_attn.q_proj.")})
    assert len(first[0]) >= 3 and first[0] == first[1]
    for bad in (["--token-weights", "attn"], ["--token-weights", "norm", "--token-min", "0"], ["--token-min", "x"]):
        sentence(quantize(tiny(), path("bad"), "--calib", calib, *bad, code=2))


def test_bits_per_weight():
    """--bpw: within the budget, no exchange of two settings is better, each matrix has its setting, pinned ones keep theirs."""
    calib = ids_file("bpw.safetensors", 6, 64)
    words = ["--group", 32, "--calib", calib, "--bpw", 4.4, "--override", r"0\.mlp\.up_proj:bits=8"]
    j = run_json("quantize", tiny(), path("bpw"), *words)
    with open(path("bpw", "report.json")) as f:
        a = json.load(f)["allocation"]
    log = {l["name"]: l for l in map(json.loads, open(path("bpw", "quantize_log.jsonl")))}
    units, used = a["units"], sum(u["bits"][u["setting"]] for u in a["units"])
    budget = 4.4 * j["n_weights"]
    assert a["exact"] and a["settings"] == ["bits=2", "bits=3", "bits=4", "bits=8"] and len(units) == 14
    assert abs(used - j["bpw"] * j["n_weights"]) < 1 and used <= budget and j["bpw"] > 4.2
    for u in units:
        bits = log[u["names"][0]]["bits"]
        assert bits == (8 if u["pinned"] else int(a["settings"][u["setting"]][-1])) and u["pinned"] == ("0.mlp.up" in u["names"][0])
        assert u["pinned"] or u["loss"] == sorted(u["loss"], reverse=True) and u["bits"] == sorted(u["bits"])
    weight = {u["names"][0].split("layers.")[1]: u["weight"] for u in units}
    for layer in "01":  # matrices of a branch count by what its last one adds to the residual stream
        q, k, v, o, gate, up, down = (weight[f"{layer}.{n}_proj"] for n in
                                      ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"))
        assert q == k == v > 0 and gate == up > 0 and o == down == 1 and q != gate
    free = [u for u in units if not u["pinned"]]
    for u in free:
        for v in free:
            for s in range(4):
                for t in range(4):
                    if u is v or used - u["bits"][u["setting"]] - v["bits"][v["setting"]] + u["bits"][s] + v["bits"][t] > budget:
                        continue
                    now = u["weight"] * u["loss"][u["setting"]] + v["weight"] * v["loss"][v["setting"]]
                    assert u["weight"] * u["loss"][s] + v["weight"] * v["loss"][t] >= now * (1 - 1e-6)
    run("quantize", tiny(), path("bpw3"), *words, "--threads", 3, "--progress", "none")
    assert digest(path("bpw3")) == digest(path("bpw"))
    # Codebooks: q k v and gate up get one setting each and share its codebook; a grid in the bank is no trouble.
    words = ["--round", "ssvq", "--calib", calib, "--bpw", 6, "--bank", "vec-len=8,codes=16", "--bank", "vec-len=4,codes=32", "--bank", "round=grid,bits=8,group=32"]
    j = run_json("quantize", tiny(), path("bpw-cb"), *words, "--bpw-loss", "absolute")
    with open(path("bpw-cb", "report.json")) as f:
        a = json.load(f)["allocation"]
    assert [len(u["names"]) for u in a["units"]] == [3, 1, 2, 1] * 2 and j["bpw"] <= 6.05 and len({u["setting"] for u in a["units"]}) > 1
    used = sum(u["bits"][u["setting"]] for u in a["units"])  # outlier columns of the final run may be others
    assert used <= 6 * j["n_weights"] and abs(used - j["bpw"] * j["n_weights"]) < 0.01 * used and a["compared"] == "absolute"
    assert run_json("quantize", tiny(), path("bpw-dry"), *words, "--dry-run")["bpw"] == 6
    assert "smallest settings" in sentence(quantize(tiny(), path("bad"), "--calib", calib, "--bpw", "1.5", code=2))
    for bad in (["--bpw", "0"], ["--bpw", "x"], ["--bank", "bits=3"], ["--bpw", "3", "--bank", "bits=9"], ["--bpw", "3", "--bank", "bits"],
                ["--bpw", "3", "--bpw-loss", "some"]):
        sentence(quantize(tiny(), path("bad"), "--calib", calib, *bad, code=2))
    sentence(quantize(tiny(), path("bad"), "--bpw", "3", "--comp", "rtn", code=2))  # nothing to measure with
    # A run stopped after measuring goes on with the same choice.
    calib = ids_file("bpwi.safetensors", 1200, 64)
    out, words = path("bpw-stopped"), ["--group", 32, "--calib", calib, "--bpw", 3.5]
    p = subprocess.Popen([REQUITE, "quantize", tiny(), out, *map(str, words), "--progress", "none"], stderr=subprocess.PIPE, text=True, env=ENV)
    while not any(f.endswith(".safetensors") for f in (os.listdir(out + ".partial") if os.path.isdir(out + ".partial") else [])):
        assert p.poll() is None, p.stderr.read()
        time.sleep(0.01)
    p.send_signal(signal.SIGTERM)
    p.communicate()
    assert p.returncode == 75
    with open(os.path.join(out + ".partial", "allocation.json")) as f:
        kept = json.load(f)
    assert run_json("quantize", tiny(), out, *words, "--resume")["n_resumed"] >= 1
    run("quantize", tiny(), out + "2", *words, "--progress", "none")
    assert digest(out) == digest(out + "2")
    with open(os.path.join(out + "2", "report.json")) as f:
        assert [u["setting"] for u in json.load(f)["allocation"]["units"]] == [u["setting"] for u in kept["units"]]


def test_killed_run_resumes_to_the_same_bytes():
    calib = ids_file("kill.safetensors", 400, 64)
    started = time.time()
    quantize(tiny(), path("whole"), "--calib", calib)
    whole = time.time() - started
    kills = 0
    r = random.Random(4)
    for trial in range(6):
        out = path(f"killed{trial}")
        p = subprocess.Popen([REQUITE, "quantize", tiny(), out, *QUANT, "--progress", "none", "--calib", calib], stderr=subprocess.PIPE, env=ENV)
        time.sleep(whole * r.uniform(0.1, 0.9))
        p.send_signal(signal.SIGKILL)
        kills += p.wait() == -signal.SIGKILL
        p.stderr.close()
        done = os.path.exists(out)  # killed after the last rename: what is left of the work folder may still be there
        if not done:
            quantize(tiny(), out, "--calib", calib, "--resume")
        assert digest(out) == digest(path("whole")), trial
        assert done or not os.path.exists(out + ".partial")
    early = path("killed-early")  # between the making of the work folder and its first file
    os.makedirs(early + ".partial")
    open(os.path.join(early + ".partial", "fingerprint.tmp"), "w").close()
    quantize(tiny(), early, "--calib", calib, "--resume")
    assert digest(early) == digest(path("whole"))
    os.makedirs(path("foreign.partial"))
    open(path("foreign.partial", "letters.txt"), "w").close()
    assert "not ours" in sentence(quantize(tiny(), path("foreign"), "--calib", calib, "--resume", code=2))
    assert os.path.exists(path("foreign.partial", "letters.txt"))
    return f"{kills} of 6 runs were killed on the way"


def test_interrupt_is_resumable():
    calib = ids_file("int.safetensors", 1500, 64)
    out = path("interrupted")
    p = subprocess.Popen([REQUITE, "quantize", tiny(), out, *QUANT, "--progress", "none", "--calib", calib], stderr=subprocess.PIPE, text=True, env=ENV)
    while not any(f.endswith(".safetensors") for f in (os.listdir(out + ".partial") if os.path.isdir(out + ".partial") else [])):
        assert p.poll() is None, p.stderr.read()
        time.sleep(0.01)
    p.send_signal(signal.SIGTERM)
    text = p.communicate()[1]
    assert p.returncode == 75, (p.returncode, text)
    assert "--resume" in text and not os.path.exists(out)
    other = quantize(tiny(), out, "--calib", calib, "--damp", "0.02", "--resume", code=2)
    assert "other" in sentence(other)
    j = run_json("quantize", tiny(), out, *QUANT, "--calib", calib, "--resume")
    assert j["n_resumed"] >= 1


def max_rss_kib(*args):
    """Peak memory of one run, by a wrapper process of its own."""
    code = ("import resource,subprocess,sys; p=subprocess.run(sys.argv[1:],capture_output=True); "
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss if p.returncode==0 else p.stderr.decode())")
    p = subprocess.run([sys.executable, "-c", code, REQUITE, *map(str, args)], capture_output=True, text=True, env=ENV)
    return int(p.stdout)


def test_memory_does_not_grow_with_samples():
    if "Sanitizer" in ENV.get("RQ_BUILD", "") or "san" in REQUITE:
        raise Skip("sanitizers keep freed memory")
    peak = {}
    for n in (500, 1000):
        calib = ids_file(f"mem{n}.safetensors", n, 128)
        peak[n] = max_rss_kib("quantize", tiny(), path(f"mem{n}"), *QUANT, "--calib", calib, "--progress", "none", "--threads", 2)
        ids_kib = 500 * 128 * 4 / 1024
    # The larger file is mapped and its ids are copied twice while they are read; activations would be 100 MiB more.
    assert peak[1000] - peak[500] < 4 * ids_kib + 2048, peak
    return f"{peak[500] / 1024:.1f} MiB, {peak[1000] / 1024:.1f} MiB with twice the samples"


def test_max_ram_and_dry_run():
    calib = ids_file("dry.safetensors", 4, 64)
    j = run_json("quantize", tiny(), path("dry"), *QUANT, "--calib", calib, "--dry-run")
    assert j["dry_run"] and j["n_matrices"] == 14 and j["ram_bytes_estimate"] > 0
    assert not os.path.exists(path("dry")) and not os.path.exists(path("dry.partial"))
    q = run_json("quantize", tiny(), path("dry"), *QUANT, "--calib", calib)
    assert abs(q["bpw"] - j["bpw"]) < 1e-6, (q["bpw"], j["bpw"])
    assert "max-ram" in sentence(quantize(tiny(), path("ram"), "--calib", calib, "--max-ram", "1M", code=3))
    sentence(quantize(tiny(), path("ram"), "--calib", calib, "--max-ram", "lots", code=2))


def broken_model(name, edit=None, config=None):
    folder = path(name)
    shutil.copytree(tiny(), folder)
    if edit:
        tensors, meta = load(os.path.join(folder, "model.safetensors"))
        edit(tensors)
        save(os.path.join(folder, "model.safetensors"), tensors, meta)
    if config:
        with open(os.path.join(folder, "config.json")) as f:
            c = json.load(f)
        c.update(config)
        with open(os.path.join(folder, "config.json"), "w") as f:
            json.dump(c, f)
    return folder


def test_bad_models():
    calib = ids_file("badm.safetensors", 4, 64)

    def nan_weight(t):
        d, s, b = t["model.layers.1.mlp.up_proj.weight"]
        b = bytearray(b)
        b[-4:] = b"\x00\x00\xc0\x7f" if d == "F32" else b[-4:-2] + b"\xc0\x7f"
        t["model.layers.1.mlp.up_proj.weight"] = (d, s, bytes(b))

    def drop(t):
        del t["model.layers.0.self_attn.k_proj.weight"]

    def reshape(t):
        d, s, b = t["model.layers.0.mlp.down_proj.weight"]
        t["model.layers.0.mlp.down_proj.weight"] = (d, [s[1], s[0]], b)

    cases = [("nan", nan_weight, None, "up_proj"), ("missing", drop, None, "k_proj"), ("reshaped", reshape, None, "down_proj"),
             ("arch", None, {"model_type": "mamba", "architectures": ["MambaForCausalLM"]}, "amba"),
             ("act", None, {"hidden_act": "gelu"}, "gelu"), ("heads", None, {"num_attention_heads": 3}, "head")]
    for name, edit, config, word in cases:
        out = path("out-bad-" + name)
        p = quantize(broken_model("bad-" + name, edit, config), out, "--calib", calib, code=4)
        assert word in sentence(p), (name, sentence(p))
        assert not os.path.exists(out) and not os.path.exists(out + ".partial"), name
    sentence(quantize(path("no-such-model"), path("o"), "--calib", calib, code=4))
    sentence(run("eval", path("no-such-model"), "--text", calib, code=4))

    def zero(t):
        d, s, b = t["model.layers.0.self_attn.q_proj.weight"]
        t["model.layers.0.self_attn.q_proj.weight"] = (d, s, bytes(len(b)))

    zeros = broken_model("zeros", zero)  # odd, but a model: quantized, and the matrix stays zero
    quantize(zeros, path("out-zeros"), "--calib", calib, "--rotate", "none")
    run("verify", path("out-zeros"))


def test_bad_calibration():
    good = ids_file("g.safetensors", 4, 64)
    open(path("empty.txt"), "w").close()
    open(path("short.txt"), "w").write("hello")
    open(path("latin.txt"), "wb").write(b"caf\xe9 " * 100)
    open(path("bad.jsonl"), "w").write('{"text": "a"}\n{"text": \n')
    save(path("huge-id.safetensors"), {"ids": ("I32", [2, 64], array.array("i", [5, 10**6] * 64).tobytes())})
    save(path("negative.safetensors"), {"ids": ("I64", [1, 64], array.array("q", [-1] * 64).tobytes())})
    save(path("float.safetensors"), {"ids": ("F32", [1, 64], bytes(256))})
    save(path("flat.safetensors"), {"ids": ("I32", [64], bytes(256))})
    model = with_tokenizer("calibbed")
    for name in ("empty.txt", "short.txt", "latin.txt", "bad.jsonl", "huge-id.safetensors", "negative.safetensors", "float.safetensors", "flat.safetensors", "none.txt"):
        sentence(quantize(model, path("o"), "--calib", path(name), "--seq-len", 32, code=4))
        assert not os.path.exists(path("o")) and not os.path.exists(path("o.partial")), name
    sentence(quantize(model, path("o"), "--comp", "gptq", code=2))  # none given
    assert "larger than the row" in sentence(quantize(model, path("o"), "--calib", good, "--group", 4096, code=2))
    for flags in (["--bits", "5"], ["--damp", "-1"], ["--comp", "magic"], ["--device", "tpu"], ["--device", "cuda:x"], ["--rotate", "sideways"], ["--threads", "0"],
                  ["--preset", "worst"], ["--preset", "vptq", "--round", "ssvq"], ["--shrink", "2"], ["--bits", "three"]):
        sentence(quantize(model, path("o"), "--calib", good, *flags, code=2))
    # No such backend in this program, or no such GPU in this machine.
    assert "CUDA" in sentence(quantize(model, path("o"), "--calib", good, "--device", "cuda:99", code=1))
    assert not os.path.exists(path("o")) and not os.path.exists(path("o.partial"))


def test_output_folder():
    calib = ids_file("of.safetensors", 4, 64)
    quantize(os.path.join(with_tokenizer("lone"), "model.safetensors"), path("from-file"), "--calib", calib)
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= set(os.listdir(path("from-file")))
    os.mkdir(path("taken"))
    open(path("taken", "precious"), "w").write("x")
    assert "--force" in sentence(quantize(tiny(), path("taken"), "--calib", calib, code=2))
    sentence(quantize(tiny(), path("taken"), "--calib", calib, "--force", code=2))  # not a folder of ours
    assert open(path("taken", "precious")).read() == "x"
    quantize(tiny(), path("mine"), "--calib", calib)
    before = digest(path("mine"))
    quantize(tiny(), path("mine"), "--calib", calib, "--bits", "4", "--force")
    assert digest(path("mine")) != before
    sentence(quantize(tiny(), path("no", "such", "folder"), "--calib", calib, code=1))
    sentence(quantize(tiny(), "/dev/null/out", "--calib", calib, code=1))
    sentence(quantize(path("mine"), path("twice"), "--calib", calib, code=4))  # quantized already


def test_full_disk():
    calib = ids_file("fd.safetensors", 64, 64)
    mount = path("small-disk")
    os.mkdir(mount)
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", mount], capture_output=True).returncode != 0:
        raise Skip("a tmpfs cannot be mounted here")
    try:
        p = quantize(tiny(), os.path.join(mount, "out"), "--calib", calib, code=1)
        assert "space" in sentence(p)
        assert not os.path.exists(os.path.join(mount, "out"))
        left = [f for d, _, files in os.walk(mount) for f in files if f.endswith(".tmp")]
        assert not left, left
    finally:
        subprocess.run(["umount", mount])


def test_file_size_limit():
    """Any write may fail, at any point: never a half-written OUT."""
    calib = ids_file("fs.safetensors", 8, 64)
    for limit in (2000, 20000, 60000, 120000):
        out = path(f"limit{limit}")
        p = quantize(tiny(), out, "--calib", calib, code=None, preexec=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
        if p.returncode != 0:
            assert p.returncode == 1, p.returncode
            sentence(p)
            assert not os.path.exists(out)


def test_truncated_models():
    """Every truncation of a packed model's file is refused with a sentence."""
    calib = ids_file("tr.safetensors", 4, 64)
    quantize(tiny(), path("whole-model"), "--calib", calib)
    folder = path("cut")
    shutil.copytree(path("whole-model"), folder)
    raw = open(os.path.join(folder, "model.safetensors"), "rb").read()
    step = max(97, len(raw) // 60 // 97 * 97)  # the reader's own test takes every 97th byte of a small file
    for n in range(0, len(raw), step):
        open(os.path.join(folder, "model.safetensors"), "wb").write(raw[:n])
        sentence(run("verify", folder, code=4))


def test_lying_packed_models():
    calib = ids_file("ly.safetensors", 4, 64)
    quantize(tiny(), path("honest"), "--calib", calib, "--rotate", "none")
    tensors, meta = load(path("honest", "model.safetensors"))
    name = "model.layers.0.self_attn.q_proj"

    def attempt(label, change_tensors=None, change_meta=None):
        t, m = dict(tensors), json.loads(meta["requite"])
        if change_tensors:
            change_tensors(t)
        if change_meta:
            change_meta(m)
        folder = path("liar-" + label)
        shutil.copytree(path("honest"), folder)
        save(os.path.join(folder, "model.safetensors"), t, {**meta, "requite": json.dumps(m)})
        sentence(run("verify", folder, code=4))

    def bits(m):
        m["linears"][name]["bits"] = 4

    def unknown(m):
        m["linears"][name]["format"] = "magic"

    def gone(m):
        del m["linears"][name]

    def group(m):
        m["linears"][name]["group"] = -3

    def version(m):
        m["version"] = 99

    def no_scale(t):
        del t[name + ".weight_scale"]

    def nan_scale(t):
        d, s, b = t[name + ".weight_scale"]
        t[name + ".weight_scale"] = (d, s, b"\x00\x7e" + b[2:])

    def shape(t):
        d, s, b = t[name + ".weight_shape"]
        t[name + ".weight_shape"] = (d, s, struct.pack("<qq", 1 << 60, 1 << 60))

    for f in (bits, unknown, gone, group, version):
        attempt(f.__name__, change_meta=f)
    for f in (no_scale, nan_scale, shape):
        attempt(f.__name__, change_tensors=f)


def test_smollm2():
    """The reference runs of docs/results.md on the real model."""
    model = os.environ.get("RQ_SMOLLM2")
    if not model:
        raise Skip("RQ_SMOLLM2 names no GGUF file")
    wiki, calib = (os.path.join(TEST_DIR, "data", n) for n in ("wiki16x512.ids.safetensors", "calib16x512.ids.safetensors"))
    full = run_json("eval", model, "--text", wiki)
    assert abs(full["ppl"] - 36.0026) < 5e-4, full["ppl"]
    seen = []
    for comp, want in (("rtn", 57.34), ("gptq", 47.55), ("gptaq", 46.37), ("rescomp", 47.03)):
        out = path("smol-" + comp)
        run("quantize", model, out, "--preset", "reference", "--comp", comp, "--bits", 4, "--calib", calib, "--progress", "none")
        e = run_json("eval", out, "--text", wiki)
        seen.append(f"{comp} {e['ppl']:.2f} ({want})")
        shutil.rmtree(out)
    return ", ".join(seen)


def main():
    wanted = sys.argv[3:]
    passed = failed = skipped = 0
    try:
        for name, test in [(k, v) for k, v in globals().items() if k.startswith("test_")]:
            if wanted and name not in wanted:
                continue
            started = time.time()
            try:
                note = test()
                passed += 1
                print(f"ok    {name} ({time.time() - started:.1f} s){': ' + note if note else ''}", flush=True)
            except Skip as why:
                skipped += 1
                print(f"skip  {name}: {why}", flush=True)
            except Exception as e:  # noqa: BLE001
                failed += 1
                import traceback
                traceback.print_exc()
                print(f"FAIL  {name}: {e}", flush=True)
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__": sys.exit(main())
