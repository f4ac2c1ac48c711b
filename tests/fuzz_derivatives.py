"""The derivatives of a fuzzed call against float64: gradients, tangents, gradients of gradients."""

import threading

import torch
import torch.autograd.forward_ad as forward_ad
import truth
from fuzz_calls import Call
from fuzz_memory import Memory
from fuzz_results import check_equal, forward_truth, out_of_range, require, within
from tolerances import (
    gated_backward_bounds,
    gated_bounds,
    gradient_bound,
    output_tangent_bound,
    rstd_bound,
    rstd_tangent_bound,
    second_bound,
    second_size,
    ulp,
    unit_roundoff,
)
from torch import Tensor

from srmsnorm.reference import accumulation_dtype

ONE_DUAL_LEVEL = threading.Lock()  # a process has no more


def check_gradients(call: Call, memory: Memory) -> dict[str, float]:
    """Of every choice of operands, from every choice of outputs."""
    operands = differentiable(call, memory)
    results = dict(zip(call.results, call.invoke(operands), strict=True))
    cotangents = [memory.operands[f"grad {name}"] for name in call.given]
    grads = torch.autograd.grad(
        [results[name] for name in call.given], [operands[name] for name in call.wanted], cotangents
    )
    require(memory.untouched(), "an operand or a gradient is written")
    if call.gating is not None:
        return _check_gated_gradients(call, memory, grads)
    y, _, rstd = forward_truth(call, memory.before)
    if out_of_range(call, rstd):
        return {}
    if call.operator == "rstd":
        return _check_gradients_of_rstd(call, memory, grads)
    g, gh, gr = (memory.before.get(f"grad {name}") for name in ("output", "sum", "rstd"))
    worst = {}
    for name, grad in zip(call.wanted, grads, strict=True):
        operand = memory.operands[name]
        require(grad.dtype == operand.dtype and grad.shape == call.shape, name, "has a gradient", grad.dtype)
        if g is None and gr is None:
            check_equal(f"gradient of {name}", grad, gh.to(grad.dtype))
            continue
        g_or_zero = torch.zeros_like(y) if g is None else g
        want = truth.backward(g_or_zero, y, rstd, gh)
        bound = gradient_bound(want, grad.dtype, g_or_zero, call.converted, y, rstd, gh)
        if gr is not None:
            want, bound = _with_gradient_of_rstd(call, grad.dtype, gr, want, bound, y, rstd)
        worst[name] = within(f"gradient of {name}", grad, want, bound)
    return worst


def _check_gated_gradients(call: Call, memory: Memory, grads) -> dict[str, float]:
    input, gate, g = (memory.before[name] for name in ("input", "gate", "grad output"))
    rstd = truth.gated(input, gate, **call.gating, eps=call.eps)[1]
    if out_of_range(call, rstd):
        return {}
    lost = gated_bounds(input, gate, **call.gating, eps=call.eps, summed=call.shape[-1])[1] / rstd
    wants = truth.gated_backward(g, input, gate, rstd, **call.gating)
    bounds = gated_backward_bounds(g, input, gate, rstd, **call.gating, rstd_error=lost.unsqueeze(-1))
    worst = {}
    for name, grad in zip(call.wanted, grads, strict=True):
        operand, which = memory.operands[name], ("input", "gate").index(name)
        require(grad.dtype == operand.dtype and grad.shape == call.shape, name, "has a gradient", grad.dtype)
        worst[f"{name} of a gate"] = within(f"gradient of {name}", grad, wants[which], bounds[which])
    return worst


def _with_gradient_of_rstd(call, dtype, gr, want, bound, y, rstd):
    """-v r^2 y / dim more: y is kept rounded, and the two parts are added where each has been rounded."""
    more = -(gr.double() * rstd * rstd).unsqueeze(-1) * y / call.shape[-1]
    u = (
        torch.finfo(call.converted).eps
        + 4 * torch.finfo(accumulation_dtype(call.dtype)).eps
        + torch.finfo(dtype).eps / 2
    )
    u *= 2 if call.dtype == torch.float64 else 1  # whose truth is no wider
    size = torch.linalg.vector_norm(more, dim=-1)
    rounded = torch.finfo(dtype).eps / 2 * torch.linalg.vector_norm(want, dim=-1)
    lost = (
        torch.finfo(call.converted).smallest_normal * torch.finfo(call.converted).eps / 2
    )  # at most, of a subnormal y
    lost = lost * (gr.double() * rstd * rstd).abs() / call.shape[-1] ** 0.5
    return want + more, bound + u * size + rounded + lost + torch.finfo(dtype).tiny


def _check_gradients_of_rstd(call: Call, memory: Memory, grads) -> dict[str, float]:
    """-v r^2 (h r) / dim: of six roundings, and of rstd's own error in each of three factors."""
    _, h, rstd = forward_truth(call, memory.before)
    accumulation, columns = accumulation_dtype(call.dtype), call.shape[-1]
    y, v = h * rstd.unsqueeze(-1), memory.before["grad rstd"].double()
    want = -(v * rstd * rstd / columns).unsqueeze(-1) * y
    lost = (rstd_bound(rstd, accumulation, columns) / rstd).unsqueeze(-1)
    u = unit_roundoff(accumulation) * (2 if call.dtype == torch.float64 else 1)  # whose truth is no wider
    error = want.abs() * (3 * lost + 6 * u) + torch.finfo(accumulation).tiny * (1 + y.abs())
    worst = {}
    for name, grad in zip(call.wanted, grads, strict=True):
        operand = memory.operands[name]
        require(grad.dtype == operand.dtype and grad.shape == call.shape, name, "has a gradient", grad.dtype)
        bound = error + 0.5 * ulp(want.abs() + error, grad.dtype)
        worst[name] = within(f"gradient of {name}", grad, want, bound)
    return worst


def check_tangents(call: Call, memory: Memory) -> dict[str, float]:
    """Forward mode; no tangent of a result lies in an argument's memory."""
    tangents = {name: memory.operands[f"tangent {name}"] for name in call.wanted}
    with ONE_DUAL_LEVEL, forward_ad.dual_level():
        duals = {
            name: forward_ad.make_dual(memory.operands[name], tangents[name]) if name in tangents else tensor
            for name, tensor in memory.operands.items()
            if name in call.operands
        }
        held = [forward_ad.unpack_dual(duals[name]).tangent for name in tangents]
        unpacked = [forward_ad.unpack_dual(result) for result in call.invoke(duals)]
    require(memory.untouched(), "an operand or a tangent is written")
    y, _, rstd = forward_truth(call, memory.before)
    if out_of_range(call, rstd):
        return {}
    parts = [memory.before[f"tangent {name}"] for name in call.wanted]
    t = sum(part.double() for part in parts)
    added = parts[0].dtype if len(parts) == 2 else None
    if added and (parts[1].dtype != added or call.converted == accumulation_dtype(call.dtype)):
        added = accumulation_dtype(call.dtype)
    worst = {}
    for name, (primal, tangent) in zip(call.results, unpacked, strict=True):
        require(tangent is not None, name, "has no tangent")
        require(tangent.dtype == primal.dtype == call.result_dtype(name), name, "has a tangent", tangent.dtype)
        if tangent.numel():
            owned = tangent.untyped_storage().data_ptr()
            theirs = [tensor.untyped_storage().data_ptr() for tensor in [*memory.operands.values(), *held]]
            require(owned not in theirs, name, "has a tangent in an argument's memory")
        if name == "output":
            want = truth.backward(t, y, rstd)
            bound = output_tangent_bound(want, t, call.converted, y, rstd, added=added)
        elif name == "rstd":
            want = -rstd * rstd * (y * t).mean(-1)
            bound = rstd_tangent_bound(t, call.converted, y, rstd, added=added)
        else:
            want, bound = t, 0.5 * ulp(t, tangent.dtype) + 0.5 * ulp(t, added or tangent.dtype)
        worst[name] = within(f"tangent of {name}", tangent, want, bound)
    return worst


def check_second(call: Call, memory: Memory) -> dict[str, float]:
    """Gradients of a gradient: of each operand, and of each gradient that came in."""
    operands = differentiable(call, memory)
    results = dict(zip(call.results, call.invoke(operands), strict=True))
    firsts = {f"grad {name}": memory.operands[f"grad {name}"].detach().requires_grad_() for name in call.given}
    inputs = [operands[name] for name in call.wanted]
    grads = torch.autograd.grad([results[name] for name in call.given], inputs, [*firsts.values()], create_graph=True)
    seconds = [memory.operands[f"tangent {name}"] for name in call.wanted]
    found = torch.autograd.grad(grads, [*inputs, *firsts.values()], seconds)
    require(memory.untouched(), "an operand or a gradient is written")

    y, _, rstd = forward_truth(call, memory.before)
    if out_of_range(call, rstd):
        return {}
    g, r = memory.before["grad output"].double(), rstd.unsqueeze(-1)
    v = sum(memory.before[f"tangent {name}"].double() for name in call.wanted)
    mean = lambda a, b: (a * b).mean(-1, keepdim=True)  # noqa: E731
    of_y = -r * (mean(v, y) * g + mean(g, y) * v)
    of_r = (v * g).sum(-1) - (v * y).sum(-1) * mean(y, g).squeeze(-1)
    of_h = truth.backward(of_y, y, rstd) - (of_r * rstd * rstd).unsqueeze(-1) * y / call.shape[-1]
    of_g = truth.backward(v, y, rstd)
    worst = {}
    for name, grad in zip([*call.wanted, *firsts], found, strict=True):
        if name == "grad sum":
            want, bound = v, ulp(v, grad.dtype) + (ulp(v, call.dtype) if len(seconds) == 2 else 0)
        elif name == "grad output":
            want = of_g
            bound = output_tangent_bound(want, v, call.dtype, y, rstd, added=call.dtype)
        else:
            want, bound = of_h, second_bound(of_h, grad.dtype, call.dtype, g, v, rstd)
        require(grad.shape == call.shape, name, "has a second gradient of shape", tuple(grad.shape))
        if name in call.wanted:  # where terms overflow on the way, so may the result
            rows = second_size(g, v, rstd) < torch.finfo(call.dtype).max / 16
            grad, want, bound = grad[rows], want[rows], bound[rows]
        worst[name] = within(f"second, of {name}", grad, want, bound)
    return worst


def differentiable(call: Call, memory: Memory) -> dict[str, Tensor]:
    return {name: memory.operands[name].detach().requires_grad_(name in call.wanted) for name in call.operands}
