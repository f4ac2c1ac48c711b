"""How far a result may be from the truth: counted in roundings, never fitted. u is a dtype's unit roundoff, eps / 2."""

import torch
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


def unit_roundoff(dtype) -> float:
    return torch.finfo(dtype).eps / 2


def ulp(x: Tensor, dtype) -> Tensor:
    """The distance between neighbours of that dtype at float64 x."""
    info = torch.finfo(dtype)
    smallest = torch.full_like(x, info.tiny)
    exponent = torch.frexp(torch.maximum(x.abs(), smallest)).exponent - 1
    return torch.exp2(exponent.double()) * info.eps


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


def assert_output(output: Tensor, truth: Tensor) -> None:
    """Within the accumulation type's accuracy before one rounding: inside 1 ulp of a 16-bit dtype, 4 ulp of float32."""
    dtype = output.dtype
    narrowed = dtype != accumulation_dtype(dtype)
    ulps = FORWARD_ULP + (ROOT_ULP_16_BIT if narrowed else 0)
    bound = ulps * _truth_error(dtype) * ulp(truth, accumulation_dtype(dtype))
    if narrowed:
        bound = bound + 0.5 * ulp(truth, dtype)
    assert_within(output, truth, bound)


def assert_rstd(rstd: Tensor, truth: Tensor) -> None:
    assert_within(rstd, truth, RSTD_ULP * _truth_error(rstd.dtype) * ulp(truth, rstd.dtype))


def backward_error(grad_output, output, rstd, grad_sum) -> Tensor:
    """What the backward formula's terms, computed in the accumulation type, may lose; element by element."""
    g, y, r = grad_output.double().abs(), output.double().abs(), rstd.double().unsqueeze(-1)
    size = r * (g + y * (g * y).mean(-1, keepdim=True))
    if grad_sum is not None:
        size = size + grad_sum.double().abs()
    u = unit_roundoff(rstd.dtype) * _truth_error(rstd.dtype)
    return BACKWARD_ROUNDINGS * u * size


def assert_backward(grad: Tensor, truth: Tensor, grad_output, output, rstd, grad_sum=None) -> None:
    """The formula of these very operands, rounded once to the gradient's dtype."""
    error = backward_error(grad_output, output, rstd, grad_sum)
    assert_within(grad, truth, error + 0.5 * ulp(truth.abs() + error, grad.dtype))


def assert_gradient(grad: Tensor, truth: Tensor, grad_output, output_dtype, y, rstd, grad_sum=None) -> None:
    """Row by row, |error| <= u1 |dx| + 2 u2 |r g| (y, rstd and truth in float64): y is kept rounded, and y enters
    y * mean(y * g) twice, each time at most u2 |g|; the accumulation type's own error comes on top."""
    norm = torch.linalg.vector_norm
    rounded = unit_roundoff(grad.dtype) * norm(truth, dim=-1)
    kept = 2 * unit_roundoff(output_dtype) * norm(rstd.unsqueeze(-1) * grad_output.double(), dim=-1)
    slack = norm(backward_error(grad_output, y, rstd.to(accumulation_dtype(output_dtype)), grad_sum), dim=-1)
    subnormal = torch.finfo(grad.dtype).smallest_normal * torch.finfo(grad.dtype).eps * truth.shape[-1] ** 0.5
    assert_within(grad, truth, rounded + kept + slack + subnormal)


def assert_compiled(got, want) -> None:
    """A compiler may keep or skip roundings between our operators: a few units of the narrowest dtype."""
    tolerance = 8 * max(torch.finfo(b.dtype).eps for b in want)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype and a.stride() == b.stride()
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.detach().abs().max()))
