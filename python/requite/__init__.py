# SPDX-License-Identifier: Apache-2.0
"""Requite from Python: quantize linear layers below four bits and run what `requite quantize` wrote, over the C library.

quantize_linear   one layer, from its weights and the Gram matrix of its inputs
Gram, hooks       those Gram matrices, from your own calibration loop
Model             logits of a model folder or .gguf file
Error, Status     what the library refuses, with its sentence

Arrays are NumPy's, or anything on the CPU with DLPack or __array_interface__ (PyTorch tensors among them). PyTorch itself is
imported by hooks() alone, and used where the caller's own objects are tensors.
"""
try:
    import numpy as _numpy  # noqa: F401  (asked for here, so that the reason is the first thing said)
except ImportError as e:
    raise ImportError("requite needs NumPy, which this Python does not have: pip install numpy") from e

from ._library import Error, LibraryError, Status, get_threads, library_path, set_threads, version
from .gram import Gram, hooks
from .layer import Info, Result, quantize_linear
from .model import Model

__version__ = "0.1.0"
__all__ = ["Error", "Gram", "Info", "LibraryError", "Model", "Result", "Status", "get_threads", "hooks", "library_path",
           "quantize_linear", "set_threads", "version"]
