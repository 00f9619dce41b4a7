# SPDX-License-Identifier: Apache-2.0
"""Requite from Python: quantize linear layers below four bits and run what `requite quantize` wrote, over the C library.

quantize_linear   one layer, from its weights and the Gram matrix of its inputs
save              packed matrices as a safetensors file
Gram, hooks       those Gram matrices, from your own calibration loop
Model             logits of a model folder or .gguf file
Error, Status     what the library refuses, with its sentence
ops, nn, load     with PyTorch 2.10 or later: torch.ops.requite, QuantLinear, a transformers model on them

Arrays are NumPy's, or anything on the CPU with DLPack or __array_interface__ (PyTorch tensors among them). PyTorch itself is
imported by hooks(), ops, nn, checkpoint, load and ssvq alone, and used where the caller's own objects are tensors.
"""
try:
    import numpy as _numpy  # noqa: F401  (asked for here, so that the reason is the first thing said)
except ImportError as e:
    raise ImportError("requite needs NumPy, which this Python does not have: pip install numpy") from e

from ._library import Error, LibraryError, Status, get_threads, library_path, set_threads, version
from .gram import Gram, hooks
from .layer import Info, Packed, Result, quantize_linear, save
from .model import Model

__version__ = "0.1.0"
__all__ = ["Error", "Gram", "Info", "LibraryError", "Model", "Packed", "Result", "Status", "get_threads", "hooks",
           "library_path", "quantize_linear", "save", "set_threads", "version"]

_TORCH = {"ops": "ops", "nn": "nn", "checkpoint": "checkpoint", "load": "checkpoint", "Checkpoint": "checkpoint", "ssvq": "ssvq"}


def __getattr__(name):
    """What needs PyTorch is imported when it is first used."""
    if name not in _TORCH: raise AttributeError(f"module 'requite' has no attribute {name!r}")
    import importlib
    module = importlib.import_module("." + _TORCH[name], __name__)
    return module if name == _TORCH[name] else getattr(module, name)
