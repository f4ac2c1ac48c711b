"""Norms in the form in which Hugging Face's ``kernels`` package puts them into models: a class with ``forward`` alone,
whose state is that of the module it is put into, named by annotations. ``kernels`` looks a layer up in a repository;
:class:`Installed` is one that takes it from this package, without a network."""

from dataclasses import dataclass

from torch import Tensor, nn

from .functional import srms_norm

__all__ = ["Installed", "RMSNorm", "SRMSNorm"]


class SRMSNorm(nn.Module):
    """For modules with an ``eps`` and no weight, as Llama4TextL2Norm."""

    can_torch_compile = True
    has_backward = True

    eps: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        return srms_norm(hidden_states, eps=self.eps)


class RMSNorm(nn.Module):
    """For modules with the state of LlamaRMSNorm, whose product with the weight is of the norm rounded to the input's
    dtype, in the dtype of both; not for those that round the product alone, as DeepseekV4RMSNorm."""

    can_torch_compile = True
    has_backward = True

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.weight * srms_norm(hidden_states, eps=self.variance_epsilon)


@dataclass(frozen=True)
class Installed:
    """``register_kernel_mapping({"RMSNorm": {"cuda": Installed("RMSNorm")}})``: a layer of this module."""

    layer_name: str

    def load(self) -> type[nn.Module]:
        layers: dict[str, type[nn.Module]] = {"RMSNorm": RMSNorm, "SRMSNorm": SRMSNorm}
        if self.layer_name not in layers:
            raise ValueError(f"srmsnorm: no layer {self.layer_name!r}, there are {', '.join(layers)}")
        return layers[self.layer_name]
