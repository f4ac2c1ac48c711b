"""The norm as a module of no dim of its own."""

import torch
from torch import Tensor, nn

from .functional import srms_norm

__all__ = ["SRMSNormAnyDim"]


class SRMSNormAnyDim(nn.Module):
    """:class:`srmsnorm.SRMSNorm` of a last dimension of any size: what takes the place of a module that asks for none.

    Args:
        eps: as in :func:`srmsnorm.srms_norm`.
    """

    __constants__ = ["eps"]

    def __init__(self, eps: float | None) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, input: Tensor) -> Tensor:
        """y, as :func:`srmsnorm.srms_norm`.

        Args:
            input: shape (..., dim).

        Raises:
            RuntimeError: as :func:`srmsnorm.srms_norm`.
        """
        return srms_norm(input, eps=self.eps)

    def __prepare_scriptable__(self) -> nn.Module:
        return _Scriptable(self.eps)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"


class _Scriptable(nn.Module):
    """What ``torch.jit.script`` sees, as TorchScript has no keyword-only arguments."""

    def __init__(self, eps: float | None) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, input: Tensor) -> Tensor:
        return torch.ops.srmsnorm.srms_norm(input, None, eps=self.eps)
