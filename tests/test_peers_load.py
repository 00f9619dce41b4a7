#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Other tools open what `requite convert` writes: transformers with compressed-tensors and with gptqmodel load whole folders, and the
unpacking of autoawq, vptq and aqlm decodes single matrices. Their weights must be ours, to the bit where they decode in fp32. The containers too:
the packages safetensors and gguf read what we write, and write what we read.

usage: test_peers_load.py REQUITE TEST_DIR [FOLDER...]
FOLDER: unpacked releases (tests/make_peers.py names them) for autoawq, vptq and aqlm. third_party/peers.sh installs all of it. What is not there is
skipped, and said; exit code 77 when nothing could be tried. ctest runs it with RQ_TEST_PEERS (label heavy)."""
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile

REQUITE, TEST_DIR = (os.path.abspath(p) for p in sys.argv[1:3])
MODEL = os.path.join(TEST_DIR, "golden", "llama", "tied")
os.environ["HF_HUB_OFFLINE"] = os.environ["TQDM_DISABLE"] = "1"
os.environ["TORCHDYNAMO_DISABLE"] = "1"  # gptqmodel compiles its decoding, for longer than all the rest takes

try:
    import numpy as np
    import torch
except ImportError as e:
    print(f"skipped: {e}")
    sys.exit(77)
WORK = tempfile.mkdtemp(prefix="requite-peers-")


class Skip(Exception):
    pass


def module(path, **stubs):
    """A file of an unpacked release; stubs stand for imports that are not used here."""
    import importlib.util
    for folder in sys.argv[3:]:
        full = os.path.join(folder, path)
        if os.path.exists(full):
            for name, stub in stubs.items():
                sys.modules.setdefault(name.replace("__", "."), stub)
            spec = importlib.util.spec_from_file_location(path.replace("/", "_")[:-3], full)
            m = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(m)
            return m
    raise Skip(f"no folder has {path}")


def run(*args):
    p = subprocess.run([REQUITE, *map(str, args), "--progress", "none"], capture_output=True, text=True, check=False)
    assert p.returncode == 0, p.stderr
    return p.stdout


def load(folder):
    with open(os.path.join(folder, "model.safetensors"), "rb") as f:
        raw = f.read()
    n = 8 + struct.unpack_from("<Q", raw)[0]
    types = {"F16": "<f2", "F32": "<f4", "I32": "<u4", "I64": "<i8", "I8": "<i1", "U8": "<u1", "I16": "<i2"}
    header, out = json.loads(raw[8:n]), {}
    meta = header.pop("__metadata__", {})
    for k, v in header.items():
        data = raw[slice(*(n + at for at in v["data_offsets"]))]
        if v["dtype"] == "BF16":
            out[k] = torch.frombuffer(bytearray(data), dtype=torch.bfloat16).view(v["shape"]).float().numpy()
        else:
            out[k] = np.frombuffer(data, types[v["dtype"]]).reshape(v["shape"])
    return out, meta


def unstream(words, n, bits):
    """words [rows, m] of 32 bits to n codes a row."""
    rows = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")[:, :n * bits]
    return rows.reshape(len(words), n, bits).astype(np.int64) @ (1 << np.arange(bits))


def our_weights(folder):
    """Every packed matrix by the definitions of docs/formats.md, in fp32."""
    t, meta = load(folder)
    out = {}
    for name, e in json.loads(meta["requite"])["linears"].items():
        n_out, n_in = t[name + ".weight_shape"]
        if e["format"] == "vq":
            codes = [unstream(t[name + s], n_in, b) for s, b in zip((".weight_codes", ".weight_codes2"), e["code_bits"])] if e["vec_axis"] == "out" \
                else [unstream(t[name + s], n_in // e["vec_len"], b) for s, b in zip((".weight_codes", ".weight_codes2"), e["code_bits"])]
            w = 0
            for c, book in zip(codes, (".weight_book", ".weight_book2")):
                b = t[e.get("book", name) + book].astype(np.float32)
                if e["vec_axis"] == "out":
                    of = t[name + ".weight_book_of"] if e.get("book_of") else np.arange(n_in) // e["book_cols"]
                    w = w + b[of[None, :], c].transpose(0, 2, 1).reshape(-1, n_in)[:n_out]
                else:
                    w = w + b[0][c].reshape(n_out, n_in)
            if e["scales"]:
                w = t[name + ".weight_scale"].astype(np.float32) * w
            if e["columns"]:
                w = w * t[name + ".weight_col_scale"].astype(np.float32) + t[name + ".weight_col_bias"].astype(np.float32)
        else:
            bits, scale = e.get("bits", 4), t[name + ".weight_scale"].astype(np.float32).reshape(n_out, -1)
            g = np.arange(n_in) // (e["group"] or n_in)
            zero = np.full(scale.shape, 1 << (bits - 1))
            if name + ".weight_zero" in t:
                zero = t[name + ".weight_zero"].reshape(-1, 1)
            if name + ".weight_zero_point" in t:
                zero = unstream(t[name + ".weight_zero_point"].T, n_out, bits).T
            if name + ".weight_g_idx" in t:
                g = t[name + ".weight_g_idx"]
            w = scale[:, g] * (unstream(t[name + ".weight_packed"], n_in, bits) - zero[:, g]).astype(np.float32)
        out[name] = w.astype(np.float32)
    return out


def ids():
    path = os.path.join(WORK, "ids.safetensors")
    if not os.path.exists(path):
        r = random.Random(1)
        data = struct.pack("<128i", *(r.randrange(256) for _ in range(128)))
        text = json.dumps({"ids": {"dtype": "I32", "shape": [4, 32], "data_offsets": [0, len(data)]}}).encode()
        with open(path, "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text + data)
    return path


def made(to, *options, fold=None):
    """A quantized model, and the same for the tool."""
    n = len(os.listdir(WORK))
    own, out = os.path.join(WORK, f"own{n}"), os.path.join(WORK, f"out{n}")
    run("quantize", MODEL, own, "--calib", ids(), "--rotate", "residual" if fold else "none", *options)
    run("convert", own, "--to", to, "-o", out, *(["--fold", fold] if fold else []))
    return own if fold else our_weights(own), out


def dense_logits(weights, dtype=torch.float32):
    """transformers on the same weights, not packed."""
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    for name, w in weights.items():
        model.get_submodule(name).weight.data = torch.from_numpy(w.copy())
    return logits(model.to(dtype))


def logits(model):
    tokens = torch.arange(3, 43).view(1, -1)
    with torch.no_grad():
        return model(tokens).logits.float()


def nll(model):
    """Mean over the windows of ids(), as `requite eval` has it."""
    with open(ids(), "rb") as f:
        tokens = torch.tensor(struct.unpack("<128i", f.read()[-512:])).view(4, 32)
    with torch.no_grad():
        scores = torch.log_softmax(model(tokens).logits.double(), -1)
    return -float(scores[:, :-1].gather(2, tokens[:, 1:, None]).mean())


# ---- tests -----------------------------------------------------------------------------------------------------------------


def test_compressed_tensors_models():
    """transformers opens the folder; its logits are those of the dense weights."""
    try:
        import compressed_tensors  # noqa: F401
        from transformers import AutoModelForCausalLM
    except ImportError as e:
        raise Skip(str(e)) from e
    notes = []
    for options, most in ((("--bits", 4, "--group", 32, "--sym"), 1e-6), (("--bits", 3, "--group", 32, "--sym"), 1e-6), (("--bits", 8, "--group", 0, "--sym"), 1e-6),
                          (("--bits", 4, "--group", 32, "--sym", "--skip", "k_proj", "--override", "down_proj:bits=8"), 1e-6),
                          (("--round", "w4a8", "--group", 0, "--sym"), None)):
        weights, out = made("compressed-tensors", *options)
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        if most is None:  # it quantizes activations, as we do, with steps of its own: max / 127.5 for our max / 127
            ours, theirs = json.loads(run("eval", out, "--text", ids(), "--ctx", 32, "--json"))["nll_mean"], nll(model)
            assert abs(ours / theirs - 1) < 0.01, (ours, theirs)
            notes.append(f"W4A8 loses {theirs:.4f} nats a token there, {ours:.4f} here")
            continue
        want, got = dense_logits(weights), logits(model)
        worst = float((got - want).abs().max() / want.abs().max())
        assert worst <= most, f"{options}: {worst:.3g} of the largest logit"
        notes.append(f"{worst:.2g}")
    return "largest differences of logits, of the largest: " + ", ".join(notes)


def test_folded_rotation():
    """A rotated model loses there what it loses here."""
    try:
        import compressed_tensors  # noqa: F401
        from transformers import AutoModelForCausalLM
    except ImportError as e:
        raise Skip(str(e)) from e
    own, out = made("compressed-tensors", "--bits", 4, "--group", 32, "--sym", fold="f32")
    ours = json.loads(run("eval", own, "--text", ids(), "--ctx", 32, "--json"))["nll_mean"]
    theirs = nll(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32))
    assert abs(ours / theirs - 1) < 1e-5, (ours, theirs)
    return f"{theirs:.5f} and {ours:.5f} nats a token"


def test_compressed_tensors_decompress():
    """Asymmetric ones by the package's own decompress()."""
    try:
        from compressed_tensors.compressors import IntQuantizationCompressor, PackedQuantizationCompressor
        from compressed_tensors.quantization import QuantizationScheme
    except ImportError as e:
        raise Skip(str(e)) from e
    for options in (("--bits", 4, "--group", 32, "--asym"), ("--bits", 3, "--group", 32, "--asym"), ("--bits", 2, "--group", 16, "--asym"),
                    ("--round", "w4a8", "--group", 0, "--asym"), ("--round", "w4a8", "--group", 0, "--sym")):
        weights, out = made("compressed-tensors", *options)
        tensors, _ = load(out)
        with open(os.path.join(out, "config.json"), encoding="utf-8") as f:
            scheme = QuantizationScheme.model_validate(json.load(f)["quantization_config"]["config_groups"]["group_0"])
        compressor = IntQuantizationCompressor if scheme.format == "int-quantized" else PackedQuantizationCompressor
        for name, want in weights.items():
            state = {k[len(name) + 1:]: torch.from_numpy(v.view(np.int32).copy() if v.dtype == np.uint32 else v.copy())
                     for k, v in tensors.items() if k.startswith(name + ".weight")}
            state["weight_scale"] = state["weight_scale"].float()
            got = compressor.decompress(state, scheme)["weight"].numpy()
            assert np.array_equal(got, want), f"{options}: {name}"


def test_gptqmodel():
    """transformers with gptqmodel: the weights that its layers hold."""
    try:
        import gptqmodel  # noqa: F401
        import optimum  # noqa: F401
        from transformers import AutoModelForCausalLM, GPTQConfig
    except ImportError as e:
        raise Skip(str(e)) from e
    notes = []
    for to, options in (("gptq", ("--bits", 4, "--group", 32, "--sym")), ("gptq", ("--bits", 4, "--group", 32, "--asym", "--comp", "gptq", "--act-order", "--no-static-groups")),
                        ("gptq_v2", ("--bits", 2, "--group", 32, "--asym")), ("gptq_v2", ("--bits", 3, "--group", 32, "--asym")), ("gptq", ("--bits", 8, "--group", 32, "--sym"))):
        weights, out = made(to, *options)
        with open(os.path.join(out, "config.json"), encoding="utf-8") as f:
            quant = json.load(f)["quantization_config"]
        model = AutoModelForCausalLM.from_pretrained(out, device_map="cpu", dtype=torch.float16, quantization_config=GPTQConfig(
            bits=quant["bits"], group_size=quant["group_size"], desc_act=quant["desc_act"], sym=quant["sym"],
            format=quant["format"], backend="torch"))
        for name, want in weights.items():
            layer = model.get_submodule(name)
            got = layer.dequantize_weight().T.float().detach().numpy()
            worst = float(np.abs(got - want).max() / np.abs(want).max())
            assert worst <= 2 ** -10, f"{to} {options}: {name}: {worst:.3g}"  # it decodes in fp16
        want, got = dense_logits(weights, torch.float16), logits(model)
        worst = float((got - want).abs().max() / want.abs().max())
        assert worst < 0.01, f"{to} {options}: {worst:.3g} of the largest logit"
        notes.append(f"{worst:.2g}")
    return "largest differences of logits in fp16, of the largest: " + ", ".join(notes)


def test_awq():
    packing = module("awq/utils/packing_utils.py")
    weights, out = made("awq", "--bits", 4, "--group", 32, "--asym")
    t, _ = load(out)
    for name, want in weights.items():
        q, z, s = (torch.from_numpy(t[f"{name}.{k}"].astype(np.float32) if k == "scales" else t[f"{name}.{k}"].view(np.int32)) for k in ("qweight", "qzeros", "scales"))
        assert np.array_equal(packing.dequantize_gemm(q, z, s, 4, 32).T.numpy(), want), name


def test_vptq():
    import types
    nothing = types.ModuleType("nothing")
    nothing.SentenceTransformer = None
    pack = module("vptq/utils/pack.py", accelerate=nothing, tqdm=nothing, sentence_transformers=nothing,
                  sentence_transformers__SentenceTransformer=nothing, vptq=nothing, vptq__utils=nothing)
    gemm = module("vptq/ops/quant_gemm.py", vptq__utils__pack=pack)
    for options in ("--codes 16", "--codes 64 --codes2 16", "--codes 20 --book-cols 32 --book-order hdiag"):
        weights, out = made("vptq", "--preset", "vptq", *options.split())
        t, _ = load(out)
        with open(os.path.join(out, "config.json"), encoding="utf-8") as f:
            layers = json.load(f)["quantization_config"]["config_for_layers"]
        for name, want in weights.items():
            z = layers[name]
            books, v, k, kr = z["group_num"], z["vector_lens"][1], z["num_centroids"][1], z["num_res_centroids"][1]

            def get(key, as_type=np.float32, shape=None):
                x = t.get(f"{name}.{key}")
                return None if x is None else torch.from_numpy(x.view(as_type) if x.dtype == np.uint32 else x.astype(as_type)).view(shape or x.shape)

            got = gemm.dequant(
                indices=get("indices", np.int32), centroids=get("centroids.weight", shape=(books, k, v)), outlier_indices=None, outlier_centroids=None,
                res_indices=None, res_centroids=get("res_centroids.weight"), perm=get("perm", np.int16), weight_scale=get("weight_scale"),
                weight_bias=get("weight_bias"), is_indice_packed=True, enable_outlier=False, enable_residual=kr > 0, enable_perm=z["enable_perm"],
                enable_norm=z["enable_norm"], num_centroids=k, num_outlier_centroids=-1, num_res_centroids=kr, padding=-z["out_features"] % v,
                outlier_padding=0, num_codebooks=books, group_size=z["group_size"], outlier_size=0, vector_len=v, outlier_vector_len=-1)
            assert np.array_equal(got.numpy(), want), f"{options}: {name}"


def test_aqlm():
    utils = module("aqlm/utils.py")
    for options in ("--codes 16", "--codes 512 --vec-len 8 --kmeans-iters 2", "--codes 64 --codes2 64"):
        weights, out = made("aqlm", "--round", "vq", "--outliers", 0, *options.split())
        t, _ = load(out)
        with open(os.path.join(out, "config.json"), encoding="utf-8") as f:
            bits = json.load(f)["quantization_config"]["nbits_per_codebook"]
        for name, want in weights.items():
            codes = utils.unpack_int_data(torch.from_numpy(t[name + ".codes"].copy()), bits)
            book, scales = (torch.from_numpy(t[f"{name}.{k}"].astype(np.float32)) for k in ("codebooks", "scales"))
            assert np.array_equal(utils._dequantize_weight(codes, book, scales).numpy(), want), f"{options}: {name}"


def test_safetensors():
    """The package opens what `requite quantize` writes of every format, and sees the same tensors."""
    try:
        from safetensors import safe_open
    except ImportError as e:
        raise Skip(str(e)) from e
    n = 0
    for options in (("--bits", 3, "--group", 32, "--asym"), ("--round", "ssvq", "--codes", 32), ("--round", "vq", "--codes", 32),
                    ("--round", "w4a8", "--group", 32)):
        out = os.path.join(WORK, f"own{len(os.listdir(WORK))}")
        run("quantize", MODEL, out, "--calib", ids(), *options)
        want, meta = load(out)
        with safe_open(os.path.join(out, "model.safetensors"), framework="pt") as f:
            assert f.metadata() == meta and set(f.keys()) == set(want), options
            for name, w in want.items():
                t = f.get_tensor(name)
                t = t.float().numpy() if t.dtype == torch.bfloat16 else t.numpy()
                assert np.array_equal(t.view(w.dtype), w), f"{options}: {name}"
                n += 1
    return f"{n} tensors"


def gguf_model(path, folder):
    """A random Llama as GGUF, every type that we read in it, and as a folder of what the package decodes that to."""
    import gguf
    from safetensors.numpy import save_file
    T, rng = gguf.GGMLQuantizationType, np.random.default_rng(11)
    d, ff, heads, kv_heads, vocab = 256, 512, 4, 2, 256
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_embedding_length(d)
    writer.add_feed_forward_length(ff)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_context_length(64)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    tensors = {}

    def add(name, ours, kind, rows, cols, interleaved=0):
        w = (rng.standard_normal((rows, cols)) * 0.1).astype(np.float32)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        if kind in (T.Q4_K, T.Q6_K):  # the package does not make these: random blocks, the steps of a size that suits
            raw = rng.integers(0, 256, (rows, cols // block, size), dtype=np.uint8)
            steps = np.array([2e-4] * 2 if kind == T.Q4_K else [1e-4], np.float16) * rng.uniform(0.5, 1, (rows, cols // block, 1)).astype(np.float16)
            at = 0 if kind == T.Q4_K else 208
            raw[..., at:at + 2 * steps.shape[-1]] = steps.view(np.uint8)
            raw = raw.reshape(rows, -1)
        else:
            raw = gguf.quants.quantize(w, kind)
        writer.add_tensor(name, raw, raw_dtype=kind)
        w = gguf.quants.dequantize(raw, kind).reshape(rows, cols)
        if interleaved:  # the converter's order of rows in q and k
            w = w.reshape(interleaved, -1, 2, cols).swapaxes(1, 2).reshape(rows, cols)
        tensors[ours] = np.ascontiguousarray(w, np.float32)

    def add_norm(name, ours):
        tensors[ours] = rng.uniform(0.5, 1.5, d).astype(np.float32)
        writer.add_tensor(name, tensors[ours])

    kinds = (T.Q4_0, T.Q4_1, T.Q8_0, T.F16, T.Q4_K, T.Q6_K, T.BF16), (T.Q4_K, T.Q6_K, T.Q4_K, T.Q6_K, T.Q4_0, T.Q4_1, T.Q8_0)
    add("token_embd.weight", "model.embed_tokens.weight", T.Q8_0, vocab, d)
    for i, kind in enumerate(kinds):
        at, own = f"blk.{i}.", f"model.layers.{i}."
        add(at + "attn_q.weight", own + "self_attn.q_proj.weight", kind[0], d, d, heads)
        add(at + "attn_k.weight", own + "self_attn.k_proj.weight", kind[1], d * kv_heads // heads, d, kv_heads)
        add(at + "attn_v.weight", own + "self_attn.v_proj.weight", kind[2], d * kv_heads // heads, d)
        add(at + "attn_output.weight", own + "self_attn.o_proj.weight", kind[3], d, d)
        add(at + "ffn_gate.weight", own + "mlp.gate_proj.weight", kind[4], ff, d)
        add(at + "ffn_up.weight", own + "mlp.up_proj.weight", kind[5], ff, d)
        add(at + "ffn_down.weight", own + "mlp.down_proj.weight", kind[6], d, ff)
        add_norm(at + "attn_norm.weight", own + "input_layernorm.weight")
        add_norm(at + "ffn_norm.weight", own + "post_attention_layernorm.weight")
    add_norm("output_norm.weight", "model.norm.weight")
    add("output.weight", "lm_head.weight", T.Q6_K, vocab, d)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.mkdir(folder)
    save_file(tensors, os.path.join(folder, "model.safetensors"))
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f:
        json.dump({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "hidden_size": d, "intermediate_size": ff,
                   "num_hidden_layers": 2, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab,
                   "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False}, f)


def test_gguf():
    """A model of the package's own making loses here what the weights that the package decodes lose; it reads the stored one as our tests do."""
    try:
        import gguf
        from safetensors.numpy import load_file
    except ImportError as e:
        raise Skip(str(e)) from e
    stored = os.path.join(TEST_DIR, "data", "readers")
    want = load_file(os.path.join(stored, "blocks.safetensors"))  # test_readers_gguf has it that ours are these
    for t in gguf.GGUFReader(os.path.join(stored, "blocks.gguf")).tensors:
        assert np.array_equal(gguf.quants.dequantize(t.data, t.tensor_type), want.pop(t.name), equal_nan=True), t.name
    assert not want, want
    path, folder = os.path.join(WORK, "random.gguf"), os.path.join(WORK, "decoded")
    gguf_model(path, folder)
    ours, theirs = (json.loads(run("eval", model, "--text", ids(), "--ctx", 32, "--json"))["nll_mean"] for model in (path, folder))
    assert abs(ours / theirs - 1) < 1e-6, (ours, theirs)
    return f"{ours:.6f} and {theirs:.6f} nats a token"


def main():
    passed = failed = 0
    try:
        for name, test in [(k, v) for k, v in globals().items() if k.startswith("test_")]:
            try:
                note = test()
                passed += 1
                print(f"ok    {name}{': ' + note if note else ''}", flush=True)
            except Skip as why:
                print(f"skip  {name}: {why}", flush=True)
            except Exception as e:  # noqa: BLE001
                failed += 1
                import traceback
                traceback.print_exc()
                print(f"FAIL  {name}: {e}", flush=True)
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
    return 1 if failed else 0 if passed else 77


sys.exit(main())
