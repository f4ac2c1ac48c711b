"""What srmsnorm.convert does not call: modules with state or more arguments, and places that are not theirs to give."""

from collections import OrderedDict

import pytest
import torch
import weightless
from torch import nn
from torch.nn.utils import parametrize
from weightless import in_a_model, only, plain_norm

import srmsnorm


class Refusing(nn.Module):
    """A norm that must not be called."""

    def forward(self, x):
        raise AssertionError("called")


def with_weight(module, weight=None):
    module.weight = nn.Parameter(torch.ones(64)) if weight is None else weight
    return module


def with_buffer(module):
    module.register_buffer("scale", torch.ones(64), persistent=False)
    return module


class RefusingNormOfTwo(nn.Module):
    def forward(self, x, residual=None):
        raise AssertionError("called")


class RefusingNormWithState(Refusing):
    def get_extra_state(self):
        return {"a": 1}

    def set_extra_state(self, state):
        pass


def with_hook(module):
    module.register_forward_hook(lambda *_: None)
    return module


def with_forward(module):
    module.forward = lambda x: x
    return module


class OtherCallNorm(nn.RMSNorm):
    def __call__(self, x):
        return -super().__call__(x)


def compiled_norm():
    module = plain_norm()
    module.compile(backend="eager")
    return module


def parametrized_norm():
    module = nn.RMSNorm(64)
    parametrize.register_parametrization(module, "weight", nn.Identity())
    return module


NOT_ASKED = [
    (lambda: with_weight(type("RefusingNorm", (Refusing,), {})()), "has the parameter weight; srmsnorm.fold"),
    (lambda: with_buffer(type("RefusingNorm", (Refusing,), {})()), "has the buffer scale"),
    (lambda: nn.RMSNorm(64), "has the parameter weight"),
    (lambda: nn.LayerNorm(64), "has the parameter weight"),
    (lambda: nn.LayerNorm(64, elementwise_affine=False), "is another function"),
    (lambda: nn.RMSNorm((4, 64), elementwise_affine=False), "is over 2 dimensions: [4, 64]"),
    (lambda: plain_norm(eps=-1.0), "takes an eps of at least 0"),
    (RefusingNormOfTwo, "does not take one tensor: forward(x, residual=None)"),
    (RefusingNormWithState, "has a state_dict"),
    (lambda: with_hook(plain_norm()), "has hooks"),
    (lambda: with_forward(plain_norm()), "has a forward or a call of its own"),
    (lambda: OtherCallNorm(64, elementwise_affine=False), "has a forward or a call of its own"),
    (compiled_norm, "is compiled on its own"),
    (parametrized_norm, "is parametrized"),
    (lambda: srmsnorm.SRMSNorm(64), "is ours"),
]


@pytest.mark.parametrize("make, reason", NOT_ASKED, ids=[reason for _, reason in NOT_ASKED])
def test_not_asked(make, reason):
    model = in_a_model(make())
    stays = model[0]
    entry = only(srmsnorm.convert(model, allow_rounding=True))
    assert not entry.replaced and reason in entry.reason and model[0] is stays


def test_a_subclass_of_another_name_is_reported():
    model = in_a_model(type("Scaling", (nn.RMSNorm,), {})(64))
    assert "has the parameter weight" in only(srmsnorm.convert(model)).reason


def test_blocks_are_not_called():
    """Nothing with submodules, whatever its name, and nothing under TorchScript."""
    block = Refusing()
    block.norm = plain_norm()
    scripted = torch.jit.script(nn.Sequential(OrderedDict(norm=plain_norm())))
    model = in_a_model(block, scripted)
    report = srmsnorm.convert(model)
    assert report.replaced == ["0.norm"]
    assert [entry.reason for entry in report.entries if not entry.replaced] == ["is TorchScript"]


def test_the_model_itself():
    norm = plain_norm()
    assert "nothing holds" in only(srmsnorm.convert(norm)).reason


def test_a_parametrization():
    model = nn.Sequential(nn.Linear(64, 64))
    parametrize.register_parametrization(model[0], "weight", weightless.InFloatNorm())
    assert "is a parametrization" in only(srmsnorm.convert(model)).reason
