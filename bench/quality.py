#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Perplexity and KL divergence of many ways to quantize one model, from a list of runs.

usage: quality.py --model MODEL --runs FILE --text NAME=FILE [--text ...] --calib NAME=FILE [--calib ...] --out RESULTS.json
                  [--requite build/cpu/bin/requite] [--work FOLDER]

A line of the list is `name | calibration | options of requite quantize`, or `name | calibration | tune FROM options of requite
tune`, where FROM is the name of an earlier line. Lines that begin with # are comments. Runs whose results are in RESULTS.json
already are kept; their folders stay in the work folder for lines that tune them. Standard library only."""
import argparse, json, os, shutil, subprocess, sys, time


def requite(args, *words):
    p = subprocess.run([args.requite, *map(str, words), "--json", "--progress", "none"], capture_output=True, text=True)
    if p.returncode != 0:
        raise RuntimeError(f"requite {' '.join(map(str, words))}: exit code {p.returncode}: {p.stderr.strip()[-500:]}")
    return json.loads(p.stdout)


def pairs(values):
    return dict(v.split("=", 1) for v in values)


def run(args, name, calib, options):
    out = os.path.join(args.work, name)
    for folder in (out, out + ".partial"):
        shutil.rmtree(folder, ignore_errors=True)
    result = {"name": name, "calib": calib, "options": options}
    words, started = options.split(), time.time()
    if words[:1] == ["tune"]:
        requite(args, "tune", os.path.join(args.work, words[1]), out, "--ref", args.model, "--calib", args.calib[calib], *words[2:])
    else:
        requite(args, "quantize", args.model, out, "--calib", args.calib[calib], *words)
    result["seconds"] = round(time.time() - started, 1)
    for label, text in args.text.items():
        e = requite(args, "eval", out, "--text", text, "--ref", args.model)
        result["bpw"], result["file_bytes"] = round(e["bpw"], 5), e["file_bytes"]
        result[label] = {k: round(e[k], 5) for k in ("ppl", "nll_mean", "nll_stderr", "kld_mean", "kld_stderr", "top1_agree_frac")}
    return result


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--runs", required=True)
    p.add_argument("--text", action="append", default=[], required=True)
    p.add_argument("--calib", action="append", default=[], required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--requite", default="build/cpu/bin/requite")
    p.add_argument("--work", default="build/quality")
    args = p.parse_args()
    args.text, args.calib = pairs(args.text), pairs(args.calib)
    os.makedirs(args.work, exist_ok=True)
    record = json.load(open(args.out)) if os.path.exists(args.out) else {"schema_version": 1, "model": os.path.basename(args.model), "runs": []}
    if "original" not in record:
        record["original"] = {k: round(requite(args, "eval", args.model, "--text", t)["ppl"], 4) for k, t in args.text.items()}
    for line in open(args.runs):
        fields = [f.strip() for f in line.split("|", 2)]
        if len(fields) != 3 or line.startswith("#") or any(r["name"] == fields[0] for r in record["runs"]):
            continue
        try:
            result = run(args, *fields)
        except (RuntimeError, KeyError) as e:
            print(f"{fields[0]}: {e}", file=sys.stderr, flush=True)
            continue
        record["runs"].append(result)
        texts = ", ".join(f"{t} {result[t]['ppl']:.2f} (KLD {result[t]['kld_mean']:.3f})" for t in args.text)
        print(f"{result['name']:24} {result['bpw']:.3f} bits, {result['seconds']:.0f} s: {texts}", flush=True)
        with open(args.out + ".tmp", "w") as f:
            json.dump(record, f, indent=1)
        os.replace(args.out + ".tmp", args.out)


if __name__ == "__main__":
    main()
