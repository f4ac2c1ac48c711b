"""Whole models: tokens a second and peak memory of a few layers, TransNormer-style and GPT-style: with QK norms, with
hyper-connections, and with products in fp8."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.protocol.check import WrongResult, attempt
from benchmarks.protocol.memory import kept_and_peak_mib
from benchmarks.protocol.operations import DTYPES
from benchmarks.protocol.timing import of_medians, record_rounds
from benchmarks.providers import Provider
from benchmarks.providers.pytorch import Eager
from benchmarks.record.plan import Plan
from benchmarks.record.recorder import Recorder
from benchmarks.suites.prenorm import Model, Size, build

NAME = "model"
QUESTION = "tokens/s and memory of TransNormer-style and GPT-style blocks, eager and compiled"
SIZE, SIZE_CPU = Size(4, 2048, 2048, 16, 4), Size(2, 128, 128, 4, 2)
MODES = ("eager", "compiled")
OPS = ("forward", "training")
STEPS = 3  # timed together
SPEED = "CUDA events around 3 steps (a CPU: wall clock), median of rounds"
MEMORY = "peak of a step beyond weights and inputs"

Step = Callable[[], Any]


def run(plan: Plan) -> None:
    size = SIZE if plan.gpu else SIZE_CPU
    rounds = plan.rounds or (3 if plan.quick else 10)
    providers, missing = plan.chosen(("ours", "rms", "to"))
    # On a CPU, torch 2.11 compiles TransNormer's batched products in bfloat16 to NaN.
    dtypes = plan.dtypes or ["bf16" if plan.gpu else "fp32"]
    cases = [
        Case(plan.device, kind, mode, op, dtype, size)
        for dtype in dtypes for kind, block in Model.KINDS.items() for mode in MODES for op in OPS
        if block.trains or op != "training"
    ]  # fmt: skip
    with Recorder(plan, NAME, len(cases) * len(providers) * (1 + rounds)) as recorder:
        for case in cases:
            rows = [case.row(metric) for metric in ("speed", "memory")]
            if recorder.skips(rows, providers, len(providers) * (1 + rounds)):
                continue
            recorder.new_case(f"{case.dtype} {case.name}")
            measure(case, providers, dict(missing), rounds, recorder)


class Case:
    def __init__(self, device: str, kind: str, mode: str, op: str, dtype: str, size: Size) -> None:
        self.device, self.kind, self.mode, self.op, self.dtype, self.size = device, kind, mode, op, dtype, size
        self.name = f"{kind}, {op}, {mode}"

    def row(self, metric: str) -> dict[str, Any]:
        return {
            "metric": metric, "op": self.name, "dtype": self.dtype, "batch": self.size.batch, "n": self.size.length,
            "dim": self.size.dim, "unit": "tokens/s" if metric == "speed" else "MiB",
            "threads": torch.get_num_threads(), "protocol": SPEED if metric == "speed" else MEMORY,
        }  # fmt: skip

    def step(self, provider: Provider, compiled: bool, wide: bool = False) -> Step:
        """Returns the output, or the gradients of the inputs; those of the weights are made and dropped."""
        model, inputs = build(self.kind, self.size, provider, DTYPES[self.dtype], self.device, wide)
        if compiled:
            model.compile_blocks()
        if self.op == "forward":
            return torch.no_grad()(lambda: [model(*inputs)])
        leaves = [*inputs, *model.parameters()]

        def training() -> list[Tensor]:
            y = model(*inputs)
            return [grad.detach() for grad in torch.autograd.grad(y, leaves, torch.ones_like(y))[: len(inputs)]]

        return training


def measure(case: Case, providers: list[Provider], statuses: dict[str, str], rounds: int, recorder: Recorder) -> None:
    torch.compiler.reset()
    truth = case.step(Eager(), compiled=False, wide=True)()
    # What rounding to the dtype does to the formula itself, through all layers.
    allowed = 2 * _distance(case.step(Eager(), compiled=False)(), truth) + 1e-4
    steps: dict[str, Step] = {}

    def prepare(provider: Provider) -> None:
        step = case.step(provider, case.mode == "compiled")
        if not (error := _distance(step(), truth)) <= allowed:
            raise WrongResult(f"{error:.2g} of its norm away from the formula in float32, {allowed:.2g} allowed")
        steps[provider.name] = step

    for provider in providers:
        recorder.reporter.tick(f"{provider.name} check")
        attempt(statuses, provider.name, partial(prepare, provider))
    truth.clear()
    tokens = case.size.batch * case.size.length
    samplers = {name: partial(_rate, step, tokens, case.device) for name, step in steps.items()}
    record_rounds(recorder, rounds, samplers, statuses, case.row("speed"), lambda values: of_medians(values, STEPS))
    for name, step in steps.items():
        if name not in statuses:
            _, peak = kept_and_peak_mib(lambda step=step: step, case.device)  # type: ignore[misc]
            recorder.add(provider=name, **case.row("memory"), value=f"{peak:.6f}", rounds=1, repeats=1)
    recorder.failed(statuses, **case.row("memory"))


def _distance(got: list[Tensor], truth: list[Tensor]) -> float:
    """The worst of the tensors, as a part of its norm."""
    return max(float((a.float() - b).norm() / b.norm()) for a, b in zip(got, truth, strict=True))


def _rate(step: Step, tokens: int, device: str) -> float:
    """Tokens a second."""
    if device != "cuda":
        start = time.perf_counter()
        for _ in range(STEPS):
            step()
        return STEPS * tokens / (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(STEPS):
        step()
    end.record()
    end.synchronize()
    return STEPS * tokens / begin.elapsed_time(end) * 1e3
