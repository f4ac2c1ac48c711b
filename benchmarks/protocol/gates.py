"""The gated norm: what it reads and writes, what is called, and when its result is right.

A definition takes `frozen`, what is a constant for gradients, the reciprocal root or the sigmoid in silu: this tells
how large the terms are that a gradient is the difference of. silu's own derivative is the difference of two, which are
equal near -1.2785.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.providers import EPS, Gating, Provider

from .check import element_error, gradient_errors, require
from .operations import Op, Tensors
from .timing import Call


def _scaled(h: Tensor, factor: Tensor, frozen: bool) -> Tensor:
    return h * (factor.detach() if frozen else factor)


Frozen = tuple[str, ...]  # of "root" and "sigmoid"
ACTIVATIONS: dict[str | None, Callable[[Tensor, Frozen], Tensor]] = {
    None: lambda gate, frozen: gate,
    "silu": lambda gate, frozen: _scaled(gate, torch.sigmoid(gate), "sigmoid" in frozen),
    "sigmoid": lambda gate, frozen: torch.sigmoid(gate),
}
TERMS: tuple[Frozen, ...] = (("root",), ("root", "sigmoid"))


def _norm(h: Tensor, frozen: Frozen) -> Tensor:
    return _scaled(h, torch.rsqrt(h.square().mean(-1, keepdim=True) + EPS), "root" in frozen)


def _definition(how: Gating, x: Tensor, gate: Tensor, frozen: Frozen = ()) -> Tensor:
    a = ACTIVATIONS[how.activation](gate, frozen)
    return _norm(x, frozen) * a if how.norm_first else _norm(x * a, frozen)


def _gated(how: Gating, provider: Provider, t: Tensors) -> Call:
    return lambda: provider.gated(t["x"], t["gate"], how)


def _check_gated(how: Gating, provider: Provider, t: Tensors, z: Tensor) -> None:
    _require_dtypes(t, z=(z, "x"))
    require("z", element_error(partial(_definition, how), z, (t["x"], t["gate"]), provider.gated_roundings))


def _gated_backward(how: Gating, provider: Provider, t: Tensors) -> Call:
    saved = provider.gated_saved(t["x"], t["gate"], how)
    return lambda: provider.gated_backward(t["grad_output"], saved, how)


def _check_gated_backward(how: Gating, provider: Provider, t: Tensors, grads: tuple[Tensor, Tensor]) -> None:
    _require_dtypes(t, grad_input=(grads[0], "x"), grad_gate=(grads[1], "gate"))
    definition, operands = partial(_definition, how), (t["x"], t["gate"])
    terms_of = [partial(definition, frozen=frozen) for frozen in TERMS]
    errors = gradient_errors(definition, terms_of, grads, t["grad_output"], operands, provider.gated_roundings)
    for name, error in zip(("grad_input", "grad_gate"), errors, strict=True):
        require(name, error)


def _require_dtypes(t: Tensors, **results: tuple[Tensor, str]) -> None:
    """Each result has the dtype of the operand beside it."""
    for name, (result, like) in results.items():
        if result.dtype != t[like].dtype:
            raise TypeError(f"{name} is {result.dtype}")


def _both_ways(name: str, how: Gating) -> dict[str, Op]:
    check: Callable[..., Any] = partial(_check_gated, how)
    check_backward: Callable[..., Any] = partial(_check_gated_backward, how)
    reads, writes = ("grad_output", "x", "gate"), ("grad_input", "grad_gate")
    return {
        name: Op(("x", "gate"), ("y",), partial(_gated, how), check, copied=True),
        f"{name} backward": Op(reads, writes, partial(_gated_backward, how), check_backward, copied=True),
    }


GATES: dict[str, Op] = {
    **_both_ways("gated", Gating()),
    **_both_ways("gated silu", Gating("silu")),
    **_both_ways("gated sigmoid", Gating("sigmoid")),
    **_both_ways("silu gate first", Gating("silu", norm_first=False)),
}
