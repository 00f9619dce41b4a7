# SPDX-License-Identifier: Apache-2.0
"""test_bench.py BENCH_GEMV BENCH_GEMM BENCH_DECODE: on the CPU, their records, the comparison with an earlier run, exit codes."""
import csv
import json
import os
import subprocess
import sys
import tempfile

wrong = []
KEYS = """schema_version cpu threads read_gbs git flags device model layer n_out n_in format bits group n_tok kernel bpw bytes
flops t_cold_med_us t_cold_p20_us t_cold_p80_us cold_samples t_warm_med_us gbs_cold pct_read_gbs error_of_bound""".split()


def expect(what, condition, seen=""):
    if not condition: wrong.append(f"{what}: {seen}")


def run(program, *args):
    p = subprocess.run([program, "--seconds", "0.01", *args], capture_output=True, text=True, timeout=300)
    return p.returncode, p.stdout + p.stderr


def load(path):
    with open(path, encoding="utf-8") as f: return json.load(f)


def changed(folder, records, factor):
    """The same run, with all times multiplied."""
    path = os.path.join(folder, "old.json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump([{**r, "t_cold_med_us": r["t_cold_med_us"] * factor} for r in records], f)
    return path


def records_and_comparison(program, folder):
    out, table = os.path.join(folder, "new.json"), os.path.join(folder, "new.csv")
    shape = ["--shapes", "48x200,SmolLM2-135M/tp2", "--filter", "x200", "--tokens", "1,5"]
    status, text = run(program, *shape, "--bits", "2,4", "--json", out, "--csv", table)
    expect("a run", status == 0, text)
    records = load(out)
    expect("a row per width and tokens", len(records) == 4, text)
    for r in records:
        expect("keys", all(k in r for k in KEYS), r)
        expect("values", r["n_out"] == 48 and r["n_in"] == 200 and r["t_cold_med_us"] > 0 and r["bytes"] > 48 * 200 * r["bits"] / 8, r)
    with open(table, encoding="utf-8") as f: rows = list(csv.DictReader(f))
    expect("csv", len(rows) == 4 and rows[0]["n_in"] == "200", rows)

    for factor, percent, want in ((0.001, "50%", 1), (1000, "5", 0), (0.001, None, 0)):
        limit = ["--fail-if-slower", percent] if percent else []
        status, text = run(program, *shape, "--bits", "2,4", "--baseline", changed(folder, records, factor), *limit)
        expect(f"times x {factor}, {percent}", status == want and ("SLOWER" in text) == bool(want), text)
    status, text = run(program, *shape, "--bits", "3", "--baseline", out, "--fail-if-slower", "5%")
    expect("nothing to compare", status == 1 and "nothing was compared" in text, text)


def vector_codes(program, folder):
    out = os.path.join(folder, "vq.json")
    books = ["4x16", "8x256+1024", "6x64", "8x512out"]
    status, text = run(program, "--format", "vq", "--shapes", "20x200", "--books", ",".join(books), "--json", out)
    expect("vq", status == 0, text)
    records = load(out)
    expect("vq names", [r["format"] for r in records] == ["vq" + b for b in books], records)
    expect("vq bits", [r["bits"] for r in records] == [1, 3, 1, 2], records)
    # codes of 200 columns in words, book, a scale a row, 8 outlier columns, shape; vectors down the outputs: 3 lines, columns
    want = [20 * 7 * 32 + 4 * 16 * 16 + 20 * 16, 20 * (7 + 8) * 32 + 8 * (256 + 1024) * 16 + 20 * 16,
            20 * 7 * 32 + 6 * 64 * 16 + 20 * 16, 3 * 57 * 32 + 8 * 512 * 16 + 200 * 32]
    expect("vq sizes", all(abs(r["bpw"] * 4000 - w - 128 - 8 * (20 * 8 + 64)) < 1e-6 for r, w in zip(records, want)), records)


def usage(program, folder):
    broken = os.path.join(folder, "broken.json")
    with open(broken, "w", encoding="utf-8") as f: f.write("{")
    status, text = run(program, "--shapes", "8x8", "--baseline", broken)
    expect("a broken baseline", status == 4, text)
    for args in (["--shapes", "llama3-8b/tp3"], ["--shapes", "no-such"], ["--fail-if-slower", "5"], ["--device", "tpu"],
                 ["--tokens", "17"], ["--bits", "5"], ["--format", "zip"], ["--books", "8x300"], ["--books", "17x256"], ["--books", "8x256+"], ["--books", "8x256,"]):
        status, text = run(program, *args)
        expect(f"usage {args}", status == 2 and text, text)
    status, text = run(program, "--list")
    for name, shape in (("llama3-8b", "gate_up 28672x4096"), ("qwen2.5-72b", "down 8192x29568")):
        expect("list", any(name in line and shape in line for line in text.splitlines()), text)
    status, text = run(program, "--dry-run", "--shapes", "llama3-70b/tp4", "--bits", "4")
    expect("dry run", status == 0 and "14336   8192" in text and "8192   7168" in text, text)


def gemm(program, folder):
    out = os.path.join(folder, "gemm.json")
    for group in ("0", "32"):
        status, text = run(program, "--shapes", "33x200", "--tokens", "1,7", "--group", group, "--json", out)
        expect("gemm", status == 0, text)
        records = load(out)
        expect("gemm kernels", {(r["kernel"], r["n_tok"]) for r in records} >= {("c", 1), ("c", 7), ("linear", 1), ("linear", 7), ("sgemm", 1), ("sgemm", 7)}, records)
        for r in records:
            expect("gemm rates", abs(r["gops"] * r["t_med_us"] / (2e-3 * 33 * 200 * r["n_tok"]) - 1) < 1e-4, r)
            if r["vnni_peak_gops"] and r["kernel"] != "sgemm":
                expect("share", abs(r["pct_vnni_peak"] * r["vnni_peak_gops"] / (100 * r["gops"]) - 1) < 1e-4, r)
    for args in (["--tokens", "0"], ["--group", "-1"], ["--shapes", "no-such"], ["--clock", "sun"]):
        status, text = run(program, *args)
        expect(f"gemm usage {args}", status == 2 and text, text)
    status, text = run(program, "--shapes", "8x64", "--group", "40")
    expect("a group that the format lacks", status == 1 and "multiple of 32" in text, text)


def decode(program, folder):
    out = os.path.join(folder, "decode.json")
    status, text = run(program, "--shapes", "tiny", "--threads", "2", "--formats", "f16,ssvq2,vq8x256+256", "--json", out)
    expect("decode", status == 0, text)
    records = load(out) if status == 0 else []
    expect("a row a format", [r["format"] for r in records] == ["f16", "ssvq2", "vq8x256+256"], text)
    # Two layers of 256 and 512 columns, 4 query and 2 key heads of 64; 1000 tokens. Dense: 2 bytes a weight.
    weights = 2 * (256 * 512 + 256 * 256 + 3 * 256 * 512) + 1000 * 256
    expect("bytes of fp16", records and records[0]["weight_bytes"] == 2 * weights, records)
    for r in records:
        expect("decode rates", abs(r["tokens_s"] * r["t_med_us"] / 1e6 - 1) < 1e-4 and abs(r["gbs"] * r["t_med_us"] * 1e3 / r["weight_bytes"] - 1) < 1e-4, r)
    for args in (["--shapes", "no-such"], ["--threads", "0"], ["--device", "moon"]):
        status, text = run(program, *args)
        expect(f"decode usage {args}", status == 2 and text, text)
    status, text = run(program, "--shapes", "tiny", "--formats", "no-such")
    expect("no format", status == 1 and "no-such" in text, text)


def main():
    with tempfile.TemporaryDirectory() as folder:
        records_and_comparison(sys.argv[1], folder)
        vector_codes(sys.argv[1], folder)
        usage(sys.argv[1], folder)
        gemm(sys.argv[2], folder)
        decode(sys.argv[3], folder)
    for line in wrong: print(line)
    print(f"test_bench: {len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


main()
