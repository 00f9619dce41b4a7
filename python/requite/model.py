# SPDX-License-Identifier: Apache-2.0
"""Models: rq_model_* of host/rq.h."""
import ctypes
import os
import weakref

import numpy as np

from ._arrays import like, token_ids
from ._library import library


class Model:
    """A Hugging Face folder (Llama, Mistral, Qwen2), a .gguf file, or a folder that `requite quantize` wrote. Weights stay in
    the mapped file; close(), or leaving a `with` block, lets go of it."""

    def __init__(self, path):
        self._lib = library()
        handle = ctypes.c_void_p()
        self._lib.rq_model_open(ctypes.byref(handle), os.fsencode(path))
        self._handle = handle.value
        self._close = weakref.finalize(self, self._lib.rq_model_close, self._handle)

    def _open(self) -> int:
        if not self._close.alive: raise ValueError("the model is closed")
        return self._handle

    @property
    def n_vocab(self) -> int:
        return self._lib.rq_model_n_vocab(self._open())

    @property
    def bpw(self) -> float:
        """Bits per weight of the block matrices, all side data counted."""
        return self._lib.rq_model_bpw(self._open())

    def logits(self, ids):
        """float32 [n_tok, n_vocab] for one sequence of token ids from position 0. ids: integers [n_tok]; a tensor gives a
        tensor. Raises Error (Status.INPUT) for ids out of the vocabulary."""
        handle = self._open()
        tokens = token_ids(ids, "ids")
        out = np.empty((len(tokens), self.n_vocab), np.float32)
        self._lib.rq_model_logits(handle, out.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
                                  tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)), len(tokens))
        return like(out, ids)

    def close(self) -> None:
        """Free the model. Not while another thread is in logits()."""
        self._close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *_exception) -> None:
        self.close()
