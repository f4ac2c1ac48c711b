"""Whole blocks: tokens a second and peak memory of a TransNormer-style and a QK-norm GPT-style model."""

import gc
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from check import WrongResult, attempt
from memory import kept_and_peak_mib
from models import Model, Size, build
from operations import DTYPES
from plan import Plan, Recorder
from protocol import in_rounds, of_medians
from providers import Eager, Provider
from torch import Tensor

NAME = "model"
QUESTION = "tokens/s and memory of TransNormer-style and QK-norm GPT-style blocks, eager and compiled"
SIZE, SIZE_CPU = Size(4, 2048, 2048, 16, 4), Size(2, 128, 128, 4, 2)
OPS = ("forward", "training")
STEPS = 3  # timed together
PROTOCOL = "events (a CPU: wall clock) around 3 steps, median of rounds"
TOLERANCE = 0.05  # of the output's norm, against the formula in the same dtype: rounding through all layers

Step = Callable[[], Any]


def run(plan: Plan) -> None:
    size = SIZE if plan.gpu else SIZE_CPU
    rounds = plan.rounds or (3 if plan.quick else 10)
    providers, missing = plan.chosen(("ours", "rms", "to"))
    dtypes = plan.dtypes or ["bf16" if plan.gpu else "fp32"]
    kinds = [(kind, mode, dtype) for dtype in dtypes for kind in Model.KINDS for mode in MODES]
    with Recorder(plan, NAME, len(kinds) * len(providers) * (1 + 2 * (rounds + 1))) as recorder:
        for kind, mode, dtype in kinds:
            case = Case(plan.device, kind, mode, dtype, size)
            if not all(recorder.has(case.row(op, metric), [p.name for p in providers]) for op, metric in RESULTS):
                recorder.new_case(f"{kind}, {mode}, {dtype}")
                measure(case, providers, dict(missing), rounds, recorder)


MODES = ("eager", "compiled")
RESULTS = [(op, metric) for op in OPS for metric in ("speed", "memory")]


class Case:
    def __init__(self, device: str, kind: str, mode: str, dtype: str, size: Size) -> None:
        self.device, self.kind, self.mode, self.dtype, self.size = device, kind, mode, dtype, size

    def row(self, op: str, metric: str) -> dict[str, Any]:
        unit = "tokens/s" if metric == "speed" else "MiB"
        return {
            "metric": metric, "op": f"{self.kind}, {op}, {self.mode}", "dtype": self.dtype, "batch": self.size.batch,
            "n": self.size.length, "dim": self.size.dim, "unit": unit, "threads": torch.get_num_threads(),
            "protocol": PROTOCOL if metric == "speed" else "peak beyond weights and inputs",
        }  # fmt: skip

    def model(self, provider: Provider) -> tuple[Model, list[Tensor]]:
        model, inputs = build(self.kind, self.size, provider, DTYPES[self.dtype], self.device)
        if self.mode == "compiled":
            model.compile_blocks()
        return model, inputs

    def step(self, op: str, provider: Provider) -> Step:
        model, inputs = self.model(provider)
        if op == "forward":
            return torch.no_grad()(lambda: model(*inputs))
        grad = torch.randn_like(inputs[0])
        leaves = [*inputs, *model.parameters()]

        def training() -> None:
            for leaf in leaves:
                leaf.grad = None
            model(*inputs).backward(grad)

        return training

    def check(self, provider: Provider) -> None:
        """The output beside the formula's; gradients are checked operation by operation in the other suites."""
        model, inputs = self.model(provider)
        formula, _ = build(self.kind, self.size, Eager(), DTYPES[self.dtype], self.device)
        with torch.no_grad():
            got, truth = model(*inputs).float(), formula(*inputs).float()
        error = float((got - truth).norm() / truth.norm())
        if not error <= TOLERANCE:
            raise WrongResult(f"the model's output is {error:.2g} of its norm away from the formula's")


def measure(case: Case, providers: list[Provider], statuses: dict[str, str], rounds: int, recorder: Recorder) -> None:
    torch.compiler.reset()
    for provider in providers:
        recorder.reporter.tick(f"{provider.name} check")
        attempt(statuses, provider.name, partial(case.check, provider))
        gc.collect()
    tokens = case.size.batch * case.size.length
    for op in OPS:
        failed, samplers = dict(statuses), dict[str, Callable[[], float]]()

        def prepare(provider: Provider, op: str = op, into: dict[str, Any] = samplers) -> None:
            step = case.step(op, provider)
            step()
            into[provider.name] = lambda: tokens / seconds(step, case.device)

        for provider in providers:
            attempt(failed, provider.name, partial(prepare, provider))
        samples = in_rounds(rounds, samplers, failed, recorder.reporter.tick, recorder.clocks.sample)
        for name, values in samples.items():
            recorder.add(provider=name, **case.row(op, "speed"), **of_medians(values, STEPS).row())
        samplers.clear()
        for provider in providers:
            recorder.reporter.tick(f"{provider.name} memory")
            attempt(failed, provider.name, partial(memory, case, op, provider, recorder))
        for name, status in failed.items():
            for metric in ("speed", "memory"):
                recorder.failed(name, status, **case.row(op, metric))


def memory(case: Case, op: str, provider: Provider, recorder: Recorder) -> None:
    def prepare() -> Step:
        step = case.step(op, provider)
        step()  # compiles
        return step

    _, peak = kept_and_peak_mib(prepare, case.device)
    recorder.add(provider=provider.name, **case.row(op, "memory"), value=f"{peak:.6f}", rounds=1, repeats=1)


def seconds(step: Step, device: str) -> float:
    """Of one step."""
    if device != "cuda":
        start = time.perf_counter()
        for _ in range(STEPS):
            step()
        return (time.perf_counter() - start) / STEPS
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(STEPS):
        step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / STEPS
