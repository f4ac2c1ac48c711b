"""A feature is a check of one candidate; groups of them stand together in the table. And what checks share."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.providers import EPS

from .candidates import DIM, Candidate

ROWS = 6
Check = Callable[[Candidate, str], None]


@dataclasses.dataclass(frozen=True)
class Feature:
    """`check(candidate, device)` returns where the candidate has the feature and raises where it has not."""

    group: str
    check: Check
    gpu: bool = False  # means something on a GPU only
    alone: bool = False  # in a process of its own: it changes the one it runs in, or may be the end of its CUDA context


class Group(dict[str, Feature]):
    """Features by name, in the order of the table."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self.title = title

    def feature(self, name: str, **options: bool) -> Callable[[Check], Check]:
        def add(check: Check) -> Check:
            self[name] = Feature(self.title, check, **options)
            return check

        return add


def data(device: str, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape or (ROWS, DIM), generator=generator).to(device)


def formula(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)


def same(got: Any, want: Any) -> None:
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


def need(condition: bool, why: str) -> None:
    if not condition:
        raise AssertionError(why)


def training(norm: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """y, and the gradient of a function of it."""
    leaf = x.detach().requires_grad_()
    y = norm(leaf)
    return y.detach(), torch.autograd.grad(y.pow(3).sum(), leaf)[0]


def total(norm: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: norm(x).pow(3).sum()


@contextmanager
def no_slow_vmap() -> Iterator[None]:
    """A loop over the batch, with no more than a warning, is not vmap."""
    torch._C._functorch._set_vmap_fallback_enabled(False)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._functorch._set_vmap_fallback_enabled(True)  # type: ignore[attr-defined]


class Log(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(function)
        return function(*args, **(kwargs or {}))
