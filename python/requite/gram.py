# SPDX-License-Identifier: Apache-2.0
"""The matrices that quantize_linear wants, from your own calibration loop: H = sum x x^T and D = sum (x_fp - x) x^T."""
from collections import deque
from typing import Optional

import numpy as np

from ._arrays import as_numpy, check_finite
from ._torch import torch_for

CHUNK = 4096  # rows that are widened to float64 at once


class Gram:
    """Sums in float64 over batches of a layer's inputs. h [n, n] is the sum of x x^T; d [n, n] that of (x_fp - x) x^T, or None
    where no x_fp was given; count the rows seen. Neither is divided by count: quantize_linear takes any multiple."""

    def __init__(self, n: int):
        if not isinstance(n, (int, np.integer)) or isinstance(n, bool): raise TypeError(f"n is {n!r}: a whole number is wanted")
        if n < 1: raise ValueError(f"n is {n}: a layer has at least one input")
        self.n = int(n)
        self.h = np.zeros((self.n, self.n))
        self.d: Optional[np.ndarray] = None
        self.count = 0

    def _checked(self, x, name: str) -> np.ndarray:
        a = as_numpy(x, name)
        if a.dtype.kind != "f": raise TypeError(f"{name} has dtype {a.dtype}: floats are wanted")
        if a.ndim < 1 or a.shape[-1] != self.n: raise ValueError(f"{name} has shape {a.shape}: the last must be {self.n}")
        check_finite(a, name)
        return a

    def add(self, x, x_fp=None) -> "Gram":
        """Add a batch. x [..., n]: inputs in the model quantized so far, any float type; x_fp, the same shape: those of the
        original model for the same samples, with every batch or with none. Nothing is added when either is refused."""
        batch = self._checked(x, "x")
        fp = None if x_fp is None else self._checked(x_fp, "x_fp")
        if fp is not None and fp.shape != batch.shape: raise ValueError(f"x_fp has shape {fp.shape}, and x {batch.shape}")
        x_rows = batch.reshape(-1, self.n)
        fp_rows = None if fp is None else fp.reshape(-1, self.n)
        if self.count and len(x_rows) and (fp_rows is None) != (self.d is None):
            raise ValueError("x_fp must be given with every batch or with none: h and d are sums over the same samples")
        if fp_rows is not None and self.d is None: self.d = np.zeros((self.n, self.n))
        for begin in range(0, len(x_rows), CHUNK):
            part = x_rows[begin:begin + CHUNK].astype(np.float64)
            self.h += part.T @ part
            if fp_rows is not None: self.d += (fp_rows[begin:begin + CHUNK] - part).T @ part
        self.count += len(x_rows)
        return self


class Hooks:
    """What hooks() returns: grams, {name: Gram}; remove() takes the hooks off, as does leaving a `with` block."""

    def __init__(self):
        self.grams: dict = {}
        self._handles: list = []

    def remove(self) -> None:
        for handle in self._handles: handle.remove()
        self._handles.clear()

    def __enter__(self) -> "Hooks":
        return self

    def __exit__(self, *_exception) -> None:
        self.remove()


def hooks(model, names=None, fp=None) -> Hooks:
    """Gather Gram matrices while a PyTorch model runs.

    model  a torch.nn.Module on the CPU; names: of its torch.nn.Linear modules, as named_modules() gives them; None: all
    fp     the original model, with modules of the same names, for d. Run it on each batch first, then model on the same batch.

    with requite.hooks(model, ["layers.0.mlp.up_proj"], fp=original) as taken:
        for batch in batches:
            original(batch); model(batch)
    g = taken.grams["layers.0.mlp.up_proj"]        # g.h and g.d for quantize_linear
    """
    torch = torch_for("requite.hooks", rest="Gram.add takes arrays without it")
    modules = dict(model.named_modules())
    if isinstance(names, str): raise TypeError(f"names is {names!r}: a list of names is wanted")
    names = [n for n, m in modules.items() if isinstance(m, torch.nn.Linear)] if names is None else list(names)
    originals = None if fp is None else dict(fp.named_modules())
    for name in names:  # all of them before the first hook
        for which, found in (("model", modules), ("fp", originals)):
            if found is None: continue
            if name not in found: raise ValueError(f"names: {which} has no module {name!r}")
            if not isinstance(found[name], torch.nn.Linear):
                raise TypeError(f"names: {name!r} of {which} is a {type(found[name]).__name__}, not a torch.nn.Linear")
    taken = Hooks()
    for name in names:
        taken.grams[name] = gram = Gram(modules[name].in_features)
        waiting = None if originals is None else deque()  # inputs of fp that model has not come to yet
        if waiting is not None:
            taken._handles.append(originals[name].register_forward_pre_hook(_keeper(name, waiting)))
        hook = modules[name].register_forward_pre_hook(_adder(gram, name, waiting))
        taken._handles.append(hook)
    return taken


def _input(args, name: str):
    if not args: raise TypeError(f"hooks: {name} is called with its input as a keyword; by position is wanted")
    return args[0]


def _keeper(name: str, waiting: deque):
    def keep(_module, args):
        waiting.append(_input(args, name).detach().clone())  # who owns it may overwrite it before model runs
    return keep


def _adder(gram: Gram, name: str, waiting: Optional[deque]):
    def add(_module, args):
        if waiting is not None and not waiting:
            raise RuntimeError(f"hooks: {name} of model got an input that fp had not seen; run fp on each batch first")
        gram.add(_input(args, name), None if waiting is None else waiting.popleft())
    return add
