# SPDX-License-Identifier: Apache-2.0
"""table.py BUILD [--write]: what CUDA kernels cost, against the committed table.json. It holds the kernels of the sources in
this folder that say "In table.json"; none whose counts depend on the order of blocks, as in a wait for another block. A test of the
library requite stands for the kernels of cuda/NAME*.cu: those that it launches with RQ_SMALL set; the rest must not spill either.

One line a kernel:
  sm_80, sm_90a  from ptxas: registers, shared bytes, stack and spilled bytes; from nvdisasm: "loop", how often each kind of
                 instruction stands in the main loop, the one with most tensor-core instructions of its own, or else with
                 most instructions (null: there is no loop)
  launches       from the simulator, per launch of the test with RQ_SMALL set: warp instructions; "ld" and "st": bytes asked of
                 global memory and 32-byte sectors touched; "bulk": bytes; "shared_ld" and "shared_st": wavefronts, and how
                 many there would be without bank conflicts; tensor-core instructions, barriers, divergent branches
All of it is the same in every run with one release of nvcc. A change that nobody meant to make is a finding: the test prints
it, and the command that takes it over. Stack and spills are findings unless MAY_SPILL names the kernel.

BUILD is a build folder with RQ_GPUSIM. Exit status 77: another nvcc than the table's. Without nvdisasm (third_party/install.sh
check brings it) the loops are not compared. Python's standard library only."""
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
TABLE = os.path.join(HERE, "table.json")
SKIP = 77
MAY_SPILL = {}  # "gemm_s8 gemm_s8": "the reason"


def find_tool(name):
    """In $RQ_CUDA_TOOLS, PATH, the usual place, or where third_party/install.sh puts it."""
    places = [os.environ.get("RQ_CUDA_TOOLS", ""), "/usr/local/cuda/bin"]
    places += glob.glob(os.path.join(ROOT, "build", "cuda-tools", "nvidia", "*", "bin"))
    return shutil.which(name) or next((os.path.join(p, name) for p in places if p and
                                       os.access(os.path.join(p, name), os.X_OK)), None)


def short_name(mangled):
    """foo<3> of _Z3fooILi3EEvPf: no result type, no parameters."""
    text = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout.strip()
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0 and not text.startswith("(anonymous", i):
            text = text[:i]
            break
    if text.startswith("void "): text = text[5:]
    return re.sub(r"\((?:int|unsigned int|bool)\)", "", text)


def ptxas_rows(log):
    """{kernel: {registers, shared, stack, spill}} of ptxas -v."""
    rows, kernel, frame = {}, None, (0, 0)
    for line in log.split("\n"):
        if m := re.search(r"Compiling entry function '(\S+)'", line): kernel = m.group(1)
        elif m := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            frame = (int(m.group(1)), int(m.group(2)) + int(m.group(3)))
        elif (m := re.search(r"Used (\d+) registers", line)) and kernel:
            shared = re.search(r"(\d+) bytes smem", line)
            rows[kernel] = {"registers": int(m.group(1)), "shared": int(shared.group(1)) if shared else 0,
                            "stack": frame[0], "spill": frame[1]}
            kernel = None
    return rows


def kind(opcode):
    """LDG.128 of LDG.E.128.CONSTANT: the opcode, and the width that it moves."""
    base, *rest = opcode.split(".")
    width = [r for r in rest if r in ("64", "128", "U8", "S8", "U16", "S16")]
    return ".".join([base, *width[:1]]) if base[:2] in ("LD", "ST") else base


def main_loop(lines):
    """The kinds of instruction in the main loop, of the text of one kernel."""
    code, label_at, branches = [], {}, []
    for line in lines:
        if m := re.match(r"\s*(\.L_x_\d+):", line): label_at[m.group(1)] = len(code)
        elif "@!PT " in line: continue  # never executed: padding
        elif m := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)", line):
            if target := re.search(r"`\((\.L_x_\d+)\)", m.group(2)): branches.append((len(code), target.group(1)))
            code.append(m.group(1))
    # What stands behind the last EXIT is no loop: pieces that a divergent warp runs, and comes back from.
    last = max((i for i, opcode in enumerate(code) if opcode == "EXIT"), default=len(code))
    loops = {}
    for at, label in branches:
        start = label_at.get(label, len(code))
        if start < at <= last: loops[start] = max(loops.get(start, 0), at)
    best = None
    for start, end in loops.items():
        inner = [(s, e) for s, e in loops.items() if start <= s and e <= end and (s, e) != (start, end)]
        own = [code[i] for i in range(start, end + 1) if not any(s <= i <= e for s, e in inner)]
        score = (sum("MMA" in opcode for opcode in own), len(own))
        if best is None or score > best[0]: best = (score, own)
    if best is None: return None
    counts = {}
    for opcode in best[1]: counts[kind(opcode)] = counts.get(kind(opcode), 0) + 1
    counts.pop("NOP", None)
    return dict(sorted(counts.items()))


def loops_of(nvdisasm, cubin):
    """{kernel: main loop}"""
    text = subprocess.run([nvdisasm, "-c", cubin], capture_output=True, text=True, check=True).stdout
    loops, kernel, lines = {}, None, []
    for line in text.split("\n") + ["//--- .text.end ---"]:
        if line.startswith("//---"):
            if kernel: loops[kernel] = main_loop(lines)
            m = re.search(r"\s\.text\.(\S+)\s", line)
            kernel, lines = m.group(1) if m else None, []
        else: lines.append(line)
    return loops


def launches_of(program):
    """[(kernel, row)] of one run in the simulator with small shapes; a launch like an earlier one is left out."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "json")
        env = {**os.environ, "RQ_SMALL": "1", "GPUSIM_JSON": path}
        for name in ("RQ_RECORD", "GPUSIM_CHECK", "GPUSIM_REVERSE"): env.pop(name, None)
        r = subprocess.run([program], env=env, capture_output=True, text=True)
        if r.returncode != 0: sys.exit(f"table: {program} failed:\n{r.stdout}{r.stderr}")
        if not os.path.exists(path): return []
        with open(path, encoding="utf-8") as f: launches = [json.loads(line) for line in f]
    rows = []
    for c in launches:
        row = {"grid": c["grid"], "block": c["block"], "dynamic": c["dynamic_shared"], "warp_ins": c["warp_ins"],
               "ld": [c["ld_bytes"], c["ld_sectors"]], "st": [c["st_bytes"], c["st_sectors"]], "bulk": c["bulk_bytes"],
               "shared_ld": [c["shared_ld_waves"], c["shared_ld_ideal"]],
               "shared_st": [c["shared_st_waves"], c["shared_st_ideal"]], "mma": c["mma"], "wgmma": c["wgmma"],
               "barriers": c["barriers"], "divergent": c["divergent"]}
        row = {k: v for k, v in row.items() if v not in (0, [0, 0])}
        if (c["kernel"], row) not in rows: rows.append((c["kernel"], row))
    return rows


def measure(build, cubins, nvdisasm):
    """{"source kernel": row}"""
    table, mangled_of, of_library = {}, {}, set()
    for cubin in sorted(cubins):
        name, arch = os.path.basename(cubin)[:-len(".cubin")].rsplit(".", 1)
        source, _, library = name.partition("@")  # TEST, or TEST@FILE of cuda/
        with open(cubin[:-len(".cubin")] + ".log", encoding="utf-8") as f: rows = ptxas_rows(f.read())
        loops = loops_of(nvdisasm, cubin) if nvdisasm and rows else {}  # a file may hold none
        for mangled, row in rows.items():
            if nvdisasm: row["loop"] = loops.get(mangled)
            key = mangled_of.setdefault((source, mangled), f"{source} {short_name(mangled)}")
            table.setdefault(key, {})[arch] = row
            if library: of_library.add(key)
    for source in sorted({s for s, _ in mangled_of}):
        for mangled, row in launches_of(os.path.join(build, "bin", "sim", source)):
            key = mangled_of.get((source, mangled)) or f"{source} {short_name(mangled)}"
            table.setdefault(key, {}).setdefault("launches", []).append(row)
    return {key: row for key, row in table.items() if key not in of_library or "launches" in row or
            any(row[arch]["stack"] or row[arch]["spill"] for arch in row)}


def differences(old, new, path=""):
    """Lines "path: old -> new" of two JSON values."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [line for key in sorted({**old, **new})
                for line in differences(old.get(key), new.get(key), f"{path} {key}".strip())]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and \
            any(isinstance(v, dict) for v in old + new):
        return [line for i, (a, b) in enumerate(zip(old, new)) for line in differences(a, b, f"{path}[{i}]")]
    return [] if old == new else [f"{path}: {json.dumps(old)} -> {json.dumps(new)}"]


def spills(table):
    return [f"{key} {arch}: {row[arch]['stack']} bytes of stack, {row[arch]['spill']} bytes spilled"
            for key, row in table.items() for arch in row if arch != "launches" and key not in MAY_SPILL and
            (row[arch]["stack"] or row[arch]["spill"])]


def write(path, nvcc, table):
    with open(path, "w", encoding="utf-8") as f:
        f.write('{\n"nvcc": ' + json.dumps(nvcc) + ',\n"kernels": {\n')
        f.write(",\n".join(f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in sorted(table.items())))
        f.write("\n}\n}\n")


def main():
    build, rewrite = os.path.abspath(sys.argv[1]), "--write" in sys.argv[2:]
    with open(os.path.join(build, "cubin", "list"), encoding="utf-8") as f: nvcc, *cubins = f.read().split("\n")
    committed = {"nvcc": nvcc, "kernels": {}}
    if os.path.exists(TABLE):
        with open(TABLE, encoding="utf-8") as f: committed = json.load(f)
    if committed["nvcc"] != nvcc and not rewrite:
        print(f"table: skipped: the table was made with nvcc {committed['nvcc']}, this is {nvcc}")
        sys.exit(SKIP)
    nvdisasm = find_tool("nvdisasm")
    if nvdisasm is None:
        print("table: skipped: the main loops: no nvdisasm here (third_party/install.sh check)")
        if rewrite: sys.exit("table: nothing is rewritten without nvdisasm")
    table, old = measure(build, [c for c in cubins if c], nvdisasm), committed["kernels"]
    bad = spills(table)
    for line in bad: print(f"table: {line}; MAY_SPILL in tests/cuda/table.py names the kernels that may")
    if rewrite:
        write(TABLE, nvcc, table)
        print(f"table: {len(table)} kernels written")
        sys.exit(1 if bad else 0)
    if nvdisasm is None:
        for row in old.values():
            for arch in row:
                if arch != "launches": row[arch].pop("loop", None)
    found = differences(old, table)
    for line in found: print(f"table: {line}")
    if found:
        print("table: if all of this is meant, take it over:\n"
              f"  python3 tests/cuda/table.py {os.path.relpath(build)} --write")
    print(f"table: {len(table)} kernels, {len(found)} differences, {len(bad)} with stack or spills")
    sys.exit(1 if found or bad else 0)


main()
