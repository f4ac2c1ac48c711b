"""Classes that are norms without a weight, or nearly so, as people write them."""

import torch
from torch import nn
from torch.nn import functional as F


def module(function, **attributes):
    """A module whose forward is that function of it and its input."""

    class WrittenNorm(nn.Module):
        def forward(self, x):
            return function(self, x)

    made = WrittenNorm()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def in_a_model(*modules):
    return nn.Sequential(*modules, nn.Linear(64, 64))


def plain_norm(**options):
    return nn.RMSNorm(64, elementwise_affine=False, **options)


def only(report):
    """The one line that a report has."""
    (entry,) = report.entries
    return entry


def mean_square(x):
    return x.pow(2).mean(-1, keepdim=True)


class InFloatNorm(nn.Module):
    """As Llama 4's L2 norm: in float32, rounded once."""

    def __init__(self, eps=1e-6):
        super().__init__()
        self.eps = eps

    def forward(self, x):
        return (x.float() * torch.rsqrt(mean_square(x.float()) + self.eps)).type_as(x)


class RstdFirstNorm(InFloatNorm):
    """As DeepSeek V4's: rstd is rounded, then the product."""

    def forward(self, x):
        return x * torch.rsqrt(mean_square(x.float()) + self.eps).to(x.dtype)


class OwnRMSNorm(nn.RMSNorm):
    """A subclass that computes the same by itself."""

    def forward(self, x):
        return F.rms_norm(x, self.normalized_shape, eps=self.eps)


class DoubledRMSNorm(nn.RMSNorm):
    """A subclass that computes something else."""

    def forward(self, x):
        return 2 * super().forward(x)


class Activation(nn.Module):
    """What a report is silent about."""

    def forward(self, x):
        return F.gelu(x)


def of_its_dim(self, x):
    h = x.double() if x.dtype == torch.float64 else x.float()
    return (h * torch.rsqrt(h.square().sum(-1, keepdim=True) / self.dim + 1e-5)).to(x.dtype)


def by_a_power(self, x):
    """As Gemma 3n's."""
    return (x.float() * torch.pow(mean_square(x.float()) + self.eps, -0.5)).type_as(x)


def by_a_product(self, x):
    """The mean as a product with a column."""
    h = x.float()
    return (h * torch.rsqrt(h.square() @ h.new_full((h.shape[-1], 1), 1 / h.shape[-1]) + 1e-6)).type_as(x)


def counting(self, x):
    self.calls += 1
    return F.rms_norm(x, x.shape[-1:])


def detached(self, x):
    return (x.float() * torch.rsqrt(mean_square(x.float()) + 1e-6).detach()).type_as(x)


def detached_in(mode):
    """In training or in eval mode alone."""

    def function(self, x):
        rstd = torch.rsqrt(mean_square(x.float()) + 1e-6)
        return (x.float() * (rstd.detach() if self.training == mode else rstd)).type_as(x)

    return function


@torch.no_grad()
def without_grad(self, x):
    return F.rms_norm(x, x.shape[-1:])


def only_bfloat(self, x):
    if x.dtype != torch.bfloat16:
        raise TypeError("bfloat16 only")
    return F.rms_norm(x, x.shape[-1:], eps=1e-5)


# (module, eps, dim, what the report says)
TAKEN = {
    "in float32": (InFloatNorm(), 1e-6, None, "computes float64 in float32"),
    "another eps": (InFloatNorm(1e-5), 1e-5, None, "computes float64 in float32"),
    "an eps of no round number": (InFloatNorm(3.21789e-4), 3.21789e-4, None, "computes float64 in float32"),
    "a hidden eps": (module(lambda self, x: F.rms_norm(x, x.shape[-1:], eps=2.5e-5)), 2.5e-5, None, ""),
    "no eps": (InFloatNorm(0.0), 0.0, None, "computes float64 in float32"),
    "a tiny eps": (InFloatNorm(1e-30), 1e-30, None, "computes float64 in float32"),
    "a large eps": (InFloatNorm(0.5), 0.5, None, "computes float64 in float32"),
    "the default eps": (module(lambda self, x: F.rms_norm(x, x.shape[-1:])), None, None, ""),
    "by a power": (module(by_a_power, eps=1e-6), 1e-6, None, "computes float64 in float32"),
    "one dim": (module(of_its_dim, dim=96, heads=4), 1e-5, 96, ""),
    "a subclass": (OwnRMSNorm(48, elementwise_affine=False), None, 48, ""),
    "one dtype": (module(only_bfloat), 1e-5, None, ""),
    "not below three dimensions": (
        module(lambda self, x: F.rms_norm(x, (x.shape[2],)) if x.ndim == 3 else x.shape.three),
        None,
        None,
        "",
    ),
}

# (module, the reason)
STAYING = {
    "eps outside of the root": (
        module(lambda self, x: x / (mean_square(x).sqrt() + 1e-6)),
        "eps elsewhere than under the root",
    ),
    "eps as a floor": (
        module(lambda self, x: x / mean_square(x).sqrt().clamp(min=1e-6)),
        "eps elsewhere than under the root",
    ),
    "as x-transformers'": (
        module(lambda self, x: F.normalize(x, dim=-1) * self.scale, scale=512**0.5),
        "eps elsewhere than under the root",
    ),
    "the dtype's eps": (
        module(lambda self, x: F.rms_norm(x, x.shape[-1:], eps=torch.finfo(x.dtype).eps)),
        "eps that depends on the dtype",
    ),
    "in the dtype": (module(lambda self, x: x * torch.rsqrt(mean_square(x) + 1e-6)), "overflows in float16"),
    "of length 1": (module(lambda self, x: F.normalize(x, dim=-1)), "divides by the length"),
    "centred": (module(lambda self, x: F.layer_norm(x, x.shape[-1:])), "subtracts the mean"),
    "another dimension": (module(lambda self, x: F.rms_norm(x.mT, x.mT.shape[-1:]).mT), "computes something else"),
    "the second dimension": (
        module(lambda self, x: (x.float() * torch.rsqrt(x.float().square().mean(1, True) + 1e-6)).type_as(x)),
        "computes something else",
    ),
    "a subclass": (DoubledRMSNorm(64, elementwise_affine=False), "computes something else"),
    "an activation": (module(lambda self, x: F.gelu(x)), "computes something else"),
    "the identity": (module(lambda self, x: x), "computes something else"),
    "dropout": (module(lambda self, x: F.dropout(x, 0.1, self.training)), "not return the same twice"),
    "otherwise in training": (
        module(lambda self, x: F.rms_norm(x, x.shape[-1:], eps=1e-3 if self.training else 1e-5)),
        "not return the same twice",
    ),
    "a counter": (module(counting, calls=0), "changes its own attributes"),
    "in place": (module(lambda self, x: x.copy_(F.rms_norm(x, x.shape[-1:]))), "writes its input"),
    "float32 out": (module(lambda self, x: F.rms_norm(x.float(), x.shape[-1:])), "returns float32 for "),
    "two outputs": (module(lambda self, x: (F.rms_norm(x, x.shape[-1:]), x)), "returns tuple"),
    "another shape": (module(lambda self, x: F.rms_norm(x, x.shape[-1:])[..., :1]), "returns the shape "),
    "raising": (module(lambda self, x: x.no_such_thing), "raises when it is called: AttributeError"),
    "detached": (module(detached), "has another gradient"),
    "detached in training": (module(detached_in(True)), "has another gradient"),
    "detached in eval mode": (module(detached_in(False)), "has another gradient"),
    "no gradient": (module(without_grad), "has no gradient: RuntimeError"),
}
