"""Rows that lie in pieces on several processes, where the last dimension is sharded.

What the pieces of a row have to tell each other is one number: its mean of squares in forward, its mean(y g) in
backward. So each process computes that of its own columns, one all-reduce of a number a row adds their shares up, and
each process computes its own columns of the results. Nothing is gathered; bits depend on how many pieces there are.

Each function takes the pieces and the arguments of the operators that it stands for, of tensors the local part.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor, all_reduce
from torch.distributed.device_mesh import DeviceMesh

from .functional import _name
from .reference import default_eps

__all__ = ["COMPUTATIONS", "Pieces", "compute"]

_ops = torch.ops.srmsnorm


@dataclass
class Pieces:
    """How rows are split: on which dimensions of the mesh, and how many columns there are in all."""

    mesh: DeviceMesh
    mesh_dims: Sequence[int]
    columns: int

    def mean(self, of_a_piece: Tensor, columns: int) -> Tensor:
        """Over whole rows, of what is a mean over so many columns here; it is overwritten."""
        mean = of_a_piece.mul_(columns / self.columns)
        for mesh_dim in self.mesh_dims:
            mean = all_reduce(mean, "sum", (self.mesh, mesh_dim))
            mean = mean.trigger_wait() if isinstance(mean, AsyncCollectiveTensor) else mean
        return mean

    def rstd(self, of_a_piece: Tensor, columns: int, eps: float | None) -> Tensor:
        """From that of a piece without eps, which is the root of its mean of squares, inverted."""
        mean = self.mean(of_a_piece.reciprocal_().square_(), columns)
        return mean.add_(default_eps(mean.dtype) if eps is None else eps).rsqrt_()


# ---- by operator: (the operator, the pieces, its arguments) -> its results


def _norm(
    op: Any, pieces: Pieces, input: Tensor, residual: Tensor | None = None, eps: float | None = None, *,
    dtype: str | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Reads the operands twice. Of the sum, if it is written, the second time, where it is not rounded."""
    if op in (_ops.add_srms_norm.default, _ops._add_srms_norm.default):
        _, sum, of_a_piece = _ops._add_srms_norm(input, residual, 0.0)
    else:
        sum, of_a_piece = None, _ops.rstd(input, residual, eps=0.0)
    rstd = pieces.rstd(of_a_piece, input.shape[-1], eps)
    h = (input, residual) if sum is None or sum.dtype != rstd.dtype else (sum, None)
    output = _ops._scale_rows(*h, rstd, dtype=dtype or _name(input.dtype))
    return (output, rstd) if sum is None else (output, sum, rstd)


def _rstd(
    op: Any, pieces: Pieces, input: Tensor, residual: Tensor | None = None, *, eps: float | None = None
) -> Tensor:
    return pieces.rstd(_ops.rstd(input, residual, eps=0.0), input.shape[-1], eps)


def _backward(
    op: Any, pieces: Pieces, grad_output: Tensor, output: Tensor, rstd: Tensor, grad_sum: Tensor | None = None,
    **options: str | None,
) -> Any:  # fmt: skip
    """With m of the row and n of the piece, r (g - y m) + gh is r (g - y n) + (r y (n - m) + gh): the operator's own,
    of the piece, beside another gradient of the sum. In that type, since the two may cancel."""
    n = _mean_of_products(output, grad_output, rstd)
    m = pieces.mean(n.clone(), output.shape[-1])
    more = _ops._scale_rows(output, None, rstd, n - m, dtype=_name(rstd.dtype))
    return op(grad_output, output, rstd, more if grad_sum is None else more + grad_sum, **options)


def _backward_of_input(op: Any, pieces: Pieces, grad_output: Tensor, input: Tensor, rstd: Tensor) -> Tensor:
    """Where y, which is input r, is not rounded."""
    m = pieces.mean(_mean_of_products(input, grad_output, rstd) * rstd, input.shape[-1])
    projection = _ops._scale_rows(input, None, rstd, -m, dtype=_name(rstd.dtype))
    return _ops._scale_rows(grad_output, projection, rstd, dtype=_name(input.dtype))


def _mean_of_products(kept: Tensor, grad_output: Tensor, rstd: Tensor) -> Tensor:
    return (kept.to(rstd.dtype) * grad_output).mean(-1)


COMPUTATIONS: dict[Any, Callable[..., Any]] = {
    _ops.srms_norm.default: _norm,
    _ops.add_srms_norm.default: _norm,
    _ops._srms_norm.default: _norm,
    _ops._add_srms_norm.default: _norm,
    _ops.rstd.default: _rstd,
    _ops._srms_norm_backward_input.default: _backward,
    _ops._srms_norm_backward_residual.default: _backward,
    _ops._srms_norm_backward_pair.default: _backward,
    _ops._srms_norm_backward_of_input.default: _backward_of_input,
}


def compute(op: Any, pieces: Pieces, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    """The operator's results, of local parts of operands. A process without columns has one of zeros meanwhile."""
    rank, columns = args[0].ndim, args[0].shape[-1]

    def is_rows(value: Any) -> bool:
        return isinstance(value, Tensor) and value.ndim == rank

    if columns == 0:
        args = [arg.new_zeros((*arg.shape[:-1], 1)) if is_rows(arg) else arg for arg in args]
    found = COMPUTATIONS[op](op, pieces, *args, **kwargs)
    results = found if isinstance(found, tuple) else (found,)
    results = results[: len(op._schema.returns)]  # the public operators give no rstd
    return tuple(result[..., :0] if is_rows(result) else result for result in results) if columns == 0 else results
