"""Other tensors and devices than plain ones."""

import torch
from torch import Tensor

from .candidates import DIM, Candidate
from .feature import ROWS, Group, data, formula, need, same, training

FEATURES = Group("tensors and devices")


class Tagged(Tensor):
    pass


@FEATURES.feature("__torch_function__ subclasses")
def torch_function_subclasses(c: Candidate, device: str) -> None:
    y = c.norm(data(device).as_subclass(Tagged))
    need(isinstance(y, Tagged), f"returned a {type(y).__name__}")
    same(y.as_subclass(Tensor), formula(data(device)))


@FEATURES.feature("__torch_dispatch__ subclasses, forward and backward", alone=True)
def torch_dispatch_subclasses(c: Candidate, device: str) -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    x = TwoTensor(data(device), data(device, seed=1)).requires_grad_()
    y = c.norm(x)
    (gradient,) = torch.autograd.grad(y.pow(3).sum(), x)
    for i, part in enumerate("ab"):
        same((getattr(y, part), getattr(gradient, part)), training(formula, data(device, seed=i)))


@FEATURES.feature("FakeTensor and meta tensors", alone=True)
def fake_and_meta_tensors(c: Candidate, device: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        y = c.norm(mode.from_tensor(data(device)))
    need((y.shape, y.device.type) == ((ROWS, DIM), device), "another shape or device")
    need(c.norm(torch.empty(ROWS, DIM, device="meta")).shape == (ROWS, DIM), "another shape")


@FEATURES.feature("nested jagged tensors, forward and backward", alone=True)
def nested_tensors(c: Candidate, device: str) -> None:
    parts = [data(device, n, DIM, seed=n) for n in (3, 5)]
    nested = torch.nested.nested_tensor(parts, layout=torch.jagged, requires_grad=True)
    y = c.norm(nested)
    need(y.shape == nested.shape, "another shape")
    (gradient,) = torch.autograd.grad(y.values().pow(3).sum(), nested)
    same((y.values().detach(), gradient.values()), training(formula, torch.cat(parts)))


@FEATURES.feature("a kernel for devices nobody wrote one for")
def other_devices(c: Candidate, device: str) -> None:
    need(c.operator is not None, "not an operator")
    other = torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse1)
    found = c.operator.redispatch(other, data("cpu"), *c.arguments)
    same(found[0] if isinstance(found, tuple) else found, formula(data("cpu")))
