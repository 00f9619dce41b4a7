# SPDX-License-Identifier: Apache-2.0
"""test_gpu_script.py [BUILD]: .ci/gpu --sim does what it says.

With programs of three lines in the place of tests, benches, nvidia-smi and compute-sanitizer: what failed is named, what was
measured is kept when the time is up or the script is stopped. With BUILD (a build folder with RQ_GPUSIM) also two real tests
and a bench in the simulator."""
import glob
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SCRIPT = os.path.join(ROOT, ".ci", "gpu")
# A record of one i32 with this value.
RECORD = r"""{ printf 'RQR1\005\0\0\0\001\0\0\0\0\0\0\0\001\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0n'; printf "\\00%s\\0\\0\\0"; } >>"$RQ_RECORD" """
wrong = []


def expect(what, condition, seen=""):
    if not condition: wrong.append(f"{what}: {seen}")


def program(folder, name, text):
    os.makedirs(os.path.join(folder, os.path.dirname(name)), exist_ok=True)
    path = os.path.join(folder, name)
    with open(path, "w", encoding="utf-8") as f: f.write("#!/bin/sh\n" + text + "\n")
    os.chmod(path, 0o755)
    return path


def run(build, *args, env=None, kill_after=None):
    with tempfile.TemporaryDirectory() as out: return run_into(out, build, args, env, kill_after)


def run_into(out, build, args, env, kill_after):
    environment = {**os.environ, "OUT": out, "RQ_COMMIT": "abc", **(env or {})}
    p = subprocess.Popen([SCRIPT, "--build", build, *args], env=environment, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True)
    if kill_after:
        time.sleep(kill_after)
        p.send_signal(signal.SIGTERM)
    text, _ = p.communicate(timeout=1200)
    files = glob.glob(os.path.join(out, "*.json"))
    if len(files) != 1: return p.returncode, text, {}
    with open(files[0], encoding="utf-8") as f: return p.returncode, text, {**json.load(f), "file": os.path.basename(files[0])}


def fakes():
    with tempfile.TemporaryDirectory() as b:
        program(b, "bin/sim/right", RECORD % 7 + "\necho fine")
        program(b, "bin/sim/skipped", "echo skip: no reason; exit 77")
        program(b, "bin/sim/bench_x", "echo checked")
        status, text, r = run(b, "--sim")
        expect("all right", status == 0 and r["complete"] and r["simulated"], text)
        expect("tests", r["tests"]["device"]["right"]["status"] == 0 and r["tests"]["simulator"]["skipped"]["status"] == 77, r)
        expect("comparison", r["comparison"]["ok"] and r["comparison"]["equal"] == 1, r["comparison"])
        expect("steps", list(r["steps"]) == ["build", "test", "compare", "sanitize", "bench", "command"], r["steps"])
        expect("no sanitizer", "skipped" in r["steps"]["sanitize"]["note"], r["steps"])
        expect("no command", "skipped" in r["steps"]["command"]["note"], r["steps"])
        # The quantizer's bench by name; the command on a small model, and its report.
        program(b, "bin/sim/bench_quantize_cuda", '[ "$*" = --check ]')
        program(b, "bin/sim/requite", """[ "$1 ${11}" = "quantize rescomp" ] && [ -s "$2/model.safetensors" ] && [ -s "$5" ] && echo '{"seconds":1}'""")
        status, text, r = run(b, "--sim", "--only", "bench,command")
        expect("the quantizer", status == 0 and r["benches"]["bench_quantize"]["status"] == 0 and r["command"]["quantize"]["report"] == {"seconds": 1}, text)
        program(b, "bin/sim/requite", "echo no; exit 3")
        status, text, r = run(b, "--sim", "--only", "command")
        expect("the command fails", status == 1 and r["command"]["quantize"]["status"] == 3 and "report" not in r["command"]["quantize"], text)
        os.remove(os.path.join(b, "bin/sim/requite"))

        program(b, "bin/sim/differs", RECORD % "${GPUSIM_REVERSE:-2}")
        status, text, r = run(b, "--sim", "--only", "test,compare")
        expect("a difference", status == 1 and r["comparison"]["different"] == 1 and r["steps"]["compare"]["status"] == "failed", text)
        expect("only these steps", "bench" not in r["steps"] and "build" not in r["steps"], r["steps"])
        os.remove(os.path.join(b, "bin/sim/differs"))

        program(b, "bin/sim/fails", "echo 3 wrong; exit 1")
        status, text, r = run(b, "--sim", "--only", "test")
        expect("a failure", status == 1 and r["tests"]["device"]["fails"] == {**r["tests"]["device"]["fails"], "status": 1,
                                                                             "says": "3 wrong"}, text)
        status, text, r = run(b, "--sim", "--only", "test", "--tests", "right")
        expect("--tests", status == 0 and list(r["tests"]["device"]) == ["right"], text)
        os.remove(os.path.join(b, "bin/sim/fails"))

        program(b, "bin/sim/ptx_a", "exit 0")
        # The tools are called as compute-sanitizer is: --tool NAME --error-exitcode 9 PROGRAM.
        sanitizer = program(b, "sanitizer", '[ "$2" = racecheck ] && [ "$RQ_SMALL$RQ_EXACT" = 11 ] && case $5 in *right) '
                            'echo "========= RACECHECK SUMMARY: 1 hazard displayed"; exit 9;; esac; exit 0')
        status, text, r = run(b, "--sim", "--only", "sanitize", env={"RQ_SANITIZER": sanitizer})
        expect("a hazard", status == 1 and r["sanitizer"]["racecheck"]["right"] == {
            **r["sanitizer"]["racecheck"]["right"], "status": 9, "says": "RACECHECK SUMMARY: 1 hazard displayed"}, text)
        expect("four tools", len(r["sanitizer"]) == 4 and "ptx_a" not in r["sanitizer"]["memcheck"] and r["sanitizer"]["memcheck"]["right"]["status"] == 0, r["sanitizer"])
        sanitizer = program(b, "sanitizer", "echo Device not supported; exit 1")
        status, text, r = run(b, "--sim", "--only", "sanitize", env={"RQ_SANITIZER": sanitizer})
        expect("a tool that does not work", status == 0 and "not supported" in r["steps"]["sanitize"]["note"], text)

        # A GPU: its name is the file's, and a bench that hangs leaves what it wrote.
        program(b, "fake/nvidia-smi", 'case $1 in *=name) echo "NVIDIA X 1";; *) echo "NVIDIA X 1, 500.1, 9";; esac')
        program(b, "bin/gpu/right", RECORD % 7)
        program(b, "bin/gpu/bench_x", """echo '[{"bench":"a","t_med_us":1}]' >"$2"; exec sleep 200""")
        path = {"PATH": os.path.join(b, "fake") + ":" + os.environ["PATH"]}
        start = time.time()
        status, text, r = run(b, "--seconds", "24", env=path)
        expect("a bench that hangs", status == 1 and r["steps"]["test"]["status"] == "ok" and r["benches"]["bench_x"] == {"records": [{"bench": "a", "t_med_us": 1}],
                                                                                "status": 124}, text)
        expect("the time is kept", time.time() - start < 90, text)
        expect("file name", r["file"].startswith("x-1-20") and r["file"].endswith("-abc.json"), r["file"])
        expect("device", r["device"]["before_benches"]["driver_version"] == "500.1", r["device"])

        # bench_gemv: the shapes with a goal first; the last runs may be cut short.
        os.remove(os.path.join(b, "bin/gpu/bench_x"))
        program(b, "bin/gpu/bench_gemv_cuda", """echo '[{"shapes":"'"$4"'","git":"'"$RQ_COMMIT"'"}]' >"$2"; case $4 in *llama*) ;; *) exec sleep 200;; esac""")
        status, text, r = run(b, "--only", "bench", "--seconds", "28", env=path)
        expect("bench_gemv", status == 0 and r["benches"]["bench_gemv"] == {"records": [{"shapes": "llama3-8b,llama3-70b", "git": "abc"}], "status": 0}, text)
        expect("cut short", list(r["benches"])[-1] == "bench_gemv_models" and r["benches"]["bench_gemv_models"]["status"] == 124 and
               "out of time in bench_gemv_models" in r["steps"]["bench"]["note"], r["benches"])
        program(b, "bin/gpu/bench_gemv_cuda", "exit 1")
        status, text, r = run(b, "--only", "bench", env=path)
        expect("bench_gemv fails", status == 1 and r["benches"]["bench_gemv"]["status"] == 1, text)

        program(b, "bin/gpu/slow", "exec sleep 60")
        status, text, r = run(b, "--only", "test", env=path, kill_after=3)
        expect("stopped", status == 143 and r["complete"] is False and r["tests"]["device"]["right"]["status"] == 0, text)
        program(b, "bin/gpu/slow", "exec sleep 60")
        status, text, r = run(b, "--only", "test", "--seconds", "8", env=path)
        expect("out of time", status == 1 and r["complete"] and r["tests"]["device"]["slow"]["status"] == 124, text)
        program(b, "bin/gpu/slow", "exit 77")
        program(b, "bin/gpu/right", "exit 77")
        status, text, r = run(b, "--only", "test", env=path)
        expect("all skipped", status == 1, text)
        program(b, "fake/nvidia-smi", "exit 9")
        status, text, r = run(b, "--only", "test", env=path)
        expect("no GPU", status == 1 and r == {} and "--sim" in text, text)


def real(build):
    status, text, r = run(build, "--sim", "--only", "test,compare,bench,command", "--tests", "^(gemm_s8|mixed)$", "--seconds", "150",
                          env={"RQ_SMALL": "1"})
    expect("two tests", status == 0 and r["comparison"]["ok"] and r["comparison"]["files"] == 2, text)
    expect("benches", all(r["benches"][b]["status"] == 0 for b in ("bench_ceilings", "bench_gemv", "bench_gemm", "bench_quantize")), text)


def main():
    fakes()
    if sys.argv[1:]: real(os.path.abspath(sys.argv[1]))
    for line in wrong: print(line)
    print(f"test_gpu_script: {len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


main()
