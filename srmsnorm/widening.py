"""A norm's 16-bit input in float32: where matrix products read that as well, it is written once, and the formula reads
it; an operator reads the 16 bits.

Hyper-connections take the float32 norm of four residual streams, and weigh and mix these streams in float32.
Generated code would make the streams again for the sum, for y and for each such use, of all that they are made of.
mHC GPT on an H100, forward: 1.05 of the tokens a second with F.rms_norm, and 801 MiB for 1185 (the operator: 0.96,
and 1057). With streams of 7168 features, where "auto" is the operator: 1.028 and 700 MiB for 1036 (0.999 and 924
where the cast is two).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Node

from .judging import dtype_name
from .nodes import is_cast_to_float32, is_elementwise, is_product, is_view, readers, source_of

__all__ = ["merged", "widened"]

# Views that read memory past their operand, or its values negated: the cast holds neither.
_OTHER_VALUES = (torch.ops.aten.as_strided.default, torch.ops.aten._neg_view.default)


def merged(given: dict[str, Any]) -> Node | None:
    """Of several such casts of one tensor, the one that is left; who normalizes that need not read it."""
    casts = _casts(given["input"]) if given.get("residual") is None else []
    if not casts:
        return None
    cast = min(casts)
    for other in casts:
        if other is not cast and not _leaves(other):
            other.replace_all_uses_with(cast)
            other.graph.erase_node(other)
    return cast


def widened(node: Node, given: dict[str, Any], cast: Node | None) -> dict[str, Any]:
    """The operands of the formula that the call is about to become, where there is such a cast."""
    if cast is None:
        return given
    if node < cast:
        node.prepend(cast)
    input = given["input"]
    if not is_elementwise(source_of(input)) or not _may_be_view(input, cast):
        return given
    dtype = given["dtype"] or dtype_name(input.meta["val"].dtype)
    return given | {"input": _as(input, cast), "dtype": dtype}


def _casts(input: Any) -> list[Node]:
    """To float32, of a 16-bit tensor or of what that is a view of; read by products."""
    value, dtype = input, input.meta["val"].dtype
    if dtype not in (torch.float16, torch.bfloat16):
        return []
    while True:
        casts = [user for user in value.users if is_cast_to_float32(user) and any(map(is_product, _readers(user)))]
        if casts or not is_view(value) or value.target in _OTHER_VALUES:
            return casts
        value = value.args[0]
        if getattr(value.meta["val"], "dtype", dtype) is not dtype:
            return []


def _readers(node: Node) -> Iterator[Node]:
    return readers(node, is_view)


def _leaves(cast: Node) -> bool:
    """Is returned, or kept for backward: two of those are never one, as someone may write into the first."""
    return any(reader.op == "output" for reader in _readers(cast))


def _may_be_view(input: Node, cast: Any) -> bool:
    """Whether the cast lies as its operand, which the input is a view of: from its start on, and without holes. All of
    it is known in numbers."""
    value, source, wide = (one.meta["val"] for one in (input, cast.args[0], cast))
    lies = (*value.shape, *value.stride(), value.storage_offset(), *wide.shape, *wide.stride())
    known = all(isinstance(size, int) for size in lies)
    return known and source.stride() == wide.stride() and source.storage_offset() == 0


def _as(input: Node, cast: Node) -> Node:
    """The cast as the view that the input is: Inductor reads in memory what is given to this operation."""
    from torch._inductor.virtualized import V

    value = input.meta["val"]
    lies = value.size(), value.stride(), value.storage_offset()
    view = input.graph.call_function(torch.ops.aten.as_strided.default, (cast, *lies))
    cast.append(view)
    with V.fake_mode:
        view.meta["val"] = cast.meta["val"].as_strided(*lies)
    return view
