"""What backward keeps of a norm that may become its formula, y or the norm's input: one of them where one will do.

Of queries that are normalized and then rotated, attention keeps what the rotation makes, and y is an operand of the
norm's backward alone. Their projection wrote the norm's input, in memory that is kept for the values that lie beside
it; or else the input may take y's place. So backward is the formula of the input and rstd, and the formula of forward
has no y to write. Speedrun GPT on an H100, training: 2342 MiB for 2598, and 2470 with F.rms_norm. Its norms, and what
is fused with them, take 2.02 ms a step for 2.29, a third of that by the rule of ``formulas``.

A y in float32 of a 16-bit input is the other way round: autograd keeps the input, as it is the smaller one. Where a
product keeps y, backward is of y and rstd, operator or formula, and the input is not kept. Sums go in another order
then, so bits may differ. mHC GPT on an H100, training: 6832 MiB for 7663, and 6927 with F.rms_norm, in 51.6 ms a step
for 51.3, and 51.8. Two layers with streams of 7168 features, where both are operators: 3427 MiB for 3792, and 3428
with F.rms_norm, in 38.7 ms for 38.6, and 38.5.
"""

import operator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from . import choosing
from .formulas import formula, traced
from .judging import dtype_name
from .nodes import is_cast_to_float32, is_copy, is_elementwise, is_product, is_view, readers, source_of
from .replacing import arguments_of, described, may_stand_for, name_of, write_down
from .undecided import TWINS

__all__ = ["BACKWARDS", "keep"]

_ops, _aten = torch.ops.srmsnorm, torch.ops.aten
_NORM, _OF_OUTPUT, _OF_INPUT = (
    _ops._srms_norm.default,
    _ops._srms_norm_backward_input.default,
    _ops._srms_norm_backward_of_input.default,
)
BACKWARDS = (TWINS[_OF_OUTPUT], TWINS[_OF_INPUT])  # of each, keep() asks whether the other one may stand for it


def keep(match: Any, *_: Any, **__: Any) -> None:
    """Of a backward that is still in one graph with its forward."""
    node = match.output_node()
    forward = _forward_of(node)
    if forward is not None:
        if node.target is TWINS[_OF_OUTPUT]:
            _keep_input(match, node, forward)
        else:
            _keep_output(node, forward)


def _forward_of(node: Any) -> Any:
    """Whose rstd a backward reads, which depends on a gradient; of one operand, and which activation checkpointing says
    nothing about."""
    rstd = node.args[2]
    forward = rstd.args[0] if rstd.target is operator.getitem and rstd.args[1] == 1 else None
    if not isinstance(forward, Node) or forward.target is not TWINS[_NORM] or not _is_of_backward(node):
        return None
    return forward if "recompute" not in forward.meta and arguments_of(_NORM, forward)["residual"] is None else None


def _keep_input(match: Any, node: Any, forward: Any) -> None:
    """Of results in one dtype."""
    given, of_forward, y = arguments_of(_OF_OUTPUT, node), arguments_of(_NORM, forward), node.args[1]
    if (y.target, y.args) != (operator.getitem, (forward, 0)) or given["grad_sum"] is not None:
        return
    if given["dtype"] is not None or of_forward["dtype"] is not None:
        return
    if not _is_kept_product(forward) or not _is_for_backward_alone(y, node):
        return
    call = described(_NORM, forward, of_forward)._replace(written=False)
    if _is_formula(call, node) and may_stand_for(forward, traced(match.graph, name_of(_NORM), of_forward)):
        operands = {"grad_output": given["grad_output"], "input": forward.args[0], "rstd": given["rstd"]}
        _become_of_input(match, operands, call)


def _become_of_input(match: Any, operands: dict[str, Any], call: choosing.Call) -> None:
    """The formula at once: whether forward's becomes one as well hangs together with it."""
    name = name_of(_OF_INPUT)
    trace = traced(match.graph, name, operands)
    if may_stand_for(match.output_node(), trace):
        write_down(call._replace(operator=name), "formula", "y would be kept for it alone")
        function, tensors = formula(name, operands)
        match.replace_by_example(function, tensors, trace_fn=lambda function, values: trace)


def _keep_output(node: Any, forward: Any) -> None:
    """Of a y wider than the input, which is kept for a product, and an input that nothing else of backward reads."""
    given = arguments_of(_OF_INPUT, node)
    y = next((result for result in forward.users if result.args[1] == 0), None)
    others = [reader for reader in readers(source_of(given["input"])) if reader is not node]
    if y is None or given["input"] is not forward.args[0] or any(map(_is_of_backward, others)):
        return
    if any(_is_of_backward(reader) and _is_apart(reader) for reader in readers(y, is_view)):
        _become_of_output(node, (given["grad_output"], y, given["rstd"]), dtype_name(given["input"].meta["val"].dtype))


def _become_of_output(node: Any, operands: tuple[Any, ...], dtype: str) -> None:
    """Operator or formula: that is decided later, as of any other call. The gradient lies as y does, as it did."""
    with node.graph.inserting_before(node):
        options = {"dtype": dtype, "table": node.kwargs["table"]}
        other = node.graph.call_function(TWINS[_OF_OUTPUT], operands, options)
    other.meta.update((key, value) for key, value in node.meta.items() if key != "eager_input_vals")
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)


def _is_formula(call: choosing.Call, node: Any) -> bool:
    return choosing.choose(call, node.kwargs["table"])[0] == "formula"


def _is_kept_product(forward: Any) -> bool:
    """Whether the norm is of a matrix product: of all of it, or of a part where an operation of backward that is no
    part of generated code reads that or another part. Not of one that is returned: eager code may write into that."""
    input = forward.args[0]
    product = input
    while is_view(product) and product.target is not _aten.as_strided.default:
        product = product.args[0]
    if not is_product(product) or "recompute" in product.meta:
        return False
    read = [*readers(product, is_view)]
    if any(reader.op == "output" or _is_widened(reader) for reader in read) or _is_computed_twice(forward):
        return False
    if statically_known_true(product.meta["val"].numel() == input.meta["val"].numel()):
        return True
    return any(_is_of_backward(reader) and _is_apart(reader) for reader in read)


def _is_widened(reader: Node) -> bool:
    """To float32, in forward. Of that PyTorch's partitioner would make y, in float32, and keep it for backward."""
    return is_cast_to_float32(reader) and not _is_of_backward(reader)


def _is_computed_twice(forward: Any) -> bool:
    """Inductor makes one of what is computed twice: then the other one's backward may read y."""
    norms = forward.graph.find_nodes(op="call_function", target=forward.target)
    return any(other is not forward and _origin(other) == _origin(forward) for other in norms)


def _origin(value: Any) -> str:
    """A norm, a product or a view, in words: equal for equal ones of the same operands."""
    if not isinstance(value, Node) or not (value.target is TWINS[_NORM] or is_product(value) or is_view(value)):
        return str(value)
    return f"{value.target}({', '.join(map(_origin, value.args))}, {value.kwargs})"


def _is_for_backward_alone(y: Node, backward: Node) -> bool:
    """Whether forward reads y in elementwise operations alone, and backward can do without y: it reads neither y, nor
    what such operations make of it, but where that is kept for an operation that is no part of generated code."""
    forward = [reader for reader in readers(y, is_view) if reader is not backward]
    if not forward or not all(map(_is_fused, forward)):
        return False
    seen = {*forward}
    while forward:
        node = forward.pop()
        read = [*readers(node, is_view)]
        of_backward = [*filter(_is_of_backward, read)]
        if any(_is_apart(reader) for reader in readers(node, _is_whole_view) if _is_of_backward(reader)):
            continue  # what is made of that can be made of that again
        of_forward = [reader for reader in read if reader not in of_backward]
        fused = [*filter(_is_fused, of_forward)]
        if of_backward or not all(reader in fused or _is_apart(reader) for reader in of_forward):
            return False
        forward += [reader for reader in fused if reader not in seen]
        seen.update(fused)
    return True


def _is_whole_view(node: Node) -> bool:
    """One whose operand PyTorch keeps for what reads the view; of a part among several, it may be made again."""
    return is_view(node) and node.target is not operator.getitem


def _is_fused(reader: Node) -> bool:
    """In forward; where activation checkpointing says nothing about it."""
    return (
        (is_elementwise(reader) or is_copy(reader)) and not _is_of_backward(reader) and "recompute" not in reader.meta
    )


def _is_apart(reader: Node) -> bool:
    """Reads its operands in memory: a product, attention, somebody's own operator; or returns them."""
    custom = getattr(reader.target, "namespace", "aten") not in ("aten", "prims")
    apart = custom or reader.op == "output" or is_product(reader) or "attention" in str(reader.target)
    return apart and "recompute" not in reader.meta


_forwards: WeakKeyDictionary[Graph, set[str]] = WeakKeyDictionary()


def _is_of_backward(node: Node) -> bool:
    """Whether forward's results, which depend on no gradient that the graph is given, are made without it."""
    if node.graph not in _forwards:
        _forwards[node.graph] = _made_for_forward(node.graph)
    return node.op != "output" and node.name not in _forwards[node.graph]


def _made_for_forward(graph: Graph) -> set[str]:
    """Names: nodes would keep their graph alive."""
    given: set[Node] = set()
    for node in graph.nodes:
        if _is_given_gradient(node) or any(operand in given for operand in node.all_input_nodes):
            given.add(node)
    found: set[Node] = set()
    made = [node for node in graph.output_node().all_input_nodes if node not in given]
    while made:
        node = made.pop()
        if node not in found:
            found.add(node)
            made += node.all_input_nodes
    return {node.name for node in found}


def _is_given_gradient(node: Node) -> bool:
    return node.op == "placeholder" and "tangents" in str(node.target)
