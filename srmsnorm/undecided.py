"""What a compiler sees under ``inline_under_compile("auto")`` or ``(True)``: calls of which nobody has said yet what
they become.

Dynamo's graph holds ``srmsnorm_auto.*``, which are the public operators with the name of a table of reasons beside the
arguments. Autograd takes them apart, so that derivatives, vmap and what backward keeps are those of the operators; and
where a call, or the backward of such a call, arrives in the graph that is traced then, it is written down as its twin
in ``srmsnorm_undecided.*``. ``replacing`` decides, once Inductor has parted forward from backward. The graphs differ
from those of the operators in these names, and so do the keys of every cache of compiled code.

Where nobody decides, a twin computes what its operator does. Under True, where the compiler is not Inductor, a call is
the formula at once. Dynamo asks before any compiler does, and must find the layouts that the graph will have: so the
formula stands for the operator only where its results lie as the operator's do.
"""

import operator
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode, get_proxy_slot
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from . import _dead_gradients, _library, inlining, reference  # noqa: F401  the operators

__all__ = ["TWINS", "dtype_of", "lie_alike"]

_ops = torch.ops.srmsnorm
_FORWARD = ("srms_norm", "add_srms_norm", "_srms_norm", "_add_srms_norm")
_BACKWARD = (
    "_srms_norm_backward_input",
    "_srms_norm_backward_residual",
    "_srms_norm_backward_pair",
    "_srms_norm_backward_of_input",
)

_asked = threading.local()  # table: of the call that is being taken apart in this thread


def _schema(name: str) -> str:
    """Of the operator, and a table."""
    arguments, results = str(getattr(_ops, name).default._schema).removeprefix("srmsnorm::").split(") -> ")
    return f"{arguments}, {'' if '*' in arguments else '*, '}str table) -> {results}"


def _asking(name: str) -> Callable[..., Any]:
    function, formula = getattr(_ops, name).default, getattr(reference, name)

    def call(*args: Any, table: str, **kwargs: Any) -> Any:
        if table == inlining.everywhere and not _is_inductors():
            kept = function(*args, **kwargs)  # checks the arguments; where nobody uses it, a compiler drops it
            traced = formula(*args, eps=kwargs.get("eps"), dtype=dtype_of(kwargs.get("dtype")))
            return traced if lie_alike(kept, traced) else kept
        before = getattr(_asked, "table", None)
        _asked.table = table
        try:
            return function(*args, **kwargs)
        finally:
            _asked.table = before

    return call


def lie_alike(kept: Any, traced: Any) -> bool:
    """Whether results have the same strides, and are no subclasses whose parts may lie otherwise, as of DTensor."""
    pairs = list(zip(tree_leaves(kept), tree_leaves(traced), strict=True))
    if any(is_traceable_wrapper_subclass(tensor) for pair in pairs for tensor in pair):
        return False
    return all(statically_known_true(a == b) for x, y in pairs for a, b in zip(x.stride(), y.stride(), strict=True))


def dtype_of(name: str | None, otherwise: torch.dtype | None = None) -> torch.dtype | None:
    return otherwise if name is None else getattr(torch, name)


def _is_inductors() -> bool:
    """Whether Inductor makes the graph that is traced, and will decide what becomes of the calls in it."""
    virtualized = sys.modules.get("torch._inductor.virtualized")
    if virtualized is None or not isinstance(virtualized.V.get_fake_mode(), FakeTensorMode):
        return False
    from . import replacing  # not before Inductor itself is here

    return replacing.decides()


def _computing(name: str) -> Callable[..., Any]:
    function = getattr(_ops, name).default
    return lambda *args, table, **kwargs: function(*args, **kwargs)


def _traced(mode: Any, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What is written down for a call of an operator."""
    if function not in TWINS:
        return function, kwargs
    table = getattr(_asked, "table", None) or (_table_of(mode, args[2]) if function in _BACKWARDS else None)
    if table is None or "torch._inductor.compile_fx" not in sys.modules:
        return function, kwargs
    from . import replacing  # not before Inductor itself is here

    if not replacing.decides():
        return function, kwargs
    return TWINS[function], {**kwargs, "table": table}


def _table_of(mode: Any, rstd: torch.Tensor) -> str | None:
    """Of the forward in the same graph that rstd is a result of, perhaps through views."""
    slot = get_proxy_slot(rstd, mode.tracer, None)
    node: Any = None if slot is None else slot.proxy.node
    while node is not None and node.op == "call_function":
        if node.target in _UNDECIDED:
            return str(node.kwargs["table"])
        if node.target is not operator.getitem and not getattr(node.target, "is_view", False):
            return None
        node = node.args[0]
    return None


def _trace(mode: Any, function: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    function, kwargs = _traced(mode, function, args, kwargs)
    return mode.__torch_dispatch__(function, types, args, kwargs)


_auto = torch.library.Library("srmsnorm_auto", "FRAGMENT")
for _name in ("srms_norm", "add_srms_norm"):
    _auto.define(_schema(_name))
    for _key in ("CompositeImplicitAutograd", "FuncTorchBatched"):  # the latter, as functorch would loop over samples
        _auto.impl(_name, _asking(_name), _key)

_undecided = torch.library.Library("srmsnorm_undecided", "FRAGMENT")
for _name in (*_FORWARD, *_BACKWARD):
    _undecided.define(_schema(_name), tags=tuple(getattr(_ops, _name).default.tags))
    _undecided.impl(_name, _computing(_name), "CompositeExplicitAutograd")
    torch.library.register_fake(f"srmsnorm_undecided::{_name}", _computing(_name), lib=_undecided)

#: What an operator is written down as.
TWINS: dict[Any, Any] = {
    getattr(_ops, name).default: getattr(torch.ops.srmsnorm_undecided, name).default for name in (*_FORWARD, *_BACKWARD)
}
_UNDECIDED = frozenset(TWINS.values())
_BACKWARDS = frozenset(getattr(_ops, name).default for name in _BACKWARD)

for _operator in TWINS:
    if _operator in _dead_gradients.singles:
        continue  # has a rule, which asks
    torch.library.register_torch_dispatch(_operator, ProxyTorchDispatchMode, _trace)
_dead_gradients.traced = _traced
