"""Inductor's part of ``inline_under_compile("auto")`` and ``(True)``: after its graphs are parted, each undecided call
becomes the operator or our own formula, which has the operator's operands and results: what backward keeps stays y and
rstd.
"""

import functools
import logging
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node, map_arg

from . import choosing, inlining, reference
from ._dead_gradients import is_half_dead, keep_one
from .undecided import TWINS, dtype_of, lie_alike

__all__ = ["decides", "is_registered"]

_log = logging.getLogger("srmsnorm")
_OPERATORS = {twin: operator for operator, twin in TWINS.items()}
_ADDING = [twin for twin, operator in _OPERATORS.items() if "add_" in operator._schema.name]


@functools.cache
def is_registered() -> bool:
    """Registers with Inductor at the first call, behind its pass that drops dead gradients; whether that is done."""
    try:
        from torch._inductor.fx_passes.post_grad import pass_patterns
        from torch._inductor.pattern_matcher import CallFunctionVarArgs, Match, fwd_only, register_graph_pattern  # noqa: F401

        if not hasattr(Match, "replace_by_example"):
            raise AttributeError("Match.replace_by_example")
        register_graph_pattern(CallFunctionVarArgs([*_OPERATORS]), pass_dict=pass_patterns[1])(_decide)
    except (ImportError, AttributeError, LookupError, TypeError) as error:
        inlining.warn_of(error)
        return False
    return True


def decides() -> bool:
    """Whether Inductor, as it is configured, runs what is registered."""
    from torch._inductor import config

    return config.pattern_matcher and config.use_post_grad_passes and is_registered()


def _decide(match: Any, *_: Any, **__: Any) -> None:
    node = match.output_node()
    kept = _OPERATORS[node.target]
    given = _arguments(kept, node)
    call = _described(kept, node, given)
    answer, reason = choosing.choose(call, node.kwargs["table"])
    if answer == "formula":
        function, tensors = _formula(call.operator, given)
        traced = _traced(match.graph, call.operator, given)
        if not lie_alike(node.meta["val"], map_arg(traced.graph.output_node().args, lambda node: node.meta["val"])):
            answer, reason = "operator", "the formula's results have other strides"
    _write_down(call, answer, reason)
    if answer == "formula":
        match.replace_by_example(function, tensors, trace_fn=lambda function, values: traced)
        return
    with match.graph.inserting_before(node):
        same = match.graph.call_function(kept, node.args, _without_table(node.kwargs))
    same.meta.update(node.meta)
    if "eager_input_vals" in node.meta:  # by which Inductor gives the operands the strides of eager ones
        args, kwargs = node.meta["eager_input_vals"]
        same.meta["eager_input_vals"] = args, _without_table(kwargs)
    node.replace_all_uses_with(same)
    match.graph.erase_node(node)
    if is_half_dead(same):
        keep_one(same)


def _arguments(kept: Any, node: Node) -> dict[str, Any]:
    given: dict[str, Any] = {argument.name: argument.default_value for argument in kept._schema.arguments}
    for name, value in zip(given, node.args, strict=False):
        given[name] = value
    return given | _without_table(node.kwargs)


def _without_table(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name != "table"}


def _write_down(call: choosing.Call, answer: str, reason: str) -> None:
    from torch._dynamo.utils import counters

    counters["srmsnorm"][f"{call.operator}: {answer}"] += 1
    sizes = ["?" if size is None else str(size) for size in (call.rows, call.dim)]
    _log.info("%s of %s rows of %s: %s (%s)", call.operator, *sizes, answer, reason)


# ---- what the table is asked with


def _described(kept: Any, node: Node, given: dict[str, Any]) -> choosing.Call:
    operands = [value for name, value in given.items() if isinstance(value, Node) and name != "rstd"]
    values = [value.meta["val"] for value in operands]
    *leading, dim = values[0].shape
    name = kept._schema.name.removeprefix("srmsnorm::")
    results = node.meta["val"]
    results = results if isinstance(results, (tuple, list)) else [results]
    wide = [result for result in results if result.ndim == len(leading) + 1]
    return choosing.Call(
        operator=name,
        backward="backward" in name,
        training=name.startswith("_"),
        dim=_known(dim),
        rows=math.prod(leading) if all(_known(size) is not None for size in leading) else None,
        unit_stride=all(_known(value.stride(-1)) == 1 or _known(dim) == 1 for value in values),
        mixed=len({value.dtype for value in (*values, *wide)}) > 1,
        pointwise_before=any(_is_pointwise(_behind_views(value)) for value in operands),
        pointwise_after=any(_is_pointwise(user) for user in _users(node)),
        grad_sum=given.get("grad_sum") is not None,
        sums=_sums_behind(given),
    )


def _known(size: Any) -> int | None:
    return size if isinstance(size, int) else None


_PASSED_ON = (torch.ops.aten.clone.default, torch.ops.aten.cat.default)  # what Inductor fuses as it does a view


def _is_view(node: Node) -> bool:
    return node.target is operator.getitem or getattr(node.target, "is_view", False) or node.target in _PASSED_ON


def _is_pointwise(node: Node) -> bool:
    return torch.Tag.pointwise in getattr(node.target, "tags", ())


def _behind_views(node: Node) -> Node:
    while _is_view(node) and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def _sums_behind(given: dict[str, Any]) -> int:
    """As many calls, not yet decided, as an operand is the sum of, and theirs; up to two."""
    count = 0
    while count < 2:
        adding = [call for name in ("input", "residual") if (call := _call_of_sum(given.get(name))) is not None]
        if not adding:
            break
        given = _arguments(_OPERATORS[adding[0].target], adding[0])
        count += 1
    return count


def _call_of_sum(value: Any) -> Node | None:
    """Whose sum it is, perhaps through views."""
    while isinstance(value, Node) and value.target is not operator.getitem and _is_view(value):
        value = value.args[0]
    if not isinstance(value, Node) or value.target is not operator.getitem or value.args[1] != 1:
        return None
    call = value.args[0]
    return call if isinstance(call, Node) and call.target in _ADDING else None


def _users(node: Node) -> Iterator[Node]:
    for user in node.users:
        if _is_view(user):
            yield from _users(user)
        else:
            yield user


# ---- the formulas, traced


_traces: WeakKeyDictionary[Graph, dict[str, tuple[GraphModule, list[dict[str, Any]]]]] = WeakKeyDictionary()


def _traced(graph: Graph, name: str, given: dict[str, Any]) -> GraphModule:
    """Calls of one graph that are alike share a trace, which takes 15 ms. They share its nodes' values too, until
    Inductor looks at what its passes have changed, which it does before it asks what lies in the same memory.

    Alike are calls whose operands are: two that are one value are one in a trace, which is no other call's then. The
    last call of a graph is met first, so that operands have values of their own."""
    from torch._inductor.pattern_matcher import fwd_only
    from torch._inductor.virtualized import V

    function, tensors = _formula(name, given)
    values = [tensor.meta["val"] for tensor in tensors]
    others = {key: value for key, value in given.items() if not isinstance(value, Node)}
    first = [next(i for i, other in enumerate(values) if other is value) for value in values]
    alike = str((name, others, first, [(value.dtype, value.device, value.shape, value.stride()) for value in values]))
    traces = _traces.setdefault(graph, {})
    if alike not in traces:
        with V.fake_mode:
            trace = fwd_only(function, values)
        traces[alike] = trace, [node.meta.copy() for node in trace.graph.nodes]
    trace, notes = traces[alike]
    for node, note in zip(trace.graph.nodes, notes, strict=True):
        node.meta = note.copy()
    return trace


# ---- the formulas: functions of the tensors that are there, and these


def _formula(name: str, given: dict[str, Any]) -> tuple[Callable[..., Any], list[Node]]:
    names = [key for key, value in given.items() if isinstance(value, Node)]
    others = {key: value for key, value in given.items() if key not in names}
    formula = _FORMULAS[name]
    return lambda *tensors: formula(**dict(zip(names, tensors, strict=True)), **others), [given[key] for key in names]


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(reference.accumulation_dtype(tensor.dtype))


def _norm(input: Tensor, residual: Tensor | None, eps: float | None, dtype: str | None) -> tuple[Tensor, ...]:
    """y, h and rstd."""
    h = _wide(input) if residual is None else _wide(input) + _wide(residual)
    r = torch.rsqrt(h.square().mean(-1, keepdim=True) + (reference.default_eps(h.dtype) if eps is None else eps))
    return (h * r).to(dtype_of(dtype, input.dtype)), h, r.squeeze(-1)


def _srms_norm(
    input: Tensor, residual: Tensor | None, eps: float | None, dtype: str | None = None
) -> tuple[Tensor, Tensor]:
    y, _, r = _norm(input, residual, eps, dtype)
    return y, r


def _add_srms_norm(
    input: Tensor, residual: Tensor, eps: float | None, dtype: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    y, h, r = _norm(input, residual, eps, dtype)
    return y, h.to(residual.dtype), r


def _gradient(grad_output: Tensor, y: Tensor, rstd: Tensor, grad_sum: Tensor | None = None) -> Tensor:
    """In the accumulation type; y may be in it."""
    g, y = grad_output.to(rstd.dtype), y.to(rstd.dtype)
    dh = rstd.unsqueeze(-1) * (g - y * (y * g).mean(-1, keepdim=True))
    return dh if grad_sum is None else dh + grad_sum.to(dh.dtype)


def _backward_input(
    grad_output: Tensor, output: Tensor, rstd: Tensor, grad_sum: Tensor | None, dtype: str | None
) -> Tensor:
    return _gradient(grad_output, output, rstd, grad_sum).to(dtype_of(dtype, output.dtype))


def _backward_pair(
    grad_output: Tensor, output: Tensor, rstd: Tensor, grad_sum: Tensor | None, dtype: str | None
) -> tuple[Tensor, Tensor]:
    dh = _gradient(grad_output, output, rstd, grad_sum)
    return dh.to(dtype_of(dtype, output.dtype)), dh


def _backward_of_input(grad_output: Tensor, input: Tensor, rstd: Tensor) -> Tensor:
    return _gradient(grad_output, input.to(rstd.dtype) * rstd.unsqueeze(-1), rstd).to(input.dtype)


_FORMULAS: dict[str, Callable[..., Any]] = {
    "srms_norm": lambda **given: _srms_norm(**given)[0],
    "add_srms_norm": lambda **given: _add_srms_norm(**given)[:2],
    "_srms_norm": _srms_norm,
    "_add_srms_norm": _add_srms_norm,
    "_srms_norm_backward_input": _backward_input,
    "_srms_norm_backward_residual": lambda output, **given: _gradient(y=output, **given),
    "_srms_norm_backward_pair": _backward_pair,
    "_srms_norm_backward_of_input": _backward_of_input,
}
