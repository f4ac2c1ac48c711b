"""Inductor's part of ``inline_under_compile("auto")`` and ``(True)``: after its graphs are parted, each undecided call
becomes the operator or our own formula, which has the operator's operands and results. So what backward keeps stays y
and rstd, but where ``keeping`` has said otherwise.
"""

import functools
import logging
import math
import operator
from typing import Any

from torch.fx import GraphModule, Node, map_arg

from . import choosing, inlining
from ._dead_gradients import is_half_dead, keep_one
from .formulas import formula, traced
from .nodes import is_elementwise, is_passed_on, readers, source_of
from .undecided import TWINS, lie_alike
from .widening import merged, widened

__all__ = ["arguments_of", "decides", "described", "is_registered", "may_stand_for", "name_of", "write_down"]

_log = logging.getLogger("srmsnorm")
_OPERATORS = {twin: operator for operator, twin in TWINS.items()}
_ADDING = [twin for twin, operator in _OPERATORS.items() if "add_" in operator._schema.name]


@functools.cache
def is_registered() -> bool:
    """Registers with Inductor at the first call, behind its pass that drops dead gradients; whether that is done."""
    try:
        from torch._inductor.fx_passes import joint_graph
        from torch._inductor.fx_passes.post_grad import pass_patterns
        from torch._inductor.pattern_matcher import CallFunctionVarArgs, Match, fwd_only, register_graph_pattern  # noqa: F401

        if not hasattr(Match, "replace_by_example"):
            raise AttributeError("Match.replace_by_example")
        register_graph_pattern(CallFunctionVarArgs([*_OPERATORS]), pass_dict=pass_patterns[1])(_decide)
        from .keeping import BACKWARDS, keep

        register_graph_pattern(CallFunctionVarArgs([*BACKWARDS]), pass_dict=joint_graph.pass_patterns[0])(keep)
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
    given = arguments_of(kept, node)
    call = described(kept, node, given)
    answer, reason = choosing.choose(call, node.kwargs["table"])
    if answer == "formula" and not may_stand_for(node, traced(match.graph, call.operator, given)):
        answer, reason = "operator", "the formula's results have other strides"
    write_down(call, answer, reason)
    cast = None if call.backward else merged(given)
    if answer == "formula":
        given = widened(node, given, cast)
        function, tensors = formula(call.operator, given)
        trace = traced(match.graph, call.operator, given)
        match.replace_by_example(function, tensors, trace_fn=lambda function, values: trace)
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


def may_stand_for(node: Node, trace: GraphModule) -> bool:
    """Whether the formula's results lie as those of the call do."""
    return lie_alike(node.meta["val"], map_arg(trace.graph.output_node().args, lambda node: node.meta["val"]))


def name_of(kept: Any) -> str:
    return str(kept._schema.name.removeprefix("srmsnorm::"))


def arguments_of(kept: Any, node: Node) -> dict[str, Any]:
    given: dict[str, Any] = {argument.name: argument.default_value for argument in kept._schema.arguments}
    for name, value in zip(given, node.args, strict=False):
        given[name] = value
    return given | _without_table(node.kwargs)


def _without_table(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name != "table"}


def write_down(call: choosing.Call, answer: str, reason: str) -> None:
    from torch._dynamo.utils import counters

    counters["srmsnorm"][f"{call.operator}: {answer}"] += 1
    sizes = ["?" if size is None else str(size) for size in (call.rows, call.dim)]
    _log.info("%s of %s rows of %s: %s (%s)", call.operator, *sizes, answer, reason)


# ---- what the table is asked with


def described(kept: Any, node: Node, given: dict[str, Any]) -> choosing.Call:
    operands = [value for name, value in given.items() if isinstance(value, Node) and name != "rstd"]
    values = [value.meta["val"] for value in operands]
    *leading, dim = values[0].shape
    name = name_of(kept)
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
        pointwise_before=any(is_elementwise(source_of(value)) for value in operands),
        pointwise_after=any(is_elementwise(reader) for reader in readers(node)),
        written="recompute" in node.meta or _is_written(node, isinstance(node.meta["val"], (tuple, list))),
        grad_sum=given.get("grad_sum") is not None,
        sums=_sums_behind(given),
    )


def _known(size: Any) -> int | None:
    return size if isinstance(size, int) else None


def _is_written(node: Node, several: bool) -> bool:
    firsts = [user for user in node.users if user.args[1] == 0] if several else [node]
    return any(not is_elementwise(reader) for first in firsts for reader in readers(first))


def _sums_behind(given: dict[str, Any]) -> int:
    """As many calls, not yet decided, as an operand is the sum of, and theirs; up to two."""
    count = 0
    while count < 2:
        adding = [call for name in ("input", "residual") if (call := _call_of_sum(given.get(name))) is not None]
        if not adding:
            break
        given = arguments_of(_OPERATORS[adding[0].target], adding[0])
        count += 1
    return count


def _call_of_sum(value: Any) -> Node | None:
    """Whose sum it is, perhaps through views."""
    while isinstance(value, Node) and value.target is not operator.getitem and is_passed_on(value):
        value = value.args[0]
    if not isinstance(value, Node) or value.target is not operator.getitem or value.args[1] != 1:
        return None
    call = value.args[0]
    return call if isinstance(call, Node) and call.target in _ADDING else None
