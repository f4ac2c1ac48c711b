"""Derivatives of any order and the transforms of torch.func."""

from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from .candidates import DIM, Candidate
from .feature import Group, data, formula, need, no_slow_vmap, same, total

FEATURES = Group("torch.func and derivatives")


def transform(name: str, make: Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Any]]) -> None:
    """A feature: `make(norm)` of the candidate and of the formula agree."""

    @FEATURES.feature(name)
    def agrees(c: Candidate, device: str) -> None:
        with no_slow_vmap():
            same(make(c.norm)(data(device)), make(formula)(data(device)))


def _double_backward(norm: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def second(x: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        (first,) = torch.autograd.grad(total(norm)(leaf), leaf, create_graph=True)
        return torch.autograd.grad(first.square().sum(), leaf)[0]

    return second


def _forward_ad(norm: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def tangent(x: Tensor) -> Tensor:
        with forward_ad.dual_level():
            found = forward_ad.unpack_dual(norm(forward_ad.make_dual(x, x.roll(1)))).tangent
        need(found is not None, "the tangent is lost")
        return found

    return tangent


transform("double backward", _double_backward)
transform("forward-mode AD", _forward_ad)
transform("grad", lambda norm: torch.func.grad(total(norm)))
transform("jvp", lambda norm: lambda x: torch.func.jvp(norm, (x,), (x.roll(1),)))
transform("vmap of vmap", lambda norm: lambda x: torch.func.vmap(torch.func.vmap(norm), in_dims=1)(x.view(2, -1, DIM)))
transform("vmap of grad", lambda norm: torch.func.vmap(torch.func.grad(total(norm))))
transform("hessian (forward over reverse)", lambda norm: lambda x: torch.func.hessian(total(norm))(x[:2]))
transform("third order", lambda norm: lambda x: torch.func.jacrev(torch.func.hessian(total(norm)))(x[:1]))


@FEATURES.feature("torch.library.opcheck")
def opcheck(c: Candidate, device: str) -> None:
    need(c.operator is not None, "not an operator")
    torch.library.opcheck(c.operator, (data(device).requires_grad_(), *c.arguments))
