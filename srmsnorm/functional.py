"""The public functions. Eager calls take the function of _C, the shortest way down; anything that traces or
overrides torch functions sees the operator of the same name, or, where the user or ONNX wants it inlined, the formula
behind a call of the operator that checks the arguments and whose result nobody uses: the compiler drops it. The norms
themselves may be left to the compiler's graph (``inlining.asked``)."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import has_torch_function, has_torch_function_unary, has_torch_function_variadic

from . import inlining, reference
from ._library import _C

__all__ = [
    "add_srms_norm",
    "add_srms_norm_",
    "add_srms_norm_quantized",
    "add_srms_norm_quantized_",
    "gated_srms_norm",
    "rstd",
    "srms_norm",
    "srms_norm_quantized",
]

_is_compiling = torch.compiler.is_compiling
_srms_norm = torch.ops.srmsnorm.srms_norm.default
_add_srms_norm = torch.ops.srmsnorm.add_srms_norm.default
_add_srms_norm_ = torch.ops.srmsnorm.add_srms_norm_.default
_gated_srms_norm = torch.ops.srmsnorm.gated_srms_norm.default
_rstd = torch.ops.srmsnorm.rstd.default
_srms_norm_quantized = torch.ops.srmsnorm.srms_norm_quantized.default
_add_srms_norm_quantized = torch.ops.srmsnorm.add_srms_norm_quantized.default
_add_srms_norm_quantized_ = torch.ops.srmsnorm.add_srms_norm_quantized_.default


_NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}


def _name(dtype: torch.dtype) -> str:
    """What schemas hold: the number of a dtype in an exported graph is not the one that a package takes it for."""
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"srmsnorm: dtype must be a torch.dtype or None, got {dtype!r}")
    return _NAMES[dtype]


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
        if _is_compiling() and (table := inlining.asked()):
            return torch.ops.srmsnorm_auto.srms_norm.default(input, residual, eps=eps, dtype=name, table=table)
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
        if _is_compiling() and (table := inlining.asked()):
            return torch.ops.srmsnorm_auto.add_srms_norm.default(input, residual, eps=eps, dtype=name, table=table)
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


def srms_norm_quantized(
    input: Tensor,
    residual: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale: float | Tensor | Literal["bound"] | None = None,
    group_size: int | None = None,
    power_of_two: bool = False,
    scale_ub: float | None = None,
    eps: float | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The norm in bytes: what an fp8 or int8 linear layer takes, in one pass over the input.

    .. math:: y = \mathrm{round}(\mathrm{srms\_norm}(input, residual)), \qquad
        scale = \max(\min(\max |y|, scale\_ub) / q_{max}, s_{min}), \qquad
        q = \mathrm{round}(\mathrm{clamp}(y / scale, \pm q_{max}))

    y has been rounded to the dtype of ``input`` first, and ``q * scale`` is it again but for the rounding. There is a
    scale for each row, or each ``group_size`` neighbours in it, or one that is given; then :math:`q` is the rounding of
    :math:`y \cdot (1 / scale)`. In float32, with IEEE divisions. Not differentiable; ``docs/quantized.md`` has a
    straight-through estimate, and says which results ``torch._scaled_mm`` and ``torch._int_mm`` take.

    Args:
        input: as in :func:`srms_norm`, but for float64.
        residual: as in :func:`srms_norm`.
        dtype: of q: float8_e4m3fn (:math:`q_{max}` 448), float8_e5m2 (57344) or int8 (127).
        scale: None for one of each row or group; a number; a tensor of one float32 element (or one a row), which is
            read on its device; or "bound" for the smallest power of two for which no y of that many elements exceeds
            :math:`q_{max}`, since :math:`|y| \le \sqrt{dim}`.
        group_size: 64 or 128, which must divide dim: a scale for each of so many neighbours; None: one for the row.
        power_of_two: whether scales are rounded up to powers of two.
        scale_ub: above 0, bounds the largest \|y\| that a scale is made of; what is larger saturates.
        eps: as in :func:`srms_norm`.

    Returns:
        (q, scale): q contiguous, of the shape of ``input``; scale in float32: of shape (..., 1), contiguous; or (...,
        dim / group_size) with stride 1 along the rows; or as it was given, a number as a new tensor of one element.

    Raises:
        RuntimeError: as :func:`srms_norm`; float64; another dtype of q; a number that is not a finite float32 above 0;
            a scale of another dtype, device or shape; group_size, power_of_two or scale_ub beside a scale; a group that
            does not divide dim; an operand that requires grad in grad mode or carries a tangent.
    """
    if _is_compiling() or has_torch_function_variadic(input, residual, scale):
        options = _options(dtype, scale, group_size, power_of_two, scale_ub, eps)
        q, used = _srms_norm_quantized(input, residual, _tensor(scale), **options)
        if _is_compiling() and inlining.wanted():
            return reference.srms_norm_quantized(input, residual, **_of_reference(options, scale, dtype))
    else:
        return _C.srms_norm_quantized(
            input, residual, scale, _NAMES.get(dtype, dtype), group_size, power_of_two, scale_ub, eps
        )
    return q, _returned(scale, used)


def add_srms_norm_quantized(
    input: Tensor,
    residual: Tensor,
    *,
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale: float | Tensor | Literal["bound"] | None = None,
    group_size: int | None = None,
    power_of_two: bool = False,
    scale_ub: float | None = None,
    eps: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`srms_norm_quantized` of ``input + residual``, and that sum.

    Returns:
        (q, scale, sum): sum in the dtype of ``residual``, rounded once.

    Raises:
        RuntimeError: as :func:`srms_norm_quantized`.
    """
    if _is_compiling() or has_torch_function_variadic(input, residual, scale):
        options = _options(dtype, scale, group_size, power_of_two, scale_ub, eps)
        q, used, sum = _add_srms_norm_quantized(input, residual, _tensor(scale), **options)
        if _is_compiling() and inlining.wanted():
            return reference.add_srms_norm_quantized(input, residual, **_of_reference(options, scale, dtype))
    else:
        return _C.add_srms_norm_quantized(
            input, residual, scale, _NAMES.get(dtype, dtype), group_size, power_of_two, scale_ub, eps
        )
    return q, _returned(scale, used), sum


def add_srms_norm_quantized_(
    input: Tensor,
    residual: Tensor,
    *,
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale: float | Tensor | Literal["bound"] | None = None,
    group_size: int | None = None,
    power_of_two: bool = False,
    scale_ub: float | None = None,
    eps: float | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`add_srms_norm_quantized` whose sum overwrites ``residual``; ``input`` is only read.

    Args:
        residual: as in :func:`add_srms_norm`, with a last dimension of stride 1; overwritten.

    Returns:
        (q, scale).

    Raises:
        RuntimeError: as :func:`srms_norm_quantized`; also where elements of ``residual`` share memory with each other
            or with another operand.
    """
    if _is_compiling() or has_torch_function_variadic(input, residual, scale):
        options = _options(dtype, scale, group_size, power_of_two, scale_ub, eps)
        if _is_compiling() and torch.onnx.is_in_onnx_export():
            q, used, sum = add_srms_norm_quantized(input, residual, **_of_reference(options, scale, dtype))
            residual.copy_(sum)
        else:
            q, used = _add_srms_norm_quantized_(input, residual, _tensor(scale), **options)
    else:
        return _C.add_srms_norm_quantized_(
            input, residual, scale, _NAMES.get(dtype, dtype), group_size, power_of_two, scale_ub, eps
        )
    return q, _returned(scale, used)


def _returned(scale: Any, used: Tensor) -> Any:
    """The scale itself, where it was given as a tensor."""
    return scale if isinstance(scale, Tensor) else used


def _tensor(scale: Any) -> Tensor | None:
    return scale if isinstance(scale, Tensor) else None


def _options(
    dtype: torch.dtype, scale: Any, group_size: int | None, power_of_two: bool, scale_ub: float | None, eps: Any
) -> dict[str, Any]:
    is_name = isinstance(scale, str)
    return {
        "dtype": _NAMES.get(dtype, dtype),
        "scale_value": None if is_name or isinstance(scale, Tensor) else scale,
        "scale_name": scale if is_name else None,
        "group_size": group_size,
        "power_of_two": power_of_two,
        "scale_ub": scale_ub,
        "eps": eps,
    }


def _of_reference(options: dict[str, Any], scale: Any, dtype: torch.dtype) -> dict[str, Any]:
    own = {key: value for key, value in options.items() if not key.startswith("scale_") or key == "scale_ub"}
    return {**own, "scale": scale, "dtype": dtype}
