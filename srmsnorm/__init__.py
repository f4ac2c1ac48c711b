"""SRMSNorm: root mean square normalization without a weight, as a C++/CUDA operator of PyTorch."""

from . import _dead_gradients as _dead_gradients  # registers what it has
from . import functionalization as functionalization  # only registers
from . import reference
from ._library import build_info, launch_plan
from .functional import add_srms_norm, add_srms_norm_, gated_srms_norm, srms_norm
from .inlining import inline_under_compile
from .module import SRMSNorm, SRMSNormGated

__version__ = "0.1.0"

__all__ = [
    "SRMSNorm",
    "SRMSNormGated",
    "add_srms_norm",
    "add_srms_norm_",
    "build_info",
    "gated_srms_norm",
    "inline_under_compile",
    "launch_plan",
    "reference",
    "srms_norm",
]
