"""The public functions. Eager calls take the function of _C, the shortest way down; anything that traces or
overrides torch functions sees the operator of the same name, or, where the user or ONNX wants it inlined, the formula
behind a call of the operator that checks the arguments and whose result nobody uses: the compiler drops it."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import has_torch_function, has_torch_function_unary

from . import inlining, reference
from ._library import _C

__all__ = ["add_srms_norm", "add_srms_norm_", "gated_srms_norm", "rstd", "srms_norm"]

_is_compiling = torch.compiler.is_compiling
_srms_norm = torch.ops.srmsnorm.srms_norm.default
_add_srms_norm = torch.ops.srmsnorm.add_srms_norm.default
_add_srms_norm_ = torch.ops.srmsnorm.add_srms_norm_.default
_gated_srms_norm = torch.ops.srmsnorm.gated_srms_norm.default
_rstd = torch.ops.srmsnorm.rstd.default


def _name(dtype: torch.dtype) -> str:
    """What schemas hold: the number of a dtype in an exported graph is not the one that a package takes it for."""
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"srmsnorm: dtype must be a torch.dtype or None, got {dtype!r}")
    return str(dtype).removeprefix("torch.")


def srms_norm(
    input: Tensor,
    residual: Tensor | None = None,
    *,
    eps: float | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Root mean square normalization over the last dimension, without a weight.

    .. math:: h = input + residual, \qquad y = h \cdot (\mathrm{mean}(h^2) + eps)^{-1/2}

    as in "Root Mean Square Layer Normalization" (Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467) and, as
    the *simple* norm without a weight, in "Scaling TransNormer to 175 Billion Parameters" (Qin et al., 2023,
    https://arxiv.org/abs/2307.14995). The sum is taken once in the accumulation type (float64 for float64, else
    float32), is not rounded before the norm, and is not written.

    Differentiable to any order, in forward and reverse mode. Backward keeps y and 4 bytes a row (8 in float64), not the
    inputs; as with ``relu`` or ``tanh``, modifying y in place before backward raises PyTorch's usual error. Of a y in
    float32 beside a 16-bit input and no residual, the input is kept instead. A float32 input's gradient has the error
    of a y that is rounded to 16 bits, in which it is kept.

    Args:
        input: shape (..., dim); float16, bfloat16, float32 or float64. Any strides; a last dimension whose own stride
            is not 1 is copied once.
        residual: the shape and device of ``input``; its dtype, or float32 beside a 16-bit input.
        eps: added to the mean square, inside the root; at least 0, and rounded to the accumulation type first, so that
            1e-50 is 0 beside float32. None means the machine epsilon of the accumulation
            type, as in :func:`torch.nn.functional.rms_norm`.
        dtype: of y, which is rounded once, to it: float16, bfloat16 or float32, wider or narrower than the input;
            float64 beside float64 and there alone. None means the input's. Unlike the ``dtype`` of
            :func:`torch.softmax`, to which the input is cast first, it says nothing of how the input is read.

    Returns:
        y, in the shape of ``input``.

    Raises:
        RuntimeError: another dtype, a scalar, a residual of another shape, device or an unsuitable dtype, a negative or
            NaN eps. Nothing is launched or written then.
        TypeError: a dtype that is no :class:`torch.dtype`.
    """
    name = None if dtype is None else _name(dtype)
    if _is_compiling() or (
        has_torch_function_unary(input) if residual is None else has_torch_function((input, residual))
    ):
        y = _srms_norm(input, residual, eps=eps, dtype=name)
        inlines = _is_compiling() and inlining.wanted()
        return reference.srms_norm(input, residual, eps=eps, dtype=dtype) if inlines else y
    return _C.srms_norm(input, residual, eps, name)


def add_srms_norm(
    input: Tensor, residual: Tensor, *, eps: float | None = None, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`srms_norm` of ``input + residual``, and that sum: the pre-norm block's norm and its new residual stream.

    Args:
        input: as in :func:`srms_norm`.
        residual: as in :func:`srms_norm`, required.
        eps: as in :func:`srms_norm`.
        dtype: of y, as in :func:`srms_norm`.

    Returns:
        (y, sum): y in the shape of ``input``; sum in the dtype of ``residual``, rounded once.

    Raises:
        RuntimeError, TypeError: as :func:`srms_norm`.
    """
    name = None if dtype is None else _name(dtype)
    if _is_compiling() or has_torch_function((input, residual)):
        both = _add_srms_norm(input, residual, eps=eps, dtype=name)
        inlines = _is_compiling() and inlining.wanted()
        return reference.add_srms_norm(input, residual, eps=eps, dtype=dtype) if inlines else both
    return _C.add_srms_norm(input, residual, eps, name)


def add_srms_norm_(input: Tensor, residual: Tensor, *, eps: float | None = None) -> None:
    """:func:`add_srms_norm` in place, for inference: y overwrites ``input``, the sum overwrites ``residual``.

    Args:
        input: as in :func:`srms_norm`, with a last dimension of stride 1; overwritten.
        residual: as in :func:`add_srms_norm`, with a last dimension of stride 1; overwritten.
        eps: as in :func:`srms_norm`.

    Raises:
        RuntimeError: as :func:`srms_norm`; also where an operand requires grad while grad mode is on or carries a
            forward gradient, where an operand is expanded, or where the two overlap.
    """
    if _is_compiling() or has_torch_function((input, residual)):
        if not (_is_compiling() and torch.onnx.is_in_onnx_export()):
            return _add_srms_norm_(input, residual, eps=eps)
        y, sum = add_srms_norm(input, residual, eps=eps)
        input.copy_(y)
        residual.copy_(sum)
        return None
    return _C.add_srms_norm_(input, residual, eps)


def rstd(input: Tensor, residual: Tensor | None = None, *, eps: float | None = None) -> Tensor:
    r"""The number that :func:`srms_norm` multiplies a row by, at the price of reading it.

    .. math:: h = input + residual, \qquad rstd = (\mathrm{mean}(h^2) + eps)^{-1/2}

    For those who scale a product instead of its operand: ``linear(x) * rstd(x).unsqueeze(-1)`` is ``linear`` of the
    norm, where it has no bias. Differentiable to any order, in forward and reverse mode; backward keeps the operands
    and rstd.

    Args:
        input: as in :func:`srms_norm`.
        residual: as in :func:`srms_norm`.
        eps: as in :func:`srms_norm`.

    Returns:
        rstd, in the shape of ``input`` without the last dimension; float64 for float64, else float32; within 2.5 ulp.

    Raises:
        RuntimeError: as :func:`srms_norm`.
    """
    if _is_compiling() or (
        has_torch_function_unary(input) if residual is None else has_torch_function((input, residual))
    ):
        r = _rstd(input, residual, eps=eps)
        return reference.rstd(input, residual, eps=eps) if _is_compiling() and inlining.wanted() else r
    return _C.rstd(input, residual, eps)


def gated_srms_norm(
    input: Tensor,
    gate: Tensor,
    *,
    activation: str | None = None,
    norm_before_gate: bool = True,
    eps: float | None = None,
) -> Tensor:
    r"""The norm times an activated gate, or the norm of that product: one pass over both.

    .. math:: a = activation(gate), \qquad
        z = input \cdot (\mathrm{mean}(input^2) + eps)^{-1/2} \cdot a

    and with ``norm_before_gate=False``

    .. math:: t = input \cdot a, \qquad z = t \cdot (\mathrm{mean}(t^2) + eps)^{-1/2}

    Computed in the accumulation type (float64 for float64, else float32), of which nothing is rounded or written but z.
    TransNormerLLM gates its norm without an activation; its successor TNL and MiniMax with a sigmoid; RetNet, YOCO, GLA
    and Gated DeltaNet with silu, where a weight folds into the next linear layer; Mamba2 gates first.

    Differentiable to any order, in forward and reverse mode. Backward keeps input, gate and 4 bytes a row (8 in
    float64), not z or y: the next linear layer keeps z, or what it makes of it. So modifying input or
    gate in place before backward raises PyTorch's usual error. There is no residual beside a gate: add it before.

    Args:
        input: as in :func:`srms_norm`.
        gate: the shape and device of ``input`` (no broadcasting; an expanded tensor is read as it is); its dtype, or
            float32 beside a 16-bit input. Any strides, as ``input``.
        activation: None for the gate as it is, "silu" or its other name "swish", or "sigmoid".
        norm_before_gate: whether the norm is of ``input``, and its result is gated, or of the gated input.
        eps: as in :func:`srms_norm`.

    Returns:
        z, in the shape and dtype of ``input``.

    Raises:
        RuntimeError: as :func:`srms_norm`, with the gate for the residual; another activation.
    """
    if _is_compiling() or has_torch_function((input, gate)):
        options: dict[str, Any] = {"activation": activation, "norm_before_gate": norm_before_gate, "eps": eps}
        z = _gated_srms_norm(input, gate, **options)
        return reference.gated_srms_norm(input, gate, **options) if _is_compiling() and inlining.wanted() else z
    return _C.gated_srms_norm(input, gate, activation, norm_before_gate, eps)
