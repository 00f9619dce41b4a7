# SPDX-License-Identifier: Apache-2.0
"""test_quantize.py REQUITE MODEL: `requite quantize --device cuda` in the simulator against --device cpu.

MODEL is a two-layer Llama of small width. Every compensator with the rounders that have a device form, columns and vectors: the files hold the
same codes. Sums are in another order on a GPU, so a weight on the edge of two codes may fall to the other side, and then all that comes after sees other
inputs: in the first block at most one byte of codes in a hundred may differ, and the losses of all matrices together by 3 %. Perplexity
(some hundred thousand: ids are random) is the same to 0.1 % where no byte of codes differs, to 10 % otherwise. With little device memory activations go through files: the same bytes."""
import array, json, os, random, struct, subprocess, sys, tempfile, time

REQUITE, MODEL = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
COMPS = ("rtn", "gptq", "gptaq", "rescomp", "qep")
GRID = ["--bits", "3", "--group", "32"]
PLAIN = ["--clip", "none", "--cd-sweeps", "0", "--refit", "0"]  # for what is tested in calibration
RUNS = [[*GRID, "--comp", comp] for comp in COMPS] + [
    ["--round", "w4a8", "--group", "32", "--comp", comp, "--rotate", "none"] for comp in COMPS[1:]] + [
    ["--bits", "2", "--group", "16", "--comp", "gptaq", "--act-order", "--no-static-groups", "--preset", "reference"],
    ["--round", "ssvq", "--codes", "16", "--comp", "gptaq"],
    ["--round", "vq", "--vec-axis", "out", "--codes", "16", "--comp", "gptaq"],
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


def quantize(out, args, device, code=0, **env):
    r = subprocess.run([REQUITE, "quantize", MODEL, out, *args, "--device", device, "--progress", "none"],
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


def stacked(folder, args):
    """q, k and v, gate and up go through one sweep. Matrices whose options differ in what a grid does not ask for are swept one by one: to the same bytes
    and losses, with more launches."""
    apart = ["--override", "q_proj|gate_proj:kmeans-seed=1", "--override", "k_proj:kmeans-seed=2", "--override", "v_proj|up_proj:kmeans-seed=3"]
    made, launches, measured = [], [], []
    for name, more in (("together", []), ("apart", apart)):
        out, counts = os.path.join(folder, name), os.path.join(folder, name + ".jsonl")
        quantize(out, [*args, *more], "cuda", GPUSIM_JSON=counts)
        made.append(load(os.path.join(out, "model.safetensors")))
        with open(counts, encoding="utf-8") as f: launches.append(sum("rq_comp_block" in line for line in f))
        with open(os.path.join(out, "quantize_log.jsonl"), encoding="utf-8") as f: lines = [json.loads(line) for line in f]
        measured.append({line["name"]: [line[k] for k in ("loss_sym", "loss_asym", "rel_loss", "bpw")] for line in lines})
    print(f"blocks of columns: {launches[0]} launches, one matrix at a time {launches[1]}")
    return (made[0] != made[1]) + (measured[0] != measured[1]) + (len(measured[0]) != 14) + (launches[1] * 4 != launches[0] * 7) + killed(folder, args, made[0])


def killed(folder, args, usual):
    """A run that dies after its first stack has q, k and v in one file, and another goes on from there."""
    out = os.path.join(folder, "killed")
    part = os.path.join(out + ".partial", "00000.0.safetensors")
    run = subprocess.Popen([REQUITE, "quantize", MODEL, out, *args, "--device", "cuda", "--progress", "none"], stderr=subprocess.DEVNULL)
    while run.poll() is None and not os.path.exists(part): time.sleep(0.01)
    run.kill()
    run.wait()
    if not os.path.exists(part): sys.exit("the run was over before it could be killed")
    have = {name.split(".")[-2] for name in load(part)}
    says = quantize(out, [*args, "--resume"], "cuda")
    return (have != {"q_proj", "k_proj", "v_proj"}) + ("going on from" not in says) + (load(os.path.join(out, "model.safetensors")) != usual)


def in_bf16(usual, folder, args):
    """Close to what fp32 gives, and no such thing on the CPU."""
    out = [os.path.join(folder, name) for name in ("bf16", "refused")]
    quantize(out[0], [*args, "--activations", "bf16"], "cuda")
    refused = quantize(out[1], [*args, "--activations", "bf16"], "cpu", code=2)
    wide, narrow = losses(usual), losses(out[0])
    print(f"losses with bfloat16 {narrow}, with fp32 {wide}")
    return (abs(narrow - wide) > 0.03 * wide) + (narrow == wide) + ("--device cuda" not in refused)


def main():
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        ids = os.path.join(folder, "ids.safetensors")
        save_ids(ids, 6, 48)
        for i, args in enumerate(RUNS):
            args = [*args, "--calib", ids]
            found, loss, ppl = {}, {}, {}
            for device in ("cpu", "cuda"):
                out = os.path.join(folder, f"{i}{device}")
                quantize(out, args, device)
                found[device], loss[device], ppl[device] = load(os.path.join(out, "model.safetensors")), losses(out), perplexity(out, ids)
            cpu, cuda = found["cpu"], found["cuda"]
            codes = other = later = 0
            if cpu.keys() != cuda.keys(): sys.exit(f"{args}: other tensors")
            for name, (dtype, data) in cpu.items():
                if len(data) != len(cuda[name][1]): sys.exit(f"{args}: {name} has another size")
                if dtype[0] in "FB": continue
                differ = sum(a != b for a, b in zip(data, cuda[name][1]))
                if ".layers.0." in name: codes, other = codes + len(data), other + differ
                else: later += differ
            print(f"{' '.join(args[:-2])}: {other} of {codes} bytes differ in the first block, {later} later; losses {loss}, perplexity {ppl}")
            failed += codes == 0 or 100 * other > codes or abs(loss["cuda"] - loss["cpu"]) > 0.03 * loss["cpu"]
            failed += abs(ppl["cuda"] - ppl["cpu"]) > (0.1 if other + later else 1e-3) * ppl["cpu"]
        usual = (os.path.join(folder, f"{COMPS.index('gptaq')}cuda"), folder, [*RUNS[COMPS.index("gptaq")], "--calib", ids])
        failed += without_room(*usual) + in_bf16(*usual) + stacked(folder, usual[2])
        says = quantize(os.path.join(folder, "none"), [*GRID, "--calib", ids], "cuda:8", code=1)
        failed += "cuda:8" not in says
        for name in ("RQ_CUBLAS", "RQ_CUSOLVER"):
            says = quantize(os.path.join(folder, "none"), [*GRID, "--calib", ids], "cuda", code=1, **{name: "/none.so"})
            failed += name not in says or "/none.so" not in says
    print(f"test_quantize: {failed} failed")
    return 1 if failed else 0


sys.exit(main())
