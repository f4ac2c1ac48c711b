"""Other results than a row in the input's dtype: y in float32, rstd alone, bytes and their scales. What each reads and
writes, what is called, and when it is right."""

from functools import partial

import torch
from torch import Tensor

from benchmarks.providers import EPS, Provider

from .check import element_error, gradient_errors, quantized_error, require, row_error
from .operations import Op, Tensors
from .timing import Call

FLOAT32, FP8 = torch.float32, torch.float8_e4m3fn
OF_16_BITS = ("bf16", "fp16")


def _rstd(x: Tensor) -> Tensor:
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)


def _norm(x: Tensor, frozen: bool = False) -> Tensor:
    r = _rstd(x)
    return x * (r.detach() if frozen else r)


def _wide(provider: Provider, t: Tensors) -> Call:
    return lambda: provider.wide_norm(t["x"])


def _check_wide(provider: Provider, t: Tensors, y: Tensor) -> None:
    _require_dtype("y", y, FLOAT32)
    require("y", element_error(_norm, y, (t["x"],), provider.roundings))


def _wide_backward(provider: Provider, t: Tensors) -> Call:
    saved = provider.wide_saved(t["x"])
    return lambda: provider.wide_backward(t["grad_wide"], saved)


def _check_wide_backward(provider: Provider, t: Tensors, grad: Tensor) -> None:
    _require_dtype("grad_input", grad, t["x"].dtype)
    terms_of = [partial(_norm, frozen=True)]
    (error,) = gradient_errors(_norm, terms_of, (grad,), t["grad_wide"], (t["x"],), provider.roundings)
    require("grad_input", error)


def _root(provider: Provider, t: Tensors) -> Call:
    return lambda: provider.rstd(t["x"])


def _check_root(provider: Provider, t: Tensors, rstd: Tensor) -> None:
    _require_dtype("rstd", rstd, FLOAT32)
    require("rstd", row_error(_rstd, rstd, t["x"]))


def _quantized(group_size: int | None, provider: Provider, t: Tensors) -> Call:
    if "residual" in t:
        return lambda: provider.add_quantized(t["x"], t["residual"])
    return lambda: provider.quantized(t["x"], group_size)


def _check_quantized(provider: Provider, t: Tensors, results: tuple[Tensor, ...]) -> None:
    q, scale, *sums = results
    _require_dtype("q", q, FP8)
    residual = t.get("residual")
    roundings = provider.roundings if residual is None else provider.residual_roundings
    require("q", quantized_error(q, scale, t["x"], residual, roundings))
    if sums and not torch.equal(sums[0], t["x"] + t["residual"]):
        raise ValueError("the sum is not input + residual")


def _require_dtype(name: str, result: Tensor, dtype: torch.dtype) -> None:
    if result.dtype != dtype:
        raise TypeError(f"{name} is {result.dtype}")


# Of fp8, e4m3fn; a scale for each row, or each group of 128. No float64 is quantised.
OUTPUTS: dict[str, Op] = {
    "float32 y": Op(("x",), ("wide",), _wide, _check_wide, copied=True, dtypes=OF_16_BITS),
    "float32 y backward": Op(
        ("grad_wide", "x"), ("grad_input",), _wide_backward, _check_wide_backward, copied=True, dtypes=OF_16_BITS
    ),
    "rstd": Op(("x",), (), _root, _check_root, copied=True, dtypes=(*OF_16_BITS, "fp32"), numbers="row"),
    "fp8": Op(
        ("x",), ("q",), partial(_quantized, None), _check_quantized, copied=True, dtypes=(*OF_16_BITS, "fp32"),
        numbers="row",
    ),
    "fp8 groups": Op(
        ("x",), ("q",), partial(_quantized, 128), _check_quantized, copied=True, dtypes=(*OF_16_BITS, "fp32"),
        divides=128, numbers=128,
    ),
    "fp8+sum": Op(
        ("x", "residual"), ("q", "sum"), partial(_quantized, None), _check_quantized, copied=True,
        dtypes=(*OF_16_BITS, "fp32", "mixed"), numbers="row",
    ),
}  # fmt: skip
