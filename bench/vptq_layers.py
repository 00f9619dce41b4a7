#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What each part of VPTQ's recipe does to the loss of layers, from the cases of layer_cases.py.

usage: vptq_layers.py CASES_FOLDER --out RESULTS.json [--requite build/cpu/bin/requite] [--cases b4_o,...] [--outliers]

Runs `requite layer` with each setting below: bits a weight, tr(E H E^T) / tr(W H W^T) with the H quantized for (`loss`), and with that of the other text
(`held`). --outliers instead compares, in numpy and by the bits they cost, columns of largest H_jj as 8-bit numbers with columns that have a codebook of
their own (v0 weights a code, k0 entries), which the format does not hold; the other columns have 256 entries of 4, everything fp32, swept by GPTQ in the
order of H_jj. Results that are in the file already are kept."""
import argparse, json, os, subprocess, tempfile

import numpy as np

VQ = "--comp gptq --round vq --outliers 0 "
OUT = VQ + "--vec-axis out --act-order "
SETTINGS = {
    "in": VQ,
    "in, act-order": VQ + "--act-order",
    "vptq": "--preset vptq --vec-len 4 --codes 256",
    "vptq, natural order": "--preset vptq --vec-len 4 --codes 256 --no-act-order",
    "vptq, std": "--preset vptq --vec-len 4 --codes 256 --col-norm std",
    "vptq, std, shrink": "--preset vptq --vec-len 4 --codes 256 --col-norm std --shrink 0.3",
    "out": OUT,
    "out, range": OUT + "--col-norm range",
    "out, natural order": OUT + "--no-act-order",
    "out, 4 books": OUT + "--book-cols {quarter}",
    "out, 4 books by H": OUT + "--book-cols {quarter} --book-order hdiag",
    "out, 8 bits in 1 % of columns": OUT + "--outliers {percent} --outlier-min 0",
    "in, 8 bits in 1 % of columns": VQ + "--outliers {percent} --outlier-min 0",
    "vptq, std, 3 bits in two": "--preset vptq --col-norm std --vec-len 4 --codes 64 --codes2 64",
    "vptq, std, 3 bits in two, from the start": "--preset vptq --col-norm std --vec-len 4 --codes 64 --codes2 64 --stage-fit start",
    "out, 3 bits in two": OUT + "--vec-len 4 --codes 64 --codes2 64 --stage-fit sweep",
    "out, 3 bits in two, from the start": OUT + "--vec-len 4 --codes 64 --codes2 64",
    "in, 3 bits in two": VQ + "--vec-len 4 --codes 64 --codes2 64 --stage-fit sweep",
    "in, 3 bits in two, from the start": VQ + "--vec-len 4 --codes 64 --codes2 64",
    "out, 3 bits in one": OUT + "--vec-len 3 --codes 512",
    "in, 3 bits in one": VQ + "--vec-len 3 --codes 512",
}


def load(path):
    with open(path, "rb") as f:
        head = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        data = f.read()
    return {k: np.frombuffer(data[v["data_offsets"][0]:v["data_offsets"][1]], np.float32).reshape(v["shape"])
            for k, v in head.items() if k != "__metadata__" and v["dtype"] == "F32"}


def losses(case, q):
    e, w = case["W"] - q, case["W"]
    return {key: float(np.sum(e @ case[h] * e, dtype=np.float64) / np.sum(w @ case[h] * w, dtype=np.float64))
            for key, h in (("loss", "H"), ("held", "H_held"))}


def run_layer(requite, path, case, options):
    n = case["W"].shape[1]
    words = options.format(quarter=-(-n // 4), percent=min(16, -(-n // 100))).split()
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "q.safetensors")
        p = subprocess.run([requite, "layer", path, "-o", out, "--json", *words], capture_output=True, text=True)
        if p.returncode != 0: raise RuntimeError(f"{path} {options}: {p.stderr.strip()}")
        return {"bpw": round(json.loads(p.stdout)["bpw"], 5), **losses(case, load(out)["Q"])}


# ---- outlier columns, in numpy ----

def nearest(x, book):
    norm = (book * book).sum(1) / 2
    return np.concatenate([np.argmin(norm - x[i:i + 4096] @ book.T, 1) for i in range(0, len(x), 4096)])


def kmeans(x, weight, k, n_iter=15):
    rng = np.random.default_rng(0)
    keep = rng.choice(len(x), min(len(x), 65536), replace=False)
    x, weight = x[keep], weight[keep]
    book = x[rng.choice(len(x), k, replace=len(x) < k)].copy()
    for _ in range(n_iter):
        at = nearest(x, book)
        mass = np.bincount(at, weight, k)
        for r in range(x.shape[1]): book[:, r] = np.where(mass > 0, np.bincount(at, weight * x[:, r], k) / np.maximum(mass, 1e-30), book[:, r])
    return book.astype(np.float16).astype(np.float32)


def vectors(z, v):
    """[columns * ceil(rows / v)][v] of z [rows][columns]."""
    z = np.pad(z, ((0, -len(z) % v), (0, 0)))
    return z.T.reshape(-1, v)


def sweep(case, n_kept, kept):
    """kept: None, "int8" or (v0, k0) for the n_kept columns of largest H_jj."""
    w, h = case["W"].astype(np.float32), case["H"].astype(np.float64)
    m, n = w.shape
    order = np.argsort(-np.diag(h), kind="stable")
    h = h[order][:, order] + 0.01 * np.diag(h).mean() * np.eye(n)
    u = np.linalg.cholesky(np.linalg.inv(h)).T.astype(np.float32)
    w = w[:, order].copy()
    bias, scale = w.mean(0), np.maximum(w.std(0), 1e-12)
    z, cost = (w - bias) / scale, scale ** 2 / np.diag(u)
    bits = 32 * n
    first = 0 if kept is None else n_kept
    groups = [((first, n), (4, 256))] + ([((0, first), kept)] if isinstance(kept, tuple) else [])
    books = {}
    for (c0, c1), (v, k) in groups:
        x = vectors(z[:, c0:c1], v)
        books.update(dict.fromkeys(range(c0, c1), kmeans(x, np.repeat(cost[c0:c1], len(x) // (c1 - c0)), k)))
        bits += 16 * v * k + (c1 - c0) * -(-m // v) * np.log2(k)
    if kept == "int8": bits += first * (8 * m + 64) - 32 * first
    q = np.empty_like(w)
    for j in range(n):
        if j in books:
            x = vectors((w[:, j:j + 1] - bias[j]) / scale[j], books[j].shape[1])
            q[:, j] = books[j][nearest(x, books[j])].reshape(-1)[:m] * scale[j] + bias[j]
        else:
            step = np.abs(w[:, j]).max() / 127
            q[:, j] = np.rint(w[:, j] / step) * step
        w[:, j + 1:] -= np.outer((w[:, j] - q[:, j]) / u[j, j], u[j, j + 1:])
    back = np.empty_like(q)
    back[:, order] = q
    return {"bpw": round(float(bits / (m * n)), 5), **losses(case, back)}


KEPT = {"none": None, "int8": "int8", "v0 4, k0 4096": (4, 4096), "v0 4, k0 256": (4, 256), "v0 2, k0 256": (2, 256), "v0 2, k0 1024": (2, 1024)}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("folder"), p.add_argument("--out", required=True), p.add_argument("--requite", default="build/cpu/bin/requite")
    p.add_argument("--cases", default="b4_qkv,b4_o,b4_gateup,b4_down,b14_qkv,b14_o,b14_gateup,b14_down")
    p.add_argument("--outliers", action="store_true")
    args = p.parse_args()
    results = json.load(open(args.out)) if os.path.exists(args.out) else {"schema_version": 1, "settings": SETTINGS, "layers": {}, "outliers": {}}
    table = results["outliers" if args.outliers else "layers"]
    for name in KEPT if args.outliers else SETTINGS:
        for case_name in args.cases.split(","):
            row = table.setdefault(name, {})
            if case_name in row: continue
            path = os.path.join(args.folder, case_name + ".safetensors")
            case = load(path)
            if args.outliers:
                row[case_name] = sweep(case, -(-case["W"].shape[1] // 100), KEPT[name])
            else:
                row[case_name] = run_layer(args.requite, path, case, SETTINGS[name])
            with open(args.out, "w") as f: json.dump(results, f, indent=1)
        mean = lambda key: float(np.exp(np.mean([np.log(r[key]) for r in table[name].values()])))
        bpw = np.mean([r["bpw"] for r in table[name].values()])
        print(f"{name:42s} {bpw:.3f} bits, loss {mean('loss'):.5f}, held out {mean('held'):.5f}", flush=True)


if __name__ == "__main__":
    main()
