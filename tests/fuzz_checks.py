"""What must hold of one fuzzed call: values against float64, dtypes, shapes, strides, the bytes around operands, the
bits of a row alone, and that what must be refused is, with nothing written."""

import math
import threading
from itertools import combinations

import torch
import torch.autograd.forward_ad as forward_ad
import truth
from fuzz_calls import IN_PLACE, INTEGERS, Call, Memory, Pool
from samples import FLOAT
from tolerances import (
    backward_bound,
    gradient_bound,
    output_bound,
    output_tangent_bound,
    rstd_bound,
    rstd_tangent_bound,
    second_bound,
    second_size,
    ulp,
)
from torch import Tensor

import srmsnorm
from srmsnorm.reference import accumulation_dtype, default_eps

ONE_DUAL_LEVEL = threading.Lock()  # a process has no more


class Failure(AssertionError):
    """A call that does not do what it should."""


class Refused(Exception):
    """A call that may be refused, was, and wrote nothing."""


def require(condition: bool, *message) -> None:
    if not condition:
        raise Failure(" ".join(map(str, message)))


def invoke(call: Call, t: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """The operator on these operands."""
    face = srmsnorm if call.function else torch.ops.srmsnorm
    internal = torch.ops.srmsnorm
    input, residual, eps = t.get("input"), t.get("residual"), call.eps
    saved = t.get("grad_output"), t.get("output"), t.get("rstd"), t.get("grad_sum")
    match call.operator:
        case "srms_norm":
            return (face.srms_norm(input, residual, eps=eps),)
        case "add_srms_norm":
            return face.add_srms_norm(input, residual, eps=eps)
        case "add_srms_norm_":
            require(face.add_srms_norm_(input, residual, eps=eps) is None, "in place returns something")
            return input, residual
        case "_srms_norm":
            return internal._srms_norm(input, residual, eps)
        case "_add_srms_norm":
            return internal._add_srms_norm(input, residual, eps)
        case "_srms_norm_backward":
            return (internal._srms_norm_backward(*saved),)
        case "_srms_norm_backward wide":
            return (internal._srms_norm_backward(*saved, dtype=FLOAT),)
        case "_srms_norm_backward_pair":
            return internal._srms_norm_backward_pair(*saved)
    raise ValueError(call.operator)


def check(call: Call, pool: Pool) -> dict[str, float]:
    """The worst error of each result, as a fraction of its bound."""
    memory = Memory(call, pool)
    torch.set_num_threads(call.threads)
    try:
        return MODES[call.mode](call, memory)
    finally:
        if call.threads != 1:
            torch.set_num_threads(1)


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
    if "input" not in t:
        t = {name: tensor if name == "rstd" else tensor.double() for name, tensor in t.items()}
        want = truth.backward(t["grad_output"], t["output"], t["rstd"], t.get("grad_sum"))
        return {name: within(name, grad, want, backward_bound(want, grad.dtype, **t)) for name, grad in got.items()}
    y, _, rstd = forward_truth(call, t)
    if out_of_range(call, rstd[rstd.square() < 1]):
        return {}
    worst = {"output": within("output", got["output"], y, output_bound(y, call.dtype))}
    if "rstd" in got:
        worst["rstd"] = within("rstd", got["rstd"], rstd, rstd_bound(rstd, got["rstd"].dtype, call.shape[-1]))
    if "sum" in got:
        check_equal("sum", got["sum"], truth.rounded_sum(t["input"], t["residual"]))
        worst["sum"] = 0.0
    return worst


def check_equal(name: str, got: Tensor, want: Tensor) -> None:
    require(
        torch.equal(got, want) or bool(((got == want) | (got.isnan() & want.isnan())).all()),
        f"{name}: not equal to what it should be, exactly",
    )


# ---- forms


def check_forms(call: Call, got: dict[str, Tensor], t: dict[str, Tensor], strides: bool = True) -> None:
    for name, tensor in got.items():
        require(tensor.dtype == call.result_dtype(name), name, "has dtype", tensor.dtype)
        shape = call.shape[:-1] if name == "rstd" else call.shape
        require(tensor.shape == shape, name, "has shape", tuple(tensor.shape))
        if strides and tensor.numel():
            like = {"output": "input", "sum": "residual"}.get(name, "output")
            check_strides(name, tensor, None if name == "rstd" else t[like])


def nests(sizes, strides) -> bool:
    """Each dimension steps over all that the smaller ones reach: no element lies on another."""
    reach = 1
    for stride, size in sorted((stride, size) for size, stride in zip(sizes, strides, strict=True) if size > 1):
        if stride < reach:
            return False
        reach += stride * (size - 1)
    return True


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
        if name != "rstd"
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
    for (name, whole), row in zip(got.items(), invoke(call, alone), strict=True):
        integers = INTEGERS[row.dtype]
        same = torch.equal(whole[index].contiguous().view(integers), row.view(integers))
        require(same, f"{name}: row {index} alone has other bits")


def copy_lying_alike(tensor: Tensor) -> Tensor:
    """With the same strides, and as many bytes past 16: on a GPU bits depend on that."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    past = tensor.data_ptr() % 16 // tensor.itemsize
    span = span if tensor.numel() else 0
    buffer = torch.empty(past + span, dtype=tensor.dtype, device=tensor.device)
    if tensor.numel():
        buffer[past:].copy_(tensor.as_strided((span,), (1,)))
    return buffer.as_strided(tensor.shape, tensor.stride(), past)


# ---- in place


def shares_bytes(tensors: list[Tensor]) -> bool:
    """Whether any byte belongs to two elements, in one tensor or in two."""
    found = []
    for tensor in tensors:
        address = torch.full((), address_of(tensor), dtype=torch.int64)
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            address = address.unsqueeze(-1) + torch.arange(size) * stride * tensor.itemsize
        found.append((address.unsqueeze(-1) + torch.arange(tensor.itemsize)).flatten())
    every = torch.cat(found).sort().values
    return bool((every[1:] == every[:-1]).any())


def address_of(tensor: Tensor) -> int:
    """Without making a lazy copy its own, as data_ptr() would."""
    return torch._C._data_address(tensor) + tensor.storage_offset() * tensor.itemsize


def overwrite(call: Call, memory: Memory, run) -> dict[str, Tensor]:
    """Runs the call in place. Overlap must be refused; layouts that do not nest, shared buffers, views that are lazily
    negated or copied may be. All else must run, and write the operands alone."""
    operands = list(memory.operands.values())
    plain = not call.shared and all(
        nests(o.sizes, o.strides) and not o.negated and not o.lazy for o in call.operands.values()
    )
    overlap = not plain and math.prod(call.shape) > 0 and shares_bytes(operands)
    try:
        run(memory.operands)
    except RuntimeError as error:
        require(memory.untouched(), "an error, but something is written:", error)
        require(not plain, "refused:", error)
        require("srmsnorm: " in str(error), "an error of another's:", error)
        raise Refused(str(error)) from None
    require(not overlap, "operands that overlap are not refused")
    results = {name: tensor.clone() for name, tensor in zip(call.results, operands, strict=True)}
    for name, tensor in memory.operands.items():
        tensor.copy_(memory.before[name])
    require(memory.untouched(), "bytes beside the operands are written")
    return results


# ---- modes


def run(call: Call, t: dict[str, Tensor]) -> tuple[Tensor, ...]:
    with torch.inference_mode(call.mode == "inference"):
        return invoke(call, t)


def check_plain(call: Call, memory: Memory) -> dict[str, float]:
    if call.operator == IN_PLACE:
        got = overwrite(call, memory, lambda t: run(call, t))
    else:
        got = dict(zip(call.results, run(call, memory.operands), strict=True))
        require(memory.untouched(), "an operand is written")
        # What a lazily negated operand is resolved into has strides of its own.
        check_forms(call, got, memory.operands, strides=not any(o.negated for o in call.operands.values()))
    worst = check_values(call, got, memory.before)
    check_row_alone(call, got, memory.before)
    return worst


def check_vmap(call: Call, memory: Memory) -> dict[str, float]:
    names = list(call.operands)
    dims = tuple(call.dim if call.operands[name].batched else None for name in names)

    def one(*tensors):
        return invoke(call, dict(zip(names, tensors, strict=True)))

    mapped = torch.vmap(one, in_dims=dims)
    if call.operator == IN_PLACE:
        got = overwrite(call, memory, lambda t: mapped(*t.values()))
    else:
        results = mapped(*memory.operands.values())
        got = {name: tensor.movedim(0, call.dim) for name, tensor in zip(call.results, results, strict=True)}
        require(memory.untouched(), "an operand is written")
    t = {}
    for name, tensor in memory.before.items():
        shape = call.shape[:-1] if name == "rstd" else call.shape
        t[name] = tensor if call.operands[name].batched else tensor.unsqueeze(call.dim).expand(shape)
    check_forms(call, got, t, strides=False)
    worst = check_values(call, got, t)
    check_row_alone(call, got, t)
    return worst


def check_gradients(call: Call, memory: Memory) -> dict[str, float]:
    """Of every choice of operands, from every choice of outputs."""
    operands = differentiable(call, memory)
    results = dict(zip(call.results, invoke(call, operands), strict=True))
    cotangents = [memory.operands[f"grad {name}"] for name in call.given]
    grads = torch.autograd.grad(
        [results[name] for name in call.given], [operands[name] for name in call.wanted], cotangents
    )
    require(memory.untouched(), "an operand or a gradient is written")
    y, _, rstd = forward_truth(call, memory.before)
    if out_of_range(call, rstd):
        return {}
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
        bound = gradient_bound(want, grad.dtype, g_or_zero, call.dtype, y, rstd, gh)
        if gr is not None:
            want, bound = _with_gradient_of_rstd(call, grad.dtype, gr, want, bound, y, rstd)
        worst[name] = within(f"gradient of {name}", grad, want, bound)
    return worst


def _with_gradient_of_rstd(call, dtype, gr, want, bound, y, rstd):
    """-v r^2 y / dim more: y is kept rounded, and the two parts are added where each has been rounded."""
    more = -(gr.double() * rstd * rstd).unsqueeze(-1) * y / call.shape[-1]
    u = torch.finfo(call.dtype).eps + 4 * torch.finfo(accumulation_dtype(call.dtype)).eps + torch.finfo(dtype).eps / 2
    u *= 2 if call.dtype == torch.float64 else 1  # whose truth is no wider
    size = torch.linalg.vector_norm(more, dim=-1)
    rounded = torch.finfo(dtype).eps / 2 * torch.linalg.vector_norm(want, dim=-1)
    lost = torch.finfo(call.dtype).smallest_normal * torch.finfo(call.dtype).eps / 2  # at most, of a subnormal y
    lost = lost * (gr.double() * rstd * rstd).abs() / call.shape[-1] ** 0.5
    return want + more, bound + u * size + rounded + lost + torch.finfo(dtype).tiny


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
        unpacked = [forward_ad.unpack_dual(result) for result in invoke(call, duals)]
    require(memory.untouched(), "an operand or a tangent is written")
    y, _, rstd = forward_truth(call, memory.before)
    if out_of_range(call, rstd):
        return {}
    parts = [memory.before[f"tangent {name}"] for name in call.wanted]
    t = sum(part.double() for part in parts)
    added = parts[0].dtype if len(parts) == 2 and parts[0].dtype == parts[1].dtype else None
    added = FLOAT if len(parts) == 2 and added is None else added
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
            bound = output_tangent_bound(want, t, call.dtype, y, rstd, added=added)
        elif name == "rstd":
            want = -rstd * rstd * (y * t).mean(-1)
            bound = rstd_tangent_bound(t, call.dtype, y, rstd, added=added)
        else:
            want, bound = t, 0.5 * ulp(t, tangent.dtype) + 0.5 * ulp(t, added or tangent.dtype)
        worst[name] = within(f"tangent of {name}", tangent, want, bound)
    return worst


def check_second(call: Call, memory: Memory) -> dict[str, float]:
    """Gradients of a gradient: of each operand, and of each gradient that came in."""
    operands = differentiable(call, memory)
    results = dict(zip(call.results, invoke(call, operands), strict=True))
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


def check_compiled(call: Call, memory: Memory) -> dict[str, float]:
    """The bits of the eager call."""
    torch._dynamo.reset()
    names = list(call.operands)
    compiled = torch.compile(
        lambda *tensors: invoke(call, dict(zip(names, tensors, strict=True))), backend="aot_eager", fullgraph=True
    )
    if call.operator == IN_PLACE and (
        call.shared or not all(nests(o.sizes, o.strides) for o in call.operands.values())
    ):
        return {}
    eager = invoke(call, {name: copy_lying_alike(tensor) for name, tensor in memory.before.items()})
    got = compiled(*memory.operands.values())
    # In place, a compiler computes with copies, which lie as they like.
    past_16 = any(tensor.is_cuda and tensor.data_ptr() % 16 for tensor in memory.before.values())
    for name, a, b in zip(call.results, got, eager, strict=True):
        if not (past_16 and call.operator == IN_PLACE):
            check_equal(name, a, b)
    if call.operator != IN_PLACE:
        require(memory.untouched(), "an operand is written")
    return {}


def check_mistake(call: Call, memory: Memory) -> dict[str, float]:
    """An error of ours, and nothing written."""
    t = dict(memory.operands)
    first = next(iter(t))
    last = list(t)[-1]
    grad = torch.no_grad()
    eps = call.eps
    match call.mistake:
        case "shape" if len(t) > 1 and call.shape[-1] > 1 and last != "rstd":
            t[last] = t[last][..., 1:]
        case "dtype":
            t[first] = t[first].to(torch.int32)
        case "eps" if first == "input":
            eps = -1.0 if call.index % 2 else math.nan
        case "scalar":
            t = {name: tensor.flatten()[:1].sum() for name, tensor in t.items()}
        case "empty rows":
            t = {name: tensor if name == "rstd" else tensor[..., :0] for name, tensor in t.items()}
        case "stride" if call.operator == IN_PLACE and call.shape[-1] > 1:
            t[last] = t[last][..., :1].expand(call.shape)
        case "requires grad" if call.operator == IN_PLACE:
            t[first if call.index % 2 else last] = t[first if call.index % 2 else last].detach().requires_grad_()
            grad = torch.enable_grad()
        case "tangent" if call.operator == IN_PLACE:
            return _check_in_place_tangent(call, memory)
        case "rstd" if "rstd" in t:
            t["rstd"] = t["rstd"].unsqueeze(0)
        case _:
            return {}
    call.eps = eps
    try:
        with grad:
            invoke(call, t)
    except RuntimeError as error:
        require(str(error).startswith("srmsnorm: "), "an error that is not ours:", error)
        require(memory.untouched(), "an error, but something is written:", error)
        return {}
    raise Failure(f"no error for a wrong {call.mistake}")


def _check_in_place_tangent(call: Call, memory: Memory) -> dict[str, float]:
    name = list(memory.operands)[call.index % 2]
    if not nests(call.operands[name].sizes, call.operands[name].strides):
        return {}  # has no dual
    with ONE_DUAL_LEVEL, forward_ad.dual_level():
        dual = forward_ad.make_dual(memory.operands[name], torch.ones(call.shape).to(memory.operands[name]))
        try:
            invoke(call, {**memory.operands, name: dual})
        except RuntimeError as error:
            require(str(error).startswith("srmsnorm: "), "an error that is not ours:", error)
            require(memory.untouched(), "an error, but something is written:", error)
            return {}
    raise Failure("no error for a tangent in place")


MODES = {
    "plain": check_plain,
    "inference": check_plain,
    "vmap": check_vmap,
    "gradients": check_gradients,
    "tangents": check_tangents,
    "second": check_second,
    "compiled": check_compiled,
    "mistake": check_mistake,
}
