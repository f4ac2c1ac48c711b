"""Host time of one eager call on a small tensor: what a call costs before any kernel runs."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.protocol.check import attempt
from benchmarks.protocol.operations import DTYPES
from benchmarks.protocol.timing import Call, host_sample, of_medians, record_rounds
from benchmarks.providers import EPS
from benchmarks.record.plan import Plan
from benchmarks.record.recorder import Recorder

NAME = "host"
QUESTION = "host time of one eager call: functional, module, torch.ops, with and without autograd"
ROWS = 4
PROTOCOL = "wall clock of eager calls, median of rounds"

Norm = Callable[[Tensor], Tensor]


def _ours() -> Norm:
    import srmsnorm

    return partial(srmsnorm.srms_norm, eps=EPS)


def _ours_module(dim: int) -> Norm:
    import srmsnorm

    return srmsnorm.SRMSNorm(dim, eps=EPS)


def _ours_op() -> Norm:
    import srmsnorm  # noqa: F401

    return partial(torch.ops.srmsnorm.srms_norm, eps=EPS)


def _compiled() -> Norm:
    from srmsnorm import reference

    return partial(torch.compile(reference.srms_norm, dynamic=False, fullgraph=True), eps=EPS)


def _triton() -> Norm:
    from benchmarks.providers import triton_norm

    return partial(triton_norm.srms_norm, eps=EPS)


def candidates(dim: int, device: str) -> dict[str, Callable[[], Norm]]:
    """What is called, by name. `empty_like` and `x * 2.0` are the price of any output and of any operator."""
    return {
        "srmsnorm.srms_norm": _ours,
        "srmsnorm.SRMSNorm": partial(_ours_module, dim),
        "torch.ops.srmsnorm.srms_norm": _ours_op,
        "F.rms_norm": lambda: lambda x: torch.nn.functional.rms_norm(x, (dim,), eps=EPS),
        "nn.RMSNorm": lambda: torch.nn.RMSNorm(dim, eps=EPS, elementwise_affine=False),
        "x * 2.0": lambda: lambda x: x * 2.0,
        "torch.empty_like": lambda: torch.empty_like,
        "torch.compile": _compiled,
        **({"Triton": _triton} if device == "cuda" else {}),
    }


def forward(norm: Norm, x: Tensor) -> Call:
    return lambda: norm(x)


def training(norm: Norm, x: Tensor) -> Call:
    """Forward and backward into a fresh .grad."""
    grad_output = torch.randn_like(x)

    def call() -> None:
        x.grad = None
        norm(x).backward(grad_output)

    return call


def run(plan: Plan) -> None:
    rounds = plan.rounds or (5 if plan.quick else 30)
    dims, dtypes = plan.dims or [2048], plan.dtypes or ["bf16"]
    cells = [(dtype, dim, op) for dtype in dtypes for dim in dims for op in ("forward", "forward + backward")]
    total = sum(len(candidates(dim, plan.device)) for _, dim, _ in cells) * (1 + rounds)
    with Recorder(plan, NAME, total) as recorder:
        for dtype, dim, op in cells:
            recorder.new_case(f"{dtype} {ROWS} x {dim} {op}")
            measure(plan.device, dtype, dim, op, rounds, recorder)


def measure(device: str, dtype: str, dim: int, op: str, rounds: int, recorder: Recorder) -> None:
    with_grad = op != "forward"
    repeats = 100 if with_grad else 200
    statuses: dict[str, str] = {}
    samples: dict[str, Callable[[], float]] = {}

    def prepare(name: str, make: Callable[[], Norm]) -> None:
        x = torch.randn(ROWS, dim, dtype=DTYPES[dtype], device=device, requires_grad=with_grad)
        call = (training if with_grad else forward)(make(), x)
        for _ in range(10):
            call()
        samples[name] = partial(host_sample, call, repeats, device)

    for name, make in candidates(dim, device).items():
        recorder.reporter.tick(name)
        if not (with_grad and name == "torch.empty_like"):
            attempt(statuses, name, partial(prepare, name, make))
    row = {
        "metric": "host", "op": op, "dtype": dtype, "batch": 1, "n": ROWS, "dim": dim, "unit": "us",
        "protocol": PROTOCOL,
    }  # fmt: skip
    record_rounds(recorder, rounds, samples, statuses, row, lambda values: of_medians(values, repeats))
