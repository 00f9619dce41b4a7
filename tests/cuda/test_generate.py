# SPDX-License-Identifier: Apache-2.0
"""test_generate.py REQUITE TEST_DIR: `requite generate --device cuda` in the simulator against --device cpu.

A two-layer Llama of small width, as it is and quantized to every format with a device form, rotated where that is the default: the same tokens. A GPU's
logits differ in the last places, so a run leaves the CPU's where two tokens are as likely, or a drawn number falls between both: with these not greedily, and of drawn ones
not before the ninth. What is missing is said in a sentence."""
import os, shutil, sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from test_command import WORK, ids_file, path, run, run_json, sentence, with_tokenizer  # noqa: E402

RUNS = {"grid": ["--bits", "4", "--group", "32"], "grid-act-order": ["--bits", "3", "--group", "32", "--act-order", "--no-static-groups"],
        "ssvq": ["--round", "ssvq", "--codes", "64"], "ssvq-outliers": ["--round", "ssvq", "--codes", "64", "--vec-len", "4", "--outliers", "2", "--outlier-min", "0"],
        "vq": ["--round", "vq", "--codes", "64", "--codes2", "32"], "w4a8": ["--round", "w4a8", "--group", "32"]}
PROMPT = "It was a bright cold day in April"


def text_of(model, *args):
    g = run_json("generate", model, "--prompt", PROMPT, "-n", 24, "--ignore-eos", *args)
    assert g["n_prompt"] == len(PROMPT) and g["n_new"] == 24
    return g["ids"]


def main():
    failed = 0
    calib, model = ids_file("c.safetensors", 8, 64), with_tokenizer("small")
    models = {"dense": model}
    for name, args in RUNS.items():
        models[name] = path(name)
        run("quantize", model, models[name], *args, "--calib", calib, "--progress", "none")
    for name, folder in models.items():
        for args in ([], ["--temp", "0.8", "--seed", "3"]):
            cpu, cuda = text_of(folder, *args), text_of(folder, *args, "--device", "cuda")
            same = next((i for i in range(24) if cpu[i] != cuda[i]), 24)
            print(f"{name} {' '.join(args)}: {same} of 24 tokens are the same, {len(set(cuda))} different ones")
            failed += same < (8 if args else 24)
    says = [sentence(run("generate", model, "--prompt", "a", "--device", device, code=code)) for device, code in
            (("cuda:8", 1), ("gpu", 2))]
    failed += "cuda:8" not in says[0] or "gpu" not in says[1]
    print(f"test_generate: {failed} failed")
    return 1 if failed else 0


try:
    code = main()
finally:
    shutil.rmtree(WORK, ignore_errors=True)
sys.exit(code)
