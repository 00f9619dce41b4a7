# SPDX-License-Identifier: Apache-2.0
"""test_bench_gemv.py BUILD: bench_gemv --device cuda in the simulator: its records, the comparison with an earlier run, exit codes.
Through BUILD/bin/bench_gemv where the whole of it was built, otherwise BUILD/bin/sim/bench_gemv_cuda."""
import csv
import json
import os
import subprocess
import sys
import tempfile

wrong = []
COUNTS = "warp_ins ld_bytes st_bytes ld_sectors st_sectors shared_ld_waves shared_ld_ideal mma launches barriers".split()
KEYS = """schema_version date gpu sm driver cuda git flags device model layer n_out n_in format variant bits group n_tok act sym vec_len
codebook outliers bpw bytes flops kernel ctas threads split_k smem plan_bytes ref rel_fro_err max_abs_err exact_decode_ok deterministic_ok
path chunks chosen model_us_gemv model_us_dequantize asked_of_bytes sectors_of_bytes shared_ld_conflict lane_ins_per_weight shared_bytes_per_weight""".split() + COUNTS


def expect(what, condition, seen=""):
    if not condition: wrong.append(f"{what}: {seen}")


def run(program, *args, env=None):
    p = subprocess.run([*program, *args], capture_output=True, text=True, timeout=1200, env={**os.environ, **(env or {})})
    return p.returncode, p.stdout + p.stderr


def load(path):
    with open(path, encoding="utf-8") as f: return json.load(f)


def one_record(r):
    expect("keys", all(k in r for k in KEYS), [k for k in KEYS if k not in r])
    expect("no time", not any(k.startswith("t_") or k.endswith("_us") for k in r), list(r))
    expect("checked", r["exact_decode_ok"] and r["deterministic_ok"] and 0 < r["rel_fro_err"] < 1e-3, r)
    expect("device", r["device"] == "sim" and r["gpu"].startswith("gpusim"), r)
    tiles = -(-r["n_out"] // 16) * -(-r["n_in"] // 128)
    # A 16 x 128 tile is 8 mma for 8 tokens, of vq 16 a stage for 16; kernels may pad their batches of tiles. Sectors can be fewer
    # than the bytes: lanes share them.
    of_tile = 16 * (1 + ("+" in r["codebook"])) if r["format"] == "vq" else 8 * (1 if r["n_tok"] <= 8 else 2)
    expect("mma", 1 <= r["mma"] / (tiles * of_tile) <= 2, r)
    codes = tiles * 16 * 128 * r["bits"] // 8
    expect("bytes", r["ld_bytes"] >= codes and r["ld_sectors"] * 32 >= codes, r)
    expect("bits", r["bpw"] >= r["bits"] and r["bytes"] > r["n_out"] * r["n_in"] * r["bits"] / 8, r)
    expect("one launch", r["launches"] == r["chunks"] == 1 and r["path"] == "gemv" and r["chosen"] and r["warp_ins"] > 0, r)
    expect("model", abs(r["plan_bytes"] / r["bytes"] - 1) < 0.01, r)


def records(program, folder):
    out, table = os.path.join(folder, "new.json"), os.path.join(folder, "new.csv")
    args = ["--shapes", "64x256,300x1100", "--tokens", "1,5", "--books", "8x256,4x64+256", "--json", out, "--csv", table]
    status, text = run(program, *args)
    expect("a run", status == 0 and "FAILED" not in text, text)
    all_ = load(out)
    found = {(r["format"], r["bits"], r["n_out"], r["n_tok"]) for r in all_}
    want = {(f, b, n, t) for f, b in [("grid", b) for b in (2, 3, 4, 8)] + [("ssvq", 2), ("ssvq", 3), ("vq", 1), ("vq", 4)] for n in (64, 300) for t in (1, 5)}
    expect("rows", found == want and len(all_) == len(want), sorted(found ^ want))
    for r in all_: one_record(r)
    with open(table, encoding="utf-8") as f: rows = list(csv.DictReader(f))
    expect("csv", len(rows) == len(want) and rows[0]["n_in"] == "256" and rows[0]["vec_len"] == "", rows[:1])
    again = os.path.join(folder, "again.json")
    run(program, *args[:6], "--json", again, env={"GPUSIM_THREADS": "1"})
    expect("the same counts again", [{k: r[k] for k in COUNTS} for r in load(again)] == [{k: r[k] for k in COUNTS} for r in all_])
    return out, all_


def comparison(program, folder, out, all_):
    args = ["--shapes", "64x256,300x1100", "--tokens", "1,5", "--filter", "grid4,ssvq2", "--fail-if-slower", "5%"]
    status, text = run(program, *args, "--baseline", out)
    expect("no change", status == 0 and "SLOWER" not in text and "+0.0 %" in text, text)
    changed = os.path.join(folder, "changed.json")
    for factor, want in ((0.9, 1), (0.97, 0), (2, 0)):
        # As in a result of .ci/gpu: the records deep inside.
        with open(changed, "w", encoding="utf-8") as f:
            json.dump({"note": "a {\"brace\"", "benches": {"bench_gemv": {"status": 0, "records": [
                {**r, "warp_ins": int(r["warp_ins"] * factor)} if r["format"] == "grid" else r for r in all_]}}}, f)
        status, text = run(program, *args, "--baseline", changed)
        expect(f"instructions x {factor}", status == want and text.count("SLOWER") == 4 * want, text)
    status, text = run(program, "--shapes", "16x128", "--bits", "4", "--baseline", out, "--fail-if-slower", "5")
    expect("nothing to compare", status == 1 and "nothing was compared" in text, text)
    with open(changed, "w", encoding="utf-8") as f: f.write("{}")
    status, text = run(program, "--shapes", "16x128", "--baseline", changed)
    expect("no records", status == 4 and "no records" in text, text)


def variants(program, folder):
    out = os.path.join(folder, "variant.json")
    base = ["--shapes", "40x392", "--tokens", "9", "--books", "8x256", "--json", out]
    for args, key, value in ((["--format", "grid", "--sym"], "sym", True), (["--format", "grid", "--group", "0"], "group", 392),
                             (["--format", "ssvq", "--outliers", "0"], "outliers", 0), (["--act", "bf16"], "act", "bf16"),
                             (["--format", "ssvq", "--act", "int8"], "act", "int8"),
                             (["--format", "ssvq", "--code-bits", "12"], "codebook", "4096 u8"),
                             (["--format", "ssvq", "--magnitudes", "f16"], "codebook", "256 f16")):
        status, text = run(program, *base, "--bits", "2", *args)
        expect(f"{args}", status == 0 and "left out" not in text and all(r[key] == value for r in load(out)), text)


def many_tokens(program, folder):
    """Both ways of the dispatcher; beyond 16 tokens without being asked for."""
    out = os.path.join(folder, "many.json")
    base = ["--shapes", "48x264", "--format", "grid", "--bits", "4", "--json", out]
    status, text = run(program, *base, "--tokens", "17,40")
    all_ = load(out)
    ways = {(r["variant"], r["n_tok"], r["path"]): r for r in all_}
    want = {(v + tail, t, p) for v in ("grid4-g128-z",) for t in (17, 40) for tail, p in (("", "gemv"), ("/dense", "dequantize"))}
    expect("both ways", status == 0 and set(ways) == want, text)
    for (_, n_tok, path), r in ways.items():
        expect("checked", r["exact_decode_ok"] and r["deterministic_ok"] and 0 < r["rel_fro_err"] < 1e-3, r)
        # In the simulator cuBLAS is no kernel.
        expect("launches", r["launches"] == (1 if path == "dequantize" else -(-n_tok // 16)), r)
        expect("model", abs(r["plan_bytes"] / r["bytes"] - 1) < 0.01, r)
        expect("chosen", r["chosen"] == ((r["model_us_gemv"] <= r["model_us_dequantize"]) == (path == "gemv")), r)
    expect("one is chosen", text.count("chosen") == 2, text)
    status, text = run(program, *base, "--tokens", "2", "--path", "dequantize")
    expect("--path", status == 0 and [r["path"] for r in load(out)] == ["dequantize"], text)
    status, text = run(program, *base, "--tokens", "2", "--path", "both")
    expect("--path both", status == 0 and [r["path"] for r in load(out)] == ["gemv", "dequantize"], text)


def no_run(program):
    status, text = run(program, "--dry-run", "--shapes", "Llama-3-70B,tails", "--filter", "ssvq2")
    line = next((x.split() for x in text.splitlines() if "57344" in x), [])
    # 57344 x 8192 at a little more than 2 bits, 4300 GB/s.
    expect("dry run", status == 0 and line and 117 < float(line[7]) < 121 and 27 < float(line[9]) < 28.2, text)
    status, text = run(program, "--list")
    for name, shape in (("qwen2.5-7b", "gate_up 37888x3584"), ("smollm2-135m", "qkv 960x576"), ("tails", "one 1x4096")):
        expect("list", status == 0 and any(name in x and shape in x for x in text.splitlines()), text)
    for args in (["--shapes", "no-such"], ["--tokens", "4097"], ["--path", "x"], ["--bits", "6"], ["--format", "zip"], ["--fail-if-slower", "5"],
                 ["--frob"], ["--json"], ["--baseline", "sgemv"]):
        status, text = run(program, *args)
        expect(f"usage {args}", status == 2 and text, (status, text))
    status, text = run(program, "--shapes", "16x128", "--filter", "nothing-like-it")
    expect("nothing run", status == 1, text)


def main():
    whole = os.path.join(sys.argv[1], "bin", "bench_gemv")
    program = [whole, "--device", "sim"] if os.path.exists(whole) else [os.path.join(sys.argv[1], "bin", "sim", "bench_gemv_cuda")]
    with tempfile.TemporaryDirectory() as folder:
        out, all_ = records(program, folder)
        comparison(program, folder, out, all_)
        variants(program, folder)
        many_tokens(program, folder)
    no_run(program)
    for line in wrong: print(line)
    print(f"test_bench_gemv: {' '.join(program[1:])} {len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


main()
