# SPDX-License-Identifier: Apache-2.0
"""test_ranks_cuda.py REQUITE TESTS MPIRUN: several ranks with a GPU each, in the simulator, whose NCCL connects processes: the same bytes as one process.

Two blocks of a narrow model with all their matrices, of which q and v go through one sweep, as gate and up do, and k has another rank; and one matrix each of inputs with two panels of a Gram matrix (RQ_CUDA_PANEL rows), which
different ranks sum. With bfloat16, and with as much memory as keeps a rank's share of the activations on its device but not all of them. Exit code 77: skipped."""
import hashlib, json, os, struct, subprocess, sys, tempfile
import array, random

REQUITE, TESTS, MPIRUN = os.path.abspath(sys.argv[1]), sys.argv[2], sys.argv[3]
TIED = os.path.join(TESTS, "golden", "llama", "tied")
ENV = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1",
       "OMPI_MCA_hwloc_base_binding_policy": "none", "OMPI_MCA_btl_vader_single_copy_mechanism": "none", "OMPI_MCA_orte_base_help_aggregate": "1",
       "OMPI_MCA_mpi_yield_when_idle": "1", "GPUSIM_THREADS": "1"}
SOME_MEMORY = "32"  # MiB: room for the activations of two thirds of the samples beside the rest
WIDE = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 1088, "intermediate_size": 1100, "num_hidden_layers": 1,
        "num_attention_heads": 17, "num_key_value_heads": 1, "head_dim": 64, "vocab_size": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2}


def write(path, tensors):
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f: f.write(struct.pack("<Q", len(text)) + text + b"".join(d for *_, d in tensors.values()))


def wide_model(folder):
    os.makedirs(folder)
    c, r = WIDE, random.Random(3)
    d, ff, kv = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    block = [r.gauss(0, 0.03) for _ in range(100003)]

    def matrix(rows, cols, at):
        f = array.array("f", (block * (rows * cols // len(block) + 2))[at:at + rows * cols])
        return "F32", [rows, cols], f.tobytes()

    ones = "F32", [d], array.array("f", [1.0] * d).tobytes()
    t = {"model.embed_tokens.weight": matrix(c["vocab_size"], d, 1), "model.norm.weight": ones}
    at = "model.layers.0."
    t |= {at + "input_layernorm.weight": ones, at + "post_attention_layernorm.weight": ones}
    for i, (name, rows, cols) in enumerate((("self_attn.q_proj", d, d), ("self_attn.k_proj", kv, d), ("self_attn.v_proj", kv, d), ("self_attn.o_proj", d, d),
                                            ("mlp.gate_proj", ff, d), ("mlp.up_proj", ff, d), ("mlp.down_proj", d, ff))):
        t[f"{at}{name}.weight"] = matrix(rows, cols, 100 + 7919 * i)
    write(os.path.join(folder, "model.safetensors"), t)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f: json.dump(c, f)


def ids(path, n, length, vocabulary):
    r = random.Random(1)
    write(path, {"ids": ("I32", [n, length], array.array("i", [r.randrange(vocabulary) for _ in range(n * length)]).tobytes())})


def run(n, model, out, args, code=0, **env):
    words = [REQUITE, "quantize", model, out, "--progress", "none", *map(str, args)]
    r = subprocess.run([MPIRUN, "-n", str(n), *words] if n else words, capture_output=True, text=True, env={**ENV, **env}, timeout=500)
    if (r.returncode == 0) != (code == 0): sys.exit(f"{n} ranks, {args}: exit {r.returncode}\n{r.stdout}{r.stderr}")
    return r.stderr


def digest(out):
    with open(os.path.join(out, "model.safetensors"), "rb") as f: return hashlib.sha256(f.read()).hexdigest()


def main():
    try: probe = subprocess.run([MPIRUN, "-n", "2", "true"], capture_output=True, text=True, env=ENV)
    except OSError as why: probe = subprocess.CompletedProcess([], 1, "", str(why))
    if probe.returncode:
        print("skip: mpirun does not work here:", probe.stderr.strip()[-300:])
        return 77
    with tempfile.TemporaryDirectory() as folder:
        calib, few, wide = (os.path.join(folder, f) for f in ("ids.safetensors", "few.safetensors", "wide"))
        ids(calib, 90, 48, 256)
        ids(few, 60, 40, 64)
        wide_model(wide)
        cases = (("every matrix", TIED, calib, ["--bits", 3, "--group", 32, "--comp", "rescomp", "--cd-sweeps", 1, "--refit", 0, "--skip-tokens", 2,
                                                 "--override", "k_proj:kmeans-seed=1"], (3,)),  # which a grid does not ask for
                 ("in bfloat16", TIED, calib, ["--bits", 3, "--group", 32, "--comp", "gptq", "--cd-sweeps", 0, "--refit", 0, "--activations", "bf16"], (2,)),
                 ("two panels", wide, few, ["--bits", 4, "--group", 64, "--comp", "gptaq", "--cd-sweeps", 0, "--refit", 0, "--clip", "none", "--skip",
                                            "q_proj|k_proj|o_proj|gate|up|down"], (2,)))
        for i, (what, model, text, args, counts) in enumerate(cases):
            args = [*args, "--calib", text, "--device", "cuda"]
            memory = {"GPUSIM_MEMORY_MIB": SOME_MEMORY} if what == "in bfloat16" else {}
            want = os.path.join(folder, f"alone{i}")
            says = run(0, model, want, args, **memory)
            if ("through files" in says) != bool(memory): sys.exit(f"{what}: {says}")
            for n in counts:
                out = os.path.join(folder, f"{i}-{n}")
                says = run(n, model, out, args, **memory)
                if "through files" in says: sys.exit(f"{what}, {n} ranks: {says}")
                if digest(out) != digest(want): sys.exit(f"{what}: {n} ranks give other bytes")
            print("ok   ", what, flush=True)
        args = ["--bits", 3, "--group", 32, "--calib", calib]
        says = run(2, TIED, os.path.join(folder, "none"), [*args, "--device", "cuda:0"], code=1)
        if "cuda:0 with 2 ranks" not in says: sys.exit(says)
        says = run(2, TIED, os.path.join(folder, "none2"), [*args, "--device", "cuda"], code=1, RQ_NCCL="/none.so")
        if "RQ_NCCL" not in says or "/none.so" not in says: sys.exit(says)
        print("ok    refusals")
    return 0


sys.exit(main())
