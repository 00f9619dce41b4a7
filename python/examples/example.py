# SPDX-License-Identifier: Apache-2.0
"""example.py BUILD: run the extension of this folder (CMakeLists.txt says how it is built) and compare it with dense weights."""
import sys

import torch

torch.ops.load_library(f"{sys.argv[1]}/example.so")
GROUP = 32


def quantize(w):
    """Round to nearest on a symmetric 4-bit grid: words, scales, and what they stand for."""
    groups = w.reshape(len(w), -1, GROUP)
    scale = (groups.abs().amax(-1, keepdim=True) / 7).half()
    codes = (groups / scale.float()).round().clamp(-8, 7).reshape(w.shape)
    nibbles = (codes + 8).long().reshape(len(w), -1, 8)
    words = (nibbles << (torch.arange(8) * 4)).sum(-1)
    words = torch.where(words >= 1 << 31, words - (1 << 32), words).int()
    return words, scale.squeeze(-1), (codes.reshape(groups.shape) * scale.float()).reshape(w.shape)


torch.manual_seed(1)
gate, up, down = (quantize(torch.randn(shape)) for shape in ((256, 128), (256, 128), (128, 256)))
for n_tok in (1, 40):
    x = torch.randn(n_tok, 128)
    y = torch.ops.example.mlp(x, *gate[:2], *up[:2], *down[:2], GROUP)
    want = (torch.nn.functional.silu(x @ gate[2].T) * (x @ up[2].T)) @ down[2].T
    print(f"{n_tok} tokens: off by {(y - want).norm() / want.norm():.0e} of the dense result")
    assert torch.allclose(y, want, rtol=1e-4, atol=1e-4 * want.abs().max())
try:
    torch.ops.example.mlp(x.double(), *gate[:2], *up[:2], *down[:2], GROUP)
except RuntimeError as e:
    print(f"refused: {str(e).splitlines()[0]}")
