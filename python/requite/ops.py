# SPDX-License-Identifier: Apache-2.0
"""torch.ops.requite.*: products with packed matrices, their dense forms, int8 activations and Hadamard matrices (docs/python.md).

Importing this loads requite_torch.so, which the package has where it was installed beside PyTorch 2.10 or later. Here are the
operators' fake kernels, so that torch.compile and export see shapes without running anything, and their gradients.
"""
import ctypes
import os

from ._library import library, library_path
from ._torch import torch_for

MINIMUM = (2, 10)


def _import_torch():
    rest = "Quantizing and Model work without it"
    torch = torch_for("requite.ops and requite.nn", MINIMUM, rest)
    path = os.path.join(os.path.dirname(os.path.abspath(library_path())), "requite_torch.so")
    if not os.path.isfile(path):
        raise ImportError(f"torch.ops.requite is not there: {path} was not built, as happens where PyTorch is not found when the "
                          f"package is installed. Now that it is here: pip install --force-reinstall ./python in the checkout. {rest}")
    library()  # first: requite_torch.so takes librequite.so.0 from the process
    try:
        torch.ops.load_library(path)
    except OSError as e:
        raise ImportError(f"{path} cannot be loaded: {e}. {rest}") from e
    return torch


torch = _import_torch()
_ops = torch.ops.requite


def _load_cuda():
    """None, or the reason why there are no CUDA kernels."""
    path = os.path.join(os.path.dirname(os.path.abspath(library_path())), "requite_torch_cuda.so")
    if not os.path.isfile(path):
        return (f"{path} was not built: it takes nvcc and a PyTorch for CUDA, and pip install ./python -C cmake.define.RQ_TORCH_CUDA=ON "
                "in the checkout")
    if torch.version.cuda is None: return f"this PyTorch, {torch.__version__}, is built without CUDA"
    try:
        torch.ops.load_library(path)
    except OSError as e:
        return f"{path} cannot be loaded: {e}"
    return _release_trouble(path)


def _release_trouble(path: str):
    """None, or why the CUDA run time that is linked into the kernels cannot work with this machine's driver."""
    linked, driver = ctypes.c_int(), ctypes.c_int()
    ctypes.CDLL(path).requite_torch_cuda_releases(ctypes.byref(linked), ctypes.byref(driver))
    (have, _), (runs, minor) = (divmod(v.value, 1000) for v in (linked, driver))
    if driver.value == 0: return "this machine has no NVIDIA driver"
    if have <= runs: return None  # within a major release, and with older ones, a driver works
    return (f"{path} is built with CUDA {have}, and this machine's NVIDIA driver runs CUDA {runs}.{minor // 10}: it takes a newer driver, or pip "
            f"install ./python -C cmake.define.RQ_TORCH_CUDA=ON with the nvcc of CUDA {runs}. Operators on the CPU work without it")


_no_kernels = _load_cuda()


def why_no_cuda():
    """None where the operators run on CUDA devices, else the reason, as a sentence."""
    if _no_kernels is not None: return _no_kernels
    return None if torch.cuda.is_available() else "PyTorch finds no CUDA device"


def _refuse(condition: bool, words: str) -> None:
    if condition: raise RuntimeError(words)


def _fake(name: str):
    """Register a fake kernel. Before it runs the tensors must be on one device: where one is on no real device, nothing else asks."""
    names = [a.name for a in getattr(_ops, name).default._schema.arguments]

    def register(kernel):
        def checked(*args):
            first = None
            for i, t in enumerate(args):
                if not isinstance(t, torch.Tensor): continue
                if first is None: first = i
                _refuse(t.device != args[first].device, f"{names[i]} is on {t.device}, and {names[first]} on {args[first].device}")
            return kernel(*args)

        torch.library.register_fake(f"requite::{name}", checked)
        return kernel

    return register


def _check(x, name: str, width=None, stored=None) -> None:
    """Float rows in x. stored: (name, tensor) whose words a row, for x's columns, must be `width`."""
    if x.device.type == "cuda": _half(x, name)
    else: _refuse(x.dtype != torch.float32, f"{name} has dtype {str(x.dtype)[6:]}, not float32")
    _refuse(x.dim() < 1, f"{name} has shape {list(x.shape)}: rows [..., n] are wanted")
    if stored is not None:
        have = stored[1].shape[-1]
        _refuse(have != width, f"{stored[0]} has {have} words a row, and {name} of {x.shape[-1]} columns goes with {width}")


def _rows(x, n_out):
    return x.new_empty((*x.shape[:-1], n_out))


def _words(n, bits):
    return -(-n * bits // 32)


def _log2(n) -> int:
    return int(n).bit_length() - 1


# ---- products ------------------------------------------------------------------------------------------------------------

@_fake("linear_grid")
def _(x, words, scale, zero, perm, bias, bits, group):
    _check(x, "x", _words(x.shape[-1], bits), ("words", words))
    return _rows(x, words.shape[0])


@_fake("unpack_grid")
def _(words, scale, zero, perm, n_in, bits, group):
    return words.new_empty((words.shape[0], n_in), dtype=torch.float32)


@_fake("linear_ssvq")
def _(x, codes, signs, book, book_scale, scale, outlier, outlier_cols, outlier_scale, bias, book_cols, group):
    vec = -(-x.shape[-1] // book.shape[2])
    _check(x, "x", _words(vec, _log2(book.shape[1])), ("codes", codes))
    return _rows(x, codes.shape[0])


@_fake("unpack_ssvq")
def _(codes, signs, book, book_scale, scale, outlier, outlier_cols, outlier_scale, n_in, book_cols, group):
    return codes.new_empty((codes.shape[0], n_in), dtype=torch.float32)


@_fake("linear_vq")
def _(x, codes, book, codes2, book2, book_of, scale, col_scale, col_bias, outlier, outlier_cols, outlier_scale, bias, n_out, book_cols,
      group, vec_out):
    n_code = x.shape[-1] if vec_out else -(-x.shape[-1] // book.shape[2])
    _check(x, "x", _words(n_code, _log2(book.shape[1])), ("codes", codes))
    return _rows(x, n_out)


@_fake("unpack_vq")
def _(codes, book, codes2, book2, book_of, scale, col_scale, col_bias, outlier, outlier_cols, outlier_scale, n_out, n_in, book_cols, group,
      vec_out):
    return codes.new_empty((n_out, n_in), dtype=torch.float32)


@_fake("linear_w4a8")
def _(x, words, scale, zero, step, base, in_scale, bias, group, hadamard):
    _check(x, "x", _words(x.shape[-1], 4), ("words", words))
    return _rows(x, words.shape[0])


@_fake("unpack_w4a8")
def _(words, scale, zero, step, base, in_scale, n_in, group, hadamard):
    return words.new_empty((words.shape[0], n_in), dtype=torch.float32)


@_fake("gemm_w4a8")
def _(q, q_scale, q_sum, words, scale, zero, step, base, bias, group):
    _refuse(q.dtype != torch.int8, f"q has dtype {str(q.dtype)[6:]}, not int8")
    return q.new_empty((q.shape[0], words.shape[0]), dtype=torch.float32)


# ---- activations ----------------------------------------------------------------------------------------------------------

def _int8_rows(x):
    n_tok = x.numel() // x.shape[-1]
    return (x.new_empty((n_tok, x.shape[-1]), dtype=torch.int8), x.new_empty((n_tok,), dtype=torch.float32),
            x.new_empty((n_tok,), dtype=torch.int32))


@_fake("quantize_rows")
def _(x, factor, hadamard):
    _check(x, "x")
    return _int8_rows(x)


@_fake("quantize_rmsnorm")
def _(x, residual, weight, eps, factor, hadamard):
    _check(x, "x")
    return (*_int8_rows(x), x.new_empty(x.shape if residual is not None else (0,)))


@_fake("quantize_gated")
def _(gate, up, factor, hadamard):
    _check(gate, "gate")
    return _int8_rows(gate)


def _check_turned(x):
    """On a CUDA device rows of float32 too."""
    if x.device.type != "cuda" or x.dtype != torch.float32: _check(x, "x")
    _refuse(x.dim() < 1, f"x has shape {list(x.shape)}: rows [..., n] are wanted")


@_fake("hadamard")
def _(x, order, transposed):
    _check_turned(x)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_fake("rotate")
def _(x, kind, seed, inverse):
    _check_turned(x)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


# ---- CUDA: weights repacked for the kernels. For inference: no gradients -----------------------------------------------------

def _fake_tiles(like):
    return (like.new_empty((torch.library.get_ctx().new_dynamic_size(),), dtype=torch.uint8), like.new_empty((20,), dtype=torch.int64))


@_fake("tiles_grid")
def _(words, *_rest):
    return _fake_tiles(words)


@_fake("tiles_ssvq")
def _(codes, *_rest):
    return _fake_tiles(codes)


@_fake("tiles_vq")
def _(codes, *_rest):
    return _fake_tiles(codes)


@_fake("tiles_w4a8")
def _(words, *_rest):
    return _fake_tiles(words)


def _half(x, name):
    _refuse(x.dtype not in (torch.float16, torch.bfloat16), f"{name} has dtype {str(x.dtype)[6:]}: float16 or bfloat16 is wanted on a CUDA device")


@_fake("linear_tiles")
def _(x, tiles, perm, bias, layout):
    _half(x, "x")
    _refuse(x.shape[-1] != layout[2], f"x has rows of {x.shape[-1]}, and the matrix {layout[2]} columns")
    return x.new_empty((*x.shape[:-1], layout[1]))


@_fake("gemm_tiles")
def _(q, q_scale, q_sum, tiles, bias, layout, bfloat16):
    _refuse(q.dtype != torch.int8, f"q has dtype {str(q.dtype)[6:]}, not int8")
    return q.new_empty((q.shape[0], layout[1]), dtype=torch.bfloat16 if bfloat16 else torch.float16)


@_fake("unpack_tiles")
def _(tiles, layout, bfloat16):
    return tiles.new_empty((layout[1], layout[2]), dtype=torch.bfloat16 if bfloat16 else torch.float16)


# ---- gradients: of x and bias. Packed matrices have none, and the rounding of x to int8 counts as the identity. ------------

def _linear_gradient(name: str, n_args: int, bias_at: int, dense):
    def setup(ctx, inputs, output):
        ctx.n_in = inputs[0].shape[-1]
        ctx.has_bias = inputs[bias_at] is not None
        ctx.save_for_backward(*(t for t in inputs[1:] if isinstance(t, torch.Tensor)))
        ctx.where = [i for i, t in enumerate(inputs) if i and isinstance(t, torch.Tensor)]
        ctx.rest = [None if isinstance(t, torch.Tensor) else t for t in inputs]

    def backward(ctx, grad):
        args = list(ctx.rest)
        for i, t in zip(ctx.where, ctx.saved_tensors): args[i] = t
        grads = [None] * n_args
        if ctx.needs_input_grad[0]: grads[0] = grad @ dense(args, ctx.n_in)
        if ctx.has_bias and ctx.needs_input_grad[bias_at]: grads[bias_at] = grad.reshape(-1, grad.shape[-1]).sum(0)
        return tuple(grads)

    torch.library.register_autograd(f"requite::{name}", backward, setup_context=setup)


_linear_gradient("linear_grid", 8, 5, lambda a, n: _ops.unpack_grid(*a[1:5], n, *a[6:]))
_linear_gradient("linear_ssvq", 12, 9, lambda a, n: _ops.unpack_ssvq(*a[1:9], n, *a[10:]))
_linear_gradient("linear_vq", 17, 12, lambda a, n: _ops.unpack_vq(*a[1:12], a[13], n, *a[14:]))
_linear_gradient("linear_w4a8", 10, 7, lambda a, n: _ops.unpack_w4a8(*a[1:7], n, *a[8:]))


def _hadamard_setup(ctx, inputs, output):
    ctx.order, ctx.transposed = inputs[1], inputs[2]


def _hadamard_backward(ctx, grad):
    return _ops.hadamard(grad.contiguous(), ctx.order, not ctx.transposed), None, None


torch.library.register_autograd("requite::hadamard", _hadamard_backward, setup_context=_hadamard_setup)


def _rotate_setup(ctx, inputs, output):
    ctx.rest = inputs[1:]


def _rotate_backward(ctx, grad):
    kind, seed, inverse = ctx.rest
    return _ops.rotate(grad.contiguous(), kind, seed, not inverse), None, None, None


torch.library.register_autograd("requite::rotate", _rotate_backward, setup_context=_rotate_setup)
