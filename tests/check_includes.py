# SPDX-License-Identifier: Apache-2.0
"""Who may include whom: no cycles, and cuda/ with the leaf headers can be lifted whole into another engine.

  leaf headers (rq_base.h, ops.h, random.h, fmt_*.h)   the C library and each other
  public headers (PUBLIC below)              installed headers only
  host/                                      host/; only backend_cuda*.c and kernels.c also cuda/rq_cuda*.h
  the library (host/ but main.c, cmd_*)      not cmd.h
  cuda/                                      cuda/, the leaf headers, kernels.def
  tests/, bench/, python/                    their own folder, host/ and cuda/rq_cuda*.h
"""
import os
import re

from check_common import finish, read, tracked_files

C_LIBRARY = set("""assert.h complex.h ctype.h errno.h fenv.h float.h inttypes.h limits.h locale.h math.h setjmp.h signal.h
stdalign.h stdarg.h stdatomic.h stdbool.h stddef.h stdint.h stdio.h stdlib.h stdnoreturn.h string.h tgmath.h threads.h time.h
uchar.h wchar.h wctype.h""".split())
PUBLIC = {"rq.h", "rq_base.h", "rq_packed.h", "fmt_act.h", "fmt_grid.h", "fmt_ssvq.h", "fmt_vq.h", "fmt_w4a8.h",  # host/install.cmake
          "fmt_tile.h", "rq_repack.h", "rq_cuda.h", "rq_cuda_hadamard.h"}  # cuda/install.cmake
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(?:"([^"]+)"|<([^>]+)>)', re.M)


def is_leaf(name):
    return name in ("rq_base.h", "ops.h", "random.h") or (name.startswith("fmt_") and name.endswith(".h"))


def main():
    files = [f for f in tracked_files() if re.match(r"(host|cuda|bench|python|tests)/", f) and
             re.search(r"\.(c|h|cu|cuh|cpp|def|inc)$", f)]
    known = set(files)
    findings, graph = [], {}
    for path in files:
        folder, name = path.split("/")[0], os.path.basename(path)
        graph[path] = []
        for m in INCLUDE.finditer(read(path)):
            quoted, system = m.group(1), m.group(2)
            if system:
                if folder == "host" and is_leaf(name) and system not in C_LIBRARY:
                    findings.append(f"{path}: a leaf header includes only the C library, not <{system}>")
                if folder == "host" and name in PUBLIC and system not in C_LIBRARY:
                    findings.append(f"{path}: a public header includes only the C library, not <{system}>")
                continue
            # Beside the file, then host/, then cuda/: the order of the compiler's search.
            places = [os.path.normpath(os.path.join(os.path.dirname(path), quoted)), f"host/{quoted}", f"cuda/{quoted}"]
            target = next((p for p in places if p in known), None)
            if target is None:
                findings.append(f'{path}: "{quoted}" is not a file of this repository')
                continue
            graph[path].append(target)
            to_folder, to_name = target.split("/")[0], os.path.basename(target)
            bad = None
            if folder == "host":
                if to_folder == "cuda":
                    if not re.match(r"(backend_cuda\w*|kernels)\.[ch]$", name) or not re.match(r"rq_cuda\w*\.h$", to_name):
                        bad = "only backend_cuda*.c and kernels.c include of cuda/, and only rq_cuda*.h"
                elif to_folder != "host":
                    bad = "host/ includes host/ only"
                elif is_leaf(name) and not is_leaf(to_name):
                    bad = "a leaf header includes leaf headers only"
                elif to_name == "cmd.h" and name != "main.c" and not name.startswith("cmd_"):
                    bad = "cmd.h belongs to the command; the library does not know it"
            elif folder == "cuda":
                if to_folder == "host" and not is_leaf(to_name) and to_name != "kernels.def":
                    bad = "cuda/ includes of host/ only the leaf headers and kernels.def"
                elif to_folder not in ("cuda", "host"):
                    bad = "cuda/ includes cuda/ and the leaf headers"
            elif to_folder not in (folder, "host") and not re.match(r"cuda/rq_cuda\w*\.h$", target):
                bad = f"{folder}/ includes its own folder, host/ and cuda/rq_cuda*.h"
            if not bad and name in PUBLIC and to_name not in PUBLIC:
                bad = "a public header includes public headers only"
            if bad:
                findings.append(f'{path}: "{quoted}": {bad}')

    done, stack = set(), []

    def visit(node):
        if node in stack:
            findings.append("a cycle: " + " -> ".join(stack[stack.index(node):] + [node]))
            return
        if node in done:
            return
        stack.append(node)
        for to in graph.get(node, []):
            visit(to)
        stack.pop()
        done.add(node)

    for path in files:
        visit(path)
    finish("check_includes", findings, f"{sum(map(len, graph.values()))} includes of {len(files)} files")


main()
