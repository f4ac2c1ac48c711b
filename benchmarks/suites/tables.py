"""The eight published tables: speed and memory, forward and backward, with and without a residual."""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.protocol.check import attempt, check_norm
from benchmarks.protocol.memory import REPEATS, peak_mib
from benchmarks.protocol.operations import DTYPES, RESIDUAL_DTYPES
from benchmarks.protocol.timing import do_bench, of_means, quantile, record_rounds
from benchmarks.providers import Provider
from benchmarks.record.plan import Plan
from benchmarks.record.recorder import Recorder

NAME = "tables"
QUESTION = "the eight published tables: time and memory of forward and backward, with and without a residual"
BATCH = 4
SPEED = "triton.testing.do_bench(warmup=25, rep=100), mean"
SPEED_CPU = "warm-up 25 ms, repeats 100 ms by the wall clock, mean"
MEMORY = "mean of max_memory_allocated"
MEMORY_CPU = "mean of the profiler's peak"


def run(plan: Plan) -> None:
    lengths = [1024, 4096] if plan.quick else [2**i for i in range(10, 16)]
    dtypes = plan.dtypes or ["bf16"]
    if not plan.gpu:
        lengths = [16] if plan.quick else [16, 256]  # torch.compile takes most of the time, for each anew
        dtypes = plan.dtypes or ["fp32"]
    cases = [
        Case(plan, dtype, dim, n, residual)
        for dtype in dtypes
        for dim in plan.dims or [2048]
        for residual in (False, True)
        for n in lengths
    ]
    rounds = plan.rounds or (1 if plan.quick else 3)
    providers, missing = plan.chosen()
    steps = 1 + 2 * rounds + 2  # of a provider
    with Recorder(plan, NAME, total=len(cases) * len(providers) * steps) as recorder:
        for case in cases:
            figures = [
                {**case.cell, "metric": metric, "op": op}
                for metric in ("speed", "memory")
                for op in ("forward", "backward")
            ]
            if recorder.skips(figures, providers, len(providers) * steps):
                continue
            recorder.new_case(str(case))
            case.measure(providers, missing, rounds, recorder)


class Case:
    """One n, with or without a residual: four results for each provider."""

    def __init__(self, plan: Plan, dtype: str, dim: int, n: int, residual: bool) -> None:
        self.device, self.dtype, self.residual = plan.device, dtype, residual
        self.shape = (BATCH, n, dim)
        self.cell = {"residual": residual, "dtype": dtype, "batch": BATCH, "n": n, "dim": dim}

    def __str__(self) -> str:
        return f"{self.dtype} {' x '.join(map(str, self.shape))}{' with residual' if self.residual else ''}"

    def tensor(self, requires_grad: bool = False, dtypes: dict[str, torch.dtype] = DTYPES) -> Tensor:
        return torch.randn(self.shape, dtype=dtypes[self.dtype], device=self.device, requires_grad=requires_grad)

    def leaves(self) -> tuple[Tensor, Tensor | None]:
        return self.tensor(True), self.tensor(True, RESIDUAL_DTYPES) if self.residual else None

    def measure(self, providers: list[Provider], missing: dict[str, str], rounds: int, recorder: Recorder) -> None:
        torch.manual_seed(0)
        statuses = dict(missing)
        for provider in providers:
            provider.new_shape()
        self.check(providers, statuses, recorder)
        for op in ("forward", "backward"):
            self.speed(op, providers, dict(statuses), rounds, recorder)
        for op in ("forward", "backward"):
            self.memory(op, providers, dict(statuses), recorder)

    def check(self, providers: list[Provider], statuses: dict[str, str], recorder: Recorder) -> None:
        (x, residual), grad_output = self.leaves(), self.tensor()
        for provider in providers:
            recorder.reporter.tick(f"{provider.name} check")
            attempt(statuses, provider.name, partial(check_norm, provider, x, residual, grad_output))
            release(self.device)

    def speed(
        self, op: str, providers: list[Provider], statuses: dict[str, str], rounds: int, recorder: Recorder
    ) -> None:
        (x, residual), grad_output = self.leaves(), self.tensor()

        def sample(provider: Provider) -> list[float]:
            call = bind(op, provider, x, residual, grad_output)
            try:
                return do_bench(call, self.device)
            finally:
                x.grad = None
                if residual is not None:
                    residual.grad = None

        calls = {provider.name: partial(sample, provider) for provider in providers}
        cell = {"metric": "speed", "op": op, "unit": "ms", "protocol": SPEED if self.device == "cuda" else SPEED_CPU}
        record_rounds(recorder, rounds, calls, statuses, {**cell, **self.cell}, of_means, f"{op} speed")

    def memory(self, op: str, providers: list[Provider], statuses: dict[str, str], recorder: Recorder) -> None:
        protocol = MEMORY if self.device == "cuda" else MEMORY_CPU
        cell = {"metric": "memory", "op": op, "unit": "MiB", "protocol": protocol}

        def prepare(provider: Provider) -> Callable[[], Any]:
            x, residual = self.leaves()
            return bind(op, provider, x, residual, self.tensor() if op == "backward" else None)

        def measure(provider: Provider) -> None:
            peaks = peak_mib(partial(prepare, provider), self.device)
            row = {"value": statistics.mean(peaks), "p20": quantile(peaks, 0.2), "p80": quantile(peaks, 0.8)}
            text = {key: f"{value:.6f}" for key, value in row.items()}
            recorder.add(provider=provider.name, **cell, **self.cell, **text, rounds=1, repeats=REPEATS)

        for provider in providers:
            recorder.reporter.tick(f"{provider.name} {op} memory")
            attempt(statuses, provider.name, partial(measure, provider))
            release(self.device)
        recorder.failed(statuses, **cell, **self.cell)


def bind(
    op: str, provider: Provider, x: Tensor, residual: Tensor | None, grad_output: Tensor | None
) -> Callable[[], Any]:
    """The call that is measured."""
    if op == "forward":
        return lambda: provider.norm(x, residual)
    y = provider.norm(x, residual)
    return lambda: y.backward(grad_output, retain_graph=True)


def release(device: str) -> None:
    """An out-of-memory leaves the next provider the whole memory."""
    if device == "cuda":
        torch.cuda.empty_cache()
