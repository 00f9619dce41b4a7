# SPDX-License-Identifier: Apache-2.0
"""Makes tests/data/peers: small matrices packed by other tools' own code, and what that code decodes them to.

    make_peers.py FOLDER...      (run by hand; the files are stored, and tests/test_peers.c needs none of the tools)

Each FOLDER is an unpacked release of a tool, of which single modules are taken, so that their kernels and dependencies are not needed:
auto-gptq 0.7.1, autoawq 0.2.9, vptq 0.0.5.post1, aqlm 1.1.7. Installed must be torch, numpy, transformers (configurations),
compressed-tensors 0.20.0 and gptqmodel 7.7.0. The configurations are also seeds of the fuzzer, in tests/data/fuzz/config. Every tool decodes with fp32 scales, so that a weight is rounded once.

A file holds one matrix W: its tensors under the tool's names, W.decoded F32 [n_out, n_in], and in the metadata `config`
({"quantization_config": ...} as the tool or transformers writes it), `to` (the --to that gives these tensors back, or "") and `made_by`."""
import importlib.util
import json
import os
import struct
import sys
import types

import numpy as np
import torch

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "peers")
SEEDS = os.path.join(os.path.dirname(OUT), "fuzz", "config")
N_OUT, N_IN = 32, 96
DTYPES = {torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.float32: "F32", torch.float16: "F16",
          torch.bfloat16: "BF16"}


def module(path, **stubs):
    """A file of an unpacked release as a module; stubs stand for what it imports and the work here does not use."""
    for folder in sys.argv[1:]:
        full = os.path.join(folder, path)
        if not os.path.exists(full):
            continue
        for name, stub in stubs.items():
            sys.modules.setdefault(name.replace("__", "."), stub)
        spec = importlib.util.spec_from_file_location(path.replace("/", "_")[:-3], full)
        m = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(m)
        return m
    raise SystemExit(f"no {path} in {sys.argv[1:]}")


def save(name, tensors, decoded, config, to, made_by):
    tensors = {f"W.{k}": v.contiguous() for k, v in tensors.items()}
    tensors["W.decoded"] = decoded.to(torch.float32).contiguous()
    header, body = {"__metadata__": {"config": json.dumps({"quantization_config": config}), "to": to, "made_by": made_by}}, b""
    for key, t in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):  # the same bytes every time
        data = t.reshape(-1).view(torch.uint8).numpy().tobytes()
        header[key] = {"dtype": DTYPES[t.dtype], "shape": list(t.shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(OUT, name + ".safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + body)
    if name in ("gptq_b4_g32_asym_act", "awq_g32", "ct_pac_b4_g32_asym", "ct_int_b4_row_sym_a8", "vptq_books", "aqlm_2x8"):
        with open(os.path.join(SEEDS, name + ".json"), "w", encoding="utf-8") as f:
            json.dump({"quantization_config": config}, f)
    print(f"{name}: {sum(t.numel() * t.element_size() for t in tensors.values())} bytes, by {made_by}")


def grid(rng, bits, group, sym, scale=0.02):
    """Codes [n_out, n_in], scales and zero points [n_out, groups], all zero points at least 1."""
    n_group = N_IN // group
    codes = torch.from_numpy(rng.integers(0, 1 << bits, (N_OUT, N_IN)))
    scales = torch.from_numpy(rng.uniform(0.5, 1.5, (N_OUT, n_group)) * scale).half()
    zeros = torch.full((N_OUT, n_group), 1 << (bits - 1)) if sym else torch.from_numpy(rng.integers(1, 1 << bits, (N_OUT, n_group)))
    return codes, scales, zeros


def weights(codes, scales, zeros, g_idx):
    return scales.float()[:, g_idx] * (codes - zeros[:, g_idx]).float()


def gptq(rng):
    from transformers import GPTQConfig
    cuda = module("auto_gptq/nn_modules/qlinear/qlinear_cuda.py")
    for bits, group, sym, act in ((2, 32, False, False), (3, 32, False, False), (3, 96, True, False), (4, 32, True, False),
                                  (4, 32, False, True), (4, 96, False, False), (8, 48, False, False)):
        codes, scales, zeros = grid(rng, bits, group, sym)
        g_idx = torch.arange(N_IN) // group
        if act:
            g_idx = g_idx[torch.from_numpy(rng.permutation(N_IN))]
        linear = torch.nn.Linear(N_IN, N_OUT, bias=False)
        linear.weight.data = weights(codes, scales, zeros, g_idx)
        q = cuda.QuantLinear(bits, group, N_IN, N_OUT, False, weight_dtype=torch.float32)
        q.pack(linear, scales.float(), zeros.float(), g_idx.to(torch.int32))
        decoded = q(torch.eye(N_IN)).T
        assert torch.equal(decoded, linear.weight.data), "the packed codes are not those that were meant"
        config = GPTQConfig(bits=bits, group_size=-1 if group == N_IN else group, sym=sym, desc_act=act).to_dict()
        tensors = {"qweight": q.qweight, "qzeros": q.qzeros, "scales": q.scales.half(), "g_idx": q.g_idx}
        name = f"gptq_b{bits}_g{group}_{'sym' if sym else 'asym'}{'_act' if act else ''}"
        save(name, tensors, decoded, config, "gptq", "auto-gptq 0.7.1")


def gptq_v2(rng):
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from transformers import GPTQConfig
    for bits, group, act in ((2, 32, False), (3, 32, False), (4, 32, True), (8, 32, False)):
        codes, scales, zeros = grid(rng, bits, group, False)
        zeros = zeros - 1  # 0 is among them
        g_idx = torch.arange(N_IN) // group
        if act:
            g_idx = g_idx[torch.from_numpy(rng.permutation(N_IN))]
        linear = torch.nn.Linear(N_IN, N_OUT, bias=False)
        linear.weight.data = weights(codes, scales, zeros, g_idx)
        q = TorchLinear(bits=bits, group_size=group, sym=False, desc_act=act, in_features=N_IN, out_features=N_OUT, bias=False,
                        register_buffers=False)
        q.pack_original(linear=linear, scales=scales.float(), zeros=zeros.float(), g_idx=g_idx.to(torch.int32))
        tensors = {"qweight": q.qweight, "qzeros": q.qzeros, "scales": q.scales.half(), "g_idx": q.g_idx}
        tensors = {k: v.clone() for k, v in tensors.items()}
        q.scales = q.scales.float()
        q.post_init()
        decoded = q.dequantize_weight().T
        assert torch.equal(decoded, linear.weight.data)
        config = GPTQConfig(bits=bits, group_size=group, sym=False, desc_act=act, format="gptq_v2").to_dict()
        assert config["checkpoint_format"] == "gptq_v2", config
        save(f"gptq_v2_b{bits}_g{group}{'_act' if act else ''}", tensors, decoded, config, "gptq_v2", "gptqmodel 7.7.0")


def awq(rng):
    from transformers import AwqConfig
    nothing = types.ModuleType("nothing")
    nothing.get_best_device = lambda: "cpu"
    nothing.try_import = lambda name: (None, "")
    nothing.awq_gemm_triton = nothing.awq_dequantize_triton = None
    packing = module("awq/utils/packing_utils.py")
    nothing.dequantize_gemm = packing.dequantize_gemm
    names = ("awq", "awq__utils", "awq__modules", "awq__utils__module", "awq__utils__utils", "awq__utils__packing_utils",
             "awq__modules__triton", "awq__modules__triton__gemm")
    gemm = module("awq/modules/linear/gemm.py", **{n: nothing for n in names})
    for group in (32, 96):
        codes, scales, zeros = grid(rng, 4, group, False)
        linear = torch.nn.Linear(N_IN, N_OUT, bias=False)
        linear.weight.data = weights(codes, scales, zeros, torch.arange(N_IN) // group)
        q = gemm.WQLinear_GEMM.from_linear(linear, 4, group, scales=scales.float().T.contiguous(), zeros=zeros.T.contiguous())
        decoded = packing.dequantize_gemm(q.qweight, q.qzeros, q.scales.float(), 4, group).T
        assert torch.equal(decoded, linear.weight.data)
        config = AwqConfig(bits=4, group_size=-1 if group == N_IN else group).to_dict()
        config["backend"] = "autoawq"
        save(f"awq_g{group}", {"qweight": q.qweight, "qzeros": q.qzeros, "scales": q.scales}, decoded, config, "awq", "autoawq 0.2.9")


def compressed_tensors(rng):
    from compressed_tensors.compressors import IntQuantizationCompressor, PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
    cases = [("pack-quantized", b, g, s, a, d) for b, g, s, a, d in (
        (4, 32, True, None, torch.float16), (4, 32, False, None, torch.float16), (4, None, True, None, torch.float32),
        (2, 48, False, None, torch.float16), (3, 32, False, None, torch.float16), (8, None, True, None, torch.float16),
        (4, 32, True, None, torch.bfloat16))]
    cases += [("int-quantized", 4, None, True, 8, torch.float32), ("int-quantized", 4, None, False, 8, torch.float32),
              ("int-quantized", 8, 32, True, None, torch.float32)]
    for form, bits, group, sym, act, dtype in cases:
        codes, scales, zeros = grid(rng, bits, group or N_IN, sym)
        half, scales, n_group = 1 << (bits - 1), scales.to(dtype), N_IN // (group or N_IN)
        if dtype == torch.float32:
            scales = scales * 1.0001  # not exact in fp16
        w = weights(codes, scales, zeros, torch.arange(N_IN) // (group or N_IN))
        args = QuantizationArgs(num_bits=bits, type="int", symmetric=sym, strategy="group" if group else "channel", group_size=group)
        inputs = QuantizationArgs(num_bits=act, type="int", symmetric=True, strategy="token", dynamic=True) if act else None
        scheme = QuantizationScheme(targets=["Linear"], weights=args, input_activations=inputs, format=form)
        compressor = PackedQuantizationCompressor if form == "pack-quantized" else IntQuantizationCompressor
        state = {"weight": w, "weight_scale": scales.float()}
        if not sym:
            state["weight_zero_point"] = (zeros - half).to(torch.int8)
        packed = compressor.compress(state, scheme)
        decoded = compressor.decompress(dict(packed), scheme)["weight"]
        assert torch.equal(decoded, w), (form, bits, group, sym)
        assert packed["weight_scale"].shape == (N_OUT, n_group)
        packed["weight_scale"] = scales  # in the type of a model
        config = QuantizationConfig(config_groups={"group_0": scheme}, format=form, quantization_status="compressed",
                                    ignore=["lm_head"]).model_dump(mode="json")
        config["quant_method"] = "compressed-tensors"
        name = f"ct_{form[:3]}_b{bits}_{'g%d' % group if group else 'row'}_{'sym' if sym else 'asym'}{'_a8' if act else ''}"
        # bf16 scales come back as fp16, and 8-bit codes in whole bytes as packed ones: the same numbers in other tensors.
        to = "" if dtype == torch.bfloat16 or (form == "int-quantized" and bits == 8) else "compressed-tensors"
        save(name + ("_bf16" if dtype == torch.bfloat16 else ""), packed, decoded, config, to, "compressed-tensors 0.20.0")


def vptq(rng):
    from transformers import VptqConfig
    nothing = types.ModuleType("nothing")
    nothing.SentenceTransformer = None
    names = ("accelerate", "tqdm", "sentence_transformers", "sentence_transformers__SentenceTransformer", "vptq", "vptq__utils")
    pack = module("vptq/utils/pack.py", **{n: nothing for n in names})
    gemm = module("vptq/ops/quant_gemm.py", vptq__utils__pack=pack)
    for name, v, k, kr, books, perm, norm in (("plain", 8, 16, -1, 1, False, False), ("residual", 6, 256, 16, 1, True, True),
                                              ("books", 4, 32, 32, 3, True, True), ("groups", 12, 64, -1, 2, False, True)):
        size, lines = N_IN // books, -(-N_OUT // v)
        bits, res_bits = k.bit_length() - 1, kr.bit_length() - 1 if kr > 0 else 0

        def draw(*shape):
            return torch.from_numpy(rng.standard_normal(shape)).half()

        index = torch.from_numpy(rng.integers(0, k, (books, lines, size)).astype(np.uint16))
        res = torch.from_numpy(rng.integers(0, kr, (books, lines, size)).astype(np.uint16)) if kr > 0 else None
        tensors = {"indices": pack.pack_index(index, bits, res, res_bits), "centroids.weight": draw(books, k * v)}
        if kr > 0:
            tensors["res_centroids.weight"] = draw(books, kr * v) * 0.25
        if perm:
            tensors["perm"] = torch.from_numpy(rng.permutation(N_IN).astype(np.uint16).view(np.int16))
        if norm:
            tensors["weight_scale"] = (draw(N_IN).abs() + 0.5) * 0.02
            tensors["weight_bias"] = draw(N_IN) * 0.001

        def get(key, shape=None):
            t = tensors.get(key)
            return None if t is None else (t.float().view(shape) if shape else t.float())

        decoded = gemm.dequant(
            indices=tensors["indices"], centroids=get("centroids.weight", (books, k, v)), outlier_indices=None,
            outlier_centroids=None, res_indices=None, res_centroids=get("res_centroids.weight"), perm=tensors.get("perm"),
            weight_scale=get("weight_scale"), weight_bias=get("weight_bias"), is_indice_packed=True, enable_outlier=False,
            enable_residual=kr > 0, enable_perm=perm, enable_norm=norm, num_centroids=k, num_outlier_centroids=-1,
            num_res_centroids=kr, padding=-N_OUT % v, outlier_padding=0, num_codebooks=books, group_size=size,
            outlier_size=0, vector_len=v, outlier_vector_len=-1)
        layer = {"in_features": N_IN, "out_features": N_OUT, "vector_lens": [-1, v], "num_centroids": [-1, k],
                 "num_res_centroids": [-1, kr], "group_num": books, "group_size": size, "outlier_size": 0,
                 "indices_as_float": False, "enable_norm": norm, "enable_perm": perm, "is_indice_packed": True, "bias": False}
        config = VptqConfig(config_for_layers={"W": layer}).to_dict()
        # The order of columns within a codebook is not kept: columns lie where their inputs are.
        save("vptq_" + name, tensors, decoded, config, "" if perm else "vptq", "vptq 0.0.5.post1")


def aqlm(rng):
    from transformers import AqlmConfig
    utils = module("aqlm/utils.py")
    for name, books, bits, v in (("1x8", 1, 8, 8), ("2x8", 2, 8, 8), ("1x10", 1, 10, 8), ("2x9", 2, 9, 4)):
        codes = torch.from_numpy(rng.integers(0, 1 << bits, (N_OUT, N_IN // v, books)))
        book = torch.from_numpy(rng.standard_normal((books, 1 << bits, 1, v))).half()
        scales = torch.from_numpy(rng.uniform(0.01, 0.03, (N_OUT, 1, 1, 1))).half()
        packed = utils.pack_int_data(codes.clone(), bits)
        decoded = utils._dequantize_weight(utils.unpack_int_data(packed, bits), book.float(), scales.float())
        config = AqlmConfig(in_group_size=v, out_group_size=1, num_codebooks=books, nbits_per_codebook=bits).to_dict()
        save("aqlm_" + name, {"codes": packed, "codebooks": book, "scales": scales}, decoded, config, "aqlm", "aqlm 1.1.7")


def main():
    os.makedirs(OUT, exist_ok=True)
    for i, make in enumerate((gptq, awq, compressed_tensors, vptq, aqlm, gptq_v2)):
        make(np.random.default_rng(100 + i))


main()
