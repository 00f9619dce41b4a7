# SPDX-License-Identifier: Apache-2.0
"""Fine-tune a model that `requite quantize --round ssvq` wrote, by distillation from the original.

    python -m requite.finetune MODEL OUT --teacher ORIGINAL --text IDS

Trained are signs (through latent numbers, straight through), codebooks, scales and the gains of norms; codes stay, and so does the
size of the file. What is minimised is the mean over positions of KL(original || model) over the whole vocabulary. OUT is MODEL with
other values. Ctrl-C, SIGTERM or --minutes end a run between two steps with --state FILE written; --resume goes on from there.
"""
import argparse
import concurrent.futures
import json
import math
import os
import signal
import sys
import time

import numpy as np

from . import _library
from ._arrays import token_ids
from ._container import round_bf16
from ._torch import torch_for
from .model import Model

torch = torch_for("requite.finetune")  # before what is built on it, for the sentence
from ._llama import Llama  # noqa: E402
from .ssvq import SignFreezer, stored_tensors  # noqa: E402

INTERRUPTED = 75  # exit status of a run that can be resumed, as the command's


class _Divergence(torch.autograd.Function):
    """Sum over tokens of KL(p || q) with q = softmax(h head^T), its gradient worked out on the way: one pass over the logits."""

    @staticmethod
    def forward(ctx, h, head, teacher_logits, rows, dtype):
        total, grad = torch.zeros((), dtype=torch.float64), torch.empty_like(h)
        for i in range(0, len(h), rows):
            logits = (h[i:i + rows].to(dtype) @ head.T).float()
            log_q = torch.log_softmax(logits, -1)
            log_p = torch.log_softmax(teacher_logits[i:i + rows], -1)
            p = log_p.exp()
            total += (p * (log_p - log_q)).sum(-1).double().sum()
            grad[i:i + rows] = (log_q.exp_().sub_(p).to(dtype) @ head).float()
        ctx.save_for_backward(grad)
        return total.float()

    @staticmethod
    def backward(ctx, grad_out):
        return ctx.saved_tensors[0] * grad_out, None, None, None, None


def divergence(h, head, teacher_logits, rows: int = 128):
    """Sum over tokens of KL(softmax(teacher_logits) || softmax(h head^T)): h [n_tok, d], teacher_logits [n_tok, n_vocab]. Products
    are taken in head's type."""
    return _Divergence.apply(h, head, teacher_logits, rows, head.dtype)


class Teacher:
    """Logits of the original by the C library, worked out on a thread of their own while a step runs."""

    def __init__(self, path, threads: int = 1):
        self.model = Model(path)
        _library.set_threads(threads)
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._ahead = {}

    def ask(self, key, ids) -> None:
        if key not in self._ahead: self._ahead[key] = self._pool.submit(self.model.logits, ids)

    def logits(self, key, ids):
        self.ask(key, ids)
        return torch.from_numpy(np.asarray(self._ahead.pop(key).result()))


def parameter_groups(model: Llama, args) -> list:
    """Optimizer groups with rates of their own. A rate of 0 leaves that kind as it is."""
    lins = list(model.linears.values())
    books = {id(lin.book): lin.book for lin in lins}.values()
    groups = [{"name": "signs", "params": [lin.latent for lin in lins], "rate": args.lr_signs},
              {"name": "books", "params": [b.magnitude for b in books], "rate": args.lr_books},
              {"name": "scales", "params": [lin.scale_ratio for lin in lins], "rate": args.lr_scales},
              {"name": "gains", "params": [n.gain for n in model.norms.values()], "rate": args.lr_gains}]
    for g in groups:
        for p in g["params"]: p.requires_grad_(g["rate"] > 0)
    return [{**g, "lr": g["rate"]} for g in groups if g["rate"] > 0]


def export_tensors(model: Llama) -> dict:
    """{tensor: array of its stored type} of all that is trained."""
    out = stored_tensors(model.file, model.linears)
    for name, norm in model.norms.items():
        gain = (norm.gain.detach() * norm.unit).numpy()
        dtype = model.file.tensors[name]["dtype"]
        out[name] = round_bf16(gain) if dtype == "BF16" else gain.astype({"F16": np.float16, "F32": np.float32}[dtype])
    return out


def read_ids(path: str, n_vocab: int):
    """Windows [n, length] of a .safetensors file with one matrix of ids, as `requite quantize --calib` takes, or a .npy file."""
    if path.endswith(".npy"): ids = np.load(path)
    else:
        with open(path, "rb") as f: raw = f.read()
        n = int.from_bytes(raw[:8], "little")
        tensors = {k: t for k, t in json.loads(raw[8:8 + n]).items() if k != "__metadata__"}
        if len(tensors) != 1: raise ValueError(f"{path} has {len(tensors)} tensors: one of token ids is wanted")
        (name, t), = tensors.items()
        if t["dtype"] not in ("I32", "I64"): raise ValueError(f"{path}: {name} is {t['dtype']}; token ids are I32 or I64")
        begin, end = t["data_offsets"]
        ids = np.frombuffer(raw[8 + n + begin:8 + n + end], {"I32": np.int32, "I64": np.int64}[t["dtype"]]).reshape(t["shape"])
    if ids.ndim != 2 or ids.shape[1] < 2: raise ValueError(f"{path} has shape {ids.shape}: windows [n, length] are wanted")
    flat = token_ids(ids.reshape(-1), path)
    if flat.min() < 0 or flat.max() >= n_vocab: raise ValueError(f"{path} holds token {flat.min() if flat.min() < 0 else flat.max()}; the vocabulary has {n_vocab}")
    return torch.from_numpy(flat.astype(np.int64).reshape(ids.shape))


class Trainer:
    def __init__(self, model: Llama, teacher: Teacher, ids, args):
        self.model, self.teacher, self.args = model, teacher, args
        if not 0 <= args.holdout < len(ids): raise ValueError(f"--holdout {args.holdout}: there are {len(ids)} windows")
        self.train_ids, self.holdout_ids = ids[:len(ids) - args.holdout], ids[len(ids) - args.holdout:]
        per_epoch = -(-len(self.train_ids) // args.batch)
        self.steps = per_epoch * args.epochs
        order = [torch.randperm(len(self.train_ids), generator=torch.Generator().manual_seed(args.seed + e)) for e in range(args.epochs)]
        self.batches = [b.tolist() for one in order for b in one.split(args.batch)]
        groups = parameter_groups(model, args)
        if not groups: raise ValueError("all rates are 0: there is nothing to train")
        # Gradients of single weights are around 1e-7: Adam's usual epsilon of 1e-8 would be felt.
        self.optimizer = torch.optim.Adam(groups, betas=(args.beta1, args.beta2), eps=1e-14, fused=True)
        self.freezer = None
        if args.lr_signs > 0:
            self.freezer = SignFreezer(model.linears.values(), self.steps, args.freeze_every, args.freeze_first, args.freeze_last, args.freeze_decay)
        self.dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
        self.head = model.head.to(self.dtype)
        self.step_at, self.seconds, self.losses = 0, 0.0, []

    def hidden(self, ids):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return self.model.hidden(ids, self.args.recompute)

    @torch.no_grad()
    def holdout_loss(self) -> float:
        """Mean KL on the held-out windows, NaN without any."""
        if not len(self.holdout_ids): return math.nan
        total = 0.0
        for w in range(len(self.holdout_ids)):
            for ahead in range(w, min(w + 2, len(self.holdout_ids))): self.teacher.ask(("holdout", ahead), self.holdout_ids[ahead].numpy())
            target = self.teacher.logits(("holdout", w), self.holdout_ids[w].numpy())
            total += float(divergence(self.hidden(self.holdout_ids[w:w + 1])[0], self.head, target))
        return total / self.holdout_ids.numel()

    def step(self) -> float:
        """One batch; its mean KL before the step."""
        done = self.step_at / self.steps
        ramp = min(1.0, (self.step_at + 1) / max(1.0, self.args.warmup * self.steps))
        for g in self.optimizer.param_groups: g["lr"] = g["rate"] * ramp * (1 + math.cos(math.pi * done)) / 2
        for at in (self.step_at, self.step_at + 1):
            for i, w in enumerate(self.batches[at] if at < self.steps else ()): self.teacher.ask((at, i), self.train_ids[w].numpy())
        ids = self.train_ids[self.batches[self.step_at]]
        h = self.hidden(ids).float()
        loss = sum(divergence(h[i], self.head, self.teacher.logits((self.step_at, i), ids[i].numpy())) for i in range(len(ids))) / ids.numel()
        if not torch.isfinite(loss): raise FloatingPointError(f"the loss of step {self.step_at + 1} is {loss.item()}: lower the rates")
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        for lin in self.model.linears.values(): lin.book.clamp()
        if self.freezer: self.freezer.step()
        self.step_at += 1
        self.losses.append(loss.item())
        return self.losses[-1]

    def state_dict(self) -> dict:
        return {"args": settings(self.args), "step_at": self.step_at, "seconds": self.seconds, "losses": self.losses,
                "parameters": [p.detach() for g in self.optimizer.param_groups for p in g["params"]],
                "optimizer": self.optimizer.state_dict(), "freezer": self.freezer.state_dict() if self.freezer else None}

    def load_state_dict(self, saved: dict) -> None:
        mine = settings(self.args)
        other = [k for k in mine if saved["args"].get(k) != mine[k]]
        if other: raise ValueError(f"the state is of a run with --{other[0].replace('_', '-')} {saved['args'].get(other[0])}, not {mine[other[0]]}")
        with torch.no_grad():
            for p, value in zip((p for g in self.optimizer.param_groups for p in g["params"]), saved["parameters"]): p.copy_(value)
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.freezer: self.freezer.load_state_dict(saved["freezer"])
        self.step_at, self.seconds, self.losses = saved["step_at"], saved["seconds"], saved["losses"]


def settings(args) -> dict:
    """What a resumed run must have the same."""
    return {k: v for k, v in vars(args).items() if k not in ("out", "state", "resume", "minutes", "threads", "teacher_threads", "save_every", "recompute")}


def save_state(path: str, trainer: Trainer) -> None:
    torch.save(trainer.state_dict(), path + ".tmp")
    os.replace(path + ".tmp", path)


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def train(trainer: Trainer, args) -> bool:
    """Steps until the end, a signal or --minutes. True when all were made."""
    asked = []
    for s in (signal.SIGINT, signal.SIGTERM): signal.signal(s, lambda number, _frame: asked.append(number))
    started, before, saved_at = time.time(), trainer.seconds, time.time()
    first = trainer.step_at
    while trainer.step_at < trainer.steps:
        loss = trainer.step()
        trainer.seconds = before + time.time() - started
        per_step = (time.time() - started) / (trainer.step_at - first)
        left = per_step * (trainer.steps - trainer.step_at)
        smooth = sum(trainer.losses[-8:]) / len(trainer.losses[-8:])
        print(f"step {trainer.step_at} of {trainer.steps}  KL {loss:.4f} (last 8: {smooth:.4f})  {clock(trainer.seconds)}, {clock(left)} left",
              file=sys.stderr, flush=True)
        if trainer.step_at == trainer.steps: return True
        late = args.minutes is not None and time.time() - started > 60 * args.minutes
        if asked or late: return False
        if args.state and time.time() - saved_at > 60 * args.save_every:
            save_state(args.state, trainer)
            saved_at = time.time()
    return True


def parse(words):
    p = argparse.ArgumentParser(prog="python -m requite.finetune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", metavar="MODEL", help="folder that `requite quantize --round ssvq` wrote")
    p.add_argument("out", metavar="OUT", help="folder to write; must not exist")
    p.add_argument("--teacher", required=True, help="the original: a folder or .gguf file")
    p.add_argument("--text", required=True, help="token ids [n, length], .safetensors or .npy")
    p.add_argument("--n-samples", type=int, help="use only the first N windows")
    p.add_argument("--seq-len", type=int, help="use only the first N tokens of each window")
    p.add_argument("--epochs", type=int, default=1)
    p.add_argument("--batch", type=int, default=2, help="windows per step (%(default)s)")
    p.add_argument("--holdout", type=int, default=0, help="last windows, measured before and after and not trained on (%(default)s)")
    for name, rate, what in (("signs", 0.02, "latents, in units of the codebook's size"), ("books", 0.004, "codebooks, in units of their size"),
                             ("scales", 0.003, "scales, as a part of their value"), ("gains", 0.003, "norms, in units of their size")):
        p.add_argument(f"--lr-{name}", type=float, default=rate, help=f"Adam's rate of {what}; 0: they stay (%(default)s)")
    p.add_argument("--alpha", type=float, default=1.0, help="latents start at this times the weights (%(default)s)")
    p.add_argument("--beta1", type=float, default=0.9)
    p.add_argument("--beta2", type=float, default=0.98)
    p.add_argument("--warmup", type=float, default=0.1, help="part of the steps with a rate that grows (%(default)s)")
    p.add_argument("--freeze-every", type=int, default=20, help="steps between freezings of signs that keep turning (%(default)s)")
    p.add_argument("--freeze-first", type=float, default=0.3, help="frequency of turning above which a sign is frozen, at the start (%(default)s)")
    p.add_argument("--freeze-last", type=float, default=0.06, help="and at the end (%(default)s)")
    p.add_argument("--freeze-decay", type=float, default=0.95, help="of the average that is this frequency (%(default)s)")
    p.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="type of the products; what is trained is fp32 (%(default)s)")
    p.add_argument("--recompute", action="store_true", help="run blocks again in the backward pass: less memory, a third more time")
    p.add_argument("--seed", type=int, default=0, help="of the order of the windows")
    p.add_argument("--threads", type=int, default=1, help="of PyTorch (%(default)s)")
    p.add_argument("--teacher-threads", type=int, default=1, help="of the original's forward pass, beside them (%(default)s)")
    p.add_argument("--minutes", type=float, help="stop after this long; with --state the run can be resumed")
    p.add_argument("--state", help="file for what a resumed run needs")
    p.add_argument("--save-every", type=float, default=10, help="minutes between writings of --state (%(default)s)")
    p.add_argument("--resume", action="store_true", help="go on from --state")
    args = p.parse_args(words)
    for name in ("epochs", "batch", "threads", "teacher_threads", "freeze_every"):
        if getattr(args, name) < 1: p.error(f"--{name.replace('_', '-')} {getattr(args, name)}: at least 1 is wanted")
    for name in ("lr_signs", "lr_books", "lr_scales", "lr_gains", "alpha"):
        if not 0 <= getattr(args, name) < math.inf: p.error(f"--{name.replace('_', '-')} {getattr(args, name)}: a number from 0 is wanted")
    if args.resume and not args.state: p.error("--resume needs --state FILE")
    return args


def run(args) -> int:
    if os.path.exists(args.out): raise ValueError(f"{args.out} exists already")
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    model = Llama(args.model, args.alpha)
    teacher = Teacher(args.teacher, args.teacher_threads)
    if teacher.model.n_vocab != len(model.head):
        raise ValueError(f"{args.teacher} has a vocabulary of {teacher.model.n_vocab}, {args.model} one of {len(model.head)}")
    ids = read_ids(args.text, len(model.head))[:args.n_samples, :args.seq_len].contiguous()
    trainer = Trainer(model, teacher, ids, args)
    if args.resume:
        with open(args.state, "rb") as f: trainer.load_state_dict(torch.load(f, weights_only=True))
    before = trainer.holdout_loss()
    print(f"{len(trainer.train_ids)} windows of {ids.shape[1]}, {trainer.steps} steps; KL on {args.holdout} held-out windows {before:.4f}", file=sys.stderr, flush=True)
    if not train(trainer, args):
        if not args.state:
            print("stopped; without --state there is nothing to resume from, and nothing was written", file=sys.stderr)
            return INTERRUPTED
        save_state(args.state, trainer)
        print(f"stopped after step {trainer.step_at} of {trainer.steps}; --resume goes on from {args.state}", file=sys.stderr)
        return INTERRUPTED
    report = {"options": settings(args), "steps": trainer.steps, "seconds": round(trainer.seconds, 1), "train_kld": trainer.losses,
              "signs": trainer.freezer.counts() if trainer.freezer else None}
    after = trainer.holdout_loss()
    if args.holdout: report.update(holdout_before=before, holdout_after=after)
    model.file.copy(args.out, export_tensors(model), {"finetune": report})
    print(json.dumps({k: v for k, v in report.items() if k != "train_kld"}))
    return 0


def main(words=None) -> int:
    try:
        return run(parse(words))
    except (ValueError, TypeError, OSError, FloatingPointError, _library.Error, ImportError) as e:
        print(f"requite.finetune: {e}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
