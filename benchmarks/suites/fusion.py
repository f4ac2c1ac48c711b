"""Compiled models that a norm is a small part of: what calling an operator costs where Inductor could have fused."""

import contextlib
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.protocol.check import attempt, require
from benchmarks.protocol.operations import DTYPES
from benchmarks.protocol.timing import Call, EventReplay, WallReplay, of_medians, record_rounds
from benchmarks.providers import EPS
from benchmarks.record.plan import Plan
from benchmarks.record.recorder import Recorder

NAME = "fusion"
QUESTION = "compiled pre-norm block and QK-norm attention: the operator, inlined on request or by choice, the formula"
PROTOCOL = "CUDA events around eager calls, L2 cleared; median of rounds"
PROTOCOL_CPU = "wall clock, median of rounds"


@dataclasses.dataclass(frozen=True)
class Norms:
    norm: Callable[..., Tensor]
    add_norm: Callable[..., tuple[Tensor, Tensor]]
    compiling: Callable[[], Any] = contextlib.nullcontext  # around the call that compiles


def _operator() -> Norms:
    import srmsnorm

    return Norms(srmsnorm.srms_norm, srmsnorm.add_srms_norm)


def _inlined() -> Norms:
    import srmsnorm

    return dataclasses.replace(_operator(), compiling=srmsnorm.inline_under_compile)


def _auto() -> Norms:
    import srmsnorm

    return dataclasses.replace(_operator(), compiling=partial(srmsnorm.inline_under_compile, "auto"))


def _formula() -> Norms:
    from srmsnorm import reference

    return Norms(reference.srms_norm, reference.add_srms_norm)


def _rms() -> Norms:
    def norm(x: Tensor, eps: float) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=eps)

    def add_norm(x: Tensor, stream: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        stream = x + stream
        return norm(stream, eps), stream

    return Norms(norm, add_norm)


VARIANTS: dict[str, Callable[[], Norms]] = {
    "operator": _operator,
    "inlined": _inlined,
    "auto": _auto,
    "formula": _formula,
    "F.rms_norm": _rms,
}


def _heads(x: Tensor, head: int) -> Tensor:
    return x.unflatten(-1, (-1, head)).transpose(1, 2)


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions, as they usually follow a QK norm."""
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1).to(x.dtype)


class Block(nn.Module):
    """Attention and a gated MLP, each behind a residual addition and a norm."""

    def __init__(self, norms: Norms, dim: int, head: int) -> None:
        super().__init__()
        self.norms, self.head = norms, head
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.up, self.down = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
        y, stream = self.norms.add_norm(x, stream, eps=EPS)
        q, k, v = (_heads(part, self.head) for part in self.qkv(y).chunk(3, -1))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        y, stream = self.norms.add_norm(self.out(attended), stream, eps=EPS)
        a, b = self.up(y).chunk(2, -1)
        return self.down(F.silu(a) * b), stream


class Attention(nn.Module):
    """Attention whose queries and keys are normed, head by head, and rotated."""

    def __init__(self, norms: Norms, dim: int, head: int) -> None:
        super().__init__()
        self.norms, self.head = norms, head
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (_heads(part, self.head) for part in self.qkv(x).chunk(3, -1))
        places = torch.arange(x.shape[1], device=x.device, dtype=torch.float32)
        pace = torch.arange(self.head // 2, device=x.device, dtype=torch.float32) * (-2 / self.head)
        angles = places[:, None] * (10_000.0**pace)
        q, k = (_rotate(self.norms.norm(t, eps=EPS), angles) for t in (q, k))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return self.out(attended), stream


MODELS: dict[str, type[Block] | type[Attention]] = {"pre-norm block": Block, "QK-norm attention": Attention}
OPS = ("forward", "forward + backward")


def run(plan: Plan) -> None:
    dims, rounds = plan.dims or [2048 if plan.gpu else 128], 5 if plan.quick else 20
    cells = [
        (model, op, dtype, dim) for dtype in plan.dtypes or ["bf16"] for dim in dims for model in MODELS for op in OPS
    ]
    with Recorder(plan, NAME, len(cells) * len(VARIANTS) * (1 + rounds)) as recorder:
        for model, op, dtype, dim in cells:
            cell = Cell(plan, model, op, dtype, dim)
            recorder.new_case(f"{dtype} {cell.batch} x {cell.n} x {dim} {model}, {op}")
            cell.measure(rounds, recorder)


class Cell:
    def __init__(self, plan: Plan, model: str, op: str, dtype: str, dim: int) -> None:
        self.device, self.model, self.dtype, self.dim = plan.device, MODELS[model], DTYPES[dtype], dim
        self.backward = op != "forward"
        self.batch, self.n, self.head, self.repeats = (4, 2048, 128, 20) if plan.gpu else (1, 64, 32, 5)
        self.row = {
            "metric": "speed", "op": f"{model}, {op}", "dtype": dtype, "batch": self.batch, "n": self.n, "dim": dim,
            "unit": "us", "protocol": PROTOCOL if plan.gpu else PROTOCOL_CPU,
        }  # fmt: skip

    def built(self, norms: Norms) -> tuple[nn.Module, list[Tensor]]:
        """The model and its operands, the same for every variant."""
        torch.manual_seed(0)
        model = self.model(norms, self.dim, self.head).to(self.device, self.dtype)
        shape = (self.batch, self.n, self.dim)
        operands = [torch.randn(shape, device=self.device, dtype=self.dtype) for _ in range(2)]
        return model, [t.requires_grad_(self.backward) for t in operands]

    def call(self, model: nn.Module, operands: list[Tensor], compiled: bool) -> Call:
        forward = torch.compile(model, fullgraph=True, dynamic=False) if compiled else model
        if not self.backward:
            return torch.no_grad()(lambda: forward(*operands))
        leaves = [*operands, *model.parameters()]
        cotangents = [torch.ones_like(t) for t in operands]
        return lambda: torch.autograd.grad(forward(*operands), leaves, cotangents, allow_unused=True)

    def expected(self) -> list[Tensor]:
        """The formula, eagerly, in float32."""
        model, operands = self.built(_formula())
        operands = [t.detach().float().requires_grad_(self.backward) for t in operands]
        return [t for t in self.call(model.float(), operands, compiled=False)() if t is not None]

    def measure(self, rounds: int, recorder: Recorder) -> None:
        statuses: dict[str, str] = {}
        replays: dict[str, Callable[[], float]] = {}
        expected = self.expected()

        def prepare(name: str, make: Callable[[], Norms]) -> None:
            norms = make()
            call = self.call(*self.built(norms), compiled=True)
            with norms.compiling():
                results = [t for t in call() if t is not None]
            for got, want in zip(results, expected, strict=True):
                # A few roundings of the dtype on the way to each element; a wrong norm is off by more than half.
                error = (got.float() - want).norm() / want.norm()
                require("a result", float(error) / (16 * torch.finfo(self.dtype).eps))
            replay = (EventReplay if self.device == "cuda" else WallReplay)([call], self.repeats)
            replays[name] = partial(self.sample, replay.sample, norms)

        torch.compiler.reset()
        for name, make in VARIANTS.items():
            recorder.reporter.tick(f"{name} compile")
            attempt(statuses, name, partial(prepare, name, make))
        record_rounds(recorder, rounds, replays, statuses, self.row, lambda values: of_medians(values, self.repeats))

    def sample(self, sample: Callable[[], float], norms: Norms) -> float:
        with norms.compiling():
            return sample()
