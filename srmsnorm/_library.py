"""Loads the two libraries: the operators (_ops, no Python in it) and their pybind11 face (_C)."""

import importlib
import json
import os
import pathlib
import sys
from types import ModuleType

import torch

__all__ = ["_C", "build_info", "launch_plan"]


def _load() -> ModuleType:
    folder = pathlib.Path(__file__).absolute().parent
    _check_built_for_this(folder)
    library = next(folder.glob("_ops.*"))
    _check_first(library)
    torch.ops.load_library(library)
    return importlib.import_module("._C", __package__)


def _check_built_for_this(folder: pathlib.Path) -> None:
    """Before loading: a library built for another torch may crash the process or compute nonsense."""
    note = folder / "built_for.json"
    if not note.exists():
        raise ImportError(f"srmsnorm is not built in {folder}: {_remedy(folder)}")
    built = json.loads(note.read_text())
    python = f"{sys.version_info[0]}.{sys.version_info[1]}{sys.abiflags}"
    if torch.__version__ != built["torch"] or python not in built["pythons"]:
        raise ImportError(
            f"srmsnorm was built in {folder} for torch {built['torch']} and Python {', '.join(built['pythons'])}, but "
            f"this is torch {torch.__version__} and Python {python}: {_remedy(folder)}"
        )


def _remedy(folder: pathlib.Path) -> str:
    if (folder.parent / "setup.py").exists():
        build = f"`{sys.executable} setup.py build_ext --inplace` in {folder.parent}"
        return f"run {build}, or import an installed srmsnorm from another folder"
    return f"run `{sys.executable} -m pip install --no-build-isolation .` in its source tree to build it for this one"


def _check_first(library: pathlib.Path) -> None:
    """The operators of a process are those of the library loaded first, which may be of another version."""
    operators = torch.ops.srmsnorm
    if not hasattr(operators, "srms_norm"):
        return
    first = operators._library() if hasattr(operators, "_library") else "an unknown library"
    if not (os.path.exists(first) and os.path.samefile(first, library)):
        raise ImportError(
            f"srmsnorm: this process has the operators of {first}, so that {library} cannot be loaded: import or load "
            "one copy of srmsnorm only"
        )


_C = _load()


def build_info() -> dict[str, str | bool | None]:
    """What was built: ``torch`` (its version), ``cuda`` (the toolkit's version, None for a build without CUDA),
    ``architectures`` (as in ``TORCH_CUDA_ARCH_LIST``) and ``debug``."""
    return _C.build_info()


def launch_plan(
    dim: int,
    dtype: torch.dtype,
    residual_dtype: torch.dtype | None = None,
    *,
    backward: bool = False,
    grad_sum: bool = False,
    aligned: bool = True,
    in_phase: bool = True,
    max_cluster: int = 16,
) -> dict[str, int | bool]:
    """The CUDA launch that rows of a kind get, without a gate: a function of the row, never of how many there are.

    Args:
        dim: size of the last dimension, at least 1.
        dtype: float16, bfloat16, float32 or float64; the input's, in backward the output's.
        residual_dtype: the residual's; None for a call without one.
        backward: the plan of backward instead of forward.
        grad_sum: in backward, whether the sum has a gradient.
        aligned: whether every row of every operand begins at a multiple of 16 bytes.
        in_phase: whether all operands' rows begin as many elements past one.
        max_cluster: blocks in the largest thread block cluster that there is room for: 16 on a whole GPU of compute
            capability 9 or 10, 8 on later ones, fewer in a small part of one (MIG, a green context), and 1 where there
            are none: before compute capability 9, and in code that was compiled for it.

    Returns:
        The plan's integers and flags by name (threads per row, rows per block, vectors, ...).

    Raises:
        RuntimeError: a dim below 1, dtypes the operator does not take, or a max_cluster out of 1 ... 16.
    """
    return _C._launch_plan(dim, dtype, residual_dtype, backward, grad_sum, aligned, in_phase, max_cluster)
