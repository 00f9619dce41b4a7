# SPDX-License-Identifier: Apache-2.0
"""SSVQ matrices (docs/formats.md) whose signs, codebooks and scales PyTorch can train.

    W[i][j] = scale[i][j / group] sign(latent[i][j]) book[b][code(i, j / V)][j % V]

Codes stay. A sign is that of a latent number of its own, and its gradient goes straight through: dL/dlatent = dL/dW scale book,
as if sign(latent) were latent (Li et al., SSVQ, arXiv:2503.08668). dL/dbook sums over all vectors with that code, dL/dscale over
the group. Parameters are in units that make one learning rate fit all matrices: latents and magnitudes in about the root mean
square of the codebook, scales as a ratio to what they were.
"""
import numpy as np

from ._container import Container, pack_signs, unpack_bits
from ._torch import torch_for

torch = torch_for("requite.ssvq")
nn = torch.nn

SMALLEST_LATENT = 1e-3  # of a weight whose magnitude is 0: it has a sign in the file


def power_of_two(x) -> float:
    """The power of two nearest to the root mean square of x: dividing by it and multiplying again gives the same numbers."""
    rms = float(torch.as_tensor(x).double().square().mean().sqrt())
    return 2.0 ** round(np.log2(rms)) if rms > 0 else 1.0


class _Weight(torch.autograd.Function):
    """[n_out, n_in] from latents [n_out, n_in], magnitudes [n_codes, V] and scales [n_out, n_group]."""

    @staticmethod
    def forward(ctx, latent, magnitude, scale, lin):
        n_out, n_in = lin.n_out, lin.n_in
        signed = torch.copysign(magnitude.index_select(0, lin.index).view(n_out, -1)[:, :n_in], latent[:, :n_in])
        if lin.outlier is not None: signed[:, lin.outlier_cols] = 0
        ctx.save_for_backward(signed, scale)
        ctx.lin = lin
        weight = lin.spread(scale) * signed
        if lin.outlier is not None: weight[:, lin.outlier_cols] = lin.outlier
        return weight

    @staticmethod
    def backward(ctx, grad):
        signed, scale = ctx.saved_tensors
        lin = ctx.lin
        d_latent = d_magnitude = d_scale = None
        if ctx.needs_input_grad[2]: d_scale = lin.sum_groups(grad * signed)
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]: grad = grad * lin.spread(scale)
        if ctx.needs_input_grad[0]: d_latent = lin.pad(grad * signed.abs())
        if ctx.needs_input_grad[1]:
            sign_bits = signed.view(torch.int32).bitwise_and(-2**31)  # of zeros too
            grad = grad.view(torch.int32).bitwise_xor(sign_bits).view(torch.float32)
            if lin.outlier is not None: grad[:, lin.outlier_cols] = 0
            rows = lin.pad(grad).reshape(-1, lin.vec_len)
            # The vectors of each code, one code after the other: sums of rows, much faster than adding each row to its code's.
            d_magnitude = nn.functional.embedding_bag(lin.by_code, rows, lin.first_of_code, mode="sum")
        return d_latent, d_magnitude, d_scale, None


class SSVQBook(nn.Module):
    """Magnitudes that matrices share: [n_book * n_codes, V], in units of `unit`. `stored` is the file's array, float16 or uint8."""

    def __init__(self, stored: np.ndarray, book_scale: np.ndarray):
        super().__init__()
        self.stored, self.book_scale = np.array(stored), np.array(book_scale, np.float32)
        value = torch.from_numpy(self.stored.astype(np.float32) * self.book_scale[:, None, None])
        self.unit = power_of_two(value)
        self.magnitude = nn.Parameter(value.reshape(-1, stored.shape[2]) / self.unit)
        self._start = self.magnitude.detach().clone()

    @torch.no_grad()
    def clamp(self) -> None:
        """Magnitudes stop at zero: what is beyond would be a sign."""
        self.magnitude.clamp_(min=0)

    @torch.no_grad()
    def tensors(self) -> dict:
        """weight_book (and, for bytes, weight_book_scale) as the file has them; its own bytes where nothing changed."""
        value = (self.magnitude * self.unit).double().numpy().reshape(self.stored.shape)
        same = (self.magnitude == self._start).numpy().reshape(self.stored.shape[0], -1).all(1)
        if self.stored.dtype == np.float16: return {"weight_book": value.astype(np.float16)}
        book, scale = self.stored.copy(), self.book_scale.copy()
        for b in np.flatnonzero(~same):
            top = np.float32(value[b].max() / 255)
            scale[b] = top if top > 0 else 1
            book[b] = np.clip(np.rint(value[b] / np.float64(scale[b])), 0, 255).astype(np.uint8)
        return {"weight_book": book, "weight_book_scale": scale}


class SSVQLinear(nn.Module):
    """y = x W^T + bias with W as above.

    latent         [n_out, columns up to a multiple of V]: only signs count
    book           SSVQBook, perhaps another matrix' too
    scale_ratio    [n_out, n_group], 1 at the start
    """

    def __init__(self, entry: dict, tensors: dict, book: SSVQBook, bias=None, alpha: float = 1.0):
        """entry: the metadata's of this matrix. tensors: {"weight_codes": array, ...} as in the file. alpha: latents start
        at alpha times the weight in units of its row's scale and the codebook, so that small weights are the first to turn."""
        super().__init__()
        n_out, n_in = (int(n) for n in tensors["weight_shape"])
        v = entry["vec_len"]
        n_vec = -(-n_in // v)
        self.n_out, self.n_in, self.vec_len, self.group = n_out, n_in, v, entry["group"]
        self.n_pad = n_vec * v
        self.book = book
        codes = unpack_bits(tensors["weight_codes"], entry["code_bits"], n_vec).astype(np.int64)
        if codes.max() >= entry["n_codes"]: raise ValueError(f"a code is {codes.max()}, of {entry['n_codes']}")
        index = torch.from_numpy((codes + (np.arange(n_vec) * v // entry["book_cols"]) * entry["n_codes"]).reshape(-1))
        buffers = {"index": index.int(), "by_code": torch.argsort(index, stable=True).int()}
        counts = torch.bincount(index, minlength=len(book.magnitude))
        buffers["first_of_code"] = (torch.cumsum(counts, 0) - counts).int()
        buffers["scale"] = torch.from_numpy(tensors["weight_scale"].astype(np.float32))
        if entry.get("n_outlier", 0):
            buffers["outlier_cols"] = torch.from_numpy(tensors["weight_outlier_cols"].astype(np.int64))
            buffers["outlier"] = torch.from_numpy(tensors["weight_outlier"].astype(np.float32) * tensors["weight_outlier_scale"].astype(np.float32))
        else:
            buffers["outlier_cols"] = buffers["outlier"] = None
        for name, b in buffers.items(): self.register_buffer(name, b, persistent=False)
        self.bias = None if bias is None else nn.Parameter(torch.from_numpy(bias), requires_grad=False)
        negative = torch.from_numpy(unpack_bits(tensors["weight_signs"], 1, self.n_pad).astype(np.bool_))
        size = book.magnitude.detach().index_select(0, self.index).view(n_out, self.n_pad)
        size = (alpha * size).clamp_(min=SMALLEST_LATENT)
        self.latent = nn.Parameter(torch.where(negative, -size, size))
        self.scale_ratio = nn.Parameter(torch.ones_like(self.scale))

    def spread(self, per_group):
        """[n_out, n_group] as something that broadcasts to [n_out, n_in]."""
        if per_group.shape[1] == 1: return per_group
        return per_group.repeat_interleave(self.group, 1)[:, :self.n_in]

    def sum_groups(self, x):
        """The transpose of spread."""
        n_group = self.scale.shape[1]
        if n_group == 1: return x.sum(1, keepdim=True)
        return nn.functional.pad(x, (0, n_group * self.group - self.n_in)).view(self.n_out, n_group, self.group).sum(2)

    def pad(self, x):
        """Zeros after the last column, up to whole vectors."""
        return x if self.n_pad == self.n_in else nn.functional.pad(x, (0, self.n_pad - self.n_in))

    def weight(self):
        """[n_out, n_in], differentiable in latent, book.magnitude and scale_ratio."""
        return _Weight.apply(self.latent, self.book.magnitude, self.scale * self.scale_ratio * self.book.unit, self)

    def forward(self, x):
        return nn.functional.linear(x, self.weight(), self.bias)

    @torch.no_grad()
    def tensors(self) -> dict:
        """weight_signs and weight_scale as the file has them. Signs of columns past n_in and of outlier columns do not move."""
        return {"weight_signs": pack_signs(torch.signbit(self.latent).numpy()),
                "weight_scale": (self.scale * self.scale_ratio).numpy().astype(np.float16)}


class SignFreezer:
    """Progressive freezing: a sign that keeps turning is set to what it was most of the time and stays (SSVQ, section 3.3).

    Each step moves an average of "has turned" of each sign, f = decay f + (1 - decay) turned. Every `every` steps those whose f
    is above a threshold, which falls from `first` to `last` as half a cosine over the run, are frozen at the sign that they had
    in more steps. The paper gives the rule and not its constants: those here are ours.
    """

    def __init__(self, modules, steps: int, every: int = 20, first: float = 0.3, last: float = 0.06, decay: float = 0.95):
        if not 0 < decay < 1: raise ValueError(f"decay is {decay}: between 0 and 1 is wanted")
        if every < 1: raise ValueError(f"every is {every}: at least one step is wanted")
        self.modules, self.steps, self.every, self.first, self.last, self.decay = list(modules), max(steps, 1), every, first, last, decay
        self.step_count = 0
        self.state = []
        for m in self.modules:
            negative = torch.signbit(m.latent.detach())
            self.state.append({"negative": negative, "start": negative.clone(), "f": torch.zeros_like(m.latent, dtype=torch.float16),
                               "balance": torch.zeros_like(m.latent, dtype=torch.int16), "frozen": torch.zeros_like(negative)})

    def threshold(self) -> float:
        done = min(self.step_count / self.steps, 1)
        return self.last + (self.first - self.last) * (1 + np.cos(np.pi * done)) / 2

    @torch.no_grad()
    def step(self) -> None:
        """After each step of the optimizer: holds what is frozen, looks at what turned, freezes when it is time."""
        self.step_count += 1
        freeze_now = self.step_count % self.every == 0
        for m, s in zip(self.modules, self.state):
            latent = m.latent.data
            if s["frozen"].any(): latent.copy_(torch.where(s["frozen"], torch.where(s["negative"], -1.0, 1.0), latent))
            now = torch.signbit(latent)
            s["f"].mul_(self.decay).add_(now ^ s["negative"], alpha=1 - self.decay)
            s["balance"].add_(now, alpha=-2).add_(1)  # steps at + less steps at -
            s["negative"] = now
            if not freeze_now: continue
            new = (s["f"] > self.threshold()) & ~s["frozen"]
            majority = torch.where(s["balance"] == 0, s["start"], s["balance"] < 0)
            s["negative"] = torch.where(new, majority, now)
            s["frozen"] |= new
            latent.copy_(torch.where(new, torch.where(majority, -1.0, 1.0), latent))

    def counts(self) -> dict:
        """Signs in all, frozen ones, and those that are not what they were at the start."""
        return {"signs": sum(s["negative"].numel() for s in self.state), "frozen": sum(int(s["frozen"].sum()) for s in self.state),
                "turned": sum(int((s["negative"] ^ s["start"]).sum()) for s in self.state)}

    def state_dict(self) -> dict:
        return {"step_count": self.step_count, "state": self.state}

    def load_state_dict(self, saved: dict) -> None:
        self.step_count, self.state = saved["step_count"], saved["state"]


def load_ssvq(file: Container, alpha: float = 1.0) -> dict:
    """{matrix: SSVQLinear} of all of a file's ssvq matrices, codebooks shared as there."""
    books, made = {}, {}
    for name, entry in file.linears.items():
        if entry["format"] != "ssvq": continue
        owner = entry.get("book", name)
        if owner not in books:
            stored = file.array(owner + ".weight_book")
            has_scale = owner + ".weight_book_scale" in file.tensors
            books[owner] = SSVQBook(stored, file.array(owner + ".weight_book_scale") if has_scale else np.ones(len(stored), np.float32))
        tensors = {t[len(name) + 1:]: file.array(t) for t in file.tensors if t.startswith(name + ".weight_")}
        bias = file.floats(name + ".bias") if name + ".bias" in file.tensors else None
        made[name] = SSVQLinear(entry, tensors, books[owner], bias, alpha)
    return made


def stored_tensors(file: Container, linears: dict) -> dict:
    """{tensor: array} of all matrices and codebooks, for Container.copy."""
    out = {f"{name}.{key}": a for name, lin in linears.items() for key, a in lin.tensors().items()}
    for owner in {file.linears[name].get("book", name) for name in linears}:
        user = next(lin for name, lin in linears.items() if file.linears[name].get("book", name) == owner)
        out.update({f"{owner}.{key}": a for key, a in user.book.tensors().items() if f"{owner}.{key}" in file.tensors})
    return out
