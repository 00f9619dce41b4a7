# SPDX-License-Identifier: Apache-2.0
"""What `requite quantize` wrote, into PyTorch: one matrix, or a whole transformers model."""
import os

import numpy as np

from ._safetensors import File
from .layer import Packed
from .nn import QuantLinear
from .ops import torch


class Checkpoint:
    """The tensors of a folder's model.safetensors, or of a file that requite.save wrote, read when they are asked for, and what its
    metadata says of packed matrices.

    names      of all tensors
    linears    {matrix: entry}, the metadata's
    rotation   the metadata's, or None
    """

    def __init__(self, path):
        self._file = file = File(path)
        self.path, self.names, self.linears, self.rotation = file.path, file.tensors, file.linears, file.rotation

    def tensor(self, name: str):
        """A tensor of its own memory."""
        t = torch.from_numpy(np.array(self._file.array(name)))
        return t.view(torch.bfloat16) if self.names[name]["dtype"] == "BF16" else t

    def packed(self, name: str) -> Packed:
        """Matrix `name` as quantize_linear returns one; without its codebook where entry["book"] names another matrix."""
        if name not in self.linears: raise KeyError(f"{self.path}: the metadata describes no matrix {name}")
        before = name + "."
        return Packed(self.linears[name], {n[len(before):]: self.tensor(n) for n in self.names if n.startswith(before + "weight_")})

    def linear(self, name: str, bias=None, book_from=None) -> QuantLinear:
        """Matrix `name` as a module. book_from: the one that entry["book"] names, unless it is this."""
        return QuantLinear.from_packed(self.packed(name), bias, book_from)

    def all_linears(self) -> dict:
        """{matrix: module}, codebooks shared as in the file."""
        made = {}

        def make(name):
            if name not in made:
                book = self.linears[name].get("book", name)
                bias = self.tensor(name + ".bias") if name + ".bias" in self.names else None
                made[name] = self.linear(name, bias, make(book) if book != name else None)
            return made[name]

        return {name: make(name) for name in self.linears}


class Rotation(torch.nn.Module):
    """Rows times the rotation that the metadata names, or its inverse, in float32."""

    def __init__(self, entry: dict):
        super().__init__()
        self.kind, self.seed, self.n = entry["kind"], int(entry["seed"]), int(entry["size"])
        # Other kinds are fast transforms on the CPU; this one takes about n^3 operations to build, so it is built once.
        self.register_buffer("dense", self._matrix() if self.kind == "orthogonal" else None, persistent=False)

    def _matrix(self):
        return torch.ops.requite.rotate(torch.eye(self.n), self.kind, self.seed, False)

    def _apply(self, fn, recurse=True):
        device = fn(torch.empty(0)).device
        if self.dense is not None or device.type == "cuda":  # where there is no transform; a product in float32 whatever the model's type
            self.dense = self._matrix().to(device)
        return self

    def forward(self, x, inverse: bool):
        x = x.float().contiguous()
        if self.dense is not None: return x @ (self.dense.T if inverse else self.dense)
        return torch.ops.requite.rotate(x, self.kind, self.seed, inverse)


class RotatedEmbedding(torch.nn.Embedding):
    """Rows of an embedding, rotated. The table itself is not: the head may be the same one."""

    def __init__(self, old: torch.nn.Embedding, rotation: Rotation):
        super().__init__(old.num_embeddings, old.embedding_dim, old.padding_idx, dtype=old.weight.dtype, device=old.weight.device)
        self.weight, self.rotation = old.weight, rotation

    def forward(self, ids):
        rows = super().forward(ids)
        return self.rotation(rows, False).to(rows.dtype)


class RotatedNorm(torch.nn.Module):
    """The final RMSNorm of a rotated model: its gain belongs to features that are no longer rotated."""

    def __init__(self, old, rotation: Rotation, eps: float):
        super().__init__()
        self.weight, self.rotation, self.eps = old.weight, rotation, eps

    def forward(self, x):
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (self.rotation(normed, True) * self.weight.float()).to(x.dtype)


def load(folder, dtype=torch.float32):
    """The transformers model of a folder that `requite quantize` wrote (Llama, Mistral, Qwen2), its packed matrices as QuantLinear.

    dtype is that of activations and of what is not packed. `transformers` must be installed.
    """
    try:
        import transformers
    except ImportError as e:
        raise ImportError("requite.load needs transformers, which this Python does not have: pip install transformers. "
                          "requite.Model runs the same folder without it") from e
    file = Checkpoint(folder)
    config = transformers.AutoConfig.from_pretrained(os.fspath(folder))
    if hasattr(config, "quantization_config"): del config.quantization_config  # it is for loaders of other formats
    with torch.device("meta"):  # no memory for dense weights that nobody needs
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    linears = file.all_linears()
    if file.rotation is not None:
        rotation, inner = Rotation(file.rotation), model.model
        inner.embed_tokens = RotatedEmbedding(inner.embed_tokens, rotation)
        inner.norm = RotatedNorm(inner.norm, rotation, config.rms_norm_eps)
        if config.tie_word_embeddings: model.tie_weights()
    state = {name: file.tensor(name) for name in file.names if ".weight_" not in name and name.removesuffix(".bias") not in linears}
    for name, module in linears.items():
        old = model.get_submodule(name)
        if isinstance(old, torch.nn.Embedding):  # a table of rows: no product is taken with it
            state[name + ".weight"] = module.dequantize()
        else:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module)
    missing, unexpected = model.load_state_dict({name: t.to(dtype) for name, t in state.items()}, strict=False, assign=True)
    packed = tuple(name + "." for name in linears)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    missing = [n for n in missing if not n.startswith(packed) and n not in tied]
    unexpected = [n for n in unexpected if n not in tied]
    if missing or unexpected:
        raise ValueError(f"{file.path} does not fit the model of its config.json: missing {missing[:3]}, not known {unexpected[:3]}")
    if config.tie_word_embeddings: model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)  # frequencies, which no file has
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        if t.is_meta: raise ValueError(f"{file.path} leaves {name} of the model open")
    return model.to(dtype).eval()
