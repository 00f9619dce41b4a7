#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`requite quantize --dry-run --devices`: operations and seconds against a count by hand, from config.json alone; what it refuses.

usage: test_cost.py REQUITE"""
import json, math, os, subprocess, sys, tempfile

REQUITE = sys.argv[1]
D, FF, HEADS, KV, HEAD, LAYERS = 64, 96, 4, 2, 16, 3
WINDOWS, LENGTH = 6, 50
TOKENS = WINDOWS * LENGTH
Q, K = HEADS * HEAD, KV * HEAD
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": D, "intermediate_size": FF, "num_hidden_layers": LAYERS,
          "num_attention_heads": HEADS, "num_key_value_heads": KV, "head_dim": HEAD, "vocab_size": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
          "max_position_embeddings": 512, "hidden_act": "silu", "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2}
RATES = {"schema_version": 1, "measured": True, "forward": 2e6, "gram": 3e6, "factor": 5e5, "terms": 7e6, "sweep": 1e5, "refine": 1.1e6, "host": 1.3e4,
         "bf16": 4.3e6, "gram_bf16": 2.9e6, "disk": 1.7e6, "net": 1.9e5, "launch": 0.01}
PANEL = 1024  # rows of a product of a Gram matrix (RQ_CUDA_PANEL)
STACK = 16384  # rows that a GPU sweeps together (RQ_CUDA_STACK_ROWS)


def run(*args, code=0):
    r = subprocess.run([REQUITE, "quantize", *map(str, args)], capture_output=True, text=True)
    assert r.returncode == code, f"{args}: {r.returncode}\n{r.stdout}{r.stderr}"
    return r.stdout if code == 0 else r.stderr


def cost_of(text):
    return json.loads(text)["cost"]


def sweep(rows, n, block=128):
    """Of GPTQ in blocks: within one, each column into those after it; then a product into all that is right of it. And launches."""
    operations, launches, at = 0, 2, 0  # order of columns; scales of all groups
    while at < n:
        width = min(block, n - at)
        operations += rows * width * (width - 1) + 2 * rows * width * (n - at - width)
        launches += 1 + (at + width < n)
        at += width
    return operations, launches


def stacks(matrices):
    """Rows of what a GPU sweeps at once: matrices of a stage join the first stack that has room."""
    rows = []
    for new in matrices:
        for i, so_far in enumerate(rows):
            if so_far + new <= STACK:
                rows[i] += new
                break
        else: rows.append(new)
    return rows


def by_hand(n, cpu=False, spilled=0, ff=FF, bf16=False):
    """{stage: (work, seconds)} for comp=gptq without refinement on n devices. CPUs share the rows of a matrix, GPUs have those of a stage as stacks.
    spilled: values a token of a block."""
    work, seconds = dict.fromkeys(RATES, 0.0), dict.fromkeys(RATES, 0.0)
    stages = (D, (Q, K, K)), (Q, (D,)), (D, (ff, ff)), (ff, (D,))  # q k v; o; gate up; down

    def add(what, total, share=n):
        work[what] += total
        seconds[what] += total / share / RATES[{"forward": "bf16", "gram": "gram_bf16"}.get(what, what) if bf16 else what]

    for layer in range(LAYERS):
        passes = [0, 2 * D * (Q + 2 * K) + 2 * Q * LENGTH, 2 * Q * D, 4 * D * ff, 2 * D * ff if layer + 1 < LAYERS else 0]
        add("forward", TOKENS * sum(passes))
        add("disk", 4 * TOKENS * spilled)
        for width, matrices in stages:
            panels = [(at, min(PANEL, width - at)) for at in range(0, width, PANEL)]  # of the lower triangle
            add("gram", sum(2 * rows * (at + rows) * TOKENS for at, rows in panels))
            if n > 1: add("net", 4 * width * TOKENS * (n - 1))
            work["factor"] += n * 2 * width ** 3 / 3
            seconds["factor"] += 2 * width ** 3 / 3 / RATES["factor"]
            work["host"] += n * width * width
            seconds["host"] += width * width / RATES["host"]
            each = []
            for rows in matrices if cpu else stacks(matrices):
                operations, launches = sweep(rows, width)
                work["sweep"] += operations
                each.append(operations / RATES["sweep"] + launches * RATES["launch"])
                work["host"] += rows * width
                seconds["host"] += rows * width / RATES["host"]
                if n > 1: add("net", 4 * rows * width * (n - 1))
            seconds["sweep"] += sum(each) / n if cpu else sum(max(each[i:i + n]) for i in range(0, len(each), n))
    weights = LAYERS * sum(w * rows for w, m in stages for rows in m)
    add("disk", 2 * weights * n)
    return {k: (work[k], seconds[k]) for k in work}


def main():
    with tempfile.TemporaryDirectory() as folder:
        config, rates, out = (os.path.join(folder, f) for f in ("config.json", "rates.json", "out"))
        for path, what in ((config, CONFIG), (rates, RATES)):
            with open(path, "w", encoding="utf-8") as f: json.dump(what, f)
        base = ["--comp", "gptq", "--group", 32, "--cd-sweeps", 0, "--refit", 0, "--n-samples", WINDOWS, "--seq-len", LENGTH, "--dry-run"]
        tall = os.path.join(folder, "tall.json")  # gate and up are too many rows for one stack
        with open(tall, "w", encoding="utf-8") as f: json.dump({**CONFIG, "intermediate_size": STACK - 1}, f)
        for model, ff in ((config, FF), (folder, FF), (tall, STACK - 1)):
            for n, name, bf16 in ((1, "thing", False), (2, "thing", False), (5, "thing", False), (2, "cpu", False), (2, "thing", ff == FF)):
                more = ["--activations", "bf16"] if bf16 else []
                cost = json.loads(run(model, out, *base, *more, "--devices", f"{n}x{name}-9G", "--rates", rates, "--json"))["cost"]
                want = by_hand(n, name == "cpu", D + (D + Q) + (Q + 2 * D) + (D + ff) + (2 * D + ff) if name == "cpu" else 0, ff, bf16)
                total = 0
                for stage in cost["stages"]:
                    work, seconds = want.get({"between ranks": "net"}.get(stage["stage"], stage["stage"]))
                    total += seconds
                    assert math.isclose(stage["work"], work, rel_tol=1e-9, abs_tol=1e-9), (n, stage, work)
                    assert math.isclose(stage["seconds"], seconds, rel_tol=1e-9, abs_tol=1e-12), (n, stage, seconds)
                assert math.isclose(cost["seconds"], total, rel_tol=1e-9) and cost["rates"] == "measured", cost
                assert cost["n_devices"] == n and cost["device"] == name and cost["device_room"] == 9 * 2 ** 30, cost
                assert cost["most"] == max(cost["stages"], key=lambda s: s["seconds"])["stage"], cost
        # Activations that do not fit beside the rest go through files: the residual stream and attention's output do here, down's input does not.
        bare = cost_of(run(config, out, *base, "--devices", "1xthing-2G", "--rates", rates, "--json"))
        memory = (bare["device_bytes"] + 4 * TOKENS * (D + Q) + 99) * 16 / 15 / 2 ** 30
        small = cost_of(run(config, out, *base, "--devices", f"1xthing-{memory:.12f}G", "--rates", rates, "--json"))
        disk = {name: next(s["work"] for s in c["stages"] if s["stage"] == "disk") for name, c in (("bare", bare), ("small", small))}
        assert math.isclose(disk["small"] - disk["bare"], LAYERS * 4 * TOKENS * 2 * FF), disk
        # A rank keeps its own share: a third of three chunks of 40 windows fits where it is alone with them, and a token less does not.
        more = [a if a != WINDOWS else 120 for a in base]
        for n, room, fits in ((3, 2000, True), (3, 1999, False), (1, 2000, False)):
            args = (config, out, *more, "--rates", rates, "--json", "--devices")
            bare = cost_of(run(*args, f"{n}xthing-2G"))
            memory = (bare["device_bytes"] + 4 * room * (D + Q + FF) + 99) * 16 / 15 / 2 ** 30
            small = cost_of(run(*args, f"{n}xthing-{memory:.12f}G"))
            assert (small["stages"] == bare["stages"]) == fits, (n, room, bare, small)
        # A large model: no weights are needed, and a device that is too small is said to be.
        with open(config, "w", encoding="utf-8") as f:
            json.dump({**CONFIG, "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128, "num_key_value_heads": 8,
                       "head_dim": 128}, f)
        text = run(config, out, "--dry-run", "--devices", "8xH100-80G")
        assert "882 matrices" in text and "nominal (not measured)" in text and "does not fit" not in text, text
        assert "does not fit" in run(config, out, "--dry-run", "--devices", "8xRTX4090"), text
        assert "most of it: sweep" in run(config, out, "--dry-run", "--devices", "1xH100-80G", "--preset", "vptq")
        # 70 billion weights on one GPU of 24 GiB.
        with open(config, "w", encoding="utf-8") as f:
            json.dump({**CONFIG, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
                       "head_dim": 128}, f)
        cost = json.loads(run(config, out, "--dry-run", "--devices", "1xRTX4090", "--json"))["cost"]
        assert 12 * 28672 ** 2 < cost["device_bytes"] < 20 * 2 ** 30, cost
        assert not os.path.exists(out)
        refused = {("--dry-run", "--devices", "8"): "8xH100-80G", ("--dry-run", "--devices", "0xH100"): "8xH100-80G", ("--dry-run", "--devices", "2xH100-80"): "8xH100-80G",
                   ("--dry-run", "--devices", "2xQ9"): "no nominal rates of Q9", ("--devices", "2xH100"): "--dry-run", ("--dry-run", "--rates", rates): "--devices",
                   ("--dry-run", "--devices", "2xH100", "--rates", config): "bench_quantize"}
        for args, says in refused.items():
            r = subprocess.run([REQUITE, "quantize", config, out, *args], capture_output=True, text=True)
            assert r.returncode != 0 and says in r.stderr, (args, r.returncode, r.stderr)
        with open(rates, "w", encoding="utf-8") as f: json.dump({k: v for k, v in RATES.items() if k != "terms"}, f)
        assert "nothing of terms" in subprocess.run([REQUITE, "quantize", config, out, "--dry-run", "--devices", "2xH100", "--comp", "rescomp", "--rates", rates],
                                                    capture_output=True, text=True).stderr
    print("test_cost: right")


main()
