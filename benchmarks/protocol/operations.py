"""The five operations: what each reads and writes, what is called, and the roof, a plain PyTorch operation that moves
the same bytes."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.providers import Provider

from .check import backward_error, forward_error, require
from .timing import Call

Tensors = dict[str, Tensor]

DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp64": torch.float64,
    "mixed": torch.bfloat16,  # beside a float32 residual
}
RESIDUAL_DTYPES = {**DTYPES, "mixed": torch.float32}
FIXED = {"wide": torch.float32, "grad_wide": torch.float32, "q": torch.float8_e4m3fn}  # whatever the input's
OF_RESIDUAL = ("residual", "sum", "grad_sum", "grad_residual", "gate", "grad_gate")


@dataclasses.dataclass(frozen=True)
class Op:
    """`call` makes a call out of operands; `check` raises where that call's result is wrong. `copied`: the roof is
    copy_ of as many bytes, as it is for mixed dtypes. `divides`: the dims that there are of it. `numbers`: of float32
    that are a result, one for so many elements, or for each row."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    call: Callable[[Provider, Tensors], Call]
    check: Callable[[Provider, Tensors, Any], None]
    copied: bool = False
    dtypes: Collection[str] = tuple(DTYPES)
    divides: int = 1
    numbers: int | Literal["row"] | None = None

    def operands(self) -> tuple[str, ...]:
        """What is made before the call; backward's y comes out of a forward."""
        names = tuple(name for name in self.reads if name != "y")
        forward = ("x", "residual") if "grad_residual" in self.writes else ("x",)
        return names if "y" not in self.reads else (*forward, *names)

    def moved(self, dtype: str, rows: int, dim: int) -> int:
        """Bytes: what must be read and written, nothing else (a norm's rstd, 4 bytes a row, left out)."""
        numbers = 0 if self.numbers is None else 1 if self.numbers == "row" else dim // self.numbers
        elements = sum(tensor_dtype(name, dtype).itemsize for name in (*self.reads, *self.writes))
        return rows * (dim * elements + 4 * numbers)


def tensor_dtype(name: str, dtype: str) -> torch.dtype:
    return FIXED.get(name) or (RESIDUAL_DTYPES if name in OF_RESIDUAL else DTYPES)[dtype]


def _forward(provider: Provider, t: Tensors) -> Call:
    return lambda: provider.norm(t["x"], t.get("residual"))


def _forward_sum(provider: Provider, t: Tensors) -> Call:
    return lambda: provider.add_norm(t["x"], t["residual"])


def _backward(provider: Provider, t: Tensors) -> Call:
    saved = provider.saved(t["x"])
    return lambda: provider.backward(t["grad_output"], saved, t.get("grad_sum"))


def _backward_pair(provider: Provider, t: Tensors) -> Call:
    saved = provider.saved(t["x"], t["residual"])
    return lambda: provider.backward_pair(t["grad_output"], saved, t.get("grad_sum"))


def _check_forward(provider: Provider, t: Tensors, y: Tensor) -> None:
    residual = t.get("residual")
    roundings = provider.roundings if residual is None else provider.residual_roundings
    if y.dtype != t["x"].dtype:
        raise TypeError(f"y is {y.dtype}")
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


def _check_pair(provider: Provider, t: Tensors, grads: tuple[Tensor, Tensor]) -> None:
    for name, like, grad in zip(("grad_input", "grad_residual"), (t["x"], t["residual"]), grads, strict=True):
        if grad.dtype != like.dtype:
            raise TypeError(f"{name} is {grad.dtype}")
        error = backward_error(
            grad, t["grad_output"], t["x"], t["residual"], provider.residual_roundings, t.get("grad_sum")
        )
        require(name, error)


OPS = {
    "forward": Op(("x",), ("y",), _forward, _check_forward),
    "forward+residual": Op(("x", "residual"), ("y",), _forward, _check_forward),
    "forward+sum": Op(("x", "residual"), ("y", "sum"), _forward_sum, _check_sum),
    "backward": Op(("grad_output", "y"), ("grad_input",), _backward, _check_backward),
    "backward+sum": Op(("grad_output", "y", "grad_sum"), ("grad_input",), _backward, _check_backward),
}
# With a float32 residual under a 16-bit input the two gradients differ in dtype, so both are written.
PAIRS = {
    name: Op(OPS[name].reads, ("grad_input", "grad_residual"), _backward_pair, _check_pair)
    for name in ("backward", "backward+sum")
}


def operation(op: str, dtype: str) -> Op | None:
    """None where there is no such thing: without a residual nothing is mixed."""
    if dtype != "mixed":
        return OPS.get(op)
    return None if op == "forward" else PAIRS.get(op, OPS.get(op))


def roof(op: Op, dtype: str, t: Tensors) -> Call:
    """copy_, torch.add, two copy_ or torch.addcmul into existing outputs; for mixed dtypes copy_ of as many bytes."""
    first, *others = (t[name] for name in op.operands())
    out = torch.empty_like(first)
    counts = (len(op.reads), len(op.writes))
    if op.copied or dtype == "mixed":
        dim = first.shape[-1]
        size = op.moved(dtype, first.numel() // dim, dim) // 2
        source, target = (torch.empty(size, dtype=torch.uint8, device=first.device) for _ in range(2))
        return lambda: target.copy_(source)
    if counts == (1, 1):
        return lambda: out.copy_(first)
    if counts == (2, 1):
        return lambda: torch.add(first, others[0], out=out)
    if counts == (2, 2):
        second = torch.empty_like(first)
        return lambda: (out.copy_(first), second.copy_(others[0]))
    assert counts == (3, 1)
    return lambda: torch.addcmul(first, others[0], others[1], out=out)
