# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's product of Q4_0 weights with fp32 inputs and our W4A8 linear layer, in turns in one run: the same shapes, one thread.

    python3 -m venv VENV && VENV/bin/pip install llama-cpp-python          (or any build of ggml as shared libraries)
    python3 bench/gemm_llama.py build/cpu/bin/bench_gemm VENV/lib/python3.11/site-packages/llama_cpp/lib --json FILE

Needs nothing beyond Python: ggml is called through its public C functions. Its weights lie in each kind of buffer that its CPU backend offers for
them: CPU_REPACK, whose layout llama.cpp chooses when it loads a Q4_0 model, and plain CPU. One product is one graph with one node, computed
with one thread. Ours is `bench_gemm --impl linear`. Both start from fp32 inputs and end with fp32 outputs, so rounding the inputs to 8 bits is
in both times. Ours has been checked by bench_gemm; of theirs some outputs are checked here against sums in double.

Times are what the process was given (--clock cpu) or what passed. A turn is the median of the products within --seconds for each in turn;
reported are the median over the turns and the best turn, and x, theirs / ours, of either."""
import argparse
import array
import ctypes
import datetime
import json
import os
import random
import statistics
import subprocess
import tempfile
import time

Q4_0, F32 = 2, 0  # of ggml_type
BLOCK, BLOCK_BYTES = 32, 18
SCALE = 2.0**-7  # as a half 0x2000


class InitParams(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


class Ggml:
    def __init__(self, folder):
        mode = ctypes.RTLD_GLOBAL
        names = ["libggml-base.so", "libggml-cpu.so"]
        self.libs = [ctypes.CDLL(os.path.join(folder, name), mode=mode) for name in names]
        self.backend = self.call("ggml_backend_cpu_init")
        self.call("ggml_backend_cpu_set_n_threads", self.backend, 1, result=None)
        self.reg = self.call("ggml_backend_cpu_reg")
        self.device = self.call("ggml_backend_reg_dev_get", self.reg, ctypes.c_size_t(0))

    def call(self, name, *arguments, result=ctypes.c_void_p):
        """Pointers go in as the c_void_p they came out as; a plain int is C's int."""
        function = next(getattr(lib, name) for lib in reversed(self.libs) if hasattr(lib, name))
        function.restype = result
        value = function(*arguments)
        return ctypes.c_void_p(value) if result is ctypes.c_void_p else value

    def text(self, name, *arguments):
        return self.call(name, *arguments, result=ctypes.c_char_p).decode()

    def buffers(self):
        """{name: buffer type}: those that llama.cpp would ask first, then the plain one."""
        get = self.call("ggml_backend_reg_get_proc_address", self.reg, b"ggml_backend_dev_get_extra_bufts")
        types = []
        if get.value:
            listed = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(get.value)(self.device)
            for kind in listed:
                if not kind:
                    break
                types.append(ctypes.c_void_p(kind))
        types.append(self.call("ggml_backend_cpu_buffer_type"))
        return {self.text("ggml_backend_buft_name", kind): kind for kind in types}

    def context(self):
        size = 8 * self.call("ggml_tensor_overhead", result=ctypes.c_size_t) + self.call(
            "ggml_graph_overhead", result=ctypes.c_size_t
        )
        return self.call("ggml_init", InitParams(size, None, True))


class Product:
    """y = x W^T as a graph of ggml."""

    def __init__(self, ggml, kind, weights, x, n_out, n_in, n_tok):
        self.ggml, self.n_out, self.n_tok = ggml, n_out, n_tok
        self.contexts = [ggml.context(), ggml.context()]
        size = ctypes.c_int64
        w = ggml.call("ggml_new_tensor_2d", self.contexts[0], Q4_0, size(n_in), size(n_out))
        to = ggml.call("ggml_new_tensor_2d", self.contexts[1], F32, size(n_in), size(n_tok))
        self.memory = [ggml.call("ggml_backend_alloc_ctx_tensors_from_buft", self.contexts[0], kind)]
        self.y = ggml.call("ggml_mul_mat", self.contexts[1], w, to)
        self.graph = ggml.call("ggml_new_graph", self.contexts[1])
        ggml.call("ggml_build_forward_expand", self.graph, self.y, result=None)
        self.memory.append(ggml.call("ggml_backend_alloc_ctx_tensors", self.contexts[1], ggml.backend))
        if not all(m.value for m in self.memory):
            raise SystemExit("ggml has no memory for the tensors")
        for tensor, data in ((w, weights), (to, x.tobytes())):
            ggml.call("ggml_backend_tensor_set", tensor, data, size(0), size(len(data)), result=None)

    def run(self):
        if self.ggml.call("ggml_backend_graph_compute", self.ggml.backend, self.graph, result=ctypes.c_int) != 0:
            raise SystemExit("ggml could not compute the product")

    def output(self):
        y = (ctypes.c_float * (self.n_out * self.n_tok))()
        n_bytes = ctypes.c_int64(ctypes.sizeof(y))
        self.ggml.call("ggml_backend_tensor_get", self.y, y, ctypes.c_int64(0), n_bytes, result=None)
        return y

    def close(self):
        for m in self.memory:
            self.ggml.call("ggml_backend_buffer_free", m, result=None)
        for c in self.contexts:
            self.ggml.call("ggml_free", c, result=None)


def make_weights(rng, n_out, n_in):
    data = bytearray(rng.randbytes(n_out * n_in // BLOCK * BLOCK_BYTES))
    data[0::BLOCK_BYTES] = bytes(len(data) // BLOCK_BYTES)
    data[1::BLOCK_BYTES] = b"\x20" * (len(data) // BLOCK_BYTES)
    return bytes(data)


def row_of(weights, row, n_in):
    """A block is a half, then 16 bytes: codes 0 .. 15 in their low nibbles, 16 .. 31 in the high ones; 8 stands for 0."""
    out = []
    for b in range(row * n_in // BLOCK, (row + 1) * n_in // BLOCK):
        codes = weights[b * BLOCK_BYTES + 2 : (b + 1) * BLOCK_BYTES]
        out += [SCALE * ((c & 15) - 8) for c in codes] + [SCALE * ((c >> 4) - 8) for c in codes]
    return out


def check(product, weights, x, n_out, n_in, n_tok):
    product.run()
    y = product.output()
    for row in (0, n_out // 3, n_out - 1):
        w = row_of(weights, row, n_in)
        for tok in (0, n_tok - 1):
            inputs = x[tok * n_in : (tok + 1) * n_in]
            want = sum(a * b for a, b in zip(w, inputs))
            size = sum((a * b) ** 2 for a, b in zip(w, inputs)) ** 0.5
            if not abs(y[tok * n_out + row] - want) <= 0.05 * size:  # inputs of 8 bits: about 1 in 200 of an input
                raise SystemExit(f"ggml: output {row} of token {tok} is {y[tok * n_out + row]}, not {want}")


def time_theirs(product, seconds, clock):
    now, times = (time.process_time if clock == "cpu" else time.perf_counter), []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        t = now()
        product.run()
        times.append(now() - t)
    return statistics.median(times) * 1e6


def time_ours(program, n_out, n_in, n_tok, group, seconds, clock):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "json")
        subprocess.run(
            [program, "--shapes", f"{n_out}x{n_in}", "--tokens", str(n_tok), "--group", str(group), "--impl", "linear"]
            + ["--clock", clock, "--seconds", str(seconds), "--json", path],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        with open(path, encoding="utf-8") as f:
            return json.load(f)[0]


def summary(times):
    return {"t_med_us": statistics.median(times), "t_min_us": min(times), "t_all_us": [round(t, 1) for t in times]}


def run_case(a, ggml, rng, n_out, n_in, n_tok, records):
    weights, x = make_weights(rng, n_out, n_in), array.array("f", [rng.uniform(-1, 1) for _ in range(n_tok * n_in)])
    products = {name: Product(ggml, kind, weights, x, n_out, n_in, n_tok) for name, kind in ggml.buffers().items()}
    groups = [int(g) for g in a.group.split(",")]
    theirs, ours, peak, load = {n: [] for n in products}, {g: [] for g in groups}, [], []
    for product in products.values():
        check(product, weights, x, n_out, n_in, n_tok)
    for _ in range(a.turns):
        load.append(os.getloadavg()[0])
        for name, product in products.items():
            theirs[name].append(time_theirs(product, a.seconds, a.clock))
        for g in groups:
            record = time_ours(a.program, n_out, n_in, n_tok, g, a.seconds, a.clock)
            ours[g].append(record["t_med_us"])
            peak.append(record["vnni_peak_gops"])
    for product in products.values():
        product.close()
    common = {key: record[key] for key in ("cpu", "cores", "threads", "os", "llc_bytes", "version", "git", "compiler")}
    shape = {"n_out": n_out, "n_in": n_in, "n_tok": n_tok, "clock": a.clock, "turns": a.turns}
    shape |= {"load_median": statistics.median(load)}
    for name, times in theirs.items():
        about = {"name": "llama.cpp", "format": "Q4_0", "buffer": name, "ggml": a.ggml_version}
        records.append({"schema_version": 1, "date": a.date, **common, **about, **shape, **summary(times)})
        print(f"{n_out}x{n_in} t={n_tok} Q4_0 in {name}: {min(times):.0f} us at best, median {statistics.median(times):.0f}")
    for g, times in ours.items():
        record = {"schema_version": 1, "date": a.date, **common, "name": "requite", "format": "w4a8", "group": g, **shape}
        record |= summary(times) | {"vnni_peak_gops": max(peak, key=lambda p: p or 0)}
        for name, them in theirs.items():
            key = name.lower()
            record[f"x_{key}"] = statistics.median(them) / statistics.median(times)
            record[f"x_{key}_best"] = min(them) / min(times)
        records.append(record)
        x_of = ", ".join(f"{record[f'x_{n.lower()}']:.2f} x {n} (best: {record[f'x_{n.lower()}_best']:.2f})" for n in theirs)
        print(f"{n_out}x{n_in} t={n_tok} w4a8 group {g}: {min(times):.0f} us at best; {x_of}", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("program", help="bench_gemm")
    p.add_argument("ggml", help="folder of libggml-base.so and libggml-cpu.so")
    p.add_argument("--shapes", default="4096x4096,14336x4096,4096x14336", help="outputs x inputs")
    p.add_argument("--tokens", default="128")
    p.add_argument("--group", default="0,128", help="of ours: 0 a scale a row, else two levels")
    p.add_argument("--turns", type=int, default=7)
    p.add_argument("--seconds", type=float, default=0.5)
    p.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    p.add_argument("--label", default="", help="which build of ggml, for the records")
    p.add_argument("--json")
    a = p.parse_args()
    ggml, rng, records = Ggml(a.ggml), random.Random(0), []
    vnni = ggml.call("ggml_cpu_has_avx512_vnni", result=ctypes.c_int)
    a.ggml_version = f"{ggml.text('ggml_version')}{', ' + a.label if a.label else ''}, AVX-512 VNNI {'on' if vnni else 'off'}"
    a.date = datetime.date.today().isoformat()
    print(f"ggml {a.ggml_version}; one thread, {a.turns} turns of {a.seconds} s, clock {a.clock}")
    for shape in a.shapes.split(","):
        for n_tok in map(int, a.tokens.split(",")):
            run_case(a, ggml, rng, *map(int, shape.split("x")), n_tok, records)
    if a.json:
        with open(a.json, "w", encoding="utf-8") as f:
            json.dump(records, f, indent=1)


main()
