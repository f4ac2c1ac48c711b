"""Weighted norms and the linears that read them, and what it means that nothing was written."""

import re

import pytest
import torch
import weightless
from torch import nn

import srmsnorm

DIM = 64


class LlamaNorm(nn.Module):
    def __init__(self, dim, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.variance_epsilon = eps

    def forward(self, x):
        h = x.float()
        h = h * torch.rsqrt(weightless.mean_square(h) + self.variance_epsilon)
        return self.weight * h.to(x.dtype)


class GemmaNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x):
        h = x.float()
        h = h * torch.rsqrt(weightless.mean_square(h) + self.eps)
        return (h * (1.0 + self.weight.float())).type_as(x)


class Block(nn.Module):
    """A norm that two linears read, and a residual stream."""

    def __init__(self, norm=None, read=lambda self, x: self.q(x) * self.k(x)):
        super().__init__()
        self.norm = nn.RMSNorm(DIM, eps=1e-5) if norm is None else norm
        self.q, self.k, self.out = nn.Linear(DIM, 32), nn.Linear(DIM, 32, bias=False), nn.Linear(32, DIM)
        self.read = read
        for parameter in self.norm.parameters():
            nn.init.normal_(parameter)

    def forward(self, x):
        return x + self.out(self.read(self, self.norm(x)))


def block(*args, dtype=torch.float32, seed=0, **options):
    torch.manual_seed(seed)
    return Block(*args, **options).to(dtype).eval()


def unchanged(model, call):
    """That a call changes nothing: not a module, a value, a mode or a hook; and writes no weight."""
    modules, parameters = dict(model.named_modules()), list(model.parameters())

    def tensors():
        return {k: v for k, v in model.state_dict(keep_vars=True).items() if isinstance(v, torch.Tensor)}

    state = {name: (tensor, tensor.clone()) for name, tensor in tensors().items()}
    versions = [parameter._version for parameter in parameters if not parameter.is_inference()]
    modes = [module.training for module in model.modules()]
    hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]
    call()
    assert dict(model.named_modules()) == modules and [module.training for module in model.modules()] == modes
    for name, tensor in tensors().items():
        assert tensor.is_meta or torch.equal(tensor, state[name][1]), name
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert [parameter._version for parameter in parameters if not parameter.is_inference()] == versions
    assert [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()] == hooks


def refused(model, message, *args, **options):
    def call():
        with pytest.raises(ValueError, match="srmsnorm: cannot fold .*" + re.escape(message)):
            srmsnorm.fold(model, *args, **options)

    unchanged(model, call)
