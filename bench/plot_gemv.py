#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""docs/results/gemv.svg: weights per second against bits per weight, from records of bench_gemv, below what reading them alone would take.

usage: plot_gemv.py [RECORDS.json ...] [--out docs/results/gemv.svg] [--tokens 1]

One panel a layer shape, one point a format; the line is the read (on a GPU: copy) bandwidth measured in the same run, divided by the bits.
Records of one file are of one machine and one number of threads. Needs matplotlib (PyPI)."""
import argparse, io, json

MARKS = {"grid": "o", "ssvq": "s", "vq": "^", "w4a8": "D"}


def mark_of(name):
    return next((mark for format, mark in MARKS.items() if name.startswith(format)), "x")


def bandwidth(r):
    """GB/s of this run's own measurement."""
    return r.get("read_gbs") or r.get("copy_gbs")


def panel(axis, records, title):
    low, high = min(r["bpw"] for r in records), max(r["bpw"] for r in records)
    limit = sum(bandwidth(r) for r in records) / len(records)
    bits = [low * 0.9 * (high * 1.1 / (low * 0.9)) ** (i / 60) for i in range(61)]
    axis.plot(bits, [8 * limit / b for b in bits], color="black", linewidth=0.8, label=f"reading alone, {limit:.0f} GB/s")
    for name in dict.fromkeys(r["format"] for r in records):
        points = sorted((r for r in records if r["format"] == name), key=lambda r: r["bpw"])
        rate = [r["n_out"] * r["n_in"] / (r["t_cold_med_us"] * 1e3) for r in points]
        axis.plot([r["bpw"] for r in points], rate, mark_of(name) + "-", markersize=5, linewidth=0.6, label=name)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    for a in (axis.xaxis, axis.yaxis):
        a.set_major_formatter("{x:g}")
        a.set_minor_formatter("{x:g}")
    axis.tick_params(axis="both", which="both", labelsize=7)
    axis.set_title(title, fontsize=9)
    axis.set_xlabel("bits per weight as stored")
    axis.grid(True, which="both", linewidth=0.3)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("records", nargs="*", default=["bench/results/cpu-zen5-gemv-formats-2026-11-22.json"])
    p.add_argument("--out", default="docs/results/gemv.svg")
    p.add_argument("--tokens", type=int, default=1)
    args = p.parse_args()
    import matplotlib
    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    matplotlib.rcParams["svg.hashsalt"] = "requite"  # the same file from the same records
    panels = {}
    for path in args.records:
        for r in json.load(open(path)):
            if r["n_tok"] == args.tokens and bandwidth(r):
                title = f"{r['n_out']} x {r['n_in']}, {r.get('gpu') or r['cpu']}, {r['threads']} threads"
                panels.setdefault(title, []).append(r)
    if not panels:
        p.error(f"no record of {args.tokens} tokens")
    columns = min(2, len(panels))
    rows = (len(panels) + columns - 1) // columns
    figure, axes = plt.subplots(rows, columns, figsize=(5.5 * columns, 4.0 * rows), squeeze=False)
    for axis, (title, records) in zip(axes.flat, panels.items()):
        panel(axis, records, title)
    for axis in list(axes.flat)[len(panels):]:
        axis.set_visible(False)
    for row in axes:
        row[0].set_ylabel("G weights / s, out of cache")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    with open(args.out, "w") as f:
        f.write("".join(line.rstrip() + "\n" for line in drawn.getvalue().splitlines()))


if __name__ == "__main__":
    main()
