# SPDX-License-Identifier: Apache-2.0
"""test_quantize.py REQUITE MODEL [matrix|rest]: `requite quantize --device cuda` in the simulator against --device cpu.

MODEL is a two-layer Llama of small width. `matrix`: every compensator with every rounder that has a device form, in their default settings but for sizes. `rest`:
other settings; little device memory, where activations go through files, which gives the same bytes; bfloat16; what is refused. Without a word: both.

DOCSTRING_BOUND"""
import array, json, os, random, struct, subprocess, sys, tempfile
from concurrent.futures import ThreadPoolExecutor

REQUITE, MODEL = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
PARTS = sys.argv[3:] or ["matrix", "rest"]
COMPS = ("rtn", "gptq", "gptaq", "rescomp", "qep")
GRID = ["--bits", "3", "--group", "32"]
PLAIN = ["--clip", "none", "--cd-sweeps", "0", "--refit", "0"]  # for what is tested in calibration
ROUNDS = {"grid": ["--bits", "3", "--group", "16"],
          "w4a8": ["--round", "w4a8", "--group", "32", "--rotate", "none"],
          "ssvq": ["--round", "ssvq", "--codes", "16"],
          "vq": ["--round", "vq", "--vec-len", "4", "--codes", "16", "--codes2", "16"]}
MATRIX = [[*args, "--comp", comp] for args in ROUNDS.values() for comp in COMPS]
OTHERS = [
    ["--bits", "2", "--group", "16", "--comp", "gptaq", "--act-order", "--no-static-groups", "--preset", "reference"],
    ["--round", "w4a8", "--group", "32", "--comp", "gptaq", "--rotate", "full", "--smooth", "0.5"],
    [*GRID, *PLAIN, "--comp", "rescomp", "--token-weights", "attention", "--skip-tokens", "3"],
    [*GRID, *PLAIN, "--comp", "gptq", "--token-weights", "norm"],
    ["--bpw", "3", "--group", "32", *PLAIN]]
SOME_MEMORY, LITTLE_MEMORY = 13, 8  # MiB: enough for a chunk and not for rows of all samples; not enough


def load(path):
    with open(path, "rb") as f: raw = f.read()
    n = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:8 + n])
    header.pop("__metadata__", None)
    return {k: (v["dtype"], raw[8 + n + v["data_offsets"][0]:8 + n + v["data_offsets"][1]]) for k, v in header.items()}


def losses(folder):
    with open(os.path.join(folder, "quantize_log.jsonl"), encoding="utf-8") as f: return sum(json.loads(line)["loss_sym"] for line in f)


def save_ids(path, n, length):
    r = random.Random(1)
    data = array.array("i", [r.randrange(256) for _ in range(n * length)]).tobytes()
    header = json.dumps({"ids": {"dtype": "I32", "shape": [n, length], "data_offsets": [0, len(data)]}}).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as f: f.write(struct.pack("<Q", len(header)) + header + data)


def quantize(out, args, device, code=0, model=MODEL, **env):
    r = subprocess.run([REQUITE, "quantize", model, out, *args, "--device", device, "--progress", "none"],
                       capture_output=True, text=True, env={**os.environ, **env})
    if r.returncode != code: sys.exit(f"{' '.join(args)} on {device}: exit {r.returncode}, wanted {code}\n{r.stderr}")
    return r.stderr


def perplexity(folder, ids):
    r = subprocess.run([REQUITE, "eval", folder, "--text", ids, "--json", "--progress", "none"], capture_output=True, text=True)
    if r.returncode: sys.exit(r.stderr)
    return json.loads(r.stdout)["ppl"]


def without_room(usual, folder, args):
    """Through files; and less memory than that is refused with the numbers. usual: what is made with room."""
    out = [os.path.join(folder, name) for name in ("files", "little")]
    says = quantize(out[0], args, "cuda", GPUSIM_MEMORY_MIB=str(SOME_MEMORY))
    refused = quantize(out[1], args, "cuda", code=3, GPUSIM_MEMORY_MIB=str(LITTLE_MEMORY))
    same = load(os.path.join(usual, "model.safetensors")) == load(os.path.join(out[0], "model.safetensors"))
    return (not same) + ("through files" not in says) + ("2016 tokens" not in refused or "8.0 MiB are free" not in refused)


def in_bf16(usual, folder, args):
    """Close to what fp32 gives, and no such thing on the CPU."""
    out = [os.path.join(folder, name) for name in ("bf16", "refused")]
    quantize(out[0], [*args, "--activations", "bf16"], "cuda")
    refused = quantize(out[1], [*args, "--activations", "bf16"], "cpu", code=2)
    wide, narrow = losses(usual), losses(out[0])
    print(f"losses with bfloat16 {narrow}, with fp32 {wide}")
    return (abs(narrow - wide) > 0.03 * wide) + (narrow == wide) + ("--device cuda" not in refused)


def compare(model, folder, name, args):
    """One setting on both devices: a line to print, and what failed."""
    found, loss, ppl = {}, {}, {}
    for device in ("cpu", "cuda"):
        out = os.path.join(folder, name + device)
        quantize(out, args, device, model=model)
        found[device], loss[device], ppl[device] = load(os.path.join(out, "model.safetensors")), losses(out), perplexity(out, args[-1])
    cpu, cuda = found["cpu"], found["cuda"]
    codes = other = later = 0
    if cpu.keys() != cuda.keys(): sys.exit(f"{args}: other tensors")
    for name, (dtype, data) in cpu.items():
        if len(data) != len(cuda[name][1]): sys.exit(f"{args}: {name} has another size")
        if dtype[0] in "FB": continue
        differ = sum(a != b for a, b in zip(data, cuda[name][1]))
        if ".layers.0." in name: codes, other = codes + len(data), other + differ
        else: later += differ
    failed = (codes == 0) + (100 * other > codes) + (abs(loss["cuda"] - loss["cpu"]) > 0.03 * loss["cpu"])
    failed += abs(ppl["cuda"] - ppl["cpu"]) > (0.1 if other + later else 1e-3) * ppl["cpu"]
    return f"{' '.join(args[:-2])}: {other} of {codes} bytes differ in the first block, {later} later; losses {loss}, perplexity {ppl}", failed


def compare_all(model, folder, what, settings, ids):
    """Two at a time."""
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda i: compare(model, folder, f"{what}{i}", [*settings[i], "--calib", ids]), range(len(settings)))
        failed = 0
        for line, wrong in results:
            print("FAILED" if wrong else "ok    ", line, flush=True)
            failed += wrong
    return failed


def refusals(folder, args):
    failed = "cuda:8" not in quantize(os.path.join(folder, "none"), args, "cuda:8", code=1)
    for name in ("RQ_CUBLAS", "RQ_CUSOLVER"):
        says = quantize(os.path.join(folder, "none"), args, "cuda", code=1, **{name: "/none.so"})
        failed += name not in says or "/none.so" not in says
    return failed


def main():
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        ids = os.path.join(folder, "ids.safetensors")
        save_ids(ids, 6, 48)
        tiny = os.path.join(folder, "tiny")
        subprocess.run([sys.executable, os.path.join(os.path.dirname(os.path.abspath(__file__)), "random_model.py"), tiny, "--tiny"], check=True)
        if "matrix" in PARTS: failed += compare_all(tiny, folder, "matrix", MATRIX, ids)
        if "rest" in PARTS:
            failed += compare_all(MODEL, folder, "other", OTHERS, ids)
            args = [*GRID, "--comp", "gptaq", "--calib", ids]
            usual = os.path.join(folder, "usual")
            quantize(usual, args, "cuda")
            failed += without_room(usual, folder, args) + in_bf16(usual, folder, args) + refusals(folder, args)
    print(f"test_quantize: {failed} failed")
    return 1 if failed else 0


sys.exit(main())
