"""A norm's 16-bit input in float32: where a matrix product reads that as well, it is written once, and the formula
reads it.

Hyper-connections take the float32 norm of four residual streams, and weigh and mix these streams in float32. Generated
code would make the streams again for the sum, for y and for each such use, of all that they are made of. mHC GPT on an
H100, forward: 1.05 of the tokens a second with F.rms_norm, and 801 MiB for 1185 (the operator: 0.96, and 1057).
"""

from typing import Any

import torch
from torch.fx import Node

from .nodes import is_cast_to_float32, is_elementwise, is_product, is_view, readers, source_of

__all__ = ["widened"]


def widened(node: Node, given: dict[str, Any]) -> dict[str, Any]:
    """The operands of a call that becomes its formula. Of several such casts of one tensor, one remains."""
    casts = _casts(node, given)
    if not casts:
        return given
    cast = min(casts)
    if node < cast:
        node.prepend(cast)
    for other in casts:
        if other is not cast:
            other.replace_all_uses_with(cast)
            other.graph.erase_node(other)
    input = given["input"]
    if not is_elementwise(source_of(input)):
        return given
    dtype = given["dtype"] or str(input.meta["val"].dtype).removeprefix("torch.")
    return given | {"input": _as(input, cast), "dtype": dtype}


def _casts(node: Node, given: dict[str, Any]) -> list[Node]:
    """To float32, of the tensor that a norm of one operand is of, or of what it is a view of; read by products."""
    if given.get("residual") is not None or given["input"].meta["val"].dtype not in (torch.float16, torch.bfloat16):
        return []
    value = given["input"]
    while True:
        read = [user for user in value.users if is_cast_to_float32(user) and any(map(is_product, readers(user)))]
        if read or not is_view(value):
            return read if read and _lie_alike(value, read[0]) else []
        value = value.args[0]


def _lie_alike(value: Node, cast: Node) -> bool:
    """Whether what is a view of one may be that view of the other: numbers, and no holes."""
    one, other = value.meta["val"], cast.meta["val"]
    numbers = all(isinstance(size, int) for size in (*one.shape, *one.stride(), one.storage_offset()))
    return numbers and one.stride() == other.stride() and one.storage_offset() == 0


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
