"""A cell: one operation, dtype and shape, measured for the roof and every provider in the same rounds."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from check import attempt
from operations import OPS, Op, Tensors, operation, roof, tensor_dtype
from plan import Plan, Recorder
from protocol import Call, EventReplay, GraphReplay, WallReplay, in_rounds, l2_bytes, of_medians
from providers import Provider

ROOF = "roof"
EVENTS = "CUDA events around eager calls, L2 cleared, median of rounds"
GRAPH = "CUDA graph of many calls, median of rounds"
WALL = "wall clock, median of rounds"


@dataclasses.dataclass(frozen=True)
class Cell:
    device: str
    dtype: str
    op: str
    rows: int
    dim: int

    def __str__(self) -> str:
        return f"{self.dtype} {self.rows} x {self.dim} {self.op}"

    @property
    def operation(self) -> Op:
        op = operation(self.op, self.dtype)
        assert op is not None
        return op

    @property
    def moved(self) -> int:
        return self.operation.moved(self.dtype) * self.rows * self.dim

    @property
    def seconds(self) -> float:
        """A guess, at 4 TB/s."""
        return self.moved / 4e12 + 2e-6

    @property
    def repeats(self) -> int:
        """Of a GPU about 2 ms."""
        return min(512, max(4, math.ceil(2e-3 / self.seconds))) if self.device == "cuda" else 1

    @property
    def replay(self) -> type[EventReplay | GraphReplay | WallReplay]:
        if self.device != "cuda":
            return WallReplay
        return EventReplay if self.seconds > 100e-6 else GraphReplay

    @property
    def buffers(self) -> int:
        """Enough that together they do not fit the L2."""
        return min(self.repeats, 1 + 3 * l2_bytes(self.device) // self.moved)

    def row(self) -> dict[str, Any]:
        protocol = {EventReplay: EVENTS, GraphReplay: GRAPH, WallReplay: WALL}[self.replay]
        return {**self.key(), "unit": "us", "bytes": self.moved, "protocol": protocol}

    def key(self) -> dict[str, Any]:
        return {
            "metric": "speed", "op": self.op, "dtype": self.dtype, "batch": 1, "n": self.rows, "dim": self.dim,
            "threads": torch.get_num_threads(),
        }  # fmt: skip

    def operands(self, make: Callable[..., torch.Tensor] = torch.randn) -> Tensors:
        shape = (self.rows, self.dim)
        return {
            name: make(shape, dtype=tensor_dtype(name, self.dtype), device=self.device)
            for name in self.operation.operands()
        }


def cells(plan: Plan, dims: list[int], elements: Callable[[str], int]) -> list[Cell]:
    """All that the plan asks for, dtype by dtype; `elements` of a tensor follow from the dtype."""
    shapes = [
        (dtype, rows, dim)
        for dtype in plan.dtypes or ["bf16"]
        for dim in plan.dims or dims
        for rows in plan.rows or [max(1, (plan.elements or elements(dtype)) // dim)]
    ]
    return [
        Cell(plan.device, dtype, op, rows, dim)
        for dtype, rows, dim in shapes
        for op in plan.ops or OPS
        if operation(op, dtype) is not None
    ]


def measure(cell: Cell, providers: list[Provider], statuses: dict[str, str], rounds: int, recorder: Recorder) -> None:
    """GPU time (a CPU: wall time) of one call."""
    operands: list[Tensors] = []
    replays: dict[str, Callable[[], float]] = {}

    def replay(calls: list[Call]) -> Callable[[], float]:
        return cell.replay(calls, cell.repeats).sample

    def prepare_roof() -> None:
        torch.manual_seed(0)
        operands.extend(cell.operands() for _ in range(cell.buffers))
        replays[ROOF] = replay([roof(cell.operation, cell.dtype, t) for t in operands])

    def prepare(provider: Provider) -> None:
        provider.new_shape()
        calls = [cell.operation.call(provider, t) for t in operands]
        cell.operation.check(provider, operands[0], calls[0]())
        replays[provider.name] = replay(calls)

    recorder.reporter.tick(ROOF)
    attempt(statuses, ROOF, prepare_roof)
    if ROOF in statuses:
        statuses.update((provider.name, statuses[ROOF]) for provider in providers)
    for provider in providers:
        recorder.reporter.tick(f"{provider.name} check")
        attempt(statuses, provider.name, partial(prepare, provider))
    samples = in_rounds(rounds, replays, statuses, recorder.reporter.tick, recorder.clocks.sample)
    row = cell.row()
    for name, values in samples.items():
        recorder.add(provider=name, **row, **of_medians(values, cell.repeats).row())
    for name, status in statuses.items():
        recorder.failed(name, status, **row)


def run(plan: Plan, suite: str, wanted: list[Cell], default: tuple[str, ...], rounds: int) -> None:
    """All cells that the CSV does not hold already."""
    import precompile

    providers, missing = plan.chosen(default)
    with Recorder(plan, suite) as recorder, torch.no_grad():
        todo = [(cell, taking_part(cell, providers, plan)) for cell in wanted]
        todo = [(cell, those) for cell, those in todo if not recorder.has(cell.key(), [ROOF, *(p.name for p in those)])]
        work = [(cell, p.name) for cell, those in todo for p in those if p.caches]
        jobs = plan.jobs if plan.jobs is not None else precompile.jobs_for(wanted) if plan.gpu else 0
        work = work if jobs else []
        recorder.reporter.expect(len(work) + sum((1 + len(those)) * (1 + rounds) for _, those in todo))
        if work:
            recorder.new_case(f"compiling ahead, {jobs} at a time")
            precompile.ahead(work, jobs, recorder.reporter.tick)
        for cell, those in todo:
            recorder.new_case(str(cell))
            measure(cell, those, dict(missing), rounds, recorder)


def taking_part(cell: Cell, providers: list[Provider], plan: Plan) -> list[Provider]:
    return [p for p in providers if not p.compiles or plan.compiled_dims is None or cell.dim in plan.compiled_dims]
