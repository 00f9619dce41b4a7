#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""docs/results/: the table and the plot of perplexity and KL divergence against bits per weight, from records of quality.py and llama_points.py.

usage: plot_quality.py [--record bench/results/smollm2-135m-codebooks-2026-11-22.json] [--llama bench/results/smollm2-135m-llama-2026-11-22.json]
                       [--out docs/results] [--no-plot]

A run's name says where it goes: `size.NAME` is a point of NAME's curve, `comp.ROUNDER.COMPENSATOR` a cell of the table of compensators,
`without.REFINEMENT` a row of what one refinement is worth (beside `without.nothing`), `best.NAME` a row of the best. The plot needs
matplotlib (PyPI); the table nothing."""
import argparse, io, json, os

TEXTS = [("wiki16x512", "wiki"), ("jargon8x512", "jargon")]
COMPENSATORS = ["rtn", "gptq", "gptaq", "rescomp", "qep"]


def row(cells):
    return "| " + " | ".join(cells) + " |\n"


def header(cells):
    return row(cells) + "|" + "---|" * len(cells) + "\n"


def figures(run, texts=TEXTS):
    cells = [f"{run['bpw']:.3f}"]
    for text, _ in texts:
        t = run.get(text)
        cells += [f"{t['ppl']:.2f}", f"{t['kld_mean']:.3f}", f"{100 * t['top1_agree_frac']:.1f} %"] if t else ["-"] * 3
    return cells


COLUMNS = ["bits/weight"] + [f"{label}: {what}" for _, label in TEXTS for what in ("ppl", "KLD", "top-1")]


def section(runs, name):
    """The runs of a section, the section's name taken off theirs, in the record's order."""
    return {r["name"][len(name) + 1:]: r for r in runs if r["name"].startswith(name + ".")}


def curves(runs):
    """NAME-2, NAME-3 ... of section size -> {NAME: runs by bits}."""
    found = {}
    for name, run in section(runs, "size").items():
        found.setdefault(name.rsplit("-", 1)[0], []).append(run)
    return {name: sorted(points, key=lambda r: r["bpw"]) for name, points in found.items()}


def compensator_table(runs):
    cells = section(runs, "comp")
    text = ""
    for rounder in dict.fromkeys(n.split(".")[0] for n in cells):
        text += row([rounder, f"{next(r['bpw'] for n, r in cells.items() if n.startswith(rounder + '.')):.3f}"] + [
            f"{r[TEXTS[0][0]]['ppl']:.1f} / {r[TEXTS[0][0]]['kld_mean']:.3f}, {r[TEXTS[1][0]]['ppl']:.1f} / {r[TEXTS[1][0]]['kld_mean']:.3f}"
            if (r := cells.get(f"{rounder}.{comp}")) else "-" for comp in COMPENSATORS])
    return header(["rounder", "bits/weight"] + COMPENSATORS) + text if text else ""


def leave_out_table(runs):
    cells = section(runs, "without")
    if "nothing" not in cells:
        return ""
    base, text = cells["nothing"], ""
    for name, run in cells.items():
        kld = [run[t]["kld_mean"] - base[t]["kld_mean"] for t, _ in TEXTS]
        text += row([name.replace("_", " "), f"`{run['options']}`"] + figures(run) + [f"{d:+.3f}" for d in kld])
    return header(["left out", "options"] + COLUMNS + ["KLD more: wiki", "jargon"]) + text


def markdown(record, llama, plotted):
    runs = record["runs"]
    out = "# Perplexity against bits\n\nWritten by `python3 bench/plot_quality.py` from the records in bench/results/; docs/results.md says what the figures mean.\n\n"
    out += f"Model: {record['model']}. Texts: wiki16x512 and jargon8x512 (tests/data); the original's perplexity is " + \
           " and ".join(f"{record['original'][t]:.2f} ({label})" for t, label in TEXTS) + ".\n\n"
    if plotted:
        out += "![perplexity and KL divergence against bits per weight](quality.svg)\n\n"
    best = section(runs, "best")
    if best:
        out += "## The best\n\n" + header(["", "options", "calibration"] + COLUMNS)
        out += "".join(row([n.replace("_", " "), f"`{r['options']}`", r["calib"]] + figures(r)) for n, r in best.items()) + "\n"
    out += "## Sizes\n\n" + header(["", "options", "calibration"] + COLUMNS)
    for points in curves(runs).values():
        out += "".join(row([r["name"].split(".", 1)[1], f"`{r['options']}`", r["calib"]] + figures(r)) for r in points)
    if llama:
        out += f"\n## llama.cpp's types\n\nImportance matrix from the same windows ({llama['calibration']}); rows of 576 are not whole blocks of 256, so llama.cpp gives those matrices larger types.\n\n"
        out += header(["", "types of the 210 matrices"] + COLUMNS)
        out += "".join(row([r["name"], ", ".join(f"{n} {k}" for k, n in sorted(r["tensor_types"].items()))] + figures(r))
                       for r in sorted(llama["runs"], key=lambda r: r["bpw"]))
    table = compensator_table(runs)
    if table:
        out += "\n## Every compensator under every rounder\n\nNo refinement (`--cd-sweeps 0 --refit 0`), so that compensation alone is compared. Cells: ppl / KLD on wiki, then on jargon.\n\n" + table
    table = leave_out_table(runs)
    if table:
        out += "\n## What each refinement is worth\n\n" + table
    return out


def plot(record, llama, path):
    import matplotlib
    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    matplotlib.rcParams["svg.hashsalt"] = "requite"  # the same file from the same records
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6))
    text, label = TEXTS[0]
    for axis, key, name in zip(axes, ("ppl", "kld_mean"), (f"perplexity, {label}", f"KL divergence, {label}")):
        for curve, points in curves(record["runs"]).items():
            axis.plot([r["bpw"] for r in points], [r[text][key] for r in points], "o-", markersize=4, linewidth=1, label=curve)
        best = [r for r in section(record["runs"], "best").values()]
        axis.plot([r["bpw"] for r in best], [r[text][key] for r in best], "k*", markersize=9, label="best, tuned")
        if llama:
            points = sorted(llama["runs"], key=lambda r: r["bpw"])
            axis.plot([r["bpw"] for r in points], [r[text][key] for r in points], "x--", color="gray", label="llama.cpp")
            for r in points:
                axis.annotate(r["name"], (r["bpw"], r[text][key]), fontsize=5, xytext=(2, 2), textcoords="offset points")
        if key == "ppl":
            axis.axhline(record["original"][text], color="black", linewidth=0.6, linestyle=":")
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
        axis.tick_params(axis="y", which="both", labelsize=7)
        axis.set_xlabel("bits per weight, all side data")
        axis.set_ylabel(name)
        axis.grid(True, which="both", linewidth=0.3)
        axis.legend(fontsize=7)
    figure.tight_layout()
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    with open(path, "w") as f:
        f.write("".join(line.rstrip() + "\n" for line in drawn.getvalue().splitlines()))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--record", default="bench/results/smollm2-135m-codebooks-2026-11-22.json")
    p.add_argument("--llama", default="bench/results/smollm2-135m-llama-2026-11-22.json")
    p.add_argument("--out", default="docs/results")
    p.add_argument("--no-plot", action="store_true")
    args = p.parse_args()
    record = json.load(open(args.record))
    llama = json.load(open(args.llama)) if os.path.exists(args.llama) else None
    os.makedirs(args.out, exist_ok=True)
    with open(os.path.join(args.out, "quality.md"), "w") as f:
        f.write(markdown(record, llama, not args.no_plot))
    if not args.no_plot:
        plot(record, llama, os.path.join(args.out, "quality.svg"))


if __name__ == "__main__":
    main()
