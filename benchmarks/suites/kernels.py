"""GPU time of the kernels alone, each beside its roof: a plain PyTorch operation that moves the same bytes."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from check import attempt, backward_error, forward_error, require
from plan import DTYPES, Plan, Recorder
from protocol import Call, EventReplay, GraphReplay, WallReplay, in_rounds, l2_bytes, of_medians
from providers import Provider
from torch import Tensor

NAME = "kernels"
QUESTION = "time of each kernel alone, as a fraction of the roof: what moving its bytes costs"
ROOF = "roof"
PROTOCOL = "CUDA events around eager calls, L2 cleared; graph replay below 100 us; median of rounds"
PROTOCOL_CPU = "wall clock, median of rounds"

Tensors = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Op:
    """`roof` and `call` make a call out of operands; `check` raises where that call's result is wrong."""

    operands: tuple[str, ...]
    moved: int  # tensors read and written
    roof: Callable[[Tensors], Call]
    call: Callable[[Provider, Tensors], Call]
    check: Callable[[Provider, Tensors, Any], None]


def _copy(t: Tensors) -> Call:
    out = torch.empty_like(t["x"])
    return lambda: out.copy_(t["x"])


def _two_copies(t: Tensors) -> Call:
    y, total = torch.empty_like(t["x"]), torch.empty_like(t["x"])
    return lambda: (y.copy_(t["x"]), total.copy_(t["residual"]))


def _add(first: str, second: str) -> Callable[[Tensors], Call]:
    def roof(t: Tensors) -> Call:
        out = torch.empty_like(t[first])
        return lambda: torch.add(t[first], t[second], out=out)

    return roof


def _addcmul(t: Tensors) -> Call:
    out = torch.empty_like(t["x"])
    return lambda: torch.addcmul(t["x"], t["grad_output"], t["grad_sum"], out=out)


def _forward(provider: Provider, t: Tensors) -> Call:
    return lambda: provider.norm(t["x"], t.get("residual"))


def _forward_sum(provider: Provider, t: Tensors) -> Call:
    return lambda: provider.add_norm(t["x"], t["residual"])


def _backward(provider: Provider, t: Tensors) -> Call:
    saved = provider.saved(t["x"])
    return lambda: provider.backward(t["grad_output"], saved, t.get("grad_sum"))


def _check_forward(provider: Provider, t: Tensors, y: Tensor) -> None:
    residual = t.get("residual")
    roundings = provider.roundings if residual is None else provider.residual_roundings
    require("y", forward_error(y, t["x"], residual, roundings))


def _check_sum(provider: Provider, t: Tensors, result: tuple[Tensor, Tensor]) -> None:
    y, total = result
    _check_forward(provider, t, y)
    if not torch.equal(total, t["x"] + t["residual"]):
        raise ValueError("the sum is not input + residual")


def _check_backward(provider: Provider, t: Tensors, grad: Tensor) -> None:
    grad_sum = t.get("grad_sum")
    roundings = provider.roundings if grad_sum is None else provider.residual_roundings
    require("grad_input", backward_error(grad, t["grad_output"], t["x"], None, roundings, grad_sum))


OPS = {
    "forward": Op(("x",), 2, _copy, _forward, _check_forward),
    "forward, residual": Op(("x", "residual"), 3, _add("x", "residual"), _forward, _check_forward),
    "forward, sum": Op(("x", "residual"), 4, _two_copies, _forward_sum, _check_sum),
    "backward": Op(("x", "grad_output"), 3, _add("x", "grad_output"), _backward, _check_backward),
    "backward, sum": Op(("x", "grad_output", "grad_sum"), 4, _addcmul, _backward, _check_backward),
}


def run(plan: Plan) -> None:
    dims = plan.dims or [2048]
    elements = plan.elements or (1 << 28 if plan.gpu else 1 << 22)
    shapes = [(rows, dim) for dim in dims for rows in plan.rows or [max(1, elements // dim)]]
    cells = [(dtype, *shape, op) for dtype in plan.dtypes or ["bf16"] for shape in shapes for op in OPS]
    rounds = 10 if plan.quick else 40
    providers, missing = plan.chosen(("ours", "tr", "toc", "rms") if plan.gpu else ("ours", "toc", "rms"))
    with Recorder(plan, NAME, total=len(cells) * (1 + len(providers)) * (1 + rounds)) as recorder, torch.no_grad():
        for dtype, rows, dim, op in cells:
            recorder.reporter.new_case(f"{dtype} {rows} x {dim} {op}")
            measure(Cell(plan.device, dtype, rows, dim, op), providers, dict(missing), rounds, recorder)


class Cell:
    def __init__(self, device: str, dtype: str, rows: int, dim: int, op: str) -> None:
        self.device, self.op, self.shape = device, OPS[op], (rows, dim)
        self.dtype = DTYPES[dtype]
        self.row = {
            "metric": "speed", "op": op, "dtype": dtype, "batch": 1, "n": rows, "dim": dim, "unit": "us",
            "protocol": PROTOCOL if device == "cuda" else PROTOCOL_CPU,
        }  # fmt: skip
        moved = self.op.moved * rows * dim * self.dtype.itemsize
        # About 2 ms a replay at 4 TB/s (a CPU: one call each), and buffers that together do not fit the L2.
        seconds = moved / 4e12 + 2e-6
        self.repeats = min(512, max(4, math.ceil(2e-3 / seconds))) if device == "cuda" else 1
        self.replayed: type = WallReplay if device != "cuda" else EventReplay if seconds > 100e-6 else GraphReplay
        self.buffers = min(self.repeats, 1 + 3 * l2_bytes(device) // moved)

    def operands(self) -> list[Tensors]:
        torch.manual_seed(0)
        return [
            {name: torch.randn(self.shape, dtype=self.dtype, device=self.device) for name in self.op.operands}
            for _ in range(self.buffers)
        ]

    def replay(self, calls: list[Call]) -> EventReplay | GraphReplay | WallReplay:
        replay: EventReplay | GraphReplay | WallReplay = self.replayed(calls, self.repeats)
        return replay


def measure(cell: Cell, providers: list[Provider], statuses: dict[str, str], rounds: int, recorder: Recorder) -> None:
    operands: list[Tensors] = []
    replays: dict[str, Callable[[], float]] = {}

    def prepare_roof() -> None:
        operands.extend(cell.operands())
        replays[ROOF] = cell.replay([cell.op.roof(t) for t in operands]).sample

    def prepare(provider: Provider) -> None:
        provider.new_shape()
        calls = [cell.op.call(provider, t) for t in operands]
        cell.op.check(provider, operands[0], calls[0]())
        replays[provider.name] = cell.replay(calls).sample

    recorder.reporter.tick(ROOF)
    attempt(statuses, ROOF, prepare_roof)
    if ROOF in statuses:
        statuses.update((provider.name, statuses[ROOF]) for provider in providers)
    for provider in providers:
        recorder.reporter.tick(f"{provider.name} check")
        attempt(statuses, provider.name, partial(prepare, provider))
    samples = in_rounds(rounds, replays, statuses, recorder.reporter.tick)
    for name, values in samples.items():
        recorder.results.add(provider=name, **cell.row, **of_medians(values, cell.repeats).row())
    for name, status in statuses.items():
        recorder.failed(name, status, **cell.row)
