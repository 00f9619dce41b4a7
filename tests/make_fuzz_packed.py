# SPDX-License-Identifier: Apache-2.0
"""Makes tests/data/fuzz/packed: small matrices in every format, in the form that tests/fuzz_packed.c reads.

    make_fuzz_packed.py REQUITE            (the program; run by hand when a format changes, the files are stored)
"""
import json
import os
import random
import struct
import subprocess
import sys
import tempfile

PEERS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "peers")  # make_peers.py
OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "fuzz", "packed")
DTYPES = ["I32", "F32", "F16", "U8", "I8", "I64", "BF16", "I16"]  # in the order of fuzz_packed.c
N_OUT, N_IN = 5, 72
SEEDS = {
    "grid_2": "--round grid -b 2 -g 32 --asym",
    "grid_3": "--round grid -b 3 -g 0 --sym",
    "grid_act": "--round grid -b 4 -g 32 --asym --act-order --scale-dtype f32",
    "grid_8": "--round grid -b 8 -g 24 --sym",
    "ssvq": "--round ssvq --codes 16 --outliers 2 --outlier-min 0",
    "ssvq_f16": "--round ssvq --codes 16 --vec-len 4 --book-dtype f16 --book-cols 36 --outliers 0",
    "vq": "--round vq --codes 16 --vec-len 8 --outliers 2 --outlier-min 0",
    "vq_two": "--round vq --codes 16 --codes2 16 --outliers 0",
    "vq_out": "--round vq --codes 16 --vec-axis out --outliers 0",
    "w4a8": "--round w4a8 -g 0 --sym",
    "w4a8_zero": "--round w4a8 -g 0 --asym",
    "w4a8_two": "--round w4a8 -g 32",
}


def write_case(path, rng):
    w = [rng.gauss(0, 1) for _ in range(N_OUT * N_IN)]
    h = [float(i == j) * (1 + i % 7) for i in range(N_IN) for j in range(N_IN)]
    header, data = {}, b""
    for name, values, shape in (("W", w, [N_OUT, N_IN]), ("H", h, [N_IN, N_IN])):
        more = struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(more)]}
        data += more
    text = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


def read_file(path):
    with open(path, "rb") as f:
        raw = f.read()
    n = 8 + struct.unpack_from("<Q", raw)[0]
    return json.loads(raw[8:n]), raw[n:]


def seed_of(path, change=lambda meta, tensors: None):
    header, data = read_file(path)
    meta = json.loads(header.pop("__metadata__")["requite"])
    tensors = {
        name: [t["dtype"], t["shape"], data[slice(*t["data_offsets"])]] for name, t in header.items() if name != "Q"
    }
    change(meta, tensors)
    out = json.dumps(meta, separators=(",", ":")).encode() + b"\0"
    for name, (dtype, shape, body) in sorted(tensors.items()):
        out += name.encode() + b"\0" + bytes([DTYPES.index(dtype), len(shape)])
        out += struct.pack(f"<{len(shape)}H", *shape) + body
    return out


def with_input(meta, tensors):
    """What `requite layer` has no option for: factors of the inputs and a Hadamard matrix."""
    meta["linears"]["W"].update(in_scale=True, hadamard=24)
    tensors["W.weight_in_scale"] = ["F32", [N_IN], struct.pack(f"<{N_IN}f", *[0.5 + j / N_IN for j in range(N_IN)])]


def shared_book(meta, tensors):
    """A second matrix that takes the codebook of the first."""
    entry = meta["linears"]["W"]
    entry["book_users"] = 2
    meta["linears"]["V"] = dict(entry, book="W")
    for name in [n for n in tensors if "book" not in n]:
        tensors["V" + name[1:]] = tensors[name]


CT = {"format": "compressed-tensors", "packing": "pack-quantized", "sym": False, "act_bits": 0}
PEER_SEEDS = {  # the entries that readers make of configurations
    "gptq_b3_g32_asym": {"format": "gptq", "bits": 3, "group": 32},
    "gptq_b4_g32_asym_act": {"format": "gptq_v2"},
    "awq_g32": {"format": "awq", "group": 32},
    "ct_pac_b3_g32_asym": {**CT, "bits": 3, "group": 32},
    "ct_pac_b4_g32_sym_bf16": {**CT, "bits": 4, "group": 32, "sym": True},
    "ct_int_b4_row_asym_a8": {**CT, "packing": "int-quantized", "bits": 4, "group": -1, "act_bits": 8},
    "vptq_books": {"format": "vptq", "vec_len": 4, "centroids": 32, "residuals": 32, "in_features": 96, "out_features": 32, "group_num": 3,
                   "group_size": 32, "perm": True, "norm": True},
    "vptq_plain": {"format": "vptq", "vec_len": 8, "centroids": 16, "residuals": -1, "in_features": 96, "out_features": 32, "group_num": 1,
                   "group_size": 96, "perm": False, "norm": False},
    "aqlm_2x8": {"format": "aqlm", "bits": 8, "books": 2, "vec_len": 8},
    "aqlm_2x9": {"format": "aqlm", "bits": 9, "books": 2, "vec_len": 4},
}


def peer_seed(name, entry):
    """A matrix that another tool packed."""
    header, data = read_file(os.path.join(PEERS, name + ".safetensors"))
    out = json.dumps({"version": 1, "linears": {"W": entry}}, separators=(",", ":")).encode() + b"\0"
    for tensor, t in sorted(header.items()):
        if tensor in ("__metadata__", "W.decoded"): continue
        out += tensor.encode() + b"\0" + bytes([DTYPES.index(t["dtype"]), len(t["shape"])])
        out += struct.pack(f"<{len(t['shape'])}H", *t["shape"]) + data[slice(*t["data_offsets"])]
    return out


def main():
    requite = sys.argv[1]
    os.makedirs(OUT, exist_ok=True)
    for name, entry in PEER_SEEDS.items():
        with open(os.path.join(OUT, name), "wb") as f: f.write(peer_seed(name, entry))
    with tempfile.TemporaryDirectory() as tmp:
        case, packed = os.path.join(tmp, "case.safetensors"), os.path.join(tmp, "packed.safetensors")
        write_case(case, random.Random(7))

        def save(name, change=lambda meta, tensors: None):
            with open(os.path.join(OUT, name), "wb") as f:
                f.write(seed_of(packed, change))

        for name, options in SEEDS.items():
            command = [requite, "layer", case, "-o", packed, "--comp", "rtn", *options.split()]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            save(name)
            if name == "w4a8_two":
                save("w4a8_input", with_input)
            if name == "ssvq":
                save("ssvq_shared", shared_book)


main()
