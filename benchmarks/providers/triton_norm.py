# mypy: disable-error-code="untyped-decorator,no-untyped-def"
"""The benchmark's own Triton norm (`tr`), one sweep where a row fits a block's registers.

Backward takes y and rstd, as the operator does: nothing but 4 bytes a row is kept beside what the caller holds, and a
residual's sum is never written for backward's sake.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ONE_SWEEP_BYTES = 65536  # of a row: up to here it stays in the registers of 32 warps, beyond it is read twice
TILE = 2048  # elements a block takes at least, as several rows where one is shorter
LOOP_BLOCK = 8192  # elements a block takes at a time where a row is read twice


@triton.jit
def _load(ptr, offsets, mask, EVEN: tl.constexpr, EVICT: tl.constexpr):
    if EVEN:
        return tl.load(ptr + offsets, eviction_policy=EVICT).to(tl.float32)
    else:
        return tl.load(ptr + offsets, mask=mask, other=0.0, eviction_policy=EVICT).to(tl.float32)


@triton.jit
def _store(ptr, offsets, value, mask, EVEN: tl.constexpr):
    if EVEN:
        tl.store(ptr + offsets, value.to(ptr.dtype.element_ty))
    else:
        tl.store(ptr + offsets, value.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _load_sum(x_ptr, residual_ptr, offsets, mask, HAS_RESIDUAL: tl.constexpr, EVEN: tl.constexpr, EVICT: tl.constexpr):
    h = _load(x_ptr, offsets, mask, EVEN, EVICT)
    if HAS_RESIDUAL:
        h += _load(residual_ptr, offsets, mask, EVEN, EVICT)
    return h


@triton.jit
def _forward_kernel(
    x_ptr,
    residual_ptr,
    y_ptr,
    sum_ptr,
    rstd_ptr,
    rows,
    eps,
    dim: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    ONE_SWEEP: tl.constexpr,
    EVEN: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    WRITE_SUM: tl.constexpr,
    WRITE_RSTD: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    start = row.to(tl.int64) * dim
    in_rows = row < rows
    if ONE_SWEEP:
        offsets = start + column
        mask = in_rows & (column < dim)
        h = _load_sum(x_ptr, residual_ptr, offsets, mask, HAS_RESIDUAL, EVEN, "")
        if WRITE_SUM:
            _store(sum_ptr, offsets, h, mask, EVEN)
        rstd = tl.rsqrt(tl.sum(h * h, axis=1, keep_dims=True) / dim + eps)
        _store(y_ptr, offsets, h * rstd, mask, EVEN)
    else:
        square = tl.zeros([ROWS, BLOCK], tl.float32)
        for first in range(0, dim, BLOCK):
            mask = in_rows & (first + column < dim)
            h = _load_sum(x_ptr, residual_ptr, start + first + column, mask, HAS_RESIDUAL, EVEN, "evict_last")
            square += h * h
        rstd = tl.rsqrt(tl.sum(square, axis=1, keep_dims=True) / dim + eps)
        for first in range(0, dim, BLOCK):
            offsets = start + first + column
            mask = in_rows & (first + column < dim)
            h = _load_sum(x_ptr, residual_ptr, offsets, mask, HAS_RESIDUAL, EVEN, "evict_first")
            if WRITE_SUM:
                _store(sum_ptr, offsets, h, mask, EVEN)
            _store(y_ptr, offsets, h * rstd, mask, EVEN)
    if WRITE_RSTD:
        tl.store(rstd_ptr + row, rstd, mask=in_rows)


@triton.jit
def _store_grad(
    grad_ptr,
    pair_ptr,
    grad_sum_ptr,
    g,
    y,
    rstd,
    mean,
    offsets,
    mask,
    HAS_GRAD_SUM: tl.constexpr,
    PAIR: tl.constexpr,
    EVEN: tl.constexpr,
):
    dh = rstd * (g - y * mean)
    if HAS_GRAD_SUM:
        dh += _load(grad_sum_ptr, offsets, mask, EVEN, "")
    _store(grad_ptr, offsets, dh, mask, EVEN)
    if PAIR:
        _store(pair_ptr, offsets, dh, mask, EVEN)


@triton.jit
def _backward_kernel(
    g_ptr,
    y_ptr,
    rstd_ptr,
    grad_sum_ptr,
    grad_ptr,
    pair_ptr,
    rows,
    dim: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    ONE_SWEEP: tl.constexpr,
    EVEN: tl.constexpr,
    HAS_GRAD_SUM: tl.constexpr,
    PAIR: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    start = row.to(tl.int64) * dim
    in_rows = row < rows
    if ROWS == 1:  # noqa: SIM108
        rstd = tl.load(rstd_ptr + tl.program_id(0))
    else:
        rstd = tl.load(rstd_ptr + row, mask=in_rows, other=0.0)
    if ONE_SWEEP:
        offsets = start + column
        mask = in_rows & (column < dim)
        g = _load(g_ptr, offsets, mask, EVEN, "")
        y = _load(y_ptr, offsets, mask, EVEN, "")
        mean = tl.sum(y * g, axis=1, keep_dims=True) / dim
        _store_grad(grad_ptr, pair_ptr, grad_sum_ptr, g, y, rstd, mean, offsets, mask, HAS_GRAD_SUM, PAIR, EVEN)
    else:
        product = tl.zeros([ROWS, BLOCK], tl.float32)
        for first in range(0, dim, BLOCK):
            offsets = start + first + column
            mask = in_rows & (first + column < dim)
            product += _load(y_ptr, offsets, mask, EVEN, "evict_last") * _load(g_ptr, offsets, mask, EVEN, "evict_last")
        mean = tl.sum(product, axis=1, keep_dims=True) / dim
        for first in range(0, dim, BLOCK):
            offsets = start + first + column
            mask = in_rows & (first + column < dim)
            g = _load(g_ptr, offsets, mask, EVEN, "evict_first")
            y = _load(y_ptr, offsets, mask, EVEN, "evict_first")
            _store_grad(grad_ptr, pair_ptr, grad_sum_ptr, g, y, rstd, mean, offsets, mask, HAS_GRAD_SUM, PAIR, EVEN)


def _tile(rows: int, dim: int, item_size: int) -> tuple[int, int, bool, bool]:
    """(columns and rows a block takes at a time, whether a row is read once, whether nothing needs a mask)."""
    columns = int(triton.next_power_of_2(dim))
    if columns * item_size > ONE_SWEEP_BYTES:
        return LOOP_BLOCK, 1, False, dim % LOOP_BLOCK == 0
    height = max(1, TILE // columns)
    # In traced code the number of rows stays open: no guard on it, for a mask.
    return columns, height, True, columns == dim and not torch.compiler.is_compiling() and rows % height == 0


_warps: dict[tuple[Any, ...], int] = {}


def _launch(
    name: str, x: Tensor, rows: int, elements: int, kinds: tuple[Any, ...], launch: Callable[[int], None]
) -> None:
    """With the fastest number of warps of 32, 16 and 8 elements a thread, measured at the first call of a kind; in
    traced code and under capture, where nothing can be measured, with that of 32."""
    candidates = sorted({min(max(elements // (32 * each), 1), 32) for each in (32, 16, 8)})
    if torch.compiler.is_compiling() or not x.is_cuda or len(candidates) == 1:
        launch(candidates[0])
        return
    key = (name, x.shape[-1], x.dtype, rows.bit_length(), *kinds)
    if key not in _warps and torch.cuda.is_current_stream_capturing():
        launch(candidates[0])
    else:
        launch(_warps.get(key) or _tuned(key, candidates, launch))


def _tuned(key: tuple[Any, ...], candidates: list[int], launch: Callable[[int], None]) -> int:
    times = [triton.testing.do_bench(lambda w=warps: launch(w), warmup=5, rep=20) for warps in candidates]
    _warps[key] = candidates[times.index(min(times))]
    return _warps[key]


def forward(
    x: Tensor, residual: Tensor | None = None, *, eps: float, write_sum: bool = False, write_rstd: bool = False
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(y, sum or None, rstd or None) of contiguous operands."""
    _check(x)
    dim = x.shape[-1]
    rows = x.numel() // dim
    y = torch.empty_like(x)
    total = torch.empty_like(x if residual is None else residual) if write_sum else None
    rstd = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device) if write_rstd else None
    columns, height, one_sweep, even = _tile(rows, dim, x.element_size())
    operands = (x, x if residual is None else residual, y, y if total is None else total, x if rstd is None else rstd)

    def launch(warps: int) -> None:
        _forward_kernel[(triton.cdiv(rows, height),)](
            *operands, rows, eps,
            dim, columns, height, one_sweep, even, residual is not None, write_sum, write_rstd,
            num_warps=warps,
        )  # fmt: skip

    kinds = (None if residual is None else residual.dtype, write_sum)
    _launch("forward", x, rows, columns * height, kinds, launch)
    return y, total, rstd


def backward(grad_output: Tensor, y: Tensor, rstd: Tensor, grad_sum: Tensor | None = None) -> Tensor:
    """The gradient of the input, which is the residual's as well."""
    grad = torch.empty_like(y)
    _backward(grad_output, y, rstd, grad_sum, grad, None)
    return grad


def backward_pair(
    grad_output: Tensor, y: Tensor, rstd: Tensor, grad_sum: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The gradients of the input and of a float32 residual."""
    grad, pair = torch.empty_like(y), torch.empty_like(y, dtype=torch.float32)
    _backward(grad_output, y, rstd, grad_sum, grad, pair)
    return grad, pair


def _backward(
    grad_output: Tensor, y: Tensor, rstd: Tensor, grad_sum: Tensor | None, grad: Tensor, pair: Tensor | None
) -> None:
    _check(y)
    dim = y.shape[-1]
    rows = y.numel() // dim
    columns, height, one_sweep, even = _tile(rows, dim, y.element_size())
    operands = (grad_output, y, rstd, y if grad_sum is None else grad_sum, grad, grad if pair is None else pair)

    def launch(warps: int) -> None:
        _backward_kernel[(triton.cdiv(rows, height),)](
            *operands, rows,
            dim, columns, height, one_sweep, even, grad_sum is not None, pair is not None,
            num_warps=warps,
        )  # fmt: skip

    _launch("backward", y, rows, columns * height, (grad_sum is None, pair is None), launch)


class _SRMSNorm(torch.autograd.Function):
    """y, or y and the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, eps: float, with_sum: bool) -> Any:
        y, total, rstd = forward(x, residual, eps=eps, write_sum=with_sum, write_rstd=True)
        ctx.save_for_backward(y, rstd)
        ctx.set_materialize_grads(False)
        ctx.mixed = residual is not None and residual.dtype != x.dtype
        return (y, total) if with_sum else y

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, grad_sum: Tensor | None = None) -> tuple[Tensor | None, ...]:
        y, rstd = ctx.saved_tensors
        grad_output = torch.zeros_like(y) if grad_output is None else grad_output.contiguous()
        grad_sum = None if grad_sum is None else grad_sum.contiguous()
        if ctx.mixed:
            return *backward_pair(grad_output, y, rstd, grad_sum), None, None
        grad = backward(grad_output, y, rstd, grad_sum)
        return grad, grad if ctx.needs_input_grad[1] else None, None, None


def srms_norm(x: Tensor, residual: Tensor | None = None, *, eps: float) -> Tensor:
    """y, differentiable once; of contiguous copies where strides ask for them, as other Triton norms do."""
    x, residual = x.contiguous(), None if residual is None else residual.contiguous()
    if torch.is_grad_enabled() and (x.requires_grad or (residual is not None and residual.requires_grad)):
        return _SRMSNorm.apply(x, residual, eps, False)
    return forward(x, residual, eps=eps)[0]


def add_srms_norm(x: Tensor, residual: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """(y, sum), differentiable once; copies as in srms_norm."""
    x, residual = x.contiguous(), residual.contiguous()
    if torch.is_grad_enabled() and (x.requires_grad or residual.requires_grad):
        return _SRMSNorm.apply(x, residual, eps, True)
    y, total, _ = forward(x, residual, eps=eps, write_sum=True)
    assert total is not None
    return y, total


def _check(x: Tensor) -> None:
    if x.dtype == torch.float64 or not x.is_contiguous() or x.numel() == 0:
        raise ValueError(
            "the Triton norm takes non-empty contiguous tensors of 16 or 32 bits, got "
            f"{x.dtype} of shape {tuple(x.shape)} and strides {x.stride()}"
        )
