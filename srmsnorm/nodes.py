"""What stands beside a node of a graph, seen past views, or past copies as well."""

import operator
from collections.abc import Callable, Iterator

import torch
from torch.fx import Node

__all__ = [
    "is_cast_to_float32",
    "is_copy",
    "is_elementwise",
    "is_passed_on",
    "is_product",
    "is_view",
    "readers",
    "source_of",
]

_aten = torch.ops.aten
_COPIES = (_aten.clone.default, _aten.cat.default)  # in memory of their own
_PRODUCTS = (_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default)


def is_view(node: Node) -> bool:
    """In the same memory; a result of several, too."""
    return node.target is operator.getitem or getattr(node.target, "is_view", False)


def is_elementwise(node: Node) -> bool:
    """A cast is."""
    return torch.Tag.pointwise in getattr(node.target, "tags", ())


def is_cast_to_float32(node: Node) -> bool:
    return node.target is torch.ops.prims.convert_element_type.default and node.args[1] is torch.float32


def is_copy(node: Node) -> bool:
    return node.target in _COPIES


def is_product(node: Node) -> bool:
    """Of matrices: it reads operands, and writes its result, in memory."""
    return node.target in _PRODUCTS


def is_passed_on(node: Node) -> bool:
    """A view or a copy: Inductor fuses what is before it with what is behind."""
    return is_view(node) or is_copy(node)


def source_of(node: Node) -> Node:
    """What made its values, past views and copies."""
    while is_passed_on(node) and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def readers(node: Node, past: Callable[[Node], bool] = is_passed_on) -> Iterator[Node]:
    """Of its values, past views, and past copies unless told otherwise: who asks for a size reads none."""
    for user in node.users:
        if past(user):
            yield from readers(user, past)
        elif not isinstance(user.meta.get("val"), (int, torch.SymInt)):
            yield user
