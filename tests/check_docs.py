# SPDX-License-Identifier: Apache-2.0
"""check_docs.py REQUITE: the docs and the program say the same.

Every row of comp.def, round.def, formats.def and kernels.def has its place in docs/methods.md, formats.md or kernels.md; every
option in a `requite COMMAND ...` of README.md and docs/ is one that COMMAND --help lists; every file of this repository that they name exists."""
import glob
import os
import re
import subprocess
import sys

from check_common import ROOT, finish, read, tracked_files

ROW = re.compile(r"^RQ_(COMP|ROUND|FORMAT|KERNEL)\(([^)]*)\)", re.M)
PATH = re.compile(r"(?<![\w./-])((?:host|cuda|bench|python|tests|docs|third_party|\.ci)/[\w.{},/-]*\w)")


def rows(name):
    return [[a.strip().strip('"') for a in m.group(2).split(",")] for m in ROW.finditer(read(f"host/{name}.def"))]


def has_word(text, word):
    return re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text, re.I) is not None


def main():
    requite = sys.argv[1]
    findings, n_rows, n_flags, n_paths = [], 0, 0, 0

    def page(path):
        if os.path.exists(os.path.join(ROOT, path)): return read(path)
        findings.append(f"{path} is missing")
        return ""

    for table, path in (("comp", "docs/methods.md"), ("round", "docs/methods.md"), ("formats", "docs/formats.md")):
        text = page(path)
        for row in rows(table):
            n_rows += 1
            if text and not has_word(text, row[1]): findings.append(f"{path} says nothing of `{row[1]}` (host/{table}.def)")
    text = page("docs/kernels.md")
    for row in rows("kernels"):
        n_rows += 1
        together = any(all(has_word(line, w) for w in row[:3]) or "_".join(row[:3]) in line for line in text.split("\n"))
        if text and not together:
            findings.append(f"docs/kernels.md has no line with {' '.join(row[:3])} (host/kernels.def)")

    help_of = {}

    def options(command):
        if command not in help_of:
            r = subprocess.run([requite, command, "--help"], capture_output=True, text=True)
            # The options' column, not the words that explain them.
            heads = [re.split(r"\s{2,}", line.strip())[0] for line in r.stdout.split("\n")] if r.returncode == 0 else []
            help_of[command] = set(re.findall(r"--[a-z][a-z0-9-]*|(?<![\w-])-[a-z](?![\w-])",
                                              "\n".join(h for h in heads if h.startswith("-"))))
        return help_of[command]

    pages = [f for f in tracked_files() if re.match(r"(README\.md|[^/]+/README\.md|docs/[^/]+\.md)$", f)]
    for path in pages:
        text = read(path)
        # One command a line once continuations are joined; inline code ends at its backtick, a shell command at a pipe or a comment.
        for i, line in enumerate(re.sub(r"\\\n\s*", " ", text).split("\n"), 1):
            for m in re.finditer(r"\brequite ([a-z]+)\b((?:(?!\brequite\b)[^`|#;&])*)", line):
                command, rest = m.groups()
                flags = re.findall(r"(?<![\w-])(--[a-z][a-z0-9-]*|-[a-z])(?![\w-])", rest)
                if not flags: continue
                if not options(command):
                    findings.append(f"{path}: `requite {command}` is no command")
                for flag in flags:
                    n_flags += 1
                    if options(command) and flag not in options(command) and flag not in ("--help", "-h"):
                        findings.append(f"{path}: `requite {command} --help` has no {flag}: {line.strip()[:100]}")
        made = set(re.findall(r"^`([^`]+)`, a new file:$", text, re.M))  # by who follows the page
        for m in PATH.finditer(text):
            name = m.group(1).rstrip(".,/")
            if name in made: continue
            # Patterns and patterns' names: <name>, X, NAME, *, {a,b}. Build results are not here either.
            after = text[m.end():m.end() + 1]
            if after in ("*", "<", "{") or "{" in name or re.search(r"(^|[_./])(X|NAME)([_./]|$)", name): continue
            n_paths += 1
            # A name without its ending will do: host/gemv_grid for its twins.
            if not glob.glob(os.path.join(ROOT, name) + "*"): findings.append(f"{path} names {name}, which is not there")
    finish("check_docs", findings, f"{n_rows} rows, {n_flags} options, {n_paths} file names in {len(pages)} pages")


main()
