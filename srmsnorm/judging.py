"""What the outputs of a module for probe rows say of it: whether it is this norm, with which eps, and if not, why.

The rows are ordinary, large, with an outlier, zero, and tiny, down to where only eps counts. The outputs are compared
with the definition in float64, with the eps that the last row shows. They are

- *exact*: off by the few ulp of the accumulation type that the order of a sum leaves free, before one rounding to the
  dtype; what the operator itself keeps to; or
- *rounded* on the way: the same function, with rstd or the squares rounded to 16 bits, and the like; or
- of another function.
"""

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .reference import accumulation_dtype, default_eps

__all__ = ["ELSE", "KINDS", "Fit", "Seen", "Unfit", "decide", "dtype_name", "judge", "rows"]

# Of the accumulation type: h, the mean, the root, the product, and 1.5 for a root that errs by 2 ulp instead of half of
# one. See "Accuracy" of README.md.
ULPS = 5.5
# In units of the dtype's roundoff: squares, mean, eps's sum, halved by the root; the root, its rounding, the product.
ROUNDINGS = 8
ELSE = "computes something else"


class Unfit(Exception):
    """Why a module is not this norm."""


@dataclass(frozen=True)
class Fit:
    """What a module is found to be: eps as :class:`srmsnorm.SRMSNorm` takes it, the one dim it takes (None: any), and
    by what it differs, if by rounding."""

    eps: float | None
    dim: int | None = None
    rounding: str = ""
    note: str = ""


@dataclass(frozen=True)
class Seen:
    """Rows of a dtype, what a module makes of them, and the shape in which it was given them."""

    input: Tensor
    output: Tensor
    shape: torch.Size


# ---- rows

KINDS = {"ordinary": 14, "large": 10, "outlier": 2, "zero": 2, "tiny": 20}
_FARTHEST = 50  # a power of two whose square float32 has, summed over a row too


def rows(dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """48 rows by kind, the last one a constant power of two: its square and their mean are exact."""
    farthest = 12 if dtype == torch.float16 else _FARTHEST
    exponents = torch.cat(
        [
            torch.arange(14, device="cpu") % 7 - 3,
            torch.linspace(4, farthest, 10, device="cpu").round(),
            torch.zeros(4, device="cpu"),
            -torch.linspace(2, farthest, 20, device="cpu").round(),
        ]
    )
    generator = torch.Generator("cpu").manual_seed(dim)  # each factory names its device: the default one may be another
    made = torch.randn(len(exponents), dim, generator=generator, dtype=torch.float64, device="cpu") + 0.25
    made *= torch.exp2(exponents.double()).unsqueeze(-1)
    made[_slice("outlier"), dim // 2] *= 1000
    made[_slice("zero")] = 0
    made[-1] = 2.0**-farthest
    return made.to(dtype).to(device)


def _slice(kind: str) -> slice:
    end = 0
    for name, count in KINDS.items():
        end += count
        if name == kind:
            return slice(end - count, end)
    raise KeyError(kind)


# ---- judgement


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _ulp(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between neighbours of that dtype at float64 x."""
    info = torch.finfo(dtype)
    return torch.exp2(x.abs().clamp(min=info.tiny).log2().floor()) * info.eps


def judge(seen: Seen, eps: float | None) -> str:
    """'exact', 'float32' (float64 rows computed in float32), 'rounding', or 'other'."""
    dtype = seen.input.dtype
    wide, x, y = accumulation_dtype(dtype), seen.input.double(), seen.output.double()
    eps = default_eps(dtype) if eps is None else float(torch.tensor(eps, dtype=torch.float64, device="cpu").to(wide))
    truth = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    info = torch.finfo(dtype)
    smallest = info.tiny * info.eps

    def within(bound: Tensor) -> bool:
        return bool((((y - truth).abs() <= bound) | (y.isnan() & truth.isnan())).all())

    own_error = 2 if wide == torch.float64 else 1  # the truth is in float64 as well
    if within(own_error * ULPS * _ulp(truth, wide) + (0 if dtype == wide else 0.5 * _ulp(truth, dtype))):
        return "exact"
    if dtype == torch.float64 and within(ULPS * _ulp(truth, torch.float32)):
        return "float32"
    if within(ROUNDINGS * info.eps / 2 * truth.abs() + (1 + x.abs()) * smallest):
        return "rounding"
    return "other"


def _candidates(module: nn.Module, seen: Seen) -> list[float | None]:
    """Values of eps that the constant row allows: y = c / sqrt(c^2 + eps), from which eps comes to a few roundings."""
    c, y = float(seen.input[-1, 0]), float(seen.output[-1].double().mean())
    if not (y > 0 and y <= 2):
        return []
    shown = (c / y) ** 2 - c * c
    error = 8 * torch.finfo(seen.input.dtype).eps * (shown + c * c)
    held = [v for v in vars(module).values() if isinstance(v, (int, float)) and not isinstance(v, bool)]
    machine = [torch.finfo(dtype).eps for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)]
    decimals = [float(f"{shown:.{digits}g}") for digits in range(1, 18)] if shown > 0 else []
    near = [v for v in [*held, 0.0, *machine, *decimals] if v >= 0 and abs(v - shown) <= error]
    chosen: list[float | None] = [None] if abs(default_eps(seen.input.dtype) - shown) <= error else []
    return list(dict.fromkeys([*chosen, *map(float, near)]))


def decide(module: nn.Module, seen: list[Seen]) -> Fit:
    """The first eps with which all is exact, else with which all is this function but for roundings."""
    rounding = None
    for eps in _candidates(module, seen[0]):
        verdicts = [judge(one, eps) for one in seen]
        notes = "computes float64 in float32" if "float32" in verdicts else ""
        if "other" in verdicts:
            continue
        if "rounding" not in verdicts:
            return Fit(eps, note=notes)
        differing = [one for one, verdict in zip(seen, verdicts, strict=True) if verdict == "rounding"]
        rounding = rounding or Fit(eps, rounding=_which_rounding(differing, eps), note=notes)
    if rounding:
        return rounding
    raise Unfit(_difference(module, seen))


def _which_rounding(seen: list[Seen], eps: float | None) -> str:
    dtypes = list(dict.fromkeys(one.input.dtype for one in seen))
    names = " and ".join(dtype_name(dtype) for dtype in dtypes)

    def rounded_first(one: Seen) -> bool:
        h = one.input.to(accumulation_dtype(one.input.dtype))
        rstd = (h.square().mean(-1, keepdim=True) + (default_eps(h.dtype) if eps is None else eps)).rsqrt()
        same = (one.input * rstd.to(one.input.dtype)) == one.output
        return float(same.float().mean()) > 0.99

    return f"rounds rstd to {names} first" if all(map(rounded_first, seen)) else f"rounds otherwise in {names}"


def _difference(module: nn.Module, seen: list[Seen]) -> str:
    """Where it is another function, in the words of those that are met."""
    dtypes = list(dict.fromkeys(one.input.dtype for one in seen))
    if len(dtypes) > 1:
        with contextlib.suppress(Unfit):
            for dtype in dtypes:
                decide(module, [one for one in seen if one.input.dtype == dtype])
            return "has an eps that depends on the dtype"
    eps = _candidates(module, seen[0])[:1]
    other = next((one for one in seen for value in eps if judge(one, value) == "other"), seen[0])
    x, y = other.input.double(), other.output.double()
    norm, centred = (h * h.square().mean(-1, keepdim=True).rsqrt() for h in (x, x - x.mean(-1, keepdim=True)))

    def is_like(function: Tensor, kind: str) -> bool:
        """Roughly: an eps moves ordinary rows too."""
        return bool((y - function)[_slice(kind)].abs().max() < 0.05)

    if is_like(norm, "ordinary"):
        if is_like(norm, "large"):
            return "has its eps elsewhere than under the root: tiny or zero rows differ"
        return f"overflows in {dtype_name(other.input.dtype)}: large rows differ"
    if is_like(centred, "ordinary"):
        return "subtracts the mean"
    if is_like(nn.functional.normalize(x, dim=-1), "ordinary"):
        return "divides by the length, not by the root mean square"
    return ELSE
