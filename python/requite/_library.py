# SPDX-License-Identifier: Apache-2.0
"""librequite.so: finding it, its functions' types (host/rq.h), and its errors as exceptions.

The library is the file that RQ_LIBRARY names, or the one that the wheel carries beside this file. It is loaded by the first
call that needs it and must be of the package's own version, since before 1.0 a version may change a struct.
"""
import ctypes
import enum
import os
import threading
from ctypes import POINTER, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p


class Status(enum.IntEnum):
    """Why a call failed: rq_status of host/rq_base.h."""
    ARG = -1          # an argument or an option's value is wrong
    NOMEM = -2        # out of memory
    IO = -3           # the operating system refused: open, write
    INPUT = -4        # a file or model is malformed, or holds impossible values
    UNSUPPORTED = -5  # well-formed, but not something the library handles
    NUMERIC = -6      # the numbers broke down
    DEVICE = -7       # OpenBLAS or another device library failed or is missing
    CANCELLED = -8    # stopped on request


class Error(RuntimeError):
    """A call of the library failed. str(e) is its sentence, e.status says which kind of failure."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = Status(status)


class LibraryError(ImportError):
    """librequite.so is not there, cannot be loaded, or is of another version."""


class LayerInfo(ctypes.Structure):  # rq_layer_info
    _fields_ = [("struct_size", c_size_t), ("loss_sym", c_double), ("loss_asym", c_double), ("rel_loss", c_double),
                ("bpw", c_double), ("damp_used", c_double), ("damp_retries", c_int), ("n_dead", c_int64)]


class LayerTensor(ctypes.Structure):  # rq_layer_tensor
    _fields_ = [("struct_size", c_size_t), ("name", c_char_p), ("dtype", c_char_p), ("rank", c_int), ("shape", c_int64 * 3),
                ("data", c_void_p)]


# name: (result, arguments). A function whose result is CHECKED returns an rq_status.
CHECKED = object()
FUNCTIONS = {
    "rq_version": (c_char_p, []),
    "rq_status_text": (c_char_p, [c_int]),
    "rq_last_error": (c_char_p, []),
    "rq_set_threads": (None, [c_int]),
    "rq_get_threads": (c_int, []),
    "rq_layer_quantize": (CHECKED, [POINTER(c_void_p), POINTER(c_float), POINTER(c_double), POINTER(c_double), c_int64, c_int64,
                                    c_char_p, POINTER(LayerInfo)]),
    "rq_layer_free": (None, [c_void_p]),
    "rq_layer_entry": (c_char_p, [c_void_p]),
    "rq_layer_count": (c_int, [c_void_p]),
    "rq_layer_at": (CHECKED, [c_void_p, c_int, POINTER(LayerTensor)]),
    "rq_model_open": (CHECKED, [POINTER(c_void_p), c_char_p]),
    "rq_model_close": (None, [c_void_p]),
    "rq_model_n_vocab": (c_int64, [c_void_p]),
    "rq_model_bpw": (c_double, [c_void_p]),
    "rq_model_logits": (CHECKED, [c_void_p, POINTER(c_float), POINTER(c_int32), c_int64]),
}

_REST = "Without it Gram and hooks work, and nothing else does"
_lock = threading.Lock()
_loaded = None


def fail(lib, status: int):
    """Raise what the last failing call on this thread left."""
    sentence = lib.rq_last_error().decode(errors="replace") or lib.rq_status_text(status).decode()
    raise Error(status, sentence)


def library_path() -> str:
    """The file that is, or would be, loaded: RQ_LIBRARY's, else the wheel's own."""
    return os.environ.get("RQ_LIBRARY") or os.path.join(os.path.dirname(os.path.abspath(__file__)), "librequite.so")


def _load():
    from . import __version__

    path = library_path()
    if not os.path.isfile(path):
        named = "RQ_LIBRARY names" if os.environ.get("RQ_LIBRARY") else "RQ_LIBRARY is not set, and this package carries none at"
        raise LibraryError(f"librequite.so is not there: {named} {path}. Install the package with `pip install ./python` from "
                           f"a checkout of Requite, or set RQ_LIBRARY to a librequite.so that was built from one. {_REST}")
    try:
        lib = ctypes.CDLL(os.path.abspath(path))
    except OSError as e:  # a library that it needs is missing, or another architecture's file
        raise LibraryError(f"{path} cannot be loaded: {e}. It needs jansson, PCRE2, utf8proc and xxHash: "
                           f"third_party/install.sh installs them. {_REST}") from e
    for name, (result, arguments) in FUNCTIONS.items():
        try:
            function = getattr(lib, name)
        except AttributeError:
            raise LibraryError(f"{path} has no {name}: it is not Requite's library, or of another version than this "
                               f"package's {__version__}. {_REST}") from None
        function.argtypes = arguments
        function.restype = c_int if result is CHECKED else result
        if result is CHECKED:
            function.errcheck = lambda status, _function, _arguments: fail(lib, status) if status != 0 else None
    found = lib.rq_version().decode()
    if found != __version__:
        raise LibraryError(f"{path} is version {found} and this package is version {__version__}: both must come from the "
                           f"same checkout. {_REST}")
    return lib


def library():
    """The loaded library; the first call loads it."""
    global _loaded
    with _lock:
        if _loaded is None: _loaded = _load()
        return _loaded


def version() -> str:
    """The C library's version, which is the package's."""
    return library().rq_version().decode()


def set_threads(n: int) -> None:
    """Worker threads, 1 to 1024; 0 means one per available core. For the whole process; results do not depend on it."""
    if not isinstance(n, int) or isinstance(n, bool): raise TypeError(f"n is {n!r}: a whole number is wanted")
    if not 0 <= n <= 1024: raise ValueError(f"n is {n}: 0 to 1024 threads can be asked for")
    library().rq_set_threads(n)


def get_threads() -> int:
    """Worker threads that the next call will use."""
    return library().rq_get_threads()
