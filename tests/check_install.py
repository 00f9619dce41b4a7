# SPDX-License-Identifier: Apache-2.0
"""check_install.py BUILD CC: install into a fresh folder, then build and run a small program against what is there: through
find_package and through pkg-config, shared and static; and with a C++ compiler where there is one. In a build with RQ_CUDA a C program
that launches a kernel too, which need not run: there may be no GPU."""
import os
import shutil
import subprocess
import sys
import tempfile

from check_common import ROOT, finish, read

PROGRAM = r"""
#include <rq.h>
#include <rq_packed.h>
#include <stdio.h>
int main(void) {
    rq_set_threads(1);
    float y;
    rq_grid none = {0}; /* refused, by a function of rq_packed.h */
    if (rq_grid_linear(&y, &none, &y, &y, 1) != RQ_ERR_ARG) return 1;
    printf("%s %s\n", rq_version(), rq_status_text(RQ_OK));
    return rq_get_threads() == 1 ? 0 : 1;
}
"""
KERNELS = r"""
#include <rq_cuda_hadamard.h>
#include <rq_repack.h>
#include <stdio.h>
int main(int argc, char **argv) {
    rq_cuda_gemv_desc d = rq_cuda_gemv_desc_default();
    d.kind = RQ_TILE_GRID;
    d.n_out = d.n_in = d.group = 256;
    d.n_tok = 1;
    d.bits = 2;
    const char *why = "supported";
    rq_cuda_gemv_plan plan;
    rq_tile_layout layout;
    if (rq_repack_grid_plan(&layout, NULL, 0, &why) == RQ_OK) return 1; /* no matrices: refused */
    rq_status status = rq_cuda_gemv_supports(&d, &why);
    if (status == RQ_OK) status = rq_cuda_gemv_make_plan(&plan, &d);
    if (status == RQ_OK && argc > 1) status = rq_cuda_gemv_run(&plan, &d, &(rq_cuda_gemv_args){.y = argv}, NULL);
    printf("%s\n", status == RQ_OK || status == RQ_ERR_DEVICE || status == RQ_ERR_UNSUPPORTED ? "called" : why);
    return 0;
}
"""
CMAKE = """
cmake_minimum_required(VERSION 3.22)
project(user LANGUAGES C)
find_package(requite {version} REQUIRED{components})
add_executable(user user.c)
target_link_libraries(user PRIVATE requite::{target})
"""


def main():
    build, cc = sys.argv[1:3]
    version = next(line.split('"')[1] for line in read("host/rq.h").split("\n") if line.startswith("#define RQ_VERSION"))
    expect = f"{version} done"
    findings, env = [], dict(os.environ)
    env.pop("LD_LIBRARY_PATH", None)

    def run(what, args, expect=None):
        r = subprocess.run(args, capture_output=True, text=True, env=env)
        if r.returncode != 0:
            findings.append(f"{what}: {' '.join(args)}\n{r.stdout}{r.stderr}")
        elif expect is not None and r.stdout.strip() != expect:
            findings.append(f"{what}: printed {r.stdout.strip()!r}, expected {expect!r}")
        return r.stdout.strip() if r.returncode == 0 else None

    with tempfile.TemporaryDirectory() as top:
        # Installed under one name, then moved: nothing in it may know where it stood.
        staged, prefix = os.path.join(top, "staged"), os.path.join(top, "prefix")
        if run("install", ["cmake", "--install", build, "--prefix", staged]) is None:
            finish("check_install", findings, "")
        os.rename(staged, prefix)
        for folder, _, names in os.walk(prefix):
            for name in names:
                path = os.path.join(folder, name)
                if name.endswith((".cmake", ".pc", ".h")):
                    with open(path, encoding="utf-8") as f: text = f.read()
                    for place in (build, ROOT, staged):
                        if place in text: findings.append(f"{os.path.relpath(path, prefix)} names {place}")
        run("the command", [os.path.join(prefix, "bin", "requite"), "--version"], f"requite {version}")
        lib = next((os.path.join(prefix, d) for d in ("lib", "lib64") if os.path.isdir(os.path.join(prefix, d))), None)
        if lib is None:  # Debian's multiarch folder
            lib = os.path.join(prefix, "lib")
        pc = next((folder for folder, _, names in os.walk(lib) if "requite.pc" in names), None)
        if pc is None: finish("check_install", findings + ["no requite.pc"], "")
        libdir = os.path.dirname(pc)
        for name in ("librequite.a", "librequite.so", "librequite.so.0", f"librequite.so.{version}"):
            if not os.path.exists(os.path.join(libdir, name)): findings.append(f"{name} is not installed")
        source = os.path.join(top, "user.c")
        with open(source, "w", encoding="utf-8") as f: f.write(PROGRAM)

        for target, components in (("requite", ""), ("requite_static", " COMPONENTS static")):
            folder = os.path.join(top, "cmake_" + target)
            os.mkdir(folder)
            shutil.copy(source, folder)
            with open(os.path.join(folder, "CMakeLists.txt"), "w", encoding="utf-8") as f:
                f.write(CMAKE.format(version=version.rsplit(".", 1)[0], components=components, target=target))
            out = os.path.join(folder, "build")
            if run(f"find_package, {target}", ["cmake", "-S", folder, "-B", out, f"-DCMAKE_PREFIX_PATH={prefix}",
                                               f"-DCMAKE_C_COMPILER={cc}"]) is None: continue
            if run(f"find_package, {target}", ["cmake", "--build", out]) is None: continue
            run(f"find_package, {target}", [os.path.join(out, "user")], expect)

        env["PKG_CONFIG_PATH"] = os.pathsep.join(filter(None, [pc, env.get("PKG_CONFIG_PATH")]))
        compilers = [("C", cc, source)]
        if shutil.which("c++"):
            shutil.copy(source, os.path.join(top, "user.cc"))
            compilers.append(("C++", "c++", os.path.join(top, "user.cc")))
        for language, compiler, code in compilers:
            program = os.path.join(top, "user_" + language)
            flags = run("pkg-config", ["pkg-config", "--cflags", "--libs", "requite"])
            if flags is None: break
            if run(f"pkg-config, {language}", [compiler, "-Wall", "-Werror", code, "-o", program, *flags.split()]) is None:
                continue
            env["LD_LIBRARY_PATH"] = libdir
            run(f"pkg-config, {language}", [program], expect)
            env.pop("LD_LIBRARY_PATH")
        flags = run("pkg-config --static", ["pkg-config", "--static", "--cflags", "--libs", "requite"])
        if flags is not None:
            program = os.path.join(top, "user_static")
            words = [os.path.join(libdir, "librequite.a") if w == "-lrequite" else w for w in flags.split()]
            if run("pkg-config --static", [cc, source, "-o", program, *words]) is not None:
                run("pkg-config --static", [program], expect)

        kernels = os.path.exists(os.path.join(libdir, "librequite_cuda.a"))
        if kernels:
            folder = os.path.join(top, "cmake_cuda")
            os.mkdir(folder)
            source = os.path.join(folder, "user.c")
            with open(source, "w", encoding="utf-8") as f: f.write(KERNELS)
            with open(os.path.join(folder, "CMakeLists.txt"), "w", encoding="utf-8") as f:
                f.write(CMAKE.format(version=version.rsplit(".", 1)[0], components=" COMPONENTS cuda", target="cuda"))
            out = os.path.join(folder, "build")
            for args in (["cmake", "-S", folder, "-B", out, f"-DCMAKE_PREFIX_PATH={prefix}", f"-DCMAKE_C_COMPILER={cc}"],
                         ["cmake", "--build", out]):
                if run("find_package, cuda", args) is None: break
            else:
                run("find_package, cuda", [os.path.join(out, "user")], "called")
            flags = run("pkg-config", ["pkg-config", "--cflags", "--libs", "requite_cuda"])
            program = os.path.join(top, "user_cuda")
            if flags is not None and run("pkg-config, cuda", [cc, source, "-o", program, *flags.split()]) is not None:
                run("pkg-config, cuda", [program], "called")
    finish("check_install", findings, f"requite {version}{' with its kernels' if kernels else ''} installs; programs build against it by CMake and pkg-config")


main()
