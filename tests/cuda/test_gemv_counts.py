# SPDX-License-Identifier: Apache-2.0
"""test_gemv_counts.py FOLDER_OF_PROGRAMS: what the GEMV kernels move, counted by the simulator in the tests' launches on 4096x4096
weights with groups of 128, one token: 32-byte sectors of global memory, less what blocks read of x (which comes from the L2 cache after the
first), at most 1.05 of the bytes of the format; no bank conflict, in these and in all other launches; a tensor-core instruction per 256
weights, no more. Of SSVQ: no bank conflict when the table of magnitudes, x and sums are read, whatever the codes; the sectors less those of x,
and of what a block reads once more (the table, x and numbers of outlier columns), at most 1.05. Of VQ the same, and no bank conflict as
long as a codebook has at most 1024 entries. Of W4A8 the same as of grid codes, with an instruction per 512 weights. The standard library only."""
import json
import os
import re
import subprocess
import sys
import tempfile

N, TILE_WEIGHTS = 4096, 16 * 128
wrong = []


def expect(what, condition, seen):
    if not condition: wrong.append(f"{what}: {seen}")


def launches_of(program):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "counts")
        subprocess.run([os.path.join(sys.argv[1], program)], check=True, stdout=subprocess.DEVNULL,
                       env={**os.environ, "RQ_SMALL": "1", "GPUSIM_JSON": path})
        with open(path, encoding="utf-8") as f: return [json.loads(line) for line in f]


def check_ssvq(program, x_bytes):
    seen = set()
    for c in launches_of(program):
        vec_len, high = re.search(r"tilesILi(\d)ELi\dELi\dE(?:Lb[01]ELi(\d)E)?", c["kernel"]).groups()
        bits, high = 2 if vec_len == "8" else 3, int(high or 0)
        # A table of more than 1024 entries has not room for a copy a lane: then lanes meet.
        bound = 2.7 if high == 4 else 1
        expect("bank conflicts", c["shared_ld_waves"] <= bound * c["shared_ld_ideal"], c)
        if c["mma"] != N * N // 256: continue
        blocks, outliers, entries = c["grid"][0], 16, 256 << high
        slots = min(entries * 8, 8192)
        # A block: x; each of the table's slots of 16 bytes from 8 or 4 bytes; of each outlier column x, its number. A row block: an
        # outlier's scale and 16 bytes, a sector each, of which memory is asked for once; the scale of int8 x, twice.
        table = 2048 // 32 * 32 if high == 0 else max(slots // 32 * 32, entries * int(vec_len))
        block = N * x_bytes + table + outliers * 32 + 2 * 32
        row_block = outliers * (32 - 4 + 32 - 16) + (2 - x_bytes) * 32
        moved = 32 * (c["ld_sectors"] + c["st_sectors"]) - (blocks - 1) * block - N // 16 * row_block
        of_format = N * N * bits // 8 + N * N // int(vec_len) * high // 8 + N * 2 + entries * int(vec_len) + N * outliers + (x_bytes + 2) * N
        print(f"{program} {bits} bits, {entries} entries: {moved} bytes moved, {moved / of_format:.4f} of the format's; wavefronts "
              f"{c['shared_ld_waves'] / c['shared_ld_ideal']:.3f}")
        expect(f"{program} {bits} bits: bytes moved", N * N * bits // 8 < moved <= 1.05 * of_format, f"{moved} of {of_format}")
        seen.add((bits, high))
    expect(f"{program} widths", seen >= {(2, 0), (3, 0)}, seen)


# Codebooks of the test's weights of 4096 columns and 1024 or 4096 rows, by kernel: vectors, down the rows or not, and of each stage bits of a code and log2 of the bytes of
# an entry with its copies. Not those whose codes are narrower than the tiles' (700 entries), nor those that look up in the L2.
VQ_LAYERS = {(8, "false", 8, 7, 0, 0): [256], (8, "false", 8, 7, 8, 7): [256, 256], (4, "false", 8, 7, 0, 0): [256],
             (4, "false", 8, 7, 8, 7): [256, 256], (8, "false", 12, 5, 0, 0): [4096], (4, "false", 12, 5, 0, 0): [4096],
             (8, "false", 12, 4, 12, 4): [4000, 3000], (8, "true", 8, 7, 0, 0): [256], (8, "true", 8, 7, 8, 7): [256, 200],
             (8, "true", 12, 5, 0, 0): [4096]}


def check_vq():
    names, seen = {}, set()
    for c in launches_of("gemv_vq"):
        if c["kernel"] not in names:
            names[c["kernel"]] = subprocess.run(["c++filt", c["kernel"]], capture_output=True, text=True, check=True).stdout
        found = re.search(r"vq_tiles<(\d+), (\w+), rq_vq_stage<(\d+), (\d+)>, rq_vq_stage<(\d+), (\d+)>", names[c["kernel"]])
        if not found: continue  # dense weights
        vec, out, *stages = [int(v) if v.isdigit() else v for v in found.groups()]
        in_shared = [shift for bits, shift in zip(stages[::2], stages[1::2]) if 0 < bits < 16]
        if set(in_shared) <= {7}: expect("vq: bank conflicts", c["shared_ld_waves"] == c["shared_ld_ideal"], c)
        rows = c["mma"] * 128 // (N * (1 + (stages[2] > 0)))
        if rows not in (1024, 4096): continue
        kind, blocks = (vec, out, *stages), c["grid"][0]
        what = f"vq vectors of {vec}{' rows' * (out == 'true')}, codes of {stages[0]}{f' + {stages[2]}' * (stages[2] > 0)} bits"
        print(f"{what}: wavefronts of shared loads {c['shared_ld_waves'] / c['shared_ld_ideal']:.2f} of those without conflicts")
        expect(f"{what}: bank conflicts of stores", c["shared_st_waves"] == c["shared_st_ideal"], c)
        if kind not in VQ_LAYERS: continue
        codes, books = rows * N // vec * (stages[0] + stages[2]) // 8, sum(VQ_LAYERS[kind]) * vec * 2
        moved = 32 * (c["ld_sectors"] + c["st_sectors"]) - blocks * (N * 2 + books)  # a block reads x and the codebooks
        of_format = codes + rows * 2 + books + N * 2 + rows * 2
        print(f"{what}: {moved} bytes moved, {moved / of_format:.4f} of the format's")
        expect(f"{what}: bytes moved", codes < moved <= 1.05 * of_format, f"{moved} of {of_format}")
        seen.add(kind)
    expect("vq kinds", seen == set(VQ_LAYERS), seen)


def check_w4a8():
    seen = set()
    for c in launches_of("gemv_w4a8"):
        for kind in ("ld", "st"):
            expect("w4a8: bank conflicts", c[f"shared_{kind}_waves"] == c[f"shared_{kind}_ideal"], c)
        e4m3 = "e4m3" in c["kernel"]  # on halves: twice the instructions
        if c["mma"] != N * N // (256 if e4m3 else 512): continue
        steps, blocks = int(re.search(r"w4a8_(?:e4m3_)?tilesILi(\d)E", c["kernel"]).group(1)), c["grid"][0]
        moved = 32 * (c["ld_sectors"] + c["st_sectors"]) - blocks * N  # a block reads x
        of_format = N * N // 2 + (N * N // 128 * 2 if steps else 0) + N * 8 + 2 * N + N
        print(f"w4a8{', e4m3,' * e4m3} with {'two levels' if steps else 'one level'}: {moved} bytes moved, {moved / of_format:.4f} of the format's")
        expect("w4a8: bytes moved", N * N // 2 < moved <= 1.05 * of_format, f"{moved} of {of_format}")
        seen.add((e4m3, steps))
    expect("w4a8 kinds", seen == {(False, 0), (False, 4), (True, 0), (True, 4)}, seen)


def check_w4a8_gemm():
    """No bank conflict; and of the wgmma kernels in table.json: instructions that can be decoding, per weight, in the main loop, and with e4m3 one
    addition an accumulator of 128 columns, or two."""
    for program in ("gemm_w4a8", "gemm_w4a8_e4m3"):
        for c in launches_of(program):
            for kind in ("ld", "st"):
                expect(f"{program}: bank conflicts", c[f"shared_{kind}_waves"] == c[f"shared_{kind}_ideal"], c)
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "table.json"), encoding="utf-8") as f: table = json.load(f)
    seen = set()
    for name, row in table["kernels"].items():
        found = re.match(r"(gemm_w4a8|gemm_w4a8_e4m3) rq_\1_wgmma<(?:(\d), )?(\d+), (\d)>", name)
        if not found: continue
        e4m3, tok, steps = "e4m3" in found.group(1), int(found.group(3)), int(found.group(4))
        loop, wgmma = row["sm_90a"]["loop"], "QGMMA" if e4m3 else "IGMMA"
        expect(f"{name}: spills", row["sm_90a"]["spill"] == 0, row)
        per_weight = sum(loop.get(op, 0) for op in ("LOP3", "SHF", "PRMT", "IMAD")) / (16 * max(loop.get(wgmma, 0), 1))
        print(f"{name}: {loop.get(wgmma, 0)} wgmma, {per_weight:.2f} instructions a weight")
        expect(f"{name}: wgmma", loop.get(wgmma, 0) >= 4, loop)
        expect(f"{name}: decoding", per_weight <= {0: 0.5, 4: 0.65 if e4m3 else 1.0, 1: 1.3}[steps], per_weight)
        if e4m3: expect(f"{name}: additions", loop.get("FFMA" if steps else "FADD", 0) == (tok if steps else tok // 2), loop)
        seen.add(found.groups())
    expect("w4a8 gemm kernels", len(seen) == 18, seen)


def main():
    seen = set()
    check_vq()
    check_w4a8()
    check_w4a8_gemm()
    check_ssvq("gemv_ssvq", 2)
    check_ssvq("gemv_ssvq_s8", 1)
    for c in launches_of("gemv_grid"):
        for kind in ("ld", "st"):
            expect("bank conflicts", c[f"shared_{kind}_waves"] == c[f"shared_{kind}_ideal"], c)
        blocks, zeros = c["grid"][0], "Lb1E" in c["kernel"]
        # With zero points each block sums x by mma too, 8 a tile column.
        if c["mma"] != N * N // 256 + zeros * blocks * N // 128 * 8: continue
        moved = 32 * (c["ld_sectors"] + c["st_sectors"]) - blocks * N * 2
        bits = next(b for b in (8, 4, 3, 2) if moved >= N * N * b // 8)
        of_format = N * N * bits // 8 + N * N // 128 * 2 * (1 + zeros) + 2 * N * 2
        print(f"{bits} bits{', zeros' * zeros}: {moved} bytes moved, {moved / of_format:.4f} of the format's; x to shared memory {blocks * N * 2}")
        expect(f"{bits} bits: bytes moved", moved <= 1.05 * of_format, f"{moved} of {of_format}")
        seen.add((bits, zeros))
    expect("widths", seen == {(2, False), (2, True), (3, False), (4, False), (8, False)}, seen)
    print("\n".join(wrong[:5]))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
