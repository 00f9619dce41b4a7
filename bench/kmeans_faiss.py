# SPDX-License-Identifier: Apache-2.0
"""k-means of faiss and of bench_kmeans, in turns in one run: the same points, first centroids, iterations and threads.

    python3 -m venv VENV && VENV/bin/pip install faiss-cpu numpy
    VENV/bin/python bench/kmeans_faiss.py build/cpu/bin/bench_kmeans --json FILE

The time of faiss is that of Clustering.train, that of ours of rq_kmeans: both from points in memory to centroids. The losses of both
are measured by faiss, as the sum of squared distances to the nearest centroid. Medians over the turns; x is the quotient of them."""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import faiss
import numpy as np


def run_faiss(x, start, n_iter):
    d, k = x.shape[1], len(start)
    job = faiss.Clustering(d, k)
    job.niter = n_iter
    job.max_points_per_centroid = 1 << 30  # all points
    job.min_points_per_centroid = 1
    faiss.copy_array_to_vector(np.ascontiguousarray(start).ravel(), job.centroids)
    index = faiss.IndexFlatL2(d)
    t = time.perf_counter()
    job.train(x, index)
    t = time.perf_counter() - t
    return t, faiss.vector_to_array(job.centroids).reshape(k, d)


def run_ours(program, folder, x, k, n_iter, threads):
    paths = {name: os.path.join(folder, name) for name in ("x", "start", "out", "json")}
    subprocess.run([program, "--points", str(len(x)), "--dim", str(x.shape[1]), "--k", str(k), "--iters", str(n_iter),
                    "--reps", "1", "--threads", str(threads), "--x", paths["x"], "--start", paths["start"], "--out",
                    paths["out"], "--json", paths["json"]], check=True, stdout=subprocess.DEVNULL)
    with open(paths["json"], encoding="utf-8") as f: record = json.load(f)[0]
    return record, np.fromfile(paths["out"], dtype=np.float32).reshape(k, x.shape[1])


def loss_per_point(x, c):
    index, total = faiss.IndexFlatL2(x.shape[1]), 0.0
    index.add(c)
    for i in range(0, len(x), 1 << 18): total += float(index.search(x[i:i + (1 << 18)], 1)[0].astype(np.float64).sum())
    return total / len(x)


def loaded_library():
    """The build that the faiss loader picked for this CPU: _swigfaiss, _swigfaiss_avx2, _swigfaiss_avx512..."""
    names = {m.split(".")[-1] for m in sys.modules if "swigfaiss" in m}
    return max((n for n in names if n.startswith("_")), key=len, default="")


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("program", help="bench_kmeans")
    p.add_argument("--points", type=int, default=2000000)
    p.add_argument("--dim", type=int, default=8)
    p.add_argument("--k", default="256,4096")
    p.add_argument("--iters", default="20,20", help="one for each k")
    p.add_argument("--turns", type=int, default=5)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--json")
    a = p.parse_args()
    faiss.omp_set_num_threads(a.threads)
    options = faiss.get_compile_options().strip()
    print(f"faiss {faiss.__version__}, {loaded_library()}, {options}; {a.threads} threads")
    x = np.random.default_rng(0).standard_normal((a.points, a.dim), dtype=np.float32)
    records = []
    with tempfile.TemporaryDirectory() as folder:
        x.tofile(os.path.join(folder, "x"))
        for k, n_iter in zip(map(int, a.k.split(",")), map(int, a.iters.split(","))):
            start = x[np.random.default_rng(1).choice(a.points, k, replace=False)]
            start.tofile(os.path.join(folder, "start"))
            theirs, ours = [], []
            for _ in range(a.turns):
                t, c_theirs = run_faiss(x, start, n_iter)
                theirs.append(t)
                record, c_ours = run_ours(a.program, folder, x, k, n_iter, a.threads)
                ours.append(record["t_med_s"])
            record.pop("flags", None)
            common = {key: record[key] for key in record if key not in ("name", "impl", "t_med_s", "t_min_s", "points_per_s",
                                                                        "loss_per_point")}
            common["samples"] = a.turns
            for name, times, c, impl in (("faiss", theirs, c_theirs, f"{faiss.__version__} {loaded_library()} {options}"),
                                         ("requite", ours, c_ours, record["impl"])):
                med = statistics.median(times)
                records.append({**common, "name": name, "impl": impl, "t_med_s": med, "t_min_s": min(times),
                                "t_all_s": " ".join(f"{t:.3f}" for t in times), "points_per_s": a.points * n_iter / med,
                                "loss_per_point": loss_per_point(x, c)})
                r = records[-1]
                print(f"k {k:5d} x {n_iter:2d} {name:8s} med {med:8.3f} s  min {min(times):8.3f} s  loss {r['loss_per_point']:.6f}")
            x_med, x_min = statistics.median(theirs) / statistics.median(ours), min(theirs) / min(ours)
            records[-1]["x_faiss"] = x_med
            records[-1]["x_faiss_min"] = x_min
            print(f"k {k:5d} x {n_iter:2d} ours is {x_med:.2f} times as fast by medians, {x_min:.2f} by the best", flush=True)
    if a.json:
        with open(a.json, "w", encoding="utf-8") as f: json.dump(records, f, indent=1)


main()
