"""Cells are measured for the roof and every provider in the same rounds."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from benchmarks.providers import Provider
from benchmarks.record.plan import Plan
from benchmarks.record.recorder import Recorder

from . import precompile
from .cell import Cell
from .check import attempt
from .neighbours import neighbour
from .operations import DTYPES, OPS, Op, Tensors, operation, roof
from .timing import Call, host_sample, of_medians, record_rounds

ROOF = "roof"
HOST = "wall clock of eager calls, median of rounds"
HOST_CALLS = 100


def cells(plan: Plan, shapes: list[tuple[int, int]], ops: list[str], dtypes: list[str] | None = None) -> list[Cell]:
    """All that there are of them, dtype by dtype."""
    return [
        Cell(plan.device, dtype, op, rows, dim)
        for dtype in dtypes or plan.dtypes or ["bf16"]
        for rows, dim in shapes
        for op in ops
        if (known := neighbour(op, dtype) or operation(op, dtype)) is not None and dim % known.divides == 0
    ]


def cells_of_size(
    plan: Plan, size: int, dims: list[int], dtypes: list[str], known: Mapping[str, Op] = OPS
) -> list[Cell]:
    """Every operation with an input of so many bytes, where the plan does not say how many elements or rows."""
    ops = [op for op in plan.ops or known if op in known]
    wanted = []
    for dtype in plan.dtypes or dtypes:
        elements = plan.elements or size // DTYPES[dtype].itemsize
        shapes = [(rows, dim) for dim in plan.dims or dims for rows in plan.rows or [max(1, elements // dim)]]
        wanted += cells(plan, shapes, ops, [dtype])
    return wanted


def measure(
    cell: Cell, providers: list[Provider], statuses: dict[str, str], rounds: int, recorder: Recorder, eager: bool
) -> None:
    """GPU time of a call (a CPU: wall time); with `eager` the host's time as well."""
    torch.set_num_threads(cell.threads)
    operands: list[Tensors] = []
    calls: dict[str, list[Call]] = {}

    def prepare_roof() -> None:
        torch.manual_seed(0)
        operands.extend(cell.operands() for _ in range(cell.buffers))
        calls[ROOF] = [roof(cell.operation, cell.dtype, cell.roof_operands(t)) for t in operands]

    def prepare(provider: Provider) -> None:
        provider.new_shape()
        of_provider = [cell.operation.call(provider, t) for t in operands]
        cell.operation.check(provider, operands[0], of_provider[0]())
        calls[provider.name] = of_provider

    recorder.reporter.tick(ROOF)
    attempt(statuses, ROOF, prepare_roof)
    if ROOF in statuses:
        statuses.update((provider.name, statuses[ROOF]) for provider in providers)
    for provider in providers:
        recorder.reporter.tick(f"{provider.name} check")
        attempt(statuses, provider.name, partial(prepare, provider))
    replay: Sampler = lambda c: cell.replay(c, cell.repeats).sample  # noqa: E731
    _time(calls, statuses, replay, rounds, cell.repeats, cell.row(), recorder)
    if eager:
        host: Sampler = lambda c: partial(host_sample, c[0], HOST_CALLS, cell.device)  # noqa: E731
        row = {**cell.row(), "metric": "call", "protocol": HOST}
        _time(calls, statuses, host, rounds, HOST_CALLS, row, recorder)


Sampler = Callable[[list[Call]], Callable[[], float]]


def _time(
    calls: dict[str, list[Call]], failed: dict[str, str], sampler: Sampler, rounds: int, repeats: int,
    row: dict[str, Any], recorder: Recorder,
) -> None:  # fmt: skip
    statuses, samplers = dict(failed), {}

    def make(name: str) -> None:
        samplers[name] = sampler(calls[name])

    for name in calls:
        attempt(statuses, name, partial(make, name))
    record_rounds(recorder, rounds, samplers, statuses, row, lambda values: of_medians(values, repeats))


def run(plan: Plan, suite: str, wanted: list[Cell], default: tuple[str, ...], rounds: int, eager: bool = False) -> None:
    """All cells that the CSV does not hold already."""
    providers, missing = plan.chosen(default)
    with Recorder(plan, suite) as recorder, torch.no_grad():
        todo = [(cell, taking_part(cell, providers, plan)) for cell in wanted]
        todo = [(cell, those) for cell, those in todo if not recorder.has(cell.key(), [ROOF, *(p.name for p in those)])]
        work = [(cell, p.name) for cell, those in todo for p in those if p.caches]
        jobs = plan.jobs if plan.jobs is not None else precompile.jobs_for(wanted) if plan.gpu else 0
        work = work if jobs else []
        steps = 1 + rounds * (2 if eager else 1)
        recorder.reporter.expect(len(work) + sum((1 + len(those)) * steps for _, those in todo))
        if work:
            recorder.new_case(f"compiling ahead, {jobs} at a time")
            precompile.ahead(work, jobs, recorder.reporter.tick)
        for cell, those in todo:
            recorder.new_case(str(cell))
            measure(cell, those, dict(missing), rounds, recorder, eager)


def taking_part(cell: Cell, providers: list[Provider], plan: Plan) -> list[Provider]:
    return [p for p in providers if not p.compiles or plan.compiled_dims is None or cell.dim in plan.compiled_dims]
