#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's own quantization types on the same model, calibration windows and evaluation texts as ours.

usage: llama_points.py --model MODEL.gguf --llama FOLDER --calib IDS.safetensors --text NAME=FILE [--text ...] --out RESULTS.json
                       --tokenizer tokenizer.json [--types Q2_K,Q3_K_S,...] [--requite build/cpu/bin/requite] [--work FOLDER]

FOLDER holds llama-imatrix and llama-quantize (built from the sources in the package llama-cpp-python). The calibration ids are
written out as text, an importance matrix is made from them, and the model is quantized to each type with it. Every file is then
dequantized to F32 by llama-quantize, and that is what `requite eval` measures: so all figures come from one evaluation. Embedding and
head are kept in F16. What the work folder and RESULTS.json hold already is kept. Bits per weight are of the block matrices alone, from their sizes in the quantized file. Needs: gguf, numpy,
safetensors, tokenizers (PyPI)."""
import argparse, json, os, subprocess
import gguf, safetensors.numpy, tokenizers

TYPES = "IQ1_M,IQ2_XXS,IQ2_S,Q2_K,IQ3_XXS,Q3_K_S,IQ3_M,Q3_K_M,IQ4_XS,Q4_K_S,Q4_K_M"


def shell(*words, **more):
    p = subprocess.run([str(w) for w in words], capture_output=True, text=True, errors="replace", **more)
    if p.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}: exit code {p.returncode}: {(p.stderr or p.stdout).strip()[-600:]}")
    return p.stdout


def window_text(path, tokenizer):
    (ids,) = safetensors.numpy.load_file(path).values()
    return "".join(tokenizer.decode(row.tolist(), skip_special_tokens=False) for row in ids)


def block_bits(path):
    tensors = [t for t in gguf.GGUFReader(path).tensors if t.name.startswith("blk.") and len(t.shape) == 2]
    kinds = {}
    for t in tensors:
        kinds[t.tensor_type.name] = kinds.get(t.tensor_type.name, 0) + 1
    return sum(int(t.n_bytes) for t in tensors) * 8 / sum(int(t.n_elements) for t in tensors), kinds


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--llama", required=True)
    p.add_argument("--calib", required=True)
    p.add_argument("--tokenizer", required=True, help="tokenizer.json of the model")
    p.add_argument("--text", action="append", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--types", default=TYPES)
    p.add_argument("--requite", default="build/cpu/bin/requite")
    p.add_argument("--work", default="build/llama_points")
    args = p.parse_args()
    os.makedirs(args.work, exist_ok=True)
    work = lambda name: os.path.join(args.work, name)
    with open(work("calib.txt"), "w") as f:
        f.write(window_text(args.calib, tokenizers.Tokenizer.from_file(args.tokenizer)))
    tool = lambda name: os.path.join(args.llama, name)
    if not os.path.exists(work("imatrix.gguf")):
        shell(tool("llama-quantize"), "--allow-requantize", args.model, work("f32.gguf"), "F32")
        shell(tool("llama-imatrix"), "-m", work("f32.gguf"), "-f", work("calib.txt"), "-o", work("imatrix.gguf"), "-c", 512)
    runs = json.load(open(args.out))["runs"] if os.path.exists(args.out) else []
    for kind in args.types.split(","):
        if any(r["name"] == kind for r in runs):
            continue
        quantized, plain = work(kind + ".gguf"), work("plain.gguf")
        shell(tool("llama-quantize"), "--imatrix", work("imatrix.gguf"), "--token-embedding-type", "f16", work("f32.gguf"), quantized, kind)
        shell(tool("llama-quantize"), "--allow-requantize", quantized, plain, "F32")
        bpw, kinds = block_bits(quantized)
        run = {"name": kind, "bpw": round(bpw, 5), "tensor_types": kinds}
        for label, text in (t.split("=", 1) for t in args.text):
            e = json.loads(shell(args.requite, "eval", plain, "--text", text, "--ref", args.model, "--json", "--progress", "none"))
            run[label] = {k: round(e[k], 5) for k in ("ppl", "nll_mean", "nll_stderr", "kld_mean", "kld_stderr", "top1_agree_frac")}
        runs.append(run)
        print(kind, run, flush=True)
        for path in (quantized, plain):
            os.remove(path)
        with open(args.out, "w") as f:
            json.dump({"schema_version": 1, "model": os.path.basename(args.model), "calibration": os.path.basename(args.calib),
                       "runs": runs}, f, indent=1)


if __name__ == "__main__":
    main()
