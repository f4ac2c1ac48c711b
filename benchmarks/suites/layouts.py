"""Operands as models hand them over, not as a benchmark allocates them: rows with strides, offsets, no memory of their
own. The roof is that of contiguous operands."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.protocol import measuring
from benchmarks.protocol.cell import Cell
from benchmarks.protocol.operations import OPS, Tensors, tensor_dtype
from benchmarks.record.plan import Plan

NAME = "layouts"
QUESTION = "time with strided, misaligned and expanded operands, as a fraction of the roof of contiguous ones"
BATCH, HEADS = 4, 32
BYTES, BYTES_CPU = 1 << 29, 1 << 23  # of the input
DIMS = [64, 128, 4096]
DEFAULT_OPS = ["forward", "forward+residual", "backward"]
Make = Callable[..., Tensor]


def packed(make: Make, shape: tuple[int, ...], **options: Any) -> Tensor:
    """The keys of a packed qkv."""
    *leading, heads, dim = shape
    return make((*leading, 3 * heads, dim), **options)[..., heads : 2 * heads, :]


def swapped(make: Make, shape: tuple[int, ...], **options: Any) -> Tensor:
    """Heads before the sequence."""
    batch, sequence, heads, dim = shape
    return make((batch, heads, sequence, dim), **options).transpose(1, 2)


def offset(make: Make, shape: tuple[int, ...], **options: Any) -> Tensor:
    """One element past an aligned address."""
    count = torch.Size(shape).numel()
    return make((count + 1,), **options)[1:].view(shape)


def expanded(make: Make, shape: tuple[int, ...], **options: Any) -> Tensor:
    """The gradient of a sum over rows: one row for all."""
    return make(shape[-1:], **options).expand(shape)


# By operand; the others are contiguous, and so are results.
LAYOUTS: dict[str, dict[str, Callable[..., Tensor]]] = {
    "packed qkv": dict.fromkeys(("x", "residual", "grad_output"), packed),
    "heads and sequence swapped": {"x": swapped, "grad_output": swapped},
    "offset": dict.fromkeys(("x", "residual", "grad_output"), offset),
    "residual offset": {"residual": offset},
    "expanded gradient": {"grad_output": expanded},
}


@dataclasses.dataclass(frozen=True)
class LayoutCell(Cell):
    layout: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        return BATCH, self.rows // (BATCH * HEADS), HEADS, self.dim

    def key(self) -> dict[str, Any]:
        return {**super().key(), "op": f"{self.op}, {self.layout}"}

    def operands(self, make: Make = torch.randn) -> Tensors:
        return self._made(make, LAYOUTS[self.layout])

    def roof_operands(self, operands: Tensors) -> Tensors:
        return self._made(torch.randn, {})

    def _made(self, make: Make, layouts: dict[str, Callable[..., Tensor]]) -> Tensors:
        found = {}
        for name in self.operation.operands():
            options = {"dtype": tensor_dtype(name, self.dtype), "device": self.device}
            layout = layouts.get(name)
            found[name] = layout(make, self.shape, **options) if layout else make(self.shape, **options)
        return found


def run(plan: Plan) -> None:
    wanted: list[Cell] = []
    for layout, operands in LAYOUTS.items():
        for op in plan.ops or DEFAULT_OPS:
            if not operands.keys() & set(OPS[op].operands()):
                continue
            for dim in plan.dims or DIMS[: 2 if plan.quick else None]:
                elements = plan.elements or (BYTES if plan.gpu else BYTES_CPU) // 2
                rows = max(1, elements // dim // (BATCH * HEADS)) * BATCH * HEADS
                wanted.append(LayoutCell(plan.device, "bf16", op, rows, dim, layout=layout))
    measuring.run(plan, NAME, wanted, ("ours", "rms"), plan.rounds or (3 if plan.quick else 10))
