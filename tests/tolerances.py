"""How far a result may be from the truth: counted in roundings, never fitted. u is a dtype's unit roundoff, eps / 2.

A bound is that of the result's own dtype: what a wider result of a mixed call may lose is what it keeps of a narrow
operand, never a rounding to that operand's dtype."""

import math

import torch
import truth
from torch import Tensor

from srmsnorm.reference import accumulation_dtype

# y = h * rstd in the accumulation type: h, the mean, the root, the product and its operands come to 4 ulp. Before it is
# rounded to 16 bits, the root may err by 2 ulp instead of half of one.
FORWARD_ULP = 4
ROOT_ULP_16_BIT = 1.5
# Of these rstd takes: h rounds, its square, the mean's sum and eps's, together 4 u of the mean, 2 u of its root or 2
# ulp at most; the root itself half an ulp.
RSTD_ULP = 2.5
# dh = rstd * (g - y * mean(y * g)) + gh in the accumulation type, in units of u times the sizes of its terms: five
# operations and the mean's own error.
BACKWARD_ROUNDINGS = 8
# A second derivative in the units of `second_size`, with the kept y in it rounded: y in the two means (2), their sum
# rounded to y's dtype (2) and projected (4), rounded again (2); y in the gradient of rstd (4); both added and rounded
# (4); two cotangents of one gradient added (2).
SECOND_ROUNDINGS = 20

# A sigmoid, s = 1 / (1 + exp(-g)), in units of u of the accumulation type: exp errs by 2 ulp, of which s takes the
# share 1 - s; the addition rounds, the division errs by an ulp, and where it is exp(g) times a quotient the product
# rounds. Where the result has 16 bits, exp may err by 1.2 |g| ulp more and the division by 2: the GPU's own.
EXP_ROUNDINGS = 4
FAST_EXP_ROUNDINGS = 2.4
QUOTIENT_ROUNDINGS = 4
FAST_QUOTIENT_ROUNDINGS = 6


def unit_roundoff(dtype) -> float:
    return torch.finfo(dtype).eps / 2


_EXPONENT = 0x7FF << 52  # of a float64


def ulp(x: Tensor, dtype) -> Tensor:
    """The distance between neighbours of that dtype at float64 x."""
    magnitude = x.abs().clamp(min=torch.finfo(dtype).tiny)
    return (magnitude.view(torch.int64) & _EXPONENT).view(torch.float64) * torch.finfo(dtype).eps


def assert_within(actual: Tensor, truth: Tensor, bound: Tensor) -> None:
    """|actual - truth| <= bound, element by element or row by row; NaN is never within."""
    error = (actual.double() - truth).abs()
    if bound.shape != error.shape:
        error = torch.linalg.vector_norm(error, dim=-1)
    inside = error <= bound
    if not inside.all():
        worst = torch.where(inside, -1.0, error / bound).nan_to_num(nan=torch.inf).argmax()
        index = tuple(int(i) for i in torch.unravel_index(worst, error.shape))
        raise AssertionError(
            f"{int((~inside).sum())} of {inside.numel()} outside the bound; at {index} the error is "
            f"{float(error[index]):.3g}, the bound {float(bound[index]):.3g}"
        )


def _truth_error(dtype) -> float:
    """The truth of a float64 result is itself in float64, so both sides err."""
    return 2.0 if dtype == torch.float64 else 1.0


def output_bound(truth: Tensor, dtype) -> Tensor:
    """The accumulation type's accuracy before one rounding: inside 1 ulp of a 16-bit dtype, 4 ulp of float32."""
    if dtype == accumulation_dtype(dtype):
        return FORWARD_ULP * _truth_error(dtype) * ulp(truth, dtype)
    return (FORWARD_ULP + ROOT_ULP_16_BIT) * ulp(truth, torch.float32) + 0.5 * ulp(truth, dtype)


def assert_output(output: Tensor, truth: Tensor) -> None:
    assert_within(output, truth, output_bound(truth, output.dtype))


def rstd_bound(truth: Tensor, dtype, summed: int = 0) -> Tensor:
    """summed: terms of the mean. Of random ones, errors of the sum's levels cancel, and RSTD_ULP has one of them; of
    equal ones, or one that outweighs the others, each level of a sum by halves takes half an ulp."""
    ulps = RSTD_ULP + (math.log2(summed) / 2 - 0.5 if summed > 2 else 0)
    return ulps * _truth_error(dtype) * ulp(truth, dtype)


def assert_rstd(rstd: Tensor, truth: Tensor) -> None:
    assert_within(rstd, truth, rstd_bound(truth, rstd.dtype))


def backward_error(grad_output, output, rstd, grad_sum) -> Tensor:
    """What the backward formula's terms, computed in the accumulation type, may lose; element by element."""
    g, y, r = grad_output.double().abs(), output.double().abs(), rstd.double().unsqueeze(-1)
    size = r * (g + y * (g * y).mean(-1, keepdim=True))
    if grad_sum is not None:
        size = size + grad_sum.double().abs()
    u = unit_roundoff(rstd.dtype) * _truth_error(rstd.dtype)
    return BACKWARD_ROUNDINGS * u * size


def backward_bound(truth: Tensor, dtype, grad_output, output, rstd, grad_sum=None) -> Tensor:
    """The formula of these very operands, rounded once to that dtype."""
    error = backward_error(grad_output, output, rstd, grad_sum)
    return error + 0.5 * ulp(truth.abs() + error, dtype)


def assert_backward(grad: Tensor, truth: Tensor, grad_output, output, rstd, grad_sum=None) -> None:
    assert_within(grad, truth, backward_bound(truth, grad.dtype, grad_output, output, rstd, grad_sum))


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1)


def gradient_bound(truth: Tensor, dtype, grad_output, output_dtype, y, rstd, grad_sum=None) -> Tensor:
    """Row by row, |error| <= u1 |dx| + 2 u2 |r g| (y, rstd and truth in float64): y is kept rounded, and y enters
    y * mean(y * g) twice, each time at most u2 |g|; the accumulation type's own error comes on top."""
    rounded = unit_roundoff(dtype) * _norm(truth)
    kept = 2 * unit_roundoff(output_dtype) * _norm(rstd.unsqueeze(-1) * grad_output.double())
    slack = _norm(backward_error(grad_output, y, rstd.to(accumulation_dtype(output_dtype)), grad_sum))
    subnormal = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps * truth.shape[-1] ** 0.5
    return rounded + kept + slack + subnormal


def assert_gradient(grad: Tensor, truth: Tensor, grad_output, output_dtype, y, rstd, grad_sum=None) -> None:
    assert_within(grad, truth, gradient_bound(truth, grad.dtype, grad_output, output_dtype, y, rstd, grad_sum))


def output_tangent_bound(truth: Tensor, tangent: Tensor, dtype, y, rstd, *, added) -> Tensor:
    """Of y, row by row: the Jacobian is symmetric, so a tangent of h is a gradient. `added` is the dtype in which two
    operands' tangents were added, None where there was one."""
    bound = gradient_bound(truth, dtype, tangent, dtype, y, rstd)
    return bound if added is None else bound + unit_roundoff(added) * _norm(rstd.unsqueeze(-1) * tangent)


def rstd_tangent_bound(tangent: Tensor, output_dtype, y, rstd, *, added) -> Tensor:
    """-r^2 mean(y t): y is kept rounded (of its subnormals half of the smallest is lost), t may have been; the
    accumulation type's products and mean take a few u, and r^2 twice what rstd may err."""
    u = unit_roundoff(output_dtype) + 12 * _truth_error(output_dtype) * unit_roundoff(accumulation_dtype(output_dtype))
    if added is not None:
        u = u + unit_roundoff(added)
    lost = torch.finfo(output_dtype).tiny * unit_roundoff(output_dtype) * tangent.abs().mean(-1)
    return rstd * rstd * (u * (y * tangent).abs().mean(-1) + lost) + torch.finfo(accumulation_dtype(output_dtype)).tiny


def second_size(grad_output, v, rstd) -> Tensor:
    """Row by row, r^2 |g| |v| / sqrt(dim): no term of the second derivative is larger, since |y| <= sqrt(dim)."""
    return rstd * rstd * _norm(grad_output) * _norm(v) / v.shape[-1] ** 0.5


def second_bound(truth: Tensor, dtype, output_dtype, grad_output, v, rstd) -> Tensor:
    """Of the operands, row by row: each of the terms that `SECOND_ROUNDINGS` counts, in y's dtype; as many operations
    in the accumulation type take four times as many; one rounding to the result's dtype."""
    accumulation = accumulation_dtype(output_dtype)
    u = unit_roundoff(output_dtype) + 4 * _truth_error(output_dtype) * unit_roundoff(accumulation)
    smallest = torch.finfo(dtype).smallest_normal + torch.finfo(output_dtype).smallest_normal
    subnormal = smallest * rstd.clamp(min=1.0) * truth.shape[-1] ** 0.5
    return SECOND_ROUNDINGS * u * second_size(grad_output, v, rstd) + unit_roundoff(dtype) * _norm(truth) + subnormal


# ---- beside a gate: what each term loses, carried through those that it enters


def _accumulation_roundoff(dtype) -> float:
    accumulation = accumulation_dtype(dtype)
    return unit_roundoff(accumulation) * _truth_error(accumulation)


def _rounding(x: Tensor, dtype) -> Tensor:
    """Of a number in that dtype's accumulation type; the subnormal ones' too."""
    accumulation = accumulation_dtype(dtype)
    return 0.5 * _truth_error(accumulation) * ulp(x, accumulation)


def activation_errors(gate: Tensor, activation: str | None, dtype, fast: bool) -> tuple[Tensor, Tensor]:
    """What a and its slope may lose beside an input of that dtype, whose accumulation type they are computed in. fast:
    what is made of them is rounded to 16 bits."""
    g = gate.double()
    if activation is None:
        return torch.zeros_like(g), torch.zeros_like(g)
    u = _accumulation_roundoff(dtype)
    s, complement = torch.sigmoid(g), torch.sigmoid(-g)
    exp = EXP_ROUNDINGS + (FAST_EXP_ROUNDINGS * g.abs().clamp(max=1e3) if fast else 0)  # past which s is 0 or 1
    others = FAST_QUOTIENT_ROUNDINGS if fast else QUOTIENT_ROUNDINGS
    relative = u * (complement * exp + others)  # of s
    # 1 - s loses what s does, but no more than itself where exp(-g) is lost beside 1
    complement_error = u * exp * complement + others * torch.clamp(2 * complement, max=u)
    flushed = 2 * torch.finfo(accumulation_dtype(dtype)).tiny  # of s, where exp(-g) overflows or nearly does
    if activation == "sigmoid":
        slope_error = s * complement_error + s * complement * (relative + u)
        return s * relative + flushed, slope_error + flushed
    inner = 1 + g * complement
    inner_error = g.abs() * complement_error + 2 * u * (1 + g.abs() * complement)
    slope_error = s * inner_error + (s * inner).abs() * (relative + u)
    return g.abs() * (s * relative + flushed) + _rounding(g * s, dtype), slope_error + (1 + g.abs()) * flushed


def gated_bounds(
    input: Tensor, gate: Tensor, activation: str | None, norm_before_gate: bool, eps: float | None, summed: int = 0
):
    """(of z, of rstd): element by element and row by row; summed as in rstd_bound."""
    dtype, accumulation = input.dtype, accumulation_dtype(input.dtype)
    (z, rstd), (a, _) = (
        truth.gated(input, gate, activation, norm_before_gate, eps),
        truth.activated(gate, activation),
    )
    a_error, _ = activation_errors(gate, activation, dtype, fast=dtype != accumulation)
    x, r = input.double(), rstd.unsqueeze(-1)
    roundings = _truth_error(accumulation) * (FORWARD_ULP + (0 if dtype == accumulation else ROOT_ULP_16_BIT))
    of_rstd = rstd_bound(rstd, accumulation, summed)
    if norm_before_gate:
        y = x * r
        error = y.abs() * a_error + roundings * a.abs() * ulp(y, accumulation) + _rounding(z, dtype)
    else:
        t_error = x.abs() * a_error + _rounding(x * a, dtype)
        of_root = r * r * ((x * a).abs() * t_error).mean(-1, keepdim=True)  # relative
        error = r * t_error + z.abs() * of_root + roundings * ulp(z, accumulation)
        of_rstd = of_rstd + rstd * of_root.squeeze(-1)
    return (error if dtype == accumulation else error + 0.5 * ulp(z.abs() + error, dtype)), of_rstd


def _project_error(g, g_error, y, y_error, r, r_error, dtype) -> Tensor:
    """What r (g - y mean(y g)) may lose of terms that have lost something; r_error is relative. Of subnormal products,
    of which there are two, half of the smallest number each."""
    u, accumulation = _accumulation_roundoff(dtype), torch.finfo(accumulation_dtype(dtype))
    subnormal = _truth_error(accumulation_dtype(dtype)) * accumulation.tiny * accumulation.eps
    mean = lambda t: t.mean(-1, keepdim=True)  # noqa: E731
    g, y = g.abs(), y.abs()
    inherited = g_error + y * mean(y * g_error) + y_error * mean(y * g) + y * mean(y_error * g)
    return r * (inherited + subnormal) + (BACKWARD_ROUNDINGS * u + r_error) * r * (g + y * mean(y * g))


def gated_backward_bounds(
    grad_output: Tensor,
    input: Tensor,
    gate: Tensor,
    rstd: Tensor,
    activation: str | None,
    norm_before_gate: bool,
    rstd_error: Tensor | float = 0.0,
):
    """(of the input's gradient, of the gate's) from these very operands; rstd_error is what rstd itself has lost,
    relative to it."""
    rounding = lambda t: _rounding(t, input.dtype)  # noqa: E731
    a, slope = truth.activated(gate, activation)
    fast = gate.dtype != accumulation_dtype(gate.dtype)
    a_error, slope_error = activation_errors(gate, activation, input.dtype, fast)
    dz, x, r = grad_output.double(), input.double(), rstd.double().unsqueeze(-1)
    grads = truth.gated_backward(grad_output, input, gate, rstd, activation, norm_before_gate)
    if norm_before_gate:
        y, y_error = x * r, rounding(x * r) + rstd_error * (x * r).abs()
        dy_error = dz.abs() * a_error + rounding(dz * a)
        input_error = _project_error(dz * a, dy_error, y, y_error, r, rstd_error, input.dtype)
        gate_error = dz.abs() * (y_error * slope.abs() + y.abs() * slope_error) + 2 * rounding(grads[1])
    else:
        z, t_error = x * a * r, x.abs() * a_error + rounding(x * a)
        z_error = r * t_error + rounding(z) + rstd_error * z.abs()
        dt = truth.project(dz, z, r)
        dt_error = _project_error(dz, torch.zeros_like(dz), z, z_error, r, rstd_error, input.dtype)
        dt_size = dt.abs() + dt_error
        input_error = a.abs() * dt_error + dt_size * a_error + rounding(grads[0])
        gate_error = x.abs() * (slope.abs() * dt_error + dt_size * slope_error) + 2 * rounding(grads[1])
    errors = zip(grads, (input_error, gate_error), (input.dtype, gate.dtype), strict=True)
    return tuple(error + 0.5 * ulp(grad.abs() + error, dtype) for grad, error, dtype in errors)


def assert_gated(z: Tensor, rstd: Tensor | None, input, gate, activation, norm_before_gate, eps) -> None:
    """z, and rstd where it is given."""
    of_z, of_rstd = gated_bounds(input, gate, activation, norm_before_gate, eps)
    z_truth, rstd_truth = truth.gated(input, gate, activation, norm_before_gate, eps)
    assert_within(z, z_truth, of_z)
    if rstd is not None:
        assert_within(rstd, rstd_truth, of_rstd)


def assert_gated_gradients(grads, grad_output, input, gate, rstd, activation, norm_before_gate, rstd_error=0.0) -> None:
    """Of the input and the gate; None for one that is not there."""
    operands = grad_output, input, gate, rstd, activation, norm_before_gate
    bounds = gated_backward_bounds(*operands, rstd_error)
    for grad, want, bound in zip(grads, truth.gated_backward(*operands), bounds, strict=True):
        if grad is not None:
            assert_within(grad, want, bound)


# ---- rows in pieces on several processes


def _split_ulp(pieces: int) -> float:
    """Of rstd: a piece's errs by RSTD_ULP, its inverse's square by 2 RSTD_ULP + 3, with its share 2 more; the pieces'
    sum by one a piece, eps's by one. Of all that the root takes half, and errs by 2 itself."""
    return (2 * RSTD_ULP + 6 + pieces) / 2 + 2


def split_rstd_bound(truth: Tensor, dtype, pieces: int) -> Tensor:
    return _split_ulp(pieces) * _truth_error(dtype) * ulp(truth, dtype)


def split_output_bound(truth: Tensor, dtype, pieces: int) -> Tensor:
    """As of a row that is whole, with a root that has lost more."""
    accumulation = accumulation_dtype(dtype)
    return output_bound(truth, dtype) + _split_ulp(pieces) * _truth_error(accumulation) * ulp(truth, accumulation)


def split_backward_bound(truth: Tensor, dtype, pieces: int, grad_output, output, rstd, grad_sum=None) -> Tensor:
    """Of these operands. A piece's own mean, which is taken off and added again, is up to that of the row's sizes times
    the pieces."""
    error = (1 + pieces) * backward_error(grad_output, output, rstd, grad_sum)
    return error + 0.5 * ulp(truth.abs() + error, dtype)


def assert_compiled(got, want) -> None:
    """A compiler may keep or skip roundings between our operators: a few units of the narrowest dtype."""
    tolerance = 8 * max(torch.finfo(b.dtype).eps for b in want)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype and a.stride() == b.stride()
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.detach().abs().max()))
