"""What a call becomes in Inductor's graphs under ``inline_under_compile``, instead of its operator: our own formula,
with the operator's operands and results.

A formula widens an operand, and adds up h, where it uses it, and again at its next use. Generated code writes down what
is made of many tensors and used more than once: so that is an operand, in its dtype, and not h or a gradient in
float32. Of the speedrun GPT on an H100, in training, a kernel that adds and normalizes takes 58 us for 79.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from . import reference
from .undecided import dtype_of

__all__ = ["FORMULAS", "formula", "traced"]

# ---- traced

_traces: WeakKeyDictionary[Graph, dict[str, tuple[GraphModule, list[dict[str, Any]]]]] = WeakKeyDictionary()


def traced(graph: Graph, name: str, given: dict[str, Any]) -> GraphModule:
    """Calls of one graph that are alike share a trace, which takes 15 ms. They share its nodes' values too, until
    Inductor looks at what its passes have changed, which it does before it asks what lies in the same memory.

    Alike are calls whose operands are: two that are one value are one in a trace, which is no other call's then. The
    last call of a graph is met first, so that operands have values of their own."""
    from torch._inductor.pattern_matcher import fwd_only
    from torch._inductor.virtualized import V

    function, tensors = formula(name, given)
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


def formula(name: str, given: dict[str, Any]) -> tuple[Callable[..., Any], list[Node]]:
    """Of an operator: a function of the tensors that a call of it is given, and these."""
    names = [key for key, value in given.items() if isinstance(value, Node)]
    others = {key: value for key, value in given.items() if key not in names}
    function = FORMULAS[name]
    return lambda *tensors: function(**dict(zip(names, tensors, strict=True)), **others), [given[key] for key in names]


# ---- forward


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(reference.accumulation_dtype(tensor.dtype))


def _sum(input: Tensor, residual: Tensor | None) -> Tensor:
    """h"""
    return _wide(input) if residual is None else _wide(input) + _wide(residual)


def _srms_norm(
    input: Tensor, residual: Tensor | None, eps: float | None, dtype: str | None = None
) -> tuple[Tensor, Tensor]:
    """y and rstd, which is no view: so Inductor writes it before y, and does not make it again for each element."""
    mean = _sum(input, residual).square().mean(-1)
    r = torch.rsqrt(mean + (reference.default_eps(mean.dtype) if eps is None else eps))
    return (_sum(input, residual) * r.unsqueeze(-1)).to(dtype_of(dtype, input.dtype)), r


def _add_srms_norm(
    input: Tensor, residual: Tensor, eps: float | None, dtype: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    y, r = _srms_norm(input, residual, eps, dtype)
    return y, _sum(input, residual).to(residual.dtype), r


# ---- backward


def _gradient(grad_output: Tensor, y: Tensor, rstd: Tensor, grad_sum: Tensor | None = None) -> Tensor:
    """In the accumulation type; y may be in it."""
    wide = rstd.dtype
    mean = (y.to(wide) * grad_output.to(wide)).mean(-1, keepdim=True)
    dh = rstd.unsqueeze(-1) * (grad_output.to(wide) - y.to(wide) * mean)
    return dh if grad_sum is None else dh + grad_sum.to(wide)


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


FORMULAS: dict[str, Callable[..., Any]] = {
    "srms_norm": lambda **given: _srms_norm(**given)[0],
    "add_srms_norm": lambda **given: _add_srms_norm(**given)[:2],
    "_srms_norm": _srms_norm,
    "_add_srms_norm": _add_srms_norm,
    "_srms_norm_backward_input": _backward_input,
    "_srms_norm_backward_residual": lambda output, **given: _gradient(y=output, **given),
    "_srms_norm_backward_pair": _backward_pair,
    "_srms_norm_backward_of_input": _backward_of_input,
}
