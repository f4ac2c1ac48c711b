"""A fuzzed call in each of the modes: plain, mapped, differentiated, compiled or wrong. The bytes around its operands
stay as they are, and what must be refused is, with nothing written."""

import math

import torch
import torch.autograd.forward_ad as forward_ad
from fuzz_calls import Call
from fuzz_derivatives import ONE_DUAL_LEVEL, check_gradients, check_second, check_tangents
from fuzz_memory import Memory, Pool, copy_lying_alike, nests, shares_bytes
from fuzz_operators import CONVERTING, IN_PLACE, NUMBERS
from fuzz_results import Failure, Refused, check_equal, check_forms, check_row_alone, check_values, require
from samples import DOUBLE, FLOAT
from torch import Tensor


def check(call: Call, pool: Pool) -> dict[str, float]:
    """The worst error of each result, as a fraction of its bound."""
    memory = Memory(call, pool)
    torch.set_num_threads(call.threads)
    try:
        return MODES[call.mode](call, memory)
    finally:
        if call.threads != 1:
            torch.set_num_threads(1)


# ---- in place


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
        return call.invoke(t)


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
        return call.invoke(dict(zip(names, tensors, strict=True)))

    mapped = torch.vmap(one, in_dims=dims)
    if call.operator == IN_PLACE:
        got = overwrite(call, memory, lambda t: mapped(*t.values()))
    else:
        results = mapped(*memory.operands.values())
        got = {name: tensor.movedim(0, call.dim) for name, tensor in zip(call.results, results, strict=True)}
        require(memory.untouched(), "an operand is written")
    t = {}
    for name, tensor in memory.before.items():
        shape = call.shape[:-1] if name in NUMBERS else call.shape
        t[name] = tensor if call.operands[name].batched else tensor.unsqueeze(call.dim).expand(shape)
    check_forms(call, got, t, strides=False)
    worst = check_values(call, got, t)
    check_row_alone(call, got, t)
    return worst


def check_compiled(call: Call, memory: Memory) -> dict[str, float]:
    """The bits of the eager call."""
    torch._dynamo.reset()
    names = list(call.operands)
    compiled = torch.compile(
        lambda *tensors: call.invoke(dict(zip(names, tensors, strict=True))), backend="aot_eager", fullgraph=True
    )
    if call.operator == IN_PLACE and (
        call.shared or not all(nests(o.sizes, o.strides) for o in call.operands.values())
    ):
        return {}
    eager = call.invoke({name: copy_lying_alike(tensor) for name, tensor in memory.before.items()})
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
        case "shape" if len(t) > 1 and call.shape[-1] > 1 and last not in NUMBERS:
            t[last] = t[last][..., 1:]
        case "dtype":
            t[first] = t[first].to(torch.int32)
        case "to" if call.operator in CONVERTING:
            call.to = FLOAT if call.dtype == DOUBLE else DOUBLE
        case "eps" if first == "input" and call.operator != "_scale_rows":
            eps = -1.0 if call.index % 2 else math.nan
        case "scalar":
            t = {name: tensor.flatten()[:1].sum() for name, tensor in t.items()}
        case "empty rows":
            t = {name: tensor if name in NUMBERS else tensor[..., :0] for name, tensor in t.items()}
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
            call.invoke(t)
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
            call.invoke({**memory.operands, name: dual})
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
