"""What a norm keeps: live and peak memory of a call that a gradient goes through, and of 12 layers in training."""

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.models import Model, Size, build
from benchmarks.protocol.check import attempt
from benchmarks.protocol.memory import MIB, kept_and_peak_mib
from benchmarks.protocol.operations import DTYPES, RESIDUAL_DTYPES
from benchmarks.providers import Provider
from benchmarks.record.plan import Plan
from benchmarks.record.recorder import Recorder

NAME = "memory"
QUESTION = "live and peak memory: what a norm keeps for backward, alone and in 12 layers of a pre-norm model"
SIZE, SIZE_CPU = Size(4, 2048, 2048, 16, 12), Size(2, 128, 128, 4, 12)
METRICS = ("kept", "peak")
CALLS = ("forward", "forward+residual", "forward+sum")
PROTOCOL = "bytes allocated beyond operands and weights"


def run(plan: Plan) -> None:
    size = SIZE if plan.gpu else SIZE_CPU
    providers, missing = plan.chosen(("ours", "tr", "to", "toc", "rms"))
    shapes = [(rows, dim) for dim in plan.dims or [2048] for rows in plan.rows or [32768 if plan.gpu else 256]]
    cases = [
        Case(plan.device, dtype, op, rows, dim, partial(call, plan.device, dtype, op, rows, dim))
        for dtype in plan.dtypes or ["bf16"]
        for rows, dim in shapes
        for op in CALLS
        if not (dtype == "mixed" and op == "forward")
    ]
    cases += [
        Case(plan.device, dtype, kind, size.length, size.dim, partial(layers, plan.device, dtype, kind, size))
        for dtype in plan.dtypes or ["bf16"]
        if dtype != "mixed"
        for kind, block in Model.KINDS.items()
        if block.trains
    ]
    with Recorder(plan, NAME, len(cases) * len(providers)) as recorder:
        for case in cases:
            if recorder.skips([case.row(metric) for metric in METRICS], providers, len(providers)):
                continue
            recorder.new_case(f"{case.op} {case.dtype}")
            case.measure(providers, dict(missing), recorder)


Prepare = Callable[[Provider], Callable[[], Any]]


class Case:
    def __init__(self, device: str, dtype: str, op: str, rows: int, dim: int, prepare: Prepare) -> None:
        self.device, self.dtype, self.op, self.rows, self.dim, self.prepare = device, dtype, op, rows, dim, prepare

    def row(self, metric: str) -> dict[str, Any]:
        return {
            "metric": metric, "op": self.op, "dtype": self.dtype, "batch": 1, "n": self.rows, "dim": self.dim,
            "unit": "MiB", "threads": torch.get_num_threads(), "protocol": PROTOCOL,
        }  # fmt: skip

    def measure(self, providers: list[Provider], statuses: dict[str, str], recorder: Recorder) -> None:
        def one(provider: Provider) -> None:
            provider.new_shape()
            figures = kept_and_peak_mib(partial(self.prepare, provider), self.device)
            for metric, value in zip(METRICS, figures, strict=True):
                recorder.add(provider=provider.name, **self.row(metric), value=f"{value:.6f}", rounds=1, repeats=1)

        for provider in providers:
            recorder.reporter.tick(provider.name)
            attempt(statuses, provider.name, partial(one, provider))
            gc.collect()
        for metric in METRICS:
            recorder.failed(statuses, **self.row(metric))
        for metric, value in self.least().items():
            recorder.add(provider="least", **self.row(metric), value=f"{value:.6f}", rounds=1, repeats=1)

    def least(self) -> dict[str, float]:
        """What a caller asked for: the outputs, and 4 bytes a row."""
        if self.op not in CALLS:
            return {}
        element = DTYPES[self.dtype].itemsize
        element += RESIDUAL_DTYPES[self.dtype].itemsize if self.op == "forward+sum" else 0
        size = self.rows * (self.dim * element + 4) / MIB
        return dict.fromkeys(METRICS, size)


def call(device: str, dtype: str, op: str, rows: int, dim: int, provider: Provider) -> Callable[[], Any]:
    x = torch.randn(rows, dim, dtype=DTYPES[dtype], device=device, requires_grad=True)
    residual = torch.randn(rows, dim, dtype=RESIDUAL_DTYPES[dtype], device=device, requires_grad=True)
    if op == "forward":
        return warm(lambda: provider.norm(x))
    if op == "forward+residual":
        return warm(lambda: provider.norm(x, residual))
    provider.require_sum_gradient()
    return warm(lambda: provider.add_norm(x, residual))


def layers(device: str, dtype: str, kind: str, size: Size, provider: Provider) -> Callable[[], Any]:
    provider.require_sum_gradient()
    model, inputs = build(kind, size, provider, DTYPES[dtype], device)
    return warm(lambda: model(*inputs))


def warm(call: Callable[[], Any]) -> Callable[[], Any]:
    """What is compiled, and a library's workspaces, are there before memory is counted."""
    call()
    return call
