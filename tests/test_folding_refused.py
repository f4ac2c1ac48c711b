"""What srmsnorm.fold does not take, with the reason; nothing is written then."""

import pytest
import torch
from foldable import DIM, Block, GemmaNorm, LlamaNorm, block, refused
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import srmsnorm


def plain_linear(**options):
    return nn.Linear(DIM, 32, **options)


def test_names():
    refused(block(), "the model has no module 'norms'", "norms", ["q", "k"])
    refused(block(), "the model has no module 'q.x'", "norm", ["q.x", "k"])
    refused(block(), "'' is the model itself", "", ["q", "k"])
    refused(block(), "each once", "norm", ["q", "q"])
    refused(block(), "at least one linear", "norm", [])
    model = nn.Sequential(nn.RMSNorm(DIM), plain_linear())
    srmsnorm.fold(model, "0", "1")  # one name may stand for a list
    assert isinstance(model[0], srmsnorm.SRMSNorm)


def test_types():
    with pytest.raises(TypeError, match="srmsnorm: fold takes an nn.Module, got int"):
        srmsnorm.fold(3, "norm", ["q"])
    for offset in ("1", True, float("nan"), None):
        with pytest.raises(TypeError, match="srmsnorm: fold takes a finite number for weight_offset, got "):
            srmsnorm.fold(block(), "norm", ["q", "k"], weight_offset=offset)


class ScaledFirst(LlamaNorm):
    """The weight is no factor of its output."""

    def forward(self, x):
        return F.rms_norm(x * self.weight, x.shape[-1:])


class WithBias(LlamaNorm):
    def __init__(self, dim):
        super().__init__(dim)
        self.bias = nn.Parameter(torch.zeros(dim))


class Halved(LlamaNorm):
    def forward(self, x):
        return super().forward(x) / 2


class Shifted(LlamaNorm):
    """Its weight counts where it is 1 in another way."""

    def forward(self, x):
        return super().forward(x) * self.weight


class HalvedIn(LlamaNorm):
    """In training or in eval mode alone."""

    def __init__(self, mode):
        super().__init__(DIM)
        self.mode = mode

    def forward(self, x):
        return super().forward(x) / (2 if self.training == self.mode else 1)


class UnweightedInEval(LlamaNorm):
    def forward(self, x):
        y = super().forward(x)
        return y if self.training else y / self.weight


def meta(module):
    return module.to("meta")


def two_dims(norm):
    norm.weight = nn.Parameter(norm.weight[None])
    return norm


def hooked(module):
    module.register_forward_hook(lambda *_: None)
    return module


def parametrized(module):
    parametrize.register_parametrization(module, "weight", nn.Identity())
    return module


NORM_REFUSED = [
    (lambda: GemmaNorm(DIM), "it computes something else; weight_offset=1.0 fits"),
    (lambda: ScaledFirst(DIM), "does not multiply the norm by its weight"),
    (lambda: Shifted(DIM), "does not multiply the norm by its weight"),
    (lambda: Halved(DIM), "is not norm(x) * weight, it computes something else"),
    (lambda: HalvedIn(True), "does not return the same twice, in training and in eval mode"),
    (lambda: HalvedIn(False), "does not return the same twice, in training and in eval mode"),
    (lambda: UnweightedInEval(DIM), "does not multiply the norm by its weight"),
    (lambda: nn.LayerNorm(DIM), "must hold one weight and nothing else, it holds ['weight', 'bias']"),
    (lambda: nn.LayerNorm(DIM, bias=False), "it subtracts the mean"),
    (lambda: WithBias(DIM), "must hold one weight and nothing else"),
    (lambda: srmsnorm.SRMSNorm(DIM), "must hold one weight and nothing else, it holds []"),
    (lambda: hooked(nn.RMSNorm(DIM)), "'norm' has hooks"),
    (lambda: parametrized(nn.RMSNorm(DIM)), "'norm' is parametrized"),
    (lambda: two_dims(nn.RMSNorm(DIM)), "must have one dimension, it has the shape [1, 64]"),
    (lambda: nn.RMSNorm(32), "the weight of 'q' is [32, 64], beside a norm of dim 32"),
]


@pytest.mark.parametrize("make, message", NORM_REFUSED, ids=[message for _, message in NORM_REFUSED])
def test_norms_refused(make, message):
    torch.manual_seed(0)
    refused(Block(make()), message, "norm", ["q", "k"], unchecked=True)


class OtherLinear(nn.Linear):
    def forward(self, x):
        return -super().forward(x)


def in_inference_mode():
    with torch.inference_mode():
        return plain_linear()


def expanded():
    linear = plain_linear()
    linear.weight = nn.Parameter(torch.ones(1, DIM).expand(32, DIM))
    return linear


LINEARS_REFUSED = [
    (lambda: hooked(plain_linear()), "'q' has hooks"),
    (lambda: nn.utils.parametrizations.weight_norm(plain_linear()), "'q' is parametrized"),
    (lambda: OtherLinear(DIM, 32), "'q' must be an nn.Linear with its forward, it is OtherLinear"),
    (lambda: nn.Conv1d(DIM, 32, 1), "'q' must be an nn.Linear with its forward, it is Conv1d"),
    (lambda: torch.ao.nn.quantized.dynamic.Linear(DIM, 32), "it is Linear"),
    (lambda: plain_linear(dtype=torch.complex64), "a plain parameter of a float dtype, it is a Parameter of complex64"),
    (lambda: meta(plain_linear()), "the weight of 'q' is on the meta device"),
    (in_inference_mode, "cannot be written: it was made in inference mode, or is expanded"),
    (expanded, "cannot be written: it was made in inference mode, or is expanded"),
]


@pytest.mark.parametrize("make, message", LINEARS_REFUSED, ids=[message for _, message in LINEARS_REFUSED])
def test_linears_refused(make, message):
    model = block()
    model.q = make()
    refused(model, message, "norm", ["k", "q"], unchecked=True)


def test_a_weight_of_another_class():
    """As quantized and sharded ones are: subclasses of Tensor in a parameter."""

    class Packed(torch.Tensor):
        pass

    model = block()
    model.q.weight = nn.Parameter(torch.randn(32, DIM).as_subclass(Packed))
    refused(model, "the weight of 'q' must be a plain parameter of a float dtype, it is a ", "norm", ["q", "k"])


def test_shared_and_tied():
    message = "the weight of 'q' is tied: 2 parameters or buffers of the model share its memory"
    model = block()
    model.again = model.norm
    refused(model, "'norm' is shared: it is 'norm' and 'again'", "norm", ["q", "k"])
    model = block()
    model.again = model.q
    refused(model, "'q' is shared: it is 'q' and 'again'", "norm", ["q", "k"])
    model = block()
    model.embedding = nn.Embedding(32, DIM)
    model.embedding.weight = model.q.weight
    refused(model, message, "norm", ["q", "k"])
    model = block()
    model.register_buffer("part", model.q.weight.detach()[3:5, 7])
    refused(model, message, "norm", ["q", "k"])
    model = block()
    model.norm.weight = nn.Parameter(model.out.bias.detach())
    refused(model, "the norm's weight is tied", "norm", ["q", "k"])


def test_overflow():
    model = block(dtype=torch.float16)
    with torch.no_grad():
        model.norm.weight[3] = 60000
        model.q.weight[:2, 3] = 2
        model.q.weight[2:, 3] = 0
        model.k.weight[:, 3] = 0
    refused(model, "2 products of 'q' overflow float16", "norm", ["k", "q"])
