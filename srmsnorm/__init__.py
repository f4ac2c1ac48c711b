"""SRMSNorm: root mean square normalization without a weight, as a C++/CUDA operator of PyTorch."""

import importlib
from typing import TYPE_CHECKING, Any

from . import _dead_gradients as _dead_gradients  # registers what it has
from . import functional, reference
from . import functionalization as functionalization  # only registers
from ._library import build_info, cmake_prefix_path, library_path
from .functional import *  # noqa: F403  its __all__
from .inlining import inline_under_compile
from .launching import Gpu, gpu, launch_plan
from .module import SRMSNorm, SRMSNormGated

if TYPE_CHECKING:
    from .conversion import convert
    from .folding import fold

__version__ = "0.2.0"

__all__ = [
    "Gpu",
    "SRMSNorm",
    "SRMSNormGated",
    "build_info",
    "cmake_prefix_path",
    "convert",
    "fold",
    "gpu",
    "inline_under_compile",
    "launch_plan",
    "library_path",
    "reference",
]
__all__ += functional.__all__

_LATER = {
    "convert": ".conversion",
    "fold": ".folding",
}  # when asked for: 20 ms of import


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_LATER[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
