# SPDX-License-Identifier: Apache-2.0
"""Other people's arrays as NumPy's, checked, in the type and order that the C library reads.

Taken are NumPy arrays, objects with __array_interface__, objects with DLPack and PyTorch tensors, on the CPU. What is already
rows of the wanted type in memory is used where it lies; everything else is copied, the caller's own data never written to.
"""
import sys

import numpy as np

DLPACK_CPU = 1  # kDLCPU of dlpack.h


def is_torch(x) -> bool:
    """Whether x is a tensor. PyTorch is not imported for the question: who made a tensor has done so."""
    torch = sys.modules.get("torch")
    return torch is not None and hasattr(torch, "Tensor") and isinstance(x, torch.Tensor)


def as_numpy(x, name: str) -> np.ndarray:
    """x as a NumPy array over the same memory where that is possible. name is the argument's, for messages."""
    if isinstance(x, np.ndarray): return x
    if is_torch(x):
        if x.device.type != "cpu": raise ValueError(f"{name} is on {x.device}: only the CPU's arrays are taken; {name}.cpu()")
        if str(x.layout) != "torch.strided": raise TypeError(f"{name} has layout {x.layout}: a dense tensor is wanted; {name}.to_dense()")
        x = x.detach()
        last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride())) + x.storage_offset()
        if x.numel() and x.untyped_storage().nbytes() < (last + 1) * x.element_size():
            raise ValueError(f"{name} has no memory for its shape {tuple(x.shape)}: its storage was freed or shrunk")
        try:
            return (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()  # NumPy has no bfloat16; float32 holds it exactly
        except (TypeError, RuntimeError) as e:  # conjugated, or of a subclass without memory
            raise TypeError(f"{name}: this tensor cannot be read as an array: {e}") from e
    if hasattr(x, "__array_interface__"): return np.asarray(x)
    if hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__"):
        device = x.__dlpack_device__()
        if int(device[0]) != DLPACK_CPU:
            raise ValueError(f"{name} is on DLPack device {tuple(map(int, device))}: only the CPU's arrays are taken")
        try:
            return np.from_dlpack(x)
        except (BufferError, RuntimeError) as e:
            raise TypeError(f"{name}: its DLPack data cannot be read: {e}") from e
    raise TypeError(f"{name} is a {type(x).__name__}: an array is wanted (NumPy, or with DLPack or __array_interface__)")


def floats(x, name: str, dtype, shape=None) -> np.ndarray:
    """x as C-ordered floats of dtype (float32 or float64), finite, two-dimensional or of the shape given.

    float16, bfloat16, float32 and float64 are taken. Widening is exact; float64 to float32 rounds to nearest, and a number
    too large for float32 is refused. Whole numbers are refused: they are more often codes than weights.
    """
    a = as_numpy(x, name)
    if a.dtype.kind != "f" or a.dtype.itemsize > 8:
        raise TypeError(f"{name} has dtype {a.dtype}: float16, bfloat16, float32 or float64 is wanted")
    if shape is None and a.ndim != 2:
        raise ValueError(f"{name} has shape {a.shape}: a matrix [n_out, n_in] is wanted")
    if shape is not None and a.shape != shape: raise ValueError(f"{name} has shape {a.shape}, not {shape}")
    if a.size == 0: raise ValueError(f"{name} has shape {a.shape}: it is empty")
    check_finite(a, name)
    with np.errstate(over="ignore"):
        out = np.require(a, dtype=dtype, requirements=["C", "A"])
    if out.dtype.itemsize < a.dtype.itemsize and not np.isfinite(out).all():
        raise ValueError(f"{name} holds a number that {np.dtype(dtype)} cannot: {np.abs(a).max():g}")
    return out


def check_finite(a: np.ndarray, name: str) -> None:
    finite = np.isfinite(a)
    if not finite.all():
        where = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(f"{name}{list(where)} is {a[where]}: every element must be finite")


def token_ids(x, name: str) -> np.ndarray:
    """x, a sequence of whole numbers or an array [n_tok] of any integer type, as int32."""
    a = np.asarray(x) if isinstance(x, (list, tuple, range)) else as_numpy(x, name)
    if a.size == 0: raise ValueError(f"{name} is empty: at least one token is wanted")
    if a.dtype.kind not in "iu": raise TypeError(f"{name} has dtype {a.dtype}: whole numbers are wanted")
    if a.ndim != 1: raise ValueError(f"{name} has shape {a.shape}: one sequence [n_tok] is wanted")
    low, high = int(a.min()), int(a.max())
    if low < -2**31 or high >= 2**31: raise ValueError(f"{name} holds {low if low < 0 else high}, which is no int32")
    return np.require(a, dtype=np.int32, requirements=["C", "A"])


def like(array, example):
    """array as a tensor over the same memory where example is one."""
    if array is None or not is_torch(example): return array
    return sys.modules["torch"].from_numpy(array)
