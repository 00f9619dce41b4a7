# SPDX-License-Identifier: Apache-2.0
"""Makes tests/data/readers: GGUF files and, as safetensors, what the gguf package (0.19.0) and numpy say they hold.

Run by hand when the data is to change; the files are stored. Needs gguf, numpy and safetensors 0.8.0.
  blocks.gguf       random blocks of every quantized type, odd half-precision scales included
  blocks.safetensors    the same as float32, by gguf.quants.dequantize
  tiny.gguf         arch llama, q and k rows interleaved as the converter does it
  tiny.safetensors  the same model with Hugging Face names and row order, float32
  types.safetensors one tensor of each plain type, metadata, a scalar and an empty tensor
"""
import os

import gguf
import numpy as np
from safetensors.numpy import save_file

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "readers")
T = gguf.GGMLQuantizationType
rng = np.random.default_rng(20240717)


def random_half(n):
    """Finite halves: all exponents but the last, so subnormals, zeros of both signs and large ones appear."""
    bits = rng.integers(0, 1 << 16, n, dtype=np.uint16)
    bits[(bits & 0x7C00) == 0x7C00] &= 0x83FF
    return bits.view(np.uint8).reshape(n, 2)


def random_blocks(kind, n):
    """n blocks as bytes; the place of the halves differs per type."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    raw = rng.integers(0, 256, (n, size), dtype=np.uint8)
    at = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q8_0: [0], T.Q4_K: [0, 2], T.Q6_K: [208]}[kind]
    for a in at:
        raw[:, a : a + 2] = random_half(n)
    return raw


def interleave(w, n_head):
    """Rows of a half-split matrix in the order the llama converter writes."""
    return w.reshape(n_head, 2, w.shape[0] // n_head // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def half_split(w, n_head):
    return w.reshape(n_head, w.shape[0] // n_head // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def add(writer, name, rows, cols, kind):
    """A random tensor of this kind; returns its float32 values in file order."""
    if kind in (T.F32, T.F16):
        dtype = np.float32 if kind == T.F32 else np.float16
        w = rng.standard_normal((rows, cols) if cols else rows).astype(dtype)
        writer.add_tensor(name, w)
        return w.astype(np.float32)
    if kind == T.BF16:
        w = (rng.standard_normal((rows, cols)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        writer.add_tensor(name, w.view(np.uint8), raw_dtype=kind)
        return (w.astype(np.uint32) << 16).view(np.float32)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = random_blocks(kind, rows * cols // block).reshape(rows, cols // block * size)
    writer.add_tensor(name, raw, raw_dtype=kind)
    return gguf.quants.dequantize(raw, kind).reshape(rows, cols)


def blocks():
    writer = gguf.GGUFWriter(os.path.join(OUT, "blocks.gguf"), "blocks")
    golden = {}
    for kind in (T.Q4_0, T.Q4_1, T.Q8_0, T.Q4_K, T.Q6_K):
        golden[kind.name] = add(writer, kind.name, 6, 256, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(golden, os.path.join(OUT, "blocks.safetensors"))


def tiny():
    d, ff, n_head, n_kv, hd, vocab = 32, 64, 4, 2, 8, 24
    writer = gguf.GGUFWriter(os.path.join(OUT, "tiny.gguf"), "llama")
    writer.add_block_count(2)
    writer.add_embedding_length(d)
    writer.add_feed_forward_length(ff)
    writer.add_head_count(n_head)
    writer.add_head_count_kv(n_kv)
    writer.add_context_length(64)
    writer.add_rope_dimension_count(hd)
    writer.add_rope_freq_base(50000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_token_list(["tok%d" % i for i in range(vocab)])
    writer.add_array("test.ints", [-5, 0, 70000])
    writer.add_array("test.floats", [0.5, -2.0])
    writer.add_bool("test.yes", True)
    writer.add_string("test.text", "na\u00efve")
    golden = {}
    golden["model.embed_tokens.weight"] = add(writer, "token_embd.weight", vocab, d, T.Q8_0)
    golden["model.norm.weight"] = add(writer, "output_norm.weight", d, 0, T.F32)
    golden["lm_head.weight"] = add(writer, "output.weight", vocab, d, T.F16)
    parts = [
        ("attn_q", "self_attn.q_proj", n_head * hd, d, n_head),
        ("attn_k", "self_attn.k_proj", n_kv * hd, d, n_kv),
        ("attn_v", "self_attn.v_proj", n_kv * hd, d, 0),
        ("attn_output", "self_attn.o_proj", d, n_head * hd, 0),
        ("ffn_gate", "mlp.gate_proj", ff, d, 0),
        ("ffn_up", "mlp.up_proj", ff, d, 0),
        ("ffn_down", "mlp.down_proj", d, ff, 0),
    ]
    kinds = [[T.Q4_0, T.Q4_1, T.F16, T.Q8_0, T.BF16, T.Q4_1, T.F32], [T.F32, T.BF16, T.Q4_0, T.F16, T.Q8_0, T.Q4_0, T.Q4_1]]
    for layer in range(2):
        for (name, hf, rows, cols, heads), kind in zip(parts, kinds[layer]):
            w = add(writer, "blk.%d.%s.weight" % (layer, name), rows, cols, kind)
            back = half_split(w, heads) if heads else w
            if heads:
                assert np.array_equal(interleave(back, heads), w)
            golden["model.layers.%d.%s.weight" % (layer, hf)] = np.ascontiguousarray(back)
        for name, hf, rows, heads in (("attn_q", "self_attn.q_proj", 32, n_head), ("attn_k", "self_attn.k_proj", 16, n_kv),
                                      ("attn_v", "self_attn.v_proj", 16, 0)):
            w = add(writer, "blk.%d.%s.bias" % (layer, name), rows, 0, T.F32)
            golden["model.layers.%d.%s.bias" % (layer, hf)] = np.ascontiguousarray(half_split(w, heads) if heads else w)
        for name, hf in (("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")):
            golden["model.layers.%d.%s.weight" % (layer, hf)] = add(writer, "blk.%d.%s.weight" % (layer, name), d, 0, T.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(golden, os.path.join(OUT, "tiny.safetensors"))


def types():
    golden = {"scalar": np.array(2.5, np.float32), "empty": np.zeros((0, 3), np.float32), "bool": np.array([True, False])}
    for dtype in ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"):
        golden[dtype] = (np.arange(6) * 1.5 if dtype.startswith("f") else np.arange(6)).astype(dtype).reshape(2, 3)
    save_file(golden, os.path.join(OUT, "types.safetensors"), metadata={"made_by": "make_reader_data", "answer": "42"})


os.makedirs(OUT, exist_ok=True)
blocks()
tiny()
types()
