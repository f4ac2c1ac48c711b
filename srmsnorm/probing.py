"""Whether a module is this norm, told from what it returns for probe rows and from nothing else.

A copy is called with the rows of `judging.py` in each dtype, at several dims, in two, three and four dimensions, and in
training and eval mode; then once in each mode for its gradient.
"""

import contextlib
import copy
import random
import sys
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from .judging import ELSE, KINDS, Fit, Seen, Unfit, decide, dtype_name, rows
from .reference import default_eps

__all__ = ["Fit", "Unfit", "first_line", "fit_at", "probe", "undisturbed"]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DIMS = (64, 33, 320)
RAISES = "raises when it is called"


def _call(module: nn.Module, input: Tensor) -> Tensor:
    """One call, whose result may stand in for what it does: nothing else was written."""
    kept, before = input.clone(), dict(vars(module))
    output = module(input)
    if type(output) is not Tensor:
        raise Unfit(f"returns {type(output).__name__}, not a tensor")
    if output.dtype != input.dtype:
        raise Unfit(f"returns {dtype_name(output.dtype)} for {dtype_name(input.dtype)}")
    if output.shape != input.shape:
        raise Unfit(f"returns the shape {list(output.shape)} for {list(input.shape)}")
    if not torch.equal(kept, input):
        raise Unfit("writes its input")
    after = vars(module)
    if after.keys() != before.keys() or any(after[name] is not value for name, value in before.items()):
        raise Unfit("changes its own attributes when it is called")
    return output


def _look(module: nn.Module, dim: int, dtype: torch.dtype, device: torch.device) -> list[Seen]:
    """The rows in two, three and four dimensions, in both modes, as far as the module takes them.

    Raises what the module raises where it takes none.
    """
    probes, seen = rows(dim, dtype, device), []
    errors: list[Exception] = []
    for shape in ((-1,), (4, 12), (2, 3, 8)):
        try:
            given = probes.view(*shape, dim)
            outputs = [_call(module.train(mode), given.clone()) for mode in (True, False)]
        except Unfit:
            raise
        except Exception as error:
            errors.append(error)
            continue
        if not torch.equal(*(output.nan_to_num(0.0) for output in outputs)):
            raise Unfit("does not return the same twice, in training and in eval mode")
        seen.append(Seen(probes, outputs[1].reshape(probes.shape), given.shape))
    if not seen:
        raise errors[0]
    return seen


@contextlib.contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """No gradients, no autocast, and the random state put back."""
    numpy = sys.modules.get("numpy")
    states = random.getstate(), numpy and numpy.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with (
        torch.random.fork_rng(devices),
        torch.autocast(device.type, enabled=False),
        torch.inference_mode(False),
        torch.no_grad(),
    ):
        try:
            yield
        finally:
            random.setstate(states[0])
            if numpy:
                numpy.random.set_state(states[1])


def _check_gradient(module: nn.Module, seen: Seen, fit: Fit) -> None:
    """A norm that detaches its root, or is no part of the graph, would train otherwise after the swap."""
    count, dtype = KINDS["ordinary"], seen.input.dtype
    gradient = torch.zeros_like(seen.input)
    generator = torch.Generator("cpu").manual_seed(1)
    gradient[:count] = torch.randn(gradient[:count].shape, generator=generator, device="cpu").to(gradient)
    h, g = (t[:count].double() for t in (seen.input, gradient))
    rstd = (h.square().mean(-1, keepdim=True) + (default_eps(dtype) if fit.eps is None else fit.eps)).rsqrt()
    y = h * rstd
    truth = rstd * (g - y * (y * g).mean(-1, keepdim=True))
    for mode in (True, False):
        with torch.enable_grad():
            x = seen.input.view(seen.shape).clone().requires_grad_()
            try:
                (got,) = torch.autograd.grad(module.train(mode)(x), x, gradient.view(seen.shape))
            except Exception as error:
                raise Unfit(f"has no gradient: {first_line(error)}") from error
        off = (got.reshape(gradient.shape)[:count].double() - truth).norm(dim=-1)
        if not (off <= 64 * torch.finfo(dtype).eps * (rstd * g).norm(dim=-1)).all():
            raise Unfit("has another gradient")


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"


# ---- the whole


def probe(module: nn.Module, device: torch.device) -> Fit:
    """What the module is, told from calls of a copy.

    Raises:
        Unfit: it is not this norm, with the reason.
    """
    try:
        twin = copy.deepcopy(module)
    except Exception as error:
        raise Unfit(f"cannot be copied: {first_line(error)}") from error
    with undisturbed(device):
        try:
            return fit_at(twin, DIMS, device)
        except Unfit as unfit:
            reasons = [str(unfit)]
        fits = []
        for dim in _dims_held(twin):
            try:
                fits.append(replace(fit_at(twin, (dim,), device), dim=dim))
            except Unfit as unfit:
                reasons.insert(0, str(unfit))
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise Unfit(f"takes the dims {[fit.dim for fit in fits]} and not others")
    raise Unfit(min(reasons, key=lambda reason: (reason.startswith(RAISES), reason == ELSE)))  # what says most


def fit_at(module: nn.Module, dims: tuple[int, ...], device: torch.device) -> Fit:
    """Of these dims, all of them; in each dtype that the module takes."""
    seen: list[Seen] = []
    errors: list[Exception] = []
    for dtype in DTYPES:
        looks = []
        for dim in dims:
            try:
                looks.append(_look(module, dim, dtype, device))
            except Unfit:
                raise
            except Exception as error:
                errors.append(error)
        if looks and len(looks) < len(dims):
            raise Unfit(f"{RAISES}: {first_line(errors[-1])}")
        seen += [one for look in looks for one in look]
    if not seen:
        raise Unfit(f"{RAISES}: {first_line(errors[0])}")
    fit = decide(module, seen)
    _check_gradient(module, seen[0], fit)
    return fit


def _dims_held(module: nn.Module) -> list[int]:
    """Attributes that may be the dim: ints, sequences of one, and squares of a scale."""
    dims: list[int] = []
    for value in vars(module).values():
        single = value[0] if isinstance(value, (tuple, list)) and len(value) == 1 else value
        if isinstance(single, float) and 1 <= single <= 1024:
            single = round(single * single)
        if isinstance(single, int) and not isinstance(single, bool) and 1 <= single <= 1 << 20:
            dims.append(single)
    return list(dict.fromkeys(dims))
