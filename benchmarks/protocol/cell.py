"""A cell: one operation, dtype and shape; how it is timed, and what it is called in the CSV."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.providers import Provider

from .neighbours import neighbour
from .operations import Op, Tensors, operation, tensor_dtype
from .timing import EventReplay, GraphReplay, WallReplay, l2_bytes

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
    threads: int = dataclasses.field(default_factory=torch.get_num_threads)

    def __str__(self) -> str:
        return f"{self.dtype} {self.rows} x {self.dim} {self.op}"

    @property
    def operation(self) -> Op:
        op = neighbour(self.op, self.dtype) or operation(self.op, self.dtype)
        assert op is not None
        return op

    @property
    def moved(self) -> int:
        return self.operation.moved(self.dtype, self.rows, self.dim)

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
            "threads": self.threads,
        }  # fmt: skip

    def operands(self, make: Callable[..., torch.Tensor] = torch.randn) -> Tensors:
        shape = (self.rows, self.dim)
        return {
            name: make(shape, dtype=tensor_dtype(name, self.dtype), device=self.device)
            for name in self.operation.operands()
        }

    @property
    def room(self) -> int:
        return 2 * self.moved

    @torch.no_grad()
    def compile(self, provider: Provider) -> None:
        torch.set_num_threads(self.threads)
        provider.new_shape()
        self.operation.call(provider, self.operands(torch.empty))()

    def roof_operands(self, operands: Tensors) -> Tensors:
        """What the roof moves: the same tensors."""
        return operands
