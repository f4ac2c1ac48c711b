"""Correctness gates speed: how far a provider is from the definition in float64, in units of what rounding explains.

With u the unit roundoff of the dtype and k its roundings: |y' - y| <= ((1 + u)^k - 1) |y|, and for a gradient, row by
row, |dx' - dx| <= k (u |dx| + 2 v |r g|), where the second term, with v of y's dtype, is the price of keeping y
rounded. What float32 accumulation adds is in `_slack`. A result above 1, or NaN, is wrong.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from rich.text import Text
from torch import Tensor

from benchmarks.providers import EPS, Provider

CHUNK = 1 << 24  # elements looked at a time: float64 temporaries stay small beside the operands


class WrongResult(Exception):
    """A provider's result is farther from the definition than rounding explains."""


def _slack(dim: int) -> float:
    """Relative error of float32 accumulation: a mean over dim, a root and a few products."""
    return 2.0**-24 * (dim**0.5 + 8)


def _chunks(*tensors: Tensor | None) -> Iterator[list[Tensor | None]]:
    """The tensors in float64, some rows at a time."""
    flat = [None if t is None else t.detach().reshape(-1, t.shape[-1]) for t in tensors]
    first = next(t for t in flat if t is not None)
    step = max(1, CHUNK // max(t.shape[-1] for t in flat if t is not None))
    for start in range(0, first.shape[0], step):
        yield [None if t is None else t[start : start + step].double() for t in flat]


def _worst(ratios: Iterator[Tensor]) -> float:
    return float(torch.stack([ratio.max() for ratio in ratios]).max())


def _truth(x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    h = x if residual is None else x + residual
    rstd = torch.rsqrt(h.square().mean(-1, keepdim=True) + EPS)
    return h * rstd, rstd


def forward_error(y: Tensor, x: Tensor, residual: Tensor | None, roundings: int) -> float:
    """The worst element of y, in units of its bound."""
    u = torch.finfo(y.dtype).eps / 2
    bound = (1 + u) ** roundings * (1 + _slack(x.shape[-1])) - 1

    def ratios() -> Iterator[Tensor]:
        for got, a, b in _chunks(y, x, residual):
            assert got is not None and a is not None
            truth, _ = _truth(a, b)
            yield (got - truth).abs() / (bound * truth.abs() + torch.finfo(y.dtype).smallest_normal)

    return _worst(ratios())


def backward_error(
    grad: Tensor,
    grad_output: Tensor,
    x: Tensor,
    residual: Tensor | None,
    roundings: int,
    grad_sum: Tensor | None = None,
) -> float:
    """The worst row of a gradient, in units of its bound."""
    u, of_y = (torch.finfo(t.dtype).eps / 2 for t in (grad, grad_output))
    slack = _slack(x.shape[-1])

    def ratios() -> Iterator[Tensor]:
        for got, g, a, b, gh in _chunks(grad, grad_output, x, residual, grad_sum):
            assert got is not None and g is not None and a is not None
            y, rstd = _truth(a, b)
            truth = rstd * (g - y * (y * g).mean(-1, keepdim=True))
            truth = truth if gh is None else truth + gh
            size, kept = truth.norm(dim=-1), (rstd * g).norm(dim=-1)
            bound = (roundings * u + slack) * size + (2 * roundings * of_y + slack) * kept
            yield (got - truth).norm(dim=-1) / (bound + torch.finfo(grad.dtype).smallest_normal)

    return _worst(ratios())


def element_error(
    definition: Callable[..., Tensor], got: Tensor, operands: tuple[Tensor, ...], roundings: int
) -> float:
    """The worst element of what is defined by the operands, in units of its bound."""
    u = torch.finfo(got.dtype).eps / 2
    bound = (1 + u) ** roundings * (1 + _slack(got.shape[-1])) - 1

    def ratios() -> Iterator[Tensor]:
        for result, *wide in _chunks(got, *operands):
            assert result is not None
            truth = definition(*wide)
            yield (result - truth).abs() / (bound * truth.abs() + torch.finfo(got.dtype).smallest_normal)

    return _worst(ratios())


def gradient_errors(
    definition: Callable[..., Tensor],
    terms_of: Sequence[Callable[..., Tensor]],
    grads: tuple[Tensor, ...],
    grad_output: Tensor,
    operands: tuple[Tensor, ...],
    roundings: int,
) -> list[float]:
    """The worst row of the gradient of each operand, in units of its bound: roundings of the gradient itself, and of
    the largest of the terms that it is the difference of, which a single one at the end does not touch. terms_of: the
    definition with parts of it constant, whose gradients are those terms."""
    slack, count = _slack(grad_output.shape[-1]), len(operands)

    def gradients(function: Callable[..., Tensor], g: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            return torch.autograd.grad(function(*(t.requires_grad_() for t in leaves)), leaves, g)

    def ratios() -> Iterator[Tensor]:
        for g, *wide in _chunks(grad_output, *operands, *grads):
            leaves, results = wide[:count], wide[count:]
            assert g is not None
            truths, *terms = (gradients(f, g, leaves) for f in (definition, *terms_of))  # type: ignore[arg-type]
            rows = []
            for got, like, truth, *of_it in zip(results, grads, truths, *terms, strict=True):
                assert got is not None
                u, size = torch.finfo(like.dtype).eps / 2, truth.norm(dim=-1)
                kept = torch.stack([term.norm(dim=-1) for term in of_it]).amax(0)
                of_terms = 2 * (roundings - 1) * torch.finfo(grad_output.dtype).eps / 2 + slack
                bound = (roundings * u + slack) * size + of_terms * kept
                rows.append(((got - truth).norm(dim=-1) / (bound + torch.finfo(like.dtype).smallest_normal)).max())
            yield torch.stack(rows)

    return torch.stack(list(ratios())).amax(0).tolist()


def row_error(definition: Callable[[Tensor], Tensor], got: Tensor, x: Tensor) -> float:
    """The worst of one number a row, in units of its bound: one rounding, and what accumulation adds."""
    bound = torch.finfo(got.dtype).eps / 2 + _slack(x.shape[-1])

    def ratios() -> Iterator[Tensor]:
        for result, wide in _chunks(got.unsqueeze(-1), x):
            assert result is not None and wide is not None
            truth = definition(wide)
            yield (result - truth).abs() / (bound * truth.abs())

    return _worst(ratios())


def quantized_error(q: Tensor, scale: Tensor, x: Tensor, residual: Tensor | None, roundings: int) -> float:
    r"""The worst of q scale beside y and of each scale beside the largest \|y\| that it is made of, in units of their
    bounds: q has 3 bits behind the leading one, and y was rounded to x's dtype."""
    u, dim = torch.finfo(x.dtype).eps / 2, x.shape[-1]
    of_y = (1 + u) ** roundings * (1 + _slack(dim)) * (1 + 2.0**-23) - 1
    most = torch.finfo(q.dtype).max

    def ratios() -> Iterator[Tensor]:
        for bits, s, a, b in _chunks(q, scale, x, residual):
            assert bits is not None and s is not None and a is not None
            y = _truth(a, b)[0].unflatten(-1, (s.shape[-1], -1))
            largest = y.abs().amax(-1)
            yield ((s * most - largest).abs() / (of_y * largest))[..., None]
            off = (bits.view_as(y) * s.unsqueeze(-1) - y).abs()
            yield off / (((1 + of_y) * (1 + 2.0**-4) - 1) * y.abs() + s.unsqueeze(-1) * 2.0**-10)

    return _worst(ratios())


def require(what: str, error: float) -> None:
    if not error <= 1:
        raise WrongResult(f"{what} is {error:.3g} times its bound away from the float64 reference")


def check_norm(provider: Provider, x: Tensor, residual: Tensor | None, grad_output: Tensor) -> None:
    """y and both gradients of `norm`."""
    roundings = provider.roundings if residual is None else provider.residual_roundings
    inputs = [x] if residual is None else [x, residual]
    y = provider.norm(x, residual)
    require("y", forward_error(y, x, residual, roundings))
    for name, grad in zip(("grad_input", "grad_residual"), torch.autograd.grad(y, inputs, grad_output), strict=False):
        require(name, backward_error(grad, grad_output, x, residual, roundings))


def status_of(error: Exception) -> str:
    """One line for a table's foot: why there is no figure."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "out of memory"
    if isinstance(error, WrongResult):
        return f"wrong: {error}"
    if isinstance(error, NotImplementedError):
        return "not offered"
    lines = Text.from_ansi(str(error)).plain.strip().splitlines()  # some compilers color their errors
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def attempt(statuses: dict[str, str], name: str, measure: Callable[[], None]) -> None:
    """Runs `measure` for a provider unless it has failed; a failure is noted under its name, and the run goes on."""
    if name in statuses:
        return
    try:
        measure()
    except Exception as error:
        statuses[name] = status_of(error)
