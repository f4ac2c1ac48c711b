"""What stands beside a node of a graph, seen past what only hands a value on."""

import operator
from collections.abc import Iterator

import torch
from torch.fx import Node

__all__ = ["behind_views", "is_elementwise", "is_passed_on", "is_view", "readers"]

_PASSED_ON = (torch.ops.aten.clone.default, torch.ops.aten.cat.default)  # what Inductor fuses as it does a view


def is_view(node: Node) -> bool:
    return node.target is operator.getitem or getattr(node.target, "is_view", False)


def is_elementwise(node: Node) -> bool:
    """A cast is."""
    return torch.Tag.pointwise in getattr(node.target, "tags", ())


def is_passed_on(node: Node) -> bool:
    return is_view(node) or node.target in _PASSED_ON


def behind_views(node: Node) -> Node:
    while is_passed_on(node) and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def readers(node: Node) -> Iterator[Node]:
    """Of its values: who asks for a size reads none."""
    for user in node.users:
        if is_passed_on(user):
            yield from readers(user)
        elif not isinstance(user.meta.get("val"), (int, torch.SymInt)):
            yield user
