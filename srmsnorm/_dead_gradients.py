"""torch.compile with Inductor: a pair of gradients of which one is used becomes the operator for that one.

Where autograd runs, it asks for what is needed. A graph may still hold a pair with a dead half: from torch.func.vjp or
grad where one gradient is dropped, or from a backward of the user's own that ignores what it gets. Only the graph
knows, so this is a pass of Inductor's, of the two operators that return a pair. It is registered when the first pair is
traced for Inductor; where Inductor's names have moved, the pair stays.
"""

import contextlib
import functools
import sys
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode

from . import _library  # noqa: F401  the operators

__all__ = ["is_half_dead", "keep_one", "singles", "traced"]

_ops = torch.ops.srmsnorm
singles: dict[Any, tuple[Any, Any]] = {
    _ops._srms_norm_backward_pair.default: (
        _ops._srms_norm_backward_input.default,
        _ops._srms_norm_backward_residual.default,
    ),
    _ops._gated_srms_norm_backward.default: (
        _ops._gated_srms_norm_backward_input.default,
        _ops._gated_srms_norm_backward_gate.default,
    ),
}


def traced(mode: Any, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What a call is written down as: itself, as long as nobody asks for another choice (``undecided``)."""
    return function, kwargs


def _trace(mode: Any, function: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if "torch._inductor.compile_fx" in sys.modules:
        _register_pass()
    function, kwargs = traced(mode, function, args, kwargs)
    return mode.__torch_dispatch__(function, types, args, kwargs)


@functools.cache
def _register_pass() -> None:
    try:
        from torch._inductor.fx_passes.post_grad import pass_patterns
        from torch._inductor.pattern_matcher import CallFunctionVarArgs, register_graph_pattern

        register_graph_pattern(
            CallFunctionVarArgs([*singles]),
            extra_check=lambda match: is_half_dead(match.output_node()),
            pass_dict=pass_patterns[0],
        )(lambda match, *args, **kwargs: keep_one(match.output_node()))
    except (ImportError, AttributeError, LookupError, TypeError):
        pass


def is_half_dead(node: torch.fx.Node) -> bool:
    return node.target in singles and len(_used(node)) == 1


def _used(pair: torch.fx.Node) -> list[torch.fx.Node]:
    return [half for half in pair.users if half.users]


def keep_one(pair: torch.fx.Node) -> None:
    (half,) = _used(pair)
    number: Any = half.args[1]
    with pair.graph.inserting_before(pair):
        single = pair.graph.call_function(singles[pair.target][number], pair.args, pair.kwargs)
    single.meta.update(half.meta)
    half.replace_all_uses_with(single)
    for node in (*pair.users, pair):
        pair.graph.erase_node(node)


with contextlib.suppress(RuntimeError):  # registered already, where the package is imported a second time
    for _pair in singles:
        torch.library.register_torch_dispatch(_pair, ProxyTorchDispatchMode, _trace)
