#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Several processes on one model, started by mpirun: the same bytes as one process, for any number of them; a rank that is killed ends the
others, and --resume goes on with another number of ranks.

usage: test_ranks.py REQUITE TEST_DIR MPIRUN     Exit code 77: skipped."""
import array, glob, hashlib, json, os, random, shutil, signal, struct, subprocess, sys, tempfile, time

REQUITE, TEST_DIR, MPIRUN = sys.argv[1:4]
WORK = tempfile.mkdtemp(prefix="requite-ranks-")
# More ranks than cores, as any user, unbound, and without ptrace for messages: what a container allows.
ENV = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1",
       "OMPI_MCA_hwloc_base_binding_policy": "none", "OMPI_MCA_btl_vader_single_copy_mechanism": "none", "OMPI_MCA_orte_base_help_aggregate": "1"}


def ids_file(name, n, length):
    r = random.Random(1)
    data = array.array("i", [r.randrange(256) for _ in range(n * length)]).tobytes()
    header = json.dumps({"ids": {"dtype": "I32", "shape": [n, length], "data_offsets": [0, len(data)]}}).encode()
    header += b" " * (-len(header) % 8)
    path = os.path.join(WORK, name)
    with open(path, "wb") as f: f.write(struct.pack("<Q", len(header)) + header + data)
    return path


def tall_model():
    """One block whose matrices have several tiles of 96 rows: ranks share those."""
    d, ff, kv = 320, 640, 64
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": d, "intermediate_size": ff, "num_hidden_layers": 1,
              "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 64, "vocab_size": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
              "max_position_embeddings": 128, "hidden_act": "silu", "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2}
    r = random.Random(5)
    shapes = {"model.embed_tokens": (256, d), "model.norm": (d,), "model.layers.0.input_layernorm": (d,), "model.layers.0.post_attention_layernorm": (d,)}
    for name, shape in (("self_attn.q_proj", (d, d)), ("self_attn.k_proj", (kv, d)), ("self_attn.v_proj", (kv, d)), ("self_attn.o_proj", (d, d)),
                        ("mlp.gate_proj", (ff, d)), ("mlp.up_proj", (ff, d)), ("mlp.down_proj", (d, ff))):
        shapes["model.layers.0." + name] = shape
    header, parts, at = {}, [], 0
    for name, shape in shapes.items():
        n = shape[0] * (shape[1] if len(shape) > 1 else 1)
        parts.append(array.array("f", [r.gauss(0, 0.04) for _ in range(n)] if len(shape) > 1 else [1.0] * n).tobytes())
        header[name + ".weight"] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + len(parts[-1])]}
        at += len(parts[-1])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder = os.path.join(WORK, "tall")
    os.makedirs(folder)
    with open(os.path.join(folder, "model.safetensors"), "wb") as f: f.write(struct.pack("<Q", len(text)) + text + b"".join(parts))
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f: json.dump(config, f)
    return folder


MODEL = os.path.join(TEST_DIR, "golden", "llama", "qwen2")


def command(n, out, *args, model=MODEL):
    words = [REQUITE, "quantize", model, out, "--progress", "none", *map(str, args)]
    return [MPIRUN, "-n", str(n), *words] if n else words


def run(n, name, *args, code=0, model=MODEL):
    out = os.path.join(WORK, name)
    p = subprocess.run(command(n, out, *args, model=model), capture_output=True, text=True, env=ENV, timeout=600)
    assert (p.returncode == 0) == (code == 0), f"{n} ranks, {args}: exit code {p.returncode}\n{p.stdout}{p.stderr}"
    return out, p


def digest(out):
    with open(os.path.join(out, "model.safetensors"), "rb") as f: return hashlib.sha256(f.read()).hexdigest()


def same_bytes(calib):
    kinds = {"qep": ["--bits", 3, "--group", 32],
             "rescomp, first tokens left out, weighed": ["--bits", 3, "--group", 32, "--comp", "rescomp", "--skip-tokens", 3, "--token-weights", "norm"],
             "rtn, no calibration": ["--bits", 4, "--group", 32, "--comp", "rtn", "--clip-weights", "none", "--cd-sweeps", 0, "--refit", 0],
             "shared codebooks": ["--round", "ssvq", "--codes", 16, "--vec-len", 4, "--kmeans-iters", 5],
             "w4a8 with factors": ["--round", "w4a8", "--group", 32, "--rotate", "full", "--smooth", 0.5],
             "bits shared out": ["--group", 32, "--bpw", 4.2, "--bank", "bits=3,group=32", "--bank", "bits=4,group=32"]}
    for i, (kind, options) in enumerate(kinds.items()):
        want, _ = run(0, f"alone{i}", "--calib", calib, *options)
        for n in (1, 2, 3) if i else (1, 2, 3, 4, 7):
            out, p = run(n, f"ranks{i}-{n}", "--calib", calib, *options)
            assert digest(out) == digest(want), f"{kind}: {n} ranks give other bytes"
            assert p.stdout.count("matrices by") == 1, f"{kind}: {p.stdout}"
            assert not os.path.exists(out + ".partial"), kind
    print("ok    the same bytes,", len(kinds), "kinds")


def same_rows(calib):
    model = tall_model()
    kinds = {"qep": ["--bits", 3, "--group", 64], "rescomp, dynamic groups": ["--comp", "rescomp", "--bits", 4, "--group", 32, "--no-static-groups", "--act-order"],
             "w4a8": ["--round", "w4a8", "--group", 64], "clip by output": ["--comp", "gptq", "--group", 0, "--clip", "output", "--cd-sweeps", 1]}
    for i, (kind, options) in enumerate(kinds.items()):
        want, _ = run(0, f"tall{i}", "--calib", calib, *options, model=model)
        for n in (2, 3) if i else (2, 5):
            out, _ = run(n, f"tall{i}-{n}", "--calib", calib, *options, model=model)
            assert digest(out) == digest(want), f"{kind}: {n} ranks give other bytes"
            with open(os.path.join(out, "quantize_log.jsonl"), encoding="utf-8") as f: lines = [json.loads(line) for line in f]
            with open(os.path.join(want, "quantize_log.jsonl"), encoding="utf-8") as f: alone = [json.loads(line) for line in f]
            assert [(a["name"], a["loss_sym"]) for a in lines] == [(a["name"], a["loss_sym"]) for a in alone], kind
    print("ok    shared rows,", len(kinds), "kinds")


def killed(calib):
    """kill -9 of one rank: all end within 30 seconds, and what was done is kept."""
    options = ["--bits", 3, "--group", 32, "--calib", calib]
    want, _ = run(0, "whole", *options)
    for trial, resume in enumerate((2, 0, 5)):
        out = os.path.join(WORK, f"killed{trial}")
        p = subprocess.Popen(command(3, out, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV, start_new_session=True)
        until = time.time() + 300
        while not glob.glob(out + ".partial/0*.safetensors"):
            assert p.poll() is None and time.time() < until, p.communicate()
            time.sleep(0.005)
        ranks = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and belongs(pid, out)]
        assert len(ranks) == 3, ranks
        os.kill(ranks[trial], signal.SIGKILL)
        started = time.time()
        p.communicate(timeout=30)
        assert p.returncode != 0 and not os.path.exists(out), p.returncode
        while any(belongs(str(pid), out) for pid in ranks):
            assert time.time() - started < 30, "ranks are left"
            time.sleep(0.05)
        kept = len(glob.glob(out + ".partial/0*.safetensors"))
        again, p = run(resume, f"killed{trial}", *options, "--resume", "--json")
        assert digest(again) == digest(want), trial
        assert json.loads(p.stdout)["n_resumed"] >= 1 and kept >= 1, p.stdout
    print("ok    a killed rank")


def belongs(pid, out):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f: words = f.read().split(b"\0")
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as f: state = f.read().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return words[:1] == [REQUITE.encode()] and out.encode() in words and state != "Z"


def wrong(calib):
    out, p = run(2, "no-such", "--group", 32, "--calib", calib + ".not", code=4)
    assert "cannot open" in p.stderr and not os.path.exists(out), p.stderr
    # One rank without the folder that the others calibrate in.
    blocked = os.path.join(WORK, "blocked")
    with open(blocked + ".partial", "w", encoding="utf-8"): pass
    out, p = run(3, "blocked", "--group", 32, "--calib", calib, code=1)
    assert ".partial" in p.stderr, p.stderr
    print("ok    errors end every rank")


def main():
    try:
        probe = subprocess.run([MPIRUN, "-n", "2", "true"], capture_output=True, text=True, env=ENV)
    except OSError as why:
        print("skip:", why)
        return 77
    if probe.returncode:
        print("skip: mpirun does not work here:", probe.stderr.strip()[-300:])
        return 77
    try:
        same_bytes(ids_file("calib.safetensors", 150, 64))
        same_rows(ids_file("tall.safetensors", 80, 64))
        killed(ids_file("long.safetensors", 1500, 64))
        wrong(ids_file("few.safetensors", 4, 64))
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
    return 0


sys.exit(main())
