# SPDX-License-Identifier: Apache-2.0
"""random_model.py FOLDER [--small|--tiny]: a model of SmolLM2-135M's shape with random weights (bf16), and calibration ids beside it, for timing.

FOLDER/config.json, model.safetensors, calib.safetensors (128 windows of 2,048 ids). --small, --tiny: two narrow blocks and 6 windows of 48, for the simulator;
the second with weights as large as makes every token count.
Nothing but Python's own library: a machine with a GPU may have no other."""
import array, json, os, random, struct, sys

FULL = dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, head_dim=64, vocab_size=49152)
SMALL = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16, vocab_size=256)
TINY = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16, vocab_size=256)


def normal_bf16(n, size, r):
    """n normal numbers of that size as bf16."""
    f = array.array("f", [r.gauss(0, size) for _ in range(n)])
    return array.array("H", [u >> 16 for u in array.array("I", f.tobytes())]).tobytes()


def tensors(c):
    d, ff, q, kv = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
    yield "model.embed_tokens.weight", (c["vocab_size"], d)
    for i in range(c["num_hidden_layers"]):
        for name, shape in (("input_layernorm", (d,)), ("self_attn.q_proj", (q, d)), ("self_attn.k_proj", (kv, d)), ("self_attn.v_proj", (kv, d)),
                            ("self_attn.o_proj", (d, q)), ("post_attention_layernorm", (d,)), ("mlp.gate_proj", (ff, d)), ("mlp.up_proj", (ff, d)),
                            ("mlp.down_proj", (d, ff))):
            yield f"model.layers.{i}.{name}.weight", shape
    yield "model.norm.weight", (d,)


def write(path, parts):
    """parts: name, dtype, shape, bytes of data, a function that gives them."""
    header, at = {}, 0
    for name, dtype, shape, size, _ in parts:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for *_, data in parts: f.write(data())


def main():
    folder, small, tiny = sys.argv[1], "--small" in sys.argv, "--tiny" in sys.argv
    shape, windows, length = (TINY, 6, 48) if tiny else (SMALL, 6, 48) if small else (FULL, 128, 2048)
    config = {**shape, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
              "max_position_embeddings": 2048, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2}
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f: json.dump(config, f, indent=1)
    r = random.Random(4 if tiny else 1)
    block = normal_bf16(100003 if tiny else 1000003, 0.2 if tiny else 0.03, r)  # a prime: rows of a matrix differ

    def data(n, offset, ones):
        if ones: return b"\x80\x3f" * n
        out = (block * (2 * n // len(block) + 2))[offset:offset + 2 * n]
        return out

    parts = []
    for i, (name, dims) in enumerate(tensors(config)):
        n = dims[0] * (dims[1] if len(dims) > 1 else 1)
        parts.append((name, "BF16", dims, 2 * n, lambda n=n, i=i, ones=len(dims) == 1: data(n, 2 * (i * 7919 % (len(block) // 2)), ones)))
    write(os.path.join(folder, "model.safetensors"), parts)
    ids = array.array("i", [r.randrange(shape["vocab_size"]) for _ in range(windows * length)]).tobytes()
    write(os.path.join(folder, "calib.safetensors"), [("ids", "I32", (windows, length), len(ids), lambda: ids)])


main()
