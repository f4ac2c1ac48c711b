"""What must hold of the results of a fuzzed call: values against float64, dtypes, shapes, strides, the bits of a row
alone."""

import math
from itertools import combinations

import torch
import truth
from fuzz_calls import Call
from fuzz_memory import INTEGERS, copy_lying_alike, nests
from fuzz_operators import IN_PLACE, NUMBERS
from tolerances import backward_bound, gated_backward_bounds, gated_bounds, output_bound, rstd_bound
from torch import Tensor

import srmsnorm
from srmsnorm import reference
from srmsnorm.reference import accumulation_dtype, default_eps


class Failure(AssertionError):
    """A call that does not do what it should."""


class Refused(Exception):
    """A call that may be refused, was, and wrote nothing."""


def require(condition: bool, *message) -> None:
    if not condition:
        raise Failure(" ".join(map(str, message)))


# ---- values


def within(name: str, got: Tensor, want: Tensor, bound: Tensor) -> float:
    """By element, or by row where there is one bound a row; NaN where the truth is, inf where it overflows."""
    if got.numel() == 0:
        return 0.0
    error = (got.double() - want).abs()
    by_row = bound.dim() < error.dim()
    if by_row:
        error = torch.linalg.vector_norm(error, dim=-1)
    worst = float((error / bound).amax())
    if worst <= 1.0:
        return worst if got.itemsize > 2 else 0.0  # the one rounding to 16 bits takes up to all of a bound
    largest = torch.finfo(got.dtype).max
    if by_row:
        excused = ~want.isfinite().all(-1) | (want.abs().amax(-1) > 0.9 * largest)
    else:
        wide = got.double()
        excused = (wide == want) | (wide.isnan() & want.isnan())
        excused |= wide.isinf() & (want.abs() >= largest * 1e-3) & (wide.sign() == want.sign())  # terms are larger
    fraction = torch.where(excused, 0.0, error / bound)
    worst = float(fraction.amax())
    if not worst <= 1.0:
        place = tuple(int(i) for i in torch.unravel_index(fraction.nan_to_num(nan=math.inf).argmax(), fraction.shape))
        what = "row" if by_row else f"{float(got[place]):.9g} for {float(want[place]):.9g} at"
        raise Failure(f"{name}: {what} {place} is {worst:.3g} of the bound {float(bound[place]):.3g} away")
    return worst if got.itemsize > 2 else 0.0


def rounded_eps(call: Call) -> float:
    eps = default_eps(call.dtype) if call.eps is None else call.eps
    return float(torch.tensor(eps, dtype=accumulation_dtype(call.dtype)))


def forward_truth(call: Call, t: dict[str, Tensor]):
    return truth.forward(t["input"], t.get("residual"), rounded_eps(call))


def out_of_range(call: Call, rstd: Tensor) -> bool:
    """Whether squares overflow: of h, or rstd's, which derivatives of rstd take times what comes in."""
    most = torch.finfo(accumulation_dtype(call.dtype)).max
    square = rstd.square()
    return bool(((square < 4 * call.shape[-1] / most) | (square > most / 1e12)).any())


def check_values(call: Call, got: dict[str, Tensor], t: dict[str, Tensor]) -> dict[str, float]:
    if call.gating is not None:
        return _check_gated_values(call, got, t)
    if call.quantization:
        return _check_quantized_values(call, got, t)
    if call.operator == "_scale_rows":
        check_equal("output", got["output"], _scaled(call, **t))
        return {"output": 0.0}
    if call.operator == "_srms_norm_backward_of_input":
        return _check_backward_of_input(call, got["grad_input"], **t)
    if "input" not in t:
        t = {name: tensor if name == "rstd" else tensor.double() for name, tensor in t.items()}
        want = truth.backward(t["grad_output"], t["output"], t["rstd"], t.get("grad_sum"))
        return {name: within(name, grad, want, backward_bound(want, grad.dtype, **t)) for name, grad in got.items()}
    y, _, rstd = forward_truth(call, t)
    if out_of_range(call, rstd[rstd.square() < 1]):
        return {}
    worst = {}
    if "output" in got:
        worst["output"] = within("output", got["output"], y, output_bound(y, call.converted))
    if "rstd" in got:
        worst["rstd"] = within("rstd", got["rstd"], rstd, rstd_bound(rstd, got["rstd"].dtype, call.shape[-1]))
    if "sum" in got:
        check_equal("sum", got["sum"], truth.rounded_sum(t["input"], t["residual"]))
        worst["sum"] = 0.0
    return worst


def _check_quantized_values(call: Call, got: dict[str, Tensor], t: dict[str, Tensor]) -> dict[str, float]:
    """The formula on our own norm, exactly; on a GPU where rows' begins decide nothing."""
    if t["input"].is_cuda and any(x.data_ptr() % 16 or x.stride(-1) != 1 for x in t.values()):
        return {}
    y = srmsnorm.srms_norm(t["input"], t.get("residual"), eps=call.eps)
    q, scale = reference.quantize(y, **call.quantization)
    check_equal("output", got["output"], q)
    if "scale" in got:
        check_equal("scale", got["scale"], scale)
    if "sum" in got:
        check_equal("sum", got["sum"], truth.rounded_sum(t["input"], t["residual"]))
    return {"output": 0.0}


def _scaled(
    call: Call, input: Tensor, scale: Tensor, residual: Tensor | None = None, factor: Tensor | None = None
) -> Tensor:
    """Exact: three operations in the accumulation type, one rounding."""
    h = input.to(scale.dtype) if residual is None else input.to(scale.dtype) + residual.to(scale.dtype)
    scaled = h * scale.unsqueeze(-1)
    return (scaled if factor is None else scaled * factor.unsqueeze(-1)).to(call.converted)


def _check_backward_of_input(
    call: Call, grad: Tensor, grad_output: Tensor, input: Tensor, rstd: Tensor
) -> dict[str, float]:
    if _may_overflow(call, grad_output, input, torch.ones(1), rstd):
        return {}
    kept = input.double() * rstd.double().unsqueeze(-1)
    want = truth.backward(grad_output, kept, rstd)
    bound = backward_bound(want, grad.dtype, grad_output, kept, rstd)
    return {"grad_input": within("grad_input", grad, _not_finite_either(grad, want, bound), bound)}


def _check_gated_values(call: Call, got: dict[str, Tensor], t: dict[str, Tensor]) -> dict[str, float]:
    if "grad_output" in t:
        operands = [t[name] for name in ("grad_output", "input", "gate", "rstd")]
        if _may_overflow(call, *operands):
            return {}
        wants = truth.gated_backward(*operands, **call.gating)
        bounds = gated_backward_bounds(*operands, **call.gating)
        every = zip(("grad_input", "grad_gate"), wants, bounds, strict=True)
    else:
        operands = t["input"], t["gate"]
        wants = truth.gated(*operands, **call.gating, eps=call.eps)
        if out_of_range(call, wants[1]):
            return {}
        bounds = gated_bounds(*operands, **call.gating, eps=call.eps, summed=call.shape[-1])
        every = zip(("output", "rstd"), wants, bounds, strict=True)
    found = [(name, got[name], want, bound) for name, want, bound in every if name in got]
    return {name: within(name, z, _not_finite_either(z, want, bound), bound) for name, z, want, bound in found}


def _may_overflow(call: Call, grad_output: Tensor, input: Tensor, gate: Tensor, rstd: Tensor) -> bool:
    """Whether a product on the way can be past the accumulation type where the gradient is not: the input and the gate
    stand in each twice at most, rstd three times. (Rows that overlap have scales upon scales.)"""
    g, x, a, r = (_largest(t) for t in (grad_output, input, gate, rstd))
    product = g * max(x, 1.0) ** 2 * max(a, 1.0) ** 2 * max(r, 1.0) ** 3 * call.shape[-1]
    return product > torch.finfo(accumulation_dtype(call.dtype)).max


def _largest(tensor: Tensor) -> float:
    finite = tensor[tensor.isfinite()].double().abs()
    return float(finite.max()) if finite.numel() else 0.0


def _not_finite_either(got: Tensor, want: Tensor, bound: Tensor) -> Tensor:
    """The truth, or what is there instead, of numbers that are not finite: in a product of four factors, of which one
    is infinite and one nearly 0, the order decides between inf and NaN. (A fault's own: test_gated_rows.py.)"""
    return torch.where(got.isfinite() | want.isfinite() | bound.isfinite(), want, got.double())


def check_equal(name: str, got: Tensor, want: Tensor) -> None:
    if got.itemsize == 1:  # fp8 knows no comparisons
        got, want = got.float(), want.float()
    require(
        torch.equal(got, want) or bool(((got == want) | (got.isnan() & want.isnan())).all()),
        f"{name}: not equal to what it should be, exactly",
    )


# ---- forms


def check_forms(call: Call, got: dict[str, Tensor], t: dict[str, Tensor], strides: bool = True) -> None:
    for name, tensor in got.items():
        require(tensor.dtype == call.result_dtype(name), name, "has dtype", tensor.dtype)
        shape = call.shape[:-1] if name in NUMBERS else call.shape
        if name == "scale":
            shape = (*call.shape[:-1], call.shape[-1] // call.quantization.get("group_size", call.shape[-1]))
        require(tensor.shape == shape, name, "has shape", tuple(tensor.shape))
        if call.quantization and name != "sum":
            require(name == "scale" or not strides or tensor.is_contiguous(), name, "is not contiguous")
        elif strides and tensor.numel():
            gradient_like = "output" if "output" in t else "input"
            like = {"output": "input", "sum": "residual", "grad_gate": "gate"}.get(name, gradient_like)
            check_strides(name, tensor, None if name == "rstd" else t[like])


def check_strides(name: str, tensor: Tensor, like: Tensor | None) -> None:
    """Of a tensor without gaps; in the order of its operand's dimensions, and the very strides of one without gaps.
    An operand whose last dimension's stride is not 1 is copied; no order is asked of one that overlaps itself."""
    strides = tensor.stride()
    if like is None or (like.shape[-1] > 1 and like.stride(-1) != 1):
        require(tensor.is_contiguous(), name, "is not contiguous, strides", strides)
        return
    sizes, given = tensor.shape, like.stride()
    reach = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    require(nests(sizes, strides) and reach == tensor.numel(), name, "has gaps, strides", strides)
    require(sizes[-1] == 1 or strides[-1] == 1, name, "has rows of another stride", strides)
    if not nests(sizes, given):
        return
    if 1 + sum((size - 1) * stride for size, stride in zip(sizes, given, strict=True)) == tensor.numel():
        require(strides == given, name, "has strides", strides, "beside an operand's", given)
    for a, b in combinations([d for d, size in enumerate(sizes) if size > 1], 2):
        require((strides[a] < strides[b]) == (given[a] < given[b]), name, "has another order", strides, given)


# ---- a row alone


def check_row_alone(call: Call, got: dict[str, Tensor], t: dict[str, Tensor]) -> None:
    """The same bits, alone and on one thread. On a GPU where every row has the alignment of the first."""
    rows = math.prod(call.shape[:-1])
    if rows < 2 or call.shape[-1] == 0:
        return
    tensors = [*t.items(), *got.items()]
    if t[next(iter(t))].is_cuda and any(
        stride * tensor.itemsize % 16
        for name, tensor in tensors
        if name not in NUMBERS
        for size, stride in zip(tensor.shape[:-1], tensor.stride(), strict=False)
        if size > 1
    ):
        return
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(int(call.row * rows)), call.shape[:-1]))
    torch.set_num_threads(1)
    alone = {name: tensor[index] for name, tensor in t.items()}
    if call.operator == IN_PLACE:
        if any(operand.negated for operand in call.operands.values()):
            return  # computed in copies, which lie as they like, and whose NaNs have the other sign
        alone = {name: copy_lying_alike(tensor) for name, tensor in alone.items()}
    for (name, whole), row in zip(got.items(), call.invoke(alone), strict=True):
        integers = INTEGERS.get(row.dtype, torch.uint8)
        same = torch.equal(whole[index].contiguous().view(integers), row.view(integers))
        require(same, f"{name}: row {index} alone has other bits")
