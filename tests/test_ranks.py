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


def command(n, out, *args):
    model = os.path.join(TEST_DIR, "golden", "llama", "qwen2")
    words = [REQUITE, "quantize", model, out, "--progress", "none", *map(str, args)]
    return [MPIRUN, "-n", str(n), *words] if n else words


def run(n, name, *args, code=0):
    out = os.path.join(WORK, name)
    p = subprocess.run(command(n, out, *args), capture_output=True, text=True, env=ENV, timeout=600)
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
        killed(ids_file("long.safetensors", 1500, 64))
        wrong(ids_file("few.safetensors", 4, 64))
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
    return 0


sys.exit(main())
