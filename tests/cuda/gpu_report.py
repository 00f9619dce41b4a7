# SPDX-License-Identifier: Apache-2.0
"""The result file of .ci/gpu, changed in place: the old file stays until the new one is whole.

  gpu_report.py FILE set PATH VALUE [PATH VALUE...]   PATH is keys with '/' between; VALUE is text, or JSON after "json:"
  gpu_report.py FILE file PATH JSON_FILE              the content of another JSON file
  gpu_report.py FILE csv PATH NAMES                   one line of comma-separated values from standard input"""
import json
import os
import sys


def put(root, path, value):
    keys = path.split("/")
    for key in keys[:-1]: root = root.setdefault(key, {})
    root[keys[-1]] = value


def main():
    file, what, args = sys.argv[1], sys.argv[2], sys.argv[3:]
    root = {}
    if os.path.exists(file):
        with open(file, encoding="utf-8") as f: root = json.load(f)
    if what == "set":
        for path, value in zip(args[::2], args[1::2]):
            put(root, path, json.loads(value[5:]) if value.startswith("json:") else value)
    elif what == "file":
        with open(args[1], encoding="utf-8") as f: put(root, args[0], json.load(f))
    elif what == "csv":
        values = [v.strip() for v in sys.stdin.readline().split(",")]
        put(root, args[0], dict(zip(args[1].split(","), values)))
    else:
        sys.exit(f"gpu_report.py: no '{what}'")
    part = f"{file}.part"
    with open(part, "w", encoding="utf-8") as f:
        json.dump(root, f, indent=1)
        f.write("\n")
    os.replace(part, file)


main()
