"""Loads the two libraries: the operators (_ops, no Python in it) and their pybind11 face (_C)."""

import importlib
import json
import pathlib
import sys
from types import ModuleType

import torch

__all__ = ["_C", "build_info", "launch_plan"]


def _load() -> ModuleType:
    folder = pathlib.Path(__file__).parent
    built_for = folder / "built_for.json"
    if not built_for.exists():
        raise ImportError(
            f"srmsnorm is not built in {folder}: run `pip install --no-build-isolation .` in its source tree, "
            "and import it from another folder"
        )
    # Before loading: a library built for another torch may crash the process or compute nonsense.
    built = _name(**json.loads(built_for.read_text()))
    here = _name(torch.__version__, f"{sys.version_info[0]}.{sys.version_info[1]}")
    if built != here:
        raise ImportError(
            f"srmsnorm was built for {built}, but this is {here}: run `pip install --no-build-isolation .` in its "
            "source tree to build it for this one"
        )
    torch.ops.load_library(next(folder.glob("_ops.*")))
    return importlib.import_module("srmsnorm._C")


def _name(torch: str, python: str) -> str:
    return f"torch {torch} and Python {python}"


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
    """The CUDA launch that rows of a kind get: a function of the row, never of how many there are.

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
