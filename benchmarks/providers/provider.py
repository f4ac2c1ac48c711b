"""What a provider is, and how one is added: a decorated class. All compute the norm with the same eps."""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

from torch import Tensor

EPS = 1e-6
DEFAULT = ("ours", "tr", "to", "toc")


@dataclasses.dataclass(frozen=True)
class Gating:
    """How a gate is applied: its activation by the operator's name, before or after the norm."""

    activation: str | None = None
    norm_first: bool = True


class Provider:
    """Methods that a provider leaves out are not compared. `x` and `residual` share their shape, contiguous; the
    residual may be float32 beside 16 bits."""

    name: ClassVar[str]
    computes: ClassVar[str]
    keeps: ClassVar[str]  # for backward, beside y
    devices: ClassVar[tuple[str, ...]] = ("cuda", "cpu")
    roundings: ClassVar[int] = 1  # to the dtype, on the way to y and to a gradient
    residual_roundings: ClassVar[int] = 1  # the same, with a residual or a gradient of the sum
    gated_roundings: ClassVar[int] = 1  # the same, with a gate
    compiles: ClassVar[bool] = False  # for each shape anew, which takes seconds
    eager: ClassVar[bool] = True  # otherwise, in eager calls, it is another provider
    caches: ClassVar[bool] = False  # on disk what it compiles: another process may do it ahead

    def new_shape(self) -> None:
        """Called before another shape is measured."""

    def compiling(self) -> AbstractContextManager[None]:
        """Around the calls of a compiled model that it is part of, the first as well as those that are timed."""
        return nullcontext()

    def norm(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """y, differentiable in both."""
        raise NotImplementedError

    def add_norm(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(y, sum), differentiable unless `require_sum_gradient` raises."""
        raise NotImplementedError

    def require_sum_gradient(self) -> None:
        """Raises NotImplementedError where a gradient does not go through `add_norm`."""

    def saved(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, ...]:
        """What backward takes beside the gradients; under no_grad."""
        raise NotImplementedError

    def backward(self, grad_output: Tensor, saved: tuple[Tensor, ...], grad_sum: Tensor | None = None) -> Tensor:
        """The gradient of x; under no_grad."""
        raise NotImplementedError

    def backward_pair(
        self, grad_output: Tensor, saved: tuple[Tensor, ...], grad_sum: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The gradients of x and of a float32 residual; under no_grad."""
        raise NotImplementedError

    def gated(self, x: Tensor, gate: Tensor, how: Gating) -> Tensor:
        """z, differentiable in both; the gate is of x's dtype, or float32 beside 16 bits."""
        raise NotImplementedError

    def gated_saved(self, x: Tensor, gate: Tensor, how: Gating) -> tuple[Tensor, ...]:
        """What backward takes beside the gradient; under no_grad."""
        raise NotImplementedError

    def gated_backward(self, grad_output: Tensor, saved: tuple[Tensor, ...], how: Gating) -> tuple[Tensor, Tensor]:
        """The gradients of x and of the gate; under no_grad."""
        raise NotImplementedError

    def wide_norm(self, x: Tensor) -> Tensor:
        """y in float32, of an x of 16 bits."""
        raise NotImplementedError

    def wide_saved(self, x: Tensor) -> tuple[Tensor, ...]:
        """What backward of that takes beside the gradient; under no_grad."""
        raise NotImplementedError

    def wide_backward(self, grad_output: Tensor, saved: tuple[Tensor, ...]) -> Tensor:
        """The gradient of x; under no_grad."""
        raise NotImplementedError

    def rstd(self, x: Tensor) -> Tensor:
        """One number a row, in the accumulation type."""
        raise NotImplementedError

    def quantized(self, x: Tensor, group_size: int | None) -> tuple[Tensor, Tensor]:
        """(q, scale): y rounded to x's dtype, then to float8_e4m3fn by a scale of its row or group."""
        raise NotImplementedError

    def add_quantized(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(q, scale, sum), by row."""
        raise NotImplementedError


REGISTRY: dict[str, type[Provider]] = {}


def provider(name: str, *, computes: str, keeps: str) -> Callable[[type[Provider]], type[Provider]]:
    """Adds a provider under a name. Its own packages it imports in __init__: a missing one costs its column only."""

    def add(cls: type[Provider]) -> type[Provider]:
        cls.name, cls.computes, cls.keeps = name, computes, keeps
        REGISTRY[name] = cls
        return cls

    return add


def load(names: list[str], device: str) -> tuple[list[Provider], dict[str, str]]:
    """(the providers that are there, what is wrong with the others by name)."""
    there: list[Provider] = []
    missing: dict[str, str] = {}
    for name in names:
        cls = REGISTRY[name]
        if device not in cls.devices:
            missing[name] = f"does not run on {device}"
            continue
        try:
            there.append(cls())
        except ImportError as error:
            missing[name] = f"not installed: {error}"
    return there, missing
