# SPDX-License-Identifier: Apache-2.0
"""test_no_device.py REQUITE MODEL: the command, linked with the CUDA run time, where there is no GPU of that number: it starts, works on the CPU,
and refuses the device in a sentence."""
import os, subprocess, sys, tempfile

REQUITE, MODEL = sys.argv[1:3]


def quantize(out, device):
    return subprocess.run([REQUITE, "quantize", MODEL, out, "--comp", "rtn", "--clip-weights", "none", "--cd-sweeps", "0", "--refit", "0", "--bits", "4", "--group", "32",
                           "--device", device, "--progress", "none"], capture_output=True, text=True)


with tempfile.TemporaryDirectory() as folder:
    r = quantize(os.path.join(folder, "a"), "cpu")
    if r.returncode: sys.exit(f"on the CPU: exit {r.returncode}\n{r.stderr}")
    out = os.path.join(folder, "b")
    r = quantize(out, "cuda:99")
    if r.returncode != 1 or not ("no CUDA device" in r.stderr or "cuda:99: this machine has" in r.stderr) or len(r.stderr.strip().splitlines()) != 1:
        sys.exit(f"cuda:99: exit {r.returncode}\n{r.stderr}")
    if os.path.exists(out) or os.path.exists(out + ".partial"): sys.exit("something was written")
    print(r.stderr.strip())
