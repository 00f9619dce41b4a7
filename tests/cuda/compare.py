# SPDX-License-Identifier: Apache-2.0
"""compare.py DEVICE SIMULATOR [--json FILE]: the records of two runs of the CUDA tests side by side.

Each argument is a file that RQ_RECORD named, or a folder of such files, which are paired by name (cudatest.h has the format).
Integers must be the same bits; floating point may differ by the record's bound, where NaN matches NaN and an infinity itself,
and with a bound of 0 must be the same bits too. Prints what differs and a summary; exit status 1 when anything differs or is
missing, or there is nothing to compare. Python's standard library only."""
import argparse
import json
import math
import os
import struct
import sys

# number: name, bytes, struct's letter
TYPES = {1: ("i8", 1, "b"), 2: ("u8", 1, "B"), 3: ("i16", 2, "h"), 4: ("u16", 2, "H"), 5: ("i32", 4, "i"),
         6: ("u32", 4, "I"), 7: ("i64", 8, "q"), 8: ("u64", 8, "Q"), 9: ("f16", 2, "e"), 10: ("bf16", 2, None),
         11: ("f32", 4, "f"), 12: ("f64", 8, "d")}
HEAD = struct.Struct("<4sIIIQd")


class Broken(Exception):
    """A file that is no whole list of records."""


def read_records(path):
    """[(name, type number, count, bound, bytes)] in the order written."""
    with open(path, "rb") as f: data = f.read()
    records, at = [], 0
    while at < len(data):
        if at + HEAD.size > len(data): raise Broken(f"{path}: cut off at byte {at}")
        magic, kind, name_bytes, zero, count, bound = HEAD.unpack_from(data, at)
        if magic != b"RQR1" or kind not in TYPES or zero != 0: raise Broken(f"{path}: no record at byte {at}")
        at += HEAD.size
        size = count * TYPES[kind][1]
        if at + name_bytes + size > len(data): raise Broken(f"{path}: cut off at byte {at}")
        name = data[at:at + name_bytes].decode()
        at += name_bytes
        records.append((name, kind, count, bound, data[at:at + size]))
        at += size
    return records


def values(kind, data):
    if TYPES[kind][0] == "bf16":
        bits = struct.unpack(f"<{len(data) // 2}H", data)
        return struct.unpack(f"<{len(bits)}f", b"".join(struct.pack("<I", b << 16) for b in bits))
    return struct.unpack(f"<{len(data) // TYPES[kind][1]}{TYPES[kind][2]}", data)


def distance(a, b):
    """|a - b|; 0 for two NaN or the same infinity, infinite for one of those against anything else."""
    if a == b or (a != a and b != b): return 0.0
    d = abs(a - b)
    return math.inf if d != d else d


def compare_record(a, b):
    """The result as a dict: equal, within (the bound), max_error, at (the worst element), and why when it is not within."""
    name, kind, count, bound, data_a = a
    result = {"record": name, "type": TYPES[kind][0], "count": count, "bound": bound, "equal": True, "within": True}
    if b[:4] != a[:4]:
        return {**result, "equal": False, "within": False, "why": f"the other run has {b[0]} {TYPES[b[1]][0]} [{b[2]}] bound {b[3]:g}"}
    data_b = b[4]
    if data_a == data_b: return result
    va, vb = values(kind, data_a), values(kind, data_b)
    size = TYPES[kind][1]
    differ = [i for i in range(count) if data_a[i * size:(i + 1) * size] != data_b[i * size:(i + 1) * size]]
    result.update(equal=False, differing=len(differ))
    floats = TYPES[kind][0] in ("f16", "bf16", "f32", "f64")
    worst = max(differ, key=lambda i: distance(va[i], vb[i]) if floats else abs(va[i] - vb[i]))
    result.update(at=worst, device=str(va[worst]), simulator=str(vb[worst]))
    if floats:
        error = distance(va[worst], vb[worst])
        result.update(max_error=str(error) if math.isinf(error) else error)
        result["within"] = bound > 0 and error <= bound
        if not result["within"]: result["why"] = "beyond the bound" if bound > 0 else "not the same bits"
    else:
        result.update(max_error=abs(va[worst] - vb[worst]), within=False, why="not the same bits")
    return result


def pairs(a, b):
    """[(name, path in a or None, path in b or None)]"""
    if os.path.isdir(a) != os.path.isdir(b): sys.exit("compare.py: two files or two folders")
    if not os.path.isdir(a): return [(os.path.basename(a), a, b)]
    names = sorted(set(os.listdir(a)) | set(os.listdir(b)))
    join = lambda folder, n: os.path.join(folder, n) if os.path.isfile(os.path.join(folder, n)) else None
    return [(n, join(a, n), join(b, n)) for n in names]


def compare(a, b):
    summary = {"files": 0, "records": 0, "equal": 0, "within_bound": 0, "different": 0, "missing": [], "not_equal": []}
    for name, path_a, path_b in pairs(a, b):
        if path_a is None or path_b is None:
            summary["missing"].append(f"{name}: only in {'the second' if path_a is None else 'the first'}")
            continue
        summary["files"] += 1
        try:
            records_a, records_b = read_records(path_a), read_records(path_b)
        except (Broken, OSError, UnicodeDecodeError) as e:
            summary["missing"].append(str(e))
            continue
        if len(records_a) != len(records_b):
            summary["missing"].append(f"{name}: {len(records_a)} records against {len(records_b)}")
        for ra, rb in zip(records_a, records_b):
            result = {"file": name, **compare_record(ra, rb)}
            summary["records"] += 1
            summary["equal" if result["equal"] else "within_bound" if result["within"] else "different"] += 1
            if not result["equal"]: summary["not_equal"].append(result)
    summary["ok"] = summary["different"] == 0 and not summary["missing"] and summary["records"] > 0
    return summary


def main():
    p = argparse.ArgumentParser(description="compare the records of two runs of the CUDA tests")
    p.add_argument("device")
    p.add_argument("simulator")
    p.add_argument("--json", help="write the summary here")
    args = p.parse_args()
    s = compare(args.device, args.simulator)
    for line in s["missing"]: print(f"compare: {line}")
    for r in s["not_equal"]:
        detail = f"max error {r['max_error']} at {r['at']} ({r['device']} against {r['simulator']}), bound {r['bound']:g}" \
            if "at" in r else r["why"]
        print(f"compare: {'within bound' if r['within'] else 'DIFFERENT'}: {r['file']}: {r['record']} "
              f"({r['type']}, {r.get('differing', '?')} of {r['count']}): {detail}")
    if s["records"] == 0: print("compare: nothing to compare")
    print(f"compare: {s['records']} records of {s['files']} files: {s['equal']} equal, {s['within_bound']} within their bound, "
          f"{s['different']} different, {len(s['missing'])} missing")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f: json.dump(s, f, indent=1)
    sys.exit(0 if s["ok"] else 1)


if __name__ == "__main__":
    main()
