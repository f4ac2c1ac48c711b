"""What a call launches on a GPU, shown: :func:`launch_plan`, and the GPU that it is for."""

from __future__ import annotations

import dataclasses
from typing import Any, overload

import torch

from ._library import _BUILT, _C

__all__ = ["Gpu", "gpu", "launch_plan"]


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What is known of a GPU. The plan depends on ``largest_cluster`` alone, the hints on the rest.

    ``srmsnorm.Gpu(90, 132, 233472, 60 << 20, 4_916_736_000_000, 16)`` is an H200.
    """

    capability: int  #: 90 for compute capability 9.0
    multiprocessors: int
    shared_bytes: int  #: shared memory of a multiprocessor
    l2_bytes: int
    bandwidth: int  #: of its memory, bytes a second: twice the memory clock times the bus; 0 if not known
    largest_cluster: int  #: blocks in the largest thread block cluster that there is room for, from 1 to 16


def gpu(device: torch.device | str | int | None = None) -> Gpu:
    """A GPU of this machine, with the largest cluster that the current stream's context has room for.

    Args:
        device: None: the current one.

    Raises:
        RuntimeError: a build without CUDA.
        ValueError: a device that is not there.
    """
    if device is None:
        device = torch.cuda.current_device()
    if not isinstance(device, int):
        device = torch.device(device)
        device = torch.cuda.current_device() if device.index is None else device.index
    return Gpu(*torch.ops.srmsnorm._gpu(device))


def _current_gpu() -> Gpu | None:
    return gpu() if _BUILT["cuda"] and torch.cuda.is_available() else None


@overload
def launch_plan(
    operator: str,
    dim: int,
    dtype: torch.dtype,
    residual_dtype: torch.dtype | None = None,
    *,
    gate_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
    grad_sum: bool = False,
    aligned: bool = True,
    in_phase: bool = True,
    rows: int | None = None,
    gpu: Gpu | None = None,
    max_cluster: int | None = None,
) -> dict[str, Any]: ...


@overload
def launch_plan(
    dim: int,
    dtype: torch.dtype,
    residual_dtype: torch.dtype | None = None,
    /,
    *,
    backward: bool = False,
    grad_sum: bool = False,
    aligned: bool = True,
    in_phase: bool = True,
    max_cluster: int = 16,
) -> dict[str, int | bool]: ...


def launch_plan(*args: Any, **options: Any) -> dict[str, Any]:
    """The CUDA launch that an operator's call gets, for rows in one block of memory.

    The plan is a function of the row, of the largest cluster alone among a GPU's properties, and never of how many rows
    there are: it decides the order of a row's sum. The hints are what makes a launch faster and changes no result.

    Args:
        operator: a name of ``torch.ops.srmsnorm``: ``"srms_norm"``, ``"gated_srms_norm"``,
            ``"_srms_norm_backward_input"``, ...
        dim: size of the last dimension, at least 1.
        dtype: the input's.
        residual_dtype: the residual's; None: ``dtype`` where the operator always has one, no residual where it need
            not. In backward, the dtype of the sum, where that has a gradient.
        gate_dtype: the gate's; None: ``dtype``.
        out_dtype: y's, where it is another than ``dtype``. In backward y is what the gradient comes from.
        grad_sum: in backward, whether the sum has a gradient.
        aligned: whether every row of every operand begins at a multiple of 16 bytes. Of quantised groups the plan is
            for those that do; others are normalized first.
        in_phase: whether all operands' rows begin as many elements past one.
        rows: how many; None: as many as move more than an L2 holds. Hints alone depend on it.
        gpu: the GPU, which need not be here; None: the current one. Where there is none, the plan comes without hints,
            for clusters of 16 blocks.
        max_cluster: instead of the GPU's ``largest_cluster``.

    Returns:
        The plan's integers and flags by name (``threads_per_row``, ``rows_per_block``, ``vectors``, ``cluster``, ...).
        ``vectors``: that a thread holds at a time; 0 of short rows that are no whole vectors, of which a block takes
        ``rows_per_block``, each of its threads 16 bytes of the input or, in backward, of y.
        With a GPU also what the launch takes of the hints: ``kept`` (what is read stays in the L2 until the next rows
        take its place) and ``tail`` (so many rows at the end release what is kept of them, and of as many rows before),
        ``apart`` (so many blocks at a time on a multiprocessor; 0: as many as fit, as on an H200 with a driver older
        than CUDA 12.8 whatever this says) and ``shared_bytes`` (that each takes to keep others away), ``streamed`` (a
        wider y is stored as what the L2 need not keep), ``ahead`` (the row that many further on is prefetched; 0:
        none); and ``gpu``.

    Raises:
        ValueError: an operator that there is not, an option that it does not take, rows or a GPU that cannot be.
        RuntimeError: a dim below 1, dtypes the operator does not take, or a max_cluster out of 1 ... 16.

    Without an operator, ``launch_plan(dim, dtype, residual_dtype=None, *, backward=False, grad_sum=False, aligned=True,
    in_phase=True, max_cluster=16)`` is the plan of the norm or of its backward, whose dtype is the output's, without
    hints.
    """
    if "operator" in options or (args and isinstance(args[0], str)):
        return _plan_of_operator(*args, **options)
    return _plan_of_norm(*args, **options)


def _plan_of_operator(
    operator: str,
    dim: int,
    dtype: torch.dtype,
    residual_dtype: torch.dtype | None = None,
    *,
    gate_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
    grad_sum: bool = False,
    aligned: bool = True,
    in_phase: bool = True,
    rows: int | None = None,
    gpu: Gpu | None = None,
    max_cluster: int | None = None,
) -> dict[str, Any]:
    gpu = _current_gpu() if gpu is None else gpu
    if not isinstance(gpu, (Gpu, type(None))):
        raise TypeError(f"srmsnorm: gpu must be a srmsnorm.Gpu or None, got {type(gpu).__name__}")
    numbers = None if gpu is None else dataclasses.astuple(gpu)
    plan: dict[str, Any] = _C.launch_plan(
        operator, dim, dtype, residual_dtype, gate_dtype, out_dtype, grad_sum, aligned, in_phase, rows, max_cluster,
        numbers,
    )  # fmt: skip
    return plan if gpu is None else plan | {"gpu": gpu}


def _plan_of_norm(
    dim: int,
    dtype: torch.dtype,
    residual_dtype: torch.dtype | None = None,
    *,
    backward: bool = False,
    grad_sum: bool = False,
    aligned: bool = True,
    in_phase: bool = True,
    max_cluster: int = 16,
) -> dict[str, Any]:
    plan: dict[str, Any] = _C._launch_plan(
        dim, dtype, residual_dtype, backward, grad_sum, aligned, in_phase, max_cluster
    )
    return plan
