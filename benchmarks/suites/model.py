"""Whole models: tokens a second, peak memory and compile time of a few layers of each family in `benchmarks/models`."""

import dataclasses
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.models import Model, Size, build
from benchmarks.protocol import precompile, steps
from benchmarks.protocol.check import WrongResult, attempt
from benchmarks.protocol.memory import kept_and_peak_mib
from benchmarks.protocol.operations import DTYPES
from benchmarks.protocol.steps import Step
from benchmarks.protocol.timing import of_medians, record_rounds
from benchmarks.providers import Provider
from benchmarks.providers.pytorch import Eager
from benchmarks.record.plan import Plan
from benchmarks.record.recorder import Recorder

NAME = "model"
QUESTION = "tokens/s and memory of models that people run: forward, training, decode; eager and compiled"
SIZES = {
    "large": Size(4, 2048, 2048, 16, 4),
    "small": Size(1, 256, 512, 4, 4),
}  # where bytes count, and where launches do
SIZES_CPU = {"large": Size(2, 128, 128, 4, 2), "small": Size(1, 32, 64, 2, 2)}
OPS = ("forward", "training", "decode")
HOW = ("eager", "compiled")
PROVIDERS = ("ours", "auto", "rms", "to")
# A GPU's rest before each sample of large steps: without it, power holds the clocks back by what came before.
# Samples of the compiled QK-norm GPT, forward, on an H100 spread by 1.3 to 3.8 %, with it by 0.5 %, and are 7 %
# shorter; the models' ratios are the same. Small steps wait for the host, and spread by 13 to 40 % with it.
REST_S = 0.1
SPEED = "CUDA events around {} steps{} (a CPU: wall clock), median of rounds"
RESTED = ", behind a rest and one step"
CAPTURED = ", each of a CUDA graph that is captured anew"
MEMORY = "peak of a step beyond weights, inputs and caches"
COMPILE = "wall clock of the first step, nothing compiled before, here or on disk; median of rounds"
UNITS = {"speed": "tokens/s", "memory": "MiB", "compile": "s"}


def run(plan: Plan) -> None:
    rounds = plan.rounds or (3 if plan.quick else 10)
    compiles = (1 if plan.quick else 3) if plan.compile_times else 0
    providers, missing = plan.chosen(PROVIDERS)
    cases = cases_of(plan)
    with Recorder(plan, NAME) as recorder:
        work = to_compile_ahead(plan, cases, providers, recorder)
        recorder.reporter.expect(len(work) + sum(case.ticks(providers, rounds, compiles) for case in cases))
        if work:
            jobs = plan.jobs or precompile.jobs_for([case for case, _ in work])
            recorder.new_case(f"compiling ahead, {jobs} at a time")
            precompile.ahead(work, jobs, recorder.reporter.tick)
        if compiles and providers:  # what the first compilation of a process imports and starts
            attempt({}, "first", lambda: cases[0].compile(providers[0]))
        for case in cases:
            there = case.those_of(providers)
            keys = [case.row(metric) for metric in case.metrics(compiles)]
            if recorder.skips(keys, there, case.ticks(providers, rounds, compiles)):
                continue
            recorder.new_case(f"{case}")
            measure(case, there, dict(missing), rounds, compiles, recorder)


def cases_of(plan: Plan) -> list["Case"]:
    sizes = SIZES if plan.gpu else SIZES_CPU
    asked = plan.modes or []
    # On a CPU, torch 2.11 compiles TransNormer's batched products in bfloat16 to NaN.
    return [
        Case(plan.device, kind, how, op, dtype, sizes[size])
        for dtype in plan.dtypes or ["bf16" if plan.gpu else "fp32"]
        for size in plan.sizes or (sizes if plan.gpu else ("small",))
        for kind in plan.models or Model.KINDS
        for how in [how for how in HOW if how in asked] or HOW
        for op in [op for op in OPS if op in asked] or OPS
        if op != "training" or Model.KINDS[kind].trains
    ]


def to_compile_ahead(
    plan: Plan, cases: list["Case"], providers: list[Provider], recorder: Recorder
) -> list[tuple["Case", str]]:
    if not plan.gpu if plan.jobs is None else plan.jobs == 0:
        return []
    return [
        (case, provider.name)
        for case in cases if case.how == "compiled"
        for provider in providers if not recorder.has(case.row("speed"), [provider.name])
    ]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    device: str
    kind: str
    how: str
    op: str
    dtype: str
    size: Size
    threads: int = dataclasses.field(default_factory=torch.get_num_threads)  # of a CPU; compiled code depends on it

    def __str__(self) -> str:
        return f"{self.dtype} {self.size.batch} x {self.size.length} x {self.size.dim} {self.name}"

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.op}, {self.how}"

    @property
    def tokens(self) -> int:
        return self.size.batch * (1 if self.op == "decode" else self.size.length)

    @property
    def steps(self) -> int:
        """Timed together: at least some milliseconds of a GPU."""
        if self.device != "cuda":
            return 3
        return 100 if self.op == "decode" else 3 if self.rests else 20

    @property
    def rests(self) -> bool:
        """Its steps are so large that power holds the clocks back."""
        return self.device == "cuda" and self.tokens > 1024

    @property
    def room(self) -> int:
        """Bytes of a GPU that two layers take while they are compiled: weights, their gradients, activations."""
        element, dim = DTYPES[self.dtype].itemsize, self.size.dim
        return 2 * element * (2 * 16 * dim**2 + 64 * self.size.batch * self.size.length * dim)

    def those_of(self, providers: list[Provider]) -> list[Provider]:
        return [provider for provider in providers if provider.eager or self.how == "compiled"]

    def metrics(self, compiles: int) -> list[str]:
        return [*(["compile"] if compiles and self.how == "compiled" else []), "speed", "memory"]

    def ticks(self, providers: list[Provider], rounds: int, compiles: int) -> int:
        return len(self.those_of(providers)) * (1 + rounds + (compiles if self.how == "compiled" else 0))

    def row(self, metric: str) -> dict[str, Any]:
        speed = SPEED.format(self.steps, RESTED if self.rests else "")
        speed += CAPTURED if self.op == "decode" and self.device == "cuda" else ""
        protocol = {"speed": speed, "memory": MEMORY, "compile": COMPILE}[metric]
        return {
            "metric": metric, "op": self.name, "dtype": self.dtype, "batch": self.size.batch, "n": self.size.length,
            "dim": self.size.dim, "unit": UNITS[metric], "threads": self.threads, "protocol": protocol,
        }  # fmt: skip

    def call(self, provider: Provider, compiled: bool, wide: bool = False) -> Step:
        """A step, in no graph."""
        dtype = DTYPES[self.dtype]
        model, inputs = build(self.kind, self.size, provider, dtype, self.device, wide)
        if compiled:
            model.compile_parts()
        if self.op == "decode":
            return steps.Decode(model, inputs, torch.float32 if wide else dtype)
        return (steps.forward if self.op == "forward" else steps.training)(model, inputs)

    def compile(self, provider: Provider) -> None:
        """Two layers hold all that there is to compile: the first, and one behind another."""
        case = dataclasses.replace(self, size=dataclasses.replace(self.size, layers=2))
        torch.set_num_threads(self.threads)
        torch.compiler.reset()
        with provider.compiling():
            case.call(provider, compiled=True)()

    def seconds_to_compile(self, provider: Provider) -> float:
        from torch._inductor.utils import fresh_cache

        torch.compiler.reset()
        call = self.call(provider, compiled=True)
        with fresh_cache(), provider.compiling():
            start = time.perf_counter()
            call()
            if self.device == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - start


def measure(
    case: Case, providers: list[Provider], statuses: dict[str, str], rounds: int, compiles: int, recorder: Recorder
) -> None:
    if "compile" in case.metrics(compiles):
        measure_compiling(case, providers, statuses, compiles, recorder)
    torch.compiler.reset()  # every provider compiles its own, and all of it stays until the next case
    truth = case.call(Eager(), compiled=False, wide=True)()
    # What rounding to the dtype does to the formula itself, through all layers.
    allowed = 2 * _distance(case.call(Eager(), compiled=False)(), truth) + 1e-4
    calls: dict[str, Step] = {}

    def prepare(provider: Provider) -> None:
        with provider.compiling():
            call = case.call(provider, case.how == "compiled")
            if not (error := _distance(_timed(call, case)(), truth)) <= allowed:
                raise WrongResult(f"{error:.2g} of its norm away from the formula in float32, {allowed:.2g} allowed")
        calls[provider.name] = call

    for provider in providers:
        recorder.reporter.tick(f"{provider.name} check")
        attempt(statuses, provider.name, partial(prepare, provider))
    truth.clear()
    chosen = {provider.name: provider for provider in providers if provider.name in calls}
    samplers = {name: partial(_rate, calls[name], case, provider) for name, provider in chosen.items()}
    record_rounds(
        recorder, rounds, samplers, statuses, case.row("speed"), lambda values: of_medians(values, case.steps)
    )
    for name, provider in chosen.items():
        if name not in statuses:
            with provider.compiling():
                _, peak = kept_and_peak_mib(lambda name=name: calls[name], case.device)  # type: ignore[misc]
            recorder.add(provider=name, **case.row("memory"), value=f"{peak:.6f}", rounds=1, repeats=1)
    recorder.failed(statuses, **case.row("memory"))


def measure_compiling(
    case: Case, providers: list[Provider], statuses: dict[str, str], compiles: int, recorder: Recorder
) -> None:
    """Apart from what is timed afterwards, which is compiled once more."""
    samplers = {provider.name: partial(case.seconds_to_compile, provider) for provider in providers}
    statistic = partial(of_medians, repeats=1)
    record_rounds(recorder, compiles, samplers, dict(statuses), case.row("compile"), statistic, "compile")


def _distance(got: list[Tensor], truth: list[Tensor]) -> float:
    """The worst of the tensors, as a part of its norm."""
    return max(float((a.float() - b).norm() / b.norm()) for a, b in zip(got, truth, strict=True))


def _rate(call: Step, case: Case, provider: Provider) -> float:
    """Tokens a second."""
    with provider.compiling():
        step = _timed(call, case)
        if case.rests:
            torch.cuda.synchronize()
            time.sleep(REST_S)
        if case.rests or step is not call:
            step()  # the first after a rest, or of a graph, takes longer
        return case.steps * case.tokens / _seconds(step, case)


def _timed(call: Step, case: Case) -> Step:
    """A decode in a CUDA graph that is captured anew each time: replays of one capture differ from another's. Of the
    same kernels, in the small Llama 4, they took 138 to 148 us a step."""
    return call.captured() if isinstance(call, steps.Decode) and case.device == "cuda" else call


def _seconds(step: Step, case: Case) -> float:
    if case.device != "cuda":
        start = time.perf_counter()
        for _ in range(case.steps):
            step()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(case.steps):
        step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3
