"""What is done when a call of an operator is written into a graph, and what it is written down as.

Everything that the package knows of Inductor waits for that: only then is Inductor here, and concerned.
"""

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode

from . import _library  # noqa: F401  the operators

__all__ = ["OPERATORS", "before_inductor", "written_as"]

_ops = torch.ops.srmsnorm

#: Those that are functional and whose results may be given (``csrc/out.h``), by name.
OPERATORS = (
    "srms_norm",
    "add_srms_norm",
    "_srms_norm",
    "_add_srms_norm",
    "_srms_norm_backward_input",
    "_srms_norm_backward_residual",
    "_srms_norm_backward_pair",
    "_srms_norm_backward_of_input",
    "rstd",
    "_scale_rows",
    "gated_srms_norm",
    "_gated_srms_norm",
    "_gated_srms_norm_backward",
    "_gated_srms_norm_backward_input",
    "_gated_srms_norm_backward_gate",
)

#: Called before the first call is written into a graph that may be for Inductor.
before_inductor: list[Callable[[], None]] = []
_done = 0


def written_as(mode: Any, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What a call is written down as: itself, as long as nobody asks for another choice (``undecided``)."""
    return function, kwargs


def _trace(mode: Any, function: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    global _done
    if "torch._inductor.compile_fx" in sys.modules:
        while _done < len(before_inductor):
            _done += 1
            before_inductor[_done - 1]()
    function, kwargs = written_as(mode, function, args, kwargs)
    return mode.__torch_dispatch__(function, types, args, kwargs)


with contextlib.suppress(RuntimeError):  # registered already, where the package is imported a second time
    for _name in OPERATORS:
        torch.library.register_torch_dispatch(f"srmsnorm::{_name}", ProxyTorchDispatchMode, _trace)
