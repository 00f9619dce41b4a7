#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""requite convert: small models to other tools' layouts and back. What is written is decoded here by the definition of each layout
(docs/peers.md), weight by weight; what is read back must be the same file again.

usage: test_convert.py REQUITE TEST_DIR [name of a test ...]      Python's standard library only."""
import array, json, os, random, re, shutil, struct, subprocess, sys, tempfile, time

REQUITE, TEST_DIR = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
WORK = tempfile.mkdtemp(prefix="requite-convert-")
MODEL = os.path.join(TEST_DIR, "golden", "llama", "tied")
Q_PROJ, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


def path(*names):
    return os.path.join(WORK, *names)


def run(*args, code=0):
    p = subprocess.run([REQUITE, *map(str, args), "--progress", "none"], capture_output=True, text=True, timeout=300)
    assert p.returncode == code, f"requite {' '.join(map(str, args))}: exit code {p.returncode}, wanted {code}\n{p.stderr[-600:]}"
    return p


def load(folder):
    with open(os.path.join(folder, "model.safetensors"), "rb") as f:
        raw = f.read()
    n = 8 + struct.unpack_from("<Q", raw)[0]
    header = json.loads(raw[8:n])
    meta = header.pop("__metadata__", {})
    return {k: (v["dtype"], v["shape"], raw[slice(*(n + at for at in v["data_offsets"]))]) for k, v in header.items()}, meta


def save(folder, tensors, meta):
    header, at = {"__metadata__": meta}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(folder, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(t[2] for t in tensors.values()))


def config(folder):
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
        return json.load(f)


def set_config(folder, quant):
    c = config(folder)
    if quant is None:
        del c["quantization_config"]
    else:
        c["quantization_config"] = quant
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f:
        json.dump(c, f)


def ids():
    name = path("ids.safetensors")
    if not os.path.exists(name):
        r = random.Random(1)
        data = array.array("i", [r.randrange(256) for _ in range(4 * 32)]).tobytes()
        text = json.dumps({"ids": {"dtype": "I32", "shape": [4, 32], "data_offsets": [0, len(data)]}}).encode()
        with open(name, "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text + data)
    return name


def quantized(name, *options):
    out = path(name)
    if not os.path.exists(out):
        run("quantize", MODEL, out, "--calib", ids(), "--rotate", "none", *options)
    return out


def convert(model, to, code=0):
    out = f"{model}.{to}"
    shutil.rmtree(out, ignore_errors=True)
    p = run("convert", model, "--to", to, "-o", out, code=code)
    assert not os.path.exists(out + ".converting")
    return out, p


def ppl(folder):
    e = json.loads(run("eval", folder, "--text", ids(), "--ctx", 32, "--json").stdout)
    return e["ppl"], e["bpw"]


# ---- definitions -----------------------------------------------------------------------------------------------------------

HALF = {"F16": "e", "F32": "f"}


def numbers(t):
    dtype, shape, data = t
    return struct.unpack(f"<{len(data) // struct.calcsize(HALF[dtype])}{HALF[dtype]}", data)


def words(t):
    return struct.unpack(f"<{len(t[2]) // 4}I", t[2])


def stream(w, start, stride, i, bits):
    """Element i of a bit stream whose words are stride apart."""
    p = i * bits
    v = w[start + (p >> 5) * stride] >> (p & 31)
    if (p & 31) + bits > 32:
        v |= w[start + ((p >> 5) + 1) * stride] << (32 - (p & 31))
    return v & ((1 << bits) - 1)


def weights_of_grid(tensors, name, bits, group):
    n_out, n_in = struct.unpack("<2q", tensors[name + ".weight_shape"][2])
    group = group or n_in
    n_group, row = -(-n_in // group), -(-n_in * bits // 32)
    w, s = words(tensors[name + ".weight_packed"]), numbers(tensors[name + ".weight_scale"])
    z = words(tensors[name + ".weight_zero_point"]) if name + ".weight_zero_point" in tensors else None
    g = struct.unpack(f"<{n_in}i", tensors[name + ".weight_g_idx"][2]) if name + ".weight_g_idx" in tensors else \
        [j // group for j in range(n_in)]
    return [[s[i * n_group + g[j]] * (stream(w, i * row, 1, j, bits) - (stream(z, g[j], n_group, i, bits) if z else 1 << (bits - 1)))
             for j in range(n_in)] for i in range(n_out)]


def weights_of_gptq(tensors, name, bits, v2):
    rows, n_out = tensors[name + ".qweight"][1]
    n_group, zero_words = tensors[name + ".qzeros"][1]
    w, z, s = words(tensors[name + ".qweight"]), words(tensors[name + ".qzeros"]), numbers(tensors[name + ".scales"])
    n_in = tensors[name + ".g_idx"][1][0]
    g = struct.unpack(f"<{n_in}i", tensors[name + ".g_idx"][2])
    assert tensors[name + ".scales"][1] == [n_group, n_out] and rows * 32 == n_in * bits and zero_words * 32 == n_out * bits
    return [[s[g[k] * n_out + n] * (stream(w, n, n_out, k, bits) - stream(z, g[k] * zero_words, 1, n, bits) - (0 if v2 else 1))
             for k in range(n_in)] for n in range(n_out)]


def weights_of_awq(tensors, name, group):
    n_in, n_words = tensors[name + ".qweight"][1]
    n_out, nibble = 8 * n_words, [0, 4, 1, 5, 2, 6, 3, 7]  # of column c % 8
    w, z, s = words(tensors[name + ".qweight"]), words(tensors[name + ".qzeros"]), numbers(tensors[name + ".scales"])

    def at(v, row, n):
        return v[row * n_words + n // 8] >> 4 * nibble[n % 8] & 15
    return [[s[k // group * n_out + n] * (at(w, k, n) - at(z, k // group, n)) for k in range(n_in)] for n in range(n_out)]


def weights_of_int8(tensors, name):
    n_out, n_in = tensors[name + ".weight"][1]
    w, s = struct.unpack(f"<{n_out * n_in}b", tensors[name + ".weight"][2]), numbers(tensors[name + ".weight_scale"])
    zero = tensors.get(name + ".weight_zero_point")
    z = struct.unpack(f"<{n_out}b", zero[2]) if zero else [0] * n_out
    return [[s[i] * (w[i * n_in + j] - z[i]) for j in range(n_in)] for i in range(n_out)]


def weights_of_w4a8(tensors, name):
    n_out, n_in = struct.unpack("<2q", tensors[name + ".weight_shape"][2])
    w, s, row = words(tensors[name + ".weight_packed"]), numbers(tensors[name + ".weight_scale"]), -(-n_in // 8)
    z = tensors[name + ".weight_zero"][2] if name + ".weight_zero" in tensors else [8] * n_out
    return [[s[i] * (stream(w, i * row, 1, j, 4) - z[i]) for j in range(n_in)] for i in range(n_out)]


def weights_of_vptq(tensors, name, layer):
    """Exact sums and products of halves, rounded to fp32 after each step."""
    n_out, n_in, v, k, kr = layer["out_features"], layer["in_features"], layer["vector_lens"][1], layer["num_centroids"][1], layer["num_res_centroids"][1]
    books, size, bits, res_bits = layer["group_num"], layer["group_size"], (k - 1).bit_length(), (kr - 1).bit_length() if kr > 0 else 0
    w, c = words(tensors[name + ".indices"]), numbers(tensors[name + ".centroids.weight"])
    r = numbers(tensors[name + ".res_centroids.weight"]) if kr > 0 else None
    perm = struct.unpack(f"<{n_in}H", tensors[name + ".perm"][2]) if layer["enable_perm"] else range(n_in)
    scale, bias = (numbers(tensors[name + s]) for s in (".weight_scale", ".weight_bias"))
    lines, row = -(-n_out // v), -(-size * (bits + res_bits) // 32)
    out = [[0.0] * n_in for _ in range(n_out)]
    for i in range(n_out):
        for s in range(n_in):
            b, j, line = s // size, s % size, i // v
            value = stream(w, (b * lines + line) * row, 1, j, bits + res_bits)
            x = c[(b * k + value % (1 << bits)) * v + i % v]
            x = f32(x + r[(b * kr + (value >> bits)) * v + i % v]) if kr > 0 else x
            out[i][perm[s]] = f32(f32(x * scale[perm[s]]) + bias[perm[s]])
    return out


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def weights_of_vq(tensors, name, e):
    n_out, n_in = struct.unpack("<2q", tensors[name + ".weight_shape"][2])
    v, out = e["vec_len"], e["vec_axis"] == "out"
    w = [words(tensors[name + s]) for s in (".weight_codes", ".weight_codes2")[:len(e["code_bits"])]]
    c = [numbers(tensors[e.get("book", name) + s]) for s in (".weight_book", ".weight_book2")[:len(w)]]
    of = tensors[name + ".weight_book_of"][2] if e.get("book_of") else [j // e["book_cols"] for j in range(n_in)]
    scale = numbers(tensors[name + ".weight_scale"]) if e["scales"] else None
    columns = [numbers(tensors[name + s]) for s in (".weight_col_scale", ".weight_col_bias")] if e["columns"] else None

    def weight(i, j):
        x = None
        for s, (words_, book) in enumerate(zip(w, c)):
            row = len(words_) // (-(-n_out // v) if out else n_out)
            code = stream(words_, (i // v if out else i) * row, 1, j if out else j // v, e["code_bits"][s])
            part = book[(of[j] * e["n_codes"][s] + code) * v + (i if out else j) % v]
            x = part if x is None else f32(x + part)
        x = f32(scale[i] * x) if scale else x
        return f32(f32(x * columns[0][j]) + columns[1][j]) if columns else x
    return [[weight(i, j) for j in range(n_in)] for i in range(n_out)]


def weights_of_aqlm(tensors, name, bits):
    n_out, n_code, m = tensors[name + ".codes"][1]
    v = tensors[name + ".codebooks"][1][3]
    codes = struct.unpack(f"<{n_out * n_code * m}{'h' if bits > 8 else 'b'}", tensors[name + ".codes"][2])
    book, scale = numbers(tensors[name + ".codebooks"]), numbers(tensors[name + ".scales"])

    def weight(i, j):
        x = None
        for s in range(m):
            part = book[((s << bits) + codes[(i * n_code + j // v) * m + s] % (1 << bits)) * v + j % v]
            x = part if x is None else f32(x + part)
        return f32(scale[i] * x)
    return [[weight(i, j) for j in range(n_code * v)] for i in range(n_out)]


# ---- tests -----------------------------------------------------------------------------------------------------------------

GRIDS = {  # options, bits, group; what every target makes of it: "" or a part of the sentence
    "b4sym": ("--bits 4 --group 32 --sym", 4, 32, {}),
    "b4asym": ("--bits 4 --group 32 --asym", 4, 32, {}),
    "b4row": ("--bits 4 --group 0 --asym", 4, 0, {}),
    "b3asym": ("--bits 3 --group 32 --asym", 3, 32, {"awq": "has 3 bits"}),
    "b2asym": ("--bits 2 --group 16 --asym", 2, 16, {"awq": "has 2 bits", "gptq": "is 0; version 1 of GPTQ"}),
    "b8sym": ("--bits 8 --group 0 --sym", 8, 0, {"awq": "has 8 bits"}),
    "b4act": ("--bits 4 --group 32 --asym --comp gptq --act-order --no-static-groups", 4, 32, {"awq": "act-order"}),
}


def check_same(model, to, out):
    assert ppl(out) == ppl(model), to
    back, _ = convert(out, "requite")
    for name in ("model.safetensors",):
        with open(os.path.join(model, name), "rb") as a, open(os.path.join(back, name), "rb") as b:
            assert a.read() == b.read(), f"{out}: other bytes after the way back"


def test_grids():
    for kind, (options, bits, group, refused) in GRIDS.items():
        model = quantized(kind, *options.split())
        ours = {n: weights_of_grid(load(model)[0], n, bits, group) for n in (Q_PROJ, DOWN)}
        for to in ("gptq", "gptq_v2", "awq", "compressed-tensors"):
            if to in refused:
                out, p = convert(model, to, code=4)
                assert refused[to] in p.stderr and "model.layers." in p.stderr and not os.path.exists(out), p.stderr
                continue
            out, _ = convert(model, to)
            tensors, meta = load(out)
            quant = config(out)["quantization_config"]
            assert "requite" not in meta
            for name, want in ours.items():
                got = weights_of_awq(tensors, name, group or len(want[0])) if to == "awq" else \
                    weights_of_gptq(tensors, name, bits, to == "gptq_v2") if to.startswith("gptq") else \
                    weights_of_grid(tensors, name, bits, group)
                assert got == want, f"{kind} as {to}: {name}"
            if to.startswith("gptq"):
                assert (quant["bits"], quant["group_size"], quant["checkpoint_format"]) == (bits, group or -1, to)
                assert quant["desc_act"] == (kind == "b4act") and quant["sym"] == ("--sym" in options)
                with open(os.path.join(out, "quantize_config.json"), encoding="utf-8") as f:
                    assert json.load(f) == quant
            elif to == "compressed-tensors":
                weights = quant["config_groups"]["group_0"]["weights"]
                assert weights["num_bits"] == bits and weights["group_size"] == (group or None) and quant["ignore"] == ["lm_head"]
            check_same(model, to, out)


def test_w4a8():
    for sym in ("--sym", "--asym"):
        model = quantized("w4a8" + sym, "--round", "w4a8", "--group", 0, sym)
        out, _ = convert(model, "compressed-tensors")
        tensors, _ = load(out)
        for name in (Q_PROJ, DOWN):
            assert weights_of_int8(tensors, name) == weights_of_w4a8(load(model)[0], name), name
        group = config(out)["quantization_config"]["config_groups"]["group_0"]
        assert group["format"] == "int-quantized" and group["input_activations"]["dynamic"] is True
        check_same(model, "compressed-tensors", out)
    for kind, options, words in (("two", ["--group", 32], "two levels of scales (groups of 32)"),
                                 ("smooth", ["--group", 0, "--smooth", 0.5], "factors on its inputs")):
        _, p = convert(quantized("w4a8" + kind, "--round", "w4a8", *options), "compressed-tensors", code=4)
        assert words in p.stderr and "model.layers." in p.stderr, p.stderr
        assert "packed as w4a8" in convert(quantized("w4a8" + kind), "gptq", code=4)[1].stderr


def test_codebooks():
    vptq = {"vptq": "--codes 16", "two": "--codes 64 --codes2 16", "books": "--codes 20 --book-cols 32 --book-order natural", "of": "--codes 16 --book-cols 32 --book-order hdiag"}
    for kind, options in vptq.items():
        model = quantized("vptq-" + kind, "--preset", "vptq", *options.split())
        out, _ = convert(model, "vptq")
        (tensors, _), (ours, meta) = load(out), load(model)
        layers = config(out)["quantization_config"]["config_for_layers"]
        assert len(layers) == 14 and layers[Q_PROJ]["enable_perm"] == (kind == "of") and layers[Q_PROJ]["bias"] is False
        for name in (Q_PROJ, DOWN):
            entry = json.loads(meta["requite"])["linears"][name]
            assert weights_of_vptq(tensors, name, layers[name]) == weights_of_vq(ours, name, entry), f"{kind}: {name}"
        if kind == "books":  # 20 entries are 32 there
            assert ppl(out)[0] == ppl(model)[0]
        else:
            check_same(model, "vptq", out)
    for kind, options, bits in (("one", "--codes 16", 4), ("two", "--codes 64 --codes2 64", 6), ("wide", "--codes 512 --vec-len 8 --kmeans-iters 2", 9)):
        model = quantized("aqlm-" + kind, "--round", "vq", "--no-share-books", "--outliers", 0, *options.split())
        out, _ = convert(model, "aqlm")
        (tensors, _), (ours, meta) = load(out), load(model)
        assert config(out)["quantization_config"]["nbits_per_codebook"] == bits
        assert config(out)["quantization_config"]["linear_weights_not_to_quantize"] == ["lm_head.weight"]
        for name in (Q_PROJ, DOWN):
            entry = json.loads(meta["requite"])["linears"][name]
            assert weights_of_aqlm(tensors, name, bits) == weights_of_vq(ours, name, entry), f"{kind}: {name}"
        check_same(model, "aqlm", out)
    assert "vq along inputs" in convert(path("aqlm-one"), "vptq", code=4)[1].stderr
    assert "vectors along outputs" in convert(path("vptq-two"), "aqlm", code=4)[1].stderr


def test_quantize_to():
    """The same as quantize, then convert; what has no place is said before the work, or leaves the model."""
    for to, options in (("awq", GRIDS["b4asym"][0]), ("gptq", GRIDS["b4act"][0]), ("vptq", "--preset vptq --codes 16"),
                        ("compressed-tensors", "--round w4a8 --group 0")):
        name = path("to-" + to)
        two = convert(quantized("for-" + to, *options.split()), to)[0]
        run("quantize", MODEL, name, "--to", to, "--calib", ids(), *options.split())
        for file in ("model.safetensors", "config.json"):
            with open(os.path.join(name, file), "rb") as a, open(os.path.join(two, file), "rb") as b:
                assert a.read() == b.read(), f"--to {to}: {file}"
        assert not os.path.exists(name + ".requite") and os.path.exists(os.path.join(name, "report.json"))
    for to, options, words in (("awq", "--bits 3", "awq has 4 bits, not 3"), ("gptq", "--round ssvq", "no place for --round ssvq"),
                               ("gptq", "--rotate residual", "no place for --rotate residual"), ("vptq", "--round vq", "--preset vptq"),
                               ("aqlm", "--preset vptq", "--vec-axis in"), ("what", "", "it is one of"), ("gptq", "--force", "do not go together"),
                               ("compressed-tensors", "--round w4a8 --group 32", "--group 0, not 32")):
        p = run("quantize", MODEL, path("never"), "--to", to, "--calib", ids(), *options.split(), code=2)
        assert words in p.stderr, p.stderr
    p = run("quantize", MODEL, path("late"), "--to", "gptq", "--calib", ids(), *GRIDS["b2asym"][0].split(), code=4)
    assert "late.requite holds the quantized model, but not as gptq" in p.stderr and "is 0; version 1" in p.stderr, p.stderr
    assert not os.path.exists(path("late"))
    run("convert", path("late.requite"), path("late"), "--to", "gptq_v2")


def test_mixed_settings():
    model = quantized("mixed", "--bits", 4, "--group", 32, "--skip", "k_proj", "--override", "down_proj:bits=8,group=16",
                      "--override", "o_proj:group=0")
    tensors, _ = load(convert(model, "gptq")[0])
    rules = config(model + ".gptq")["quantization_config"]["dynamic"]
    for name, (bits, group) in {DOWN: (8, 16), "model.layers.0.self_attn.o_proj": (4, -1)}.items():
        assert [v for k, v in rules.items() if k.startswith("+:") and re.match(k[2:], name)] == [{"bits": bits, "group_size": group}]
    assert [k for k in rules if k.startswith("-:") and re.match(k[2:], "model.layers.1.self_attn.k_proj")], rules
    assert "model.layers.1.self_attn.k_proj.weight" in tensors
    check_same(model, "gptq", model + ".gptq")
    check_same(model, "compressed-tensors", convert(model, "compressed-tensors")[0])
    quant = config(model + ".compressed-tensors")["quantization_config"]
    assert len(quant["config_groups"]) == 3 and quant["ignore"] == ["lm_head", *(f"model.layers.{i}.self_attn.k_proj" for i in (0, 1))]
    assert "bits" in convert(model, "awq", code=4)[1].stderr
    groups = quantized("groups", "--bits", 4, "--group", 32, "--override", "down_proj:group=16")
    assert "one size for all" in convert(groups, "awq", code=4)[1].stderr


def test_fold():
    """A rotation that goes into embedding and head: the same model, without anything to turn at run time."""
    own = quantized("rotated", "--rotate", "residual", "--bits", 4, "--group", 32)
    want = ppl(own)[0]
    for how, most in (("f32", 1e-5), ("f16", 0.02)):
        out = path("folded-" + how)
        run("convert", own, out, "--to", "gptq_v2", "--fold", how)
        tensors, _ = load(out)
        assert config(out)["tie_word_embeddings"] is False and set(numbers(tensors["model.norm.weight"])) == {1.0}
        assert tensors["lm_head.weight"][:2] == tensors["model.embed_tokens.weight"][:2] == (how.upper(), [320, 64])
        assert abs(ppl(out)[0] / want - 1) < most, (how, ppl(out)[0], want)
        two = path("to-folded-" + how)
        run("quantize", MODEL, two, "--calib", ids(), "--to", "gptq_v2", "--fold", how, "--bits", 4, "--group", 32)
        assert load(two) == load(out)
    assert "f16 or f32" in run("convert", own, path("x"), "--to", "gptq", "--fold", "f8", code=2).stderr
    assert "--fold is for --to" in run("quantize", MODEL, path("x"), "--calib", ids(), "--fold", "f16", code=2).stderr


def test_refusals():
    out = quantized("rotated", "--rotate", "residual", "--bits", 4, "--group", 32)
    assert "rotated (" in convert(out, "gptq", code=4)[1].stderr
    assert "packed as ssvq" in convert(quantized("ssvq", "--round", "ssvq", "--codes", 16), "awq", code=4)[1].stderr
    odd = quantized("odd", "--bits", 4, "--group", 40)
    assert "groups of 40 do not divide its 96" in convert(odd, "gptq", code=4)[1].stderr
    assert "no float16" in convert(quantized("f32", "--bits", 4, "--group", 32, "--scale-dtype", "f32"), "gptq", code=4)[1].stderr
    model = quantized("b4sym", "--bits", 4, "--group", 32, "--sym")
    assert "it is one of requite, gptq, gptq_v2, awq, compressed-tensors, vptq, aqlm" in convert(model, "nothing", code=2)[1].stderr
    assert "already" in convert(model, "requite", code=2)[1].stderr
    assert "no packed matrices" in run("convert", MODEL, path("x"), "--to", "gptq", code=4).stderr
    assert "exists and is not empty" in run("convert", model, model, "--to", "gptq", code=2).stderr
    run("convert", path("nowhere"), path("x"), "--to", "gptq", code=4)
    run("convert", model, "--to", "gptq", code=2)


def gptq_copy(name, to="gptq", kind="b4asym"):
    source, out = convert(quantized(kind, *GRIDS[kind][0].split()), to)[0], path(name)
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(source, out)
    return out


def test_zero_points_of_version_1():
    """A zero point of 0 has no place that all readers agree on; nor has a version that is labelled as the other."""
    out = gptq_copy("zero", "gptq_v2")
    tensors, meta = load(out)
    t = tensors[Q_PROJ + ".qzeros"]
    tensors[Q_PROJ + ".qzeros"] = (t[0], t[1], struct.pack("<I", words(t)[0] & ~0xf) + t[2][4:])
    save(out, tensors, meta)
    back, _ = convert(out, "requite")
    assert "the zero point of row 0, group 0 is 0" in convert(back, "gptq", code=4)[1].stderr
    convert(back, "gptq_v2")

    model = quantized("b4sym", *GRIDS["b4sym"][0].split())
    for to, label in (("gptq", "gptq_v2"), ("gptq_v2", "gptq")):
        out = gptq_copy("label", to, "b4sym")
        quant = config(out)["quantization_config"]
        quant["checkpoint_format"] = quant["format"] = label
        set_config(out, quant)
        assert f"the file is read as {to}" in run("inspect", out).stderr
        assert ppl(out) == ppl(model)


def test_old_gptq_files():
    """The configuration in a file of its own, no group numbers, biases of zeros."""
    out = gptq_copy("old")
    want = ppl(out)
    set_config(out, None)
    tensors, meta = load(out)
    tensors = {k: v for k, v in tensors.items() if not k.endswith(".g_idx")}
    tensors[Q_PROJ + ".bias"] = ("F16", [64], bytes(128))
    save(out, tensors, meta)
    assert ppl(out) == want
    tensors[Q_PROJ + ".bias"] = ("F16", [64], bytes(127) + b"1")
    save(out, tensors, meta)
    assert "bias" in run("eval", out, "--text", ids(), code=4).stderr


def test_broken_files():
    """Each gives a sentence and exit code 4."""
    def broken(to, kind, change, words):
        out = gptq_copy("broken", to, kind)
        tensors, meta = load(out)
        quant = config(out)["quantization_config"]
        change(tensors, quant)
        save(out, tensors, meta)
        set_config(out, quant)
        p = run("verify", out, code=4)
        assert words in p.stderr, f"{to}: {p.stderr}"

    def cut(suffix, dim):
        def change(tensors, quant):
            dtype, shape, data = tensors[Q_PROJ + suffix]
            rows = shape[0] - (dim == 0)
            tensors[Q_PROJ + suffix] = (dtype, [rows, *shape[1:]], data[:len(data) // shape[0] * rows])
        return change

    def drop(suffix):
        return lambda tensors, quant: tensors.pop(Q_PROJ + suffix)

    def put(suffix, at, data):
        def change(tensors, quant):
            t = tensors[Q_PROJ + suffix]
            tensors[Q_PROJ + suffix] = (t[0], t[1], t[2][:at] + data + t[2][at + len(data):])
        return change

    def say(key, value):
        return lambda tensors, quant: quant.update({key: value})

    def say_weights(key, value):
        return lambda tensors, quant: quant["config_groups"]["group_0"]["weights"].update({key: value})

    nan = struct.pack("<e", float("nan"))
    for to in ("gptq", "gptq_v2"):
        broken(to, "b4asym", cut(".qweight", 0), "fit no width")
        broken(to, "b4asym", cut(".qzeros", 0), "groups of 32 do not make 64")
        broken(to, "b4asym", cut(".scales", 0), "is not [2, 64]")
        broken(to, "b4asym", drop(".qzeros"), "missing")
        broken(to, "b4asym", put(".scales", 4, nan), "is NaN or infinite")
        broken(to, "b4asym", put(".g_idx", 0, b"\x09\0\0\0"), "is in group 9 of 2")
        broken(to, "b4act", put(".g_idx", 0, b"\0\0\0\0" * 40), "more than its 32")
        broken(to, "b4asym", say("bits", 5), "5 bits")
        broken(to, "b4asym", say("bits", "4"), "not an integer")
        broken(to, "b4asym", say("bits", 8), "fit no width")
        broken(to, "b4asym", say("group_size", -7), "group_size is -7")
        broken(to, "b4asym", say("checkpoint_format", "marlin"), "marlin is not read")
        broken(to, "b4asym", say("pack_dtype", "int16"), "int16 is not read")
    broken("awq", "b4asym", cut(".qzeros", 0), "qzeros is [1, 8], should be [2, 8]")
    broken("awq", "b4asym", drop(".scales"), "missing")
    broken("awq", "b4asym", say("version", "gemv"), "gemv of AWQ is not read")
    broken("awq", "b4asym", say("bits", 3), "bits is 3")
    ct = "compressed-tensors"
    broken(ct, "b4asym", cut(".weight_packed", 0), "codes of 63 rows")
    broken(ct, "b4asym", cut(".weight_zero_point", 0), "words for 64 codes")
    broken(ct, "b4asym", drop(".weight_zero_point"), "missing")
    broken(ct, "b4asym", put(".weight_scale", 0, nan), "is NaN or infinite")
    broken(ct, "b4asym", put(".weight_shape", 0, struct.pack("<q", -1)), "impossible shape")
    broken(ct, "b4asym", say_weights("symmetric", True), "described as symmetric")
    broken(ct, "b4asym", say_weights("type", "float"), "no integers")
    broken(ct, "b4asym", say_weights("strategy", "block"), "strategy block")
    broken(ct, "b4asym", say_weights("group_size", 16), "is not [64, 4]")
    broken(ct, "b4asym", say("config_groups", {}), "no group of quantization_config")
    broken(ct, "b4asym", say("config_groups", []), "no object config_groups")
    broken(ct, "b4asym", say("transform_config", {"config_groups": {"u": {}}}), "transform")
    broken(ct, "b4asym", say("quant_method", "unheard"), "unheard")
    GRIDS["vptq"] = ("--preset vptq --codes 16 --codes2 16 --book-cols 32 --book-order hdiag", 0, 0, {})
    GRIDS["vq"] = ("--round vq --codes 16 --codes2 16 --outliers 0", 0, 0, {})

    def say_layer(key, value):
        return lambda tensors, quant: quant["config_for_layers"][Q_PROJ].update({key: value})

    broken("vptq", "vptq", cut(".indices", 0), "its shape")
    broken("vptq", "vptq", drop(".centroids.weight"), "missing")
    broken("vptq", "vptq", cut(".res_centroids.weight", 0), "is not [2, 96]")
    broken("vptq", "vptq", put(".perm", 0, b"\0\0\0\0"), "is no permutation")
    broken("vptq", "vptq", put(".weight_scale", 0, nan), "is NaN or infinite")
    broken("vptq", "vptq", drop(".weight_bias"), "missing")
    broken("vptq", "vptq", say_layer("vector_lens", 8), "no list of two")
    broken("vptq", "vptq", say_layer("vector_lens", [-1, 17]), "vec_len is 17")
    broken("vptq", "vptq", say_layer("num_centroids", [-1, 1 << 40]), "centroids is 1099511627776")
    broken("vptq", "vptq", say_layer("group_num", 3), "do not make 64")
    broken("vptq", "vptq", say_layer("outlier_size", 8), "8 outlier columns")
    broken("vptq", "vptq", say_layer("is_indice_packed", False), "not packed")
    broken("vptq", "vptq", say("config_for_layers", {}), "says nothing of it")
    broken("aqlm", "vq", cut(".codebooks", 0), "is not [2, 16, 1,")
    broken("aqlm", "vq", drop(".scales"), "missing")
    broken("aqlm", "vq", say("num_codebooks", 1), "with 1 codebooks")
    broken("aqlm", "vq", say("num_codebooks", 3), "num_codebooks is 3")
    broken("aqlm", "vq", say("out_group_size", 8), "out_group_size is 8")
    broken("aqlm", "vq", say("nbits_per_codebook", 9), "should be I16")


def test_targets_by_name_and_pattern():
    """config_groups of compressed-tensors: a name goes before a pattern, a pattern before a class."""
    model = quantized("mixed", "--bits", 4, "--group", 32, "--skip", "k_proj", "--override", "down_proj:bits=8,group=16",
                      "--override", "o_proj:group=0")
    out, _ = convert(model, "compressed-tensors")
    quant = config(out)["quantization_config"]
    for group in quant["config_groups"].values():
        if any("down_proj" in t for t in group["targets"]):
            group["targets"] = ["re:.*mlp\\.d.*"]
        elif not any("o_proj" in t for t in group["targets"]):
            group["targets"] = ["Linear"]
    set_config(out, quant)
    check_same(model, "compressed-tensors", out)
    for group in quant["config_groups"].values():  # patterns match from the start
        group["targets"] = ["re:mlp" if t.startswith("re:") else t for t in group["targets"]]
    set_config(out, quant)
    run("verify", out, code=4)


def test_old_three_bit_words():
    """compressed-tensors before 0.18: ten codes to a word."""
    model = quantized("b3asym", *GRIDS["b3asym"][0].split())
    out, _ = convert(model, "compressed-tensors")
    tensors, meta = load(out)
    for name in [n[:-len(".weight_packed")] for n in tensors if n.endswith(".weight_packed")]:
        n_out, n_in = struct.unpack("<2q", tensors[name + ".weight_shape"][2])
        w, z = words(tensors[name + ".weight_packed"]), words(tensors[name + ".weight_zero_point"])
        row, n_group, wide = -(-n_in * 3 // 32), tensors[name + ".weight_zero_point"][1][1], -(-n_in // 10)
        new = [0] * (n_out * wide)
        for i in range(n_out):
            for j in range(n_in):
                new[i * wide + j // 10] |= stream(w, i * row, 1, j, 3) << j % 10 * 3
        tall = -(-n_out // 10)
        zeros = [0] * (tall * n_group)
        for i in range(n_out):
            for k in range(n_group):
                zeros[i // 10 * n_group + k] |= stream(z, k, n_group, i, 3) << i % 10 * 3
        tensors[name + ".weight_packed"] = ("I32", [n_out, wide], struct.pack(f"<{len(new)}I", *new))
        tensors[name + ".weight_zero_point"] = ("I32", [tall, n_group], struct.pack(f"<{len(zeros)}I", *zeros))
    save(out, tensors, meta)
    check_same(model, "compressed-tensors", out)


def main():
    wanted, failed = sys.argv[3:], 0
    try:
        for name, test in [(k, v) for k, v in globals().items() if k.startswith("test_")]:
            if wanted and name not in wanted:
                continue
            started = time.time()
            try:
                test()
                print(f"ok    {name} ({time.time() - started:.1f} s)", flush=True)
            except Exception as e:  # noqa: BLE001
                failed += 1
                import traceback
                traceback.print_exc()
                print(f"FAIL  {name}: {e}", flush=True)
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
    return 1 if failed else 0


sys.exit(main())
