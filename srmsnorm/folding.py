"""A weighted norm's weight moved into the linears that read it, so that ours can take the norm's place."""

import contextlib
import copy
import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor, nn

from .candidates import places, why_not_swapped
from .judging import KINDS, ROUNDINGS, Fit, Unfit, dtype_name, rows
from .module import SRMSNorm
from .probing import DTYPES, fit_at, undisturbed
from .readers import Refused, Untraceable, check_by_running, check_by_tracing
from .reference import default_eps

__all__ = ["fold"]


def fold(
    model: nn.Module,
    norm_name: str,
    linear_names: str | Sequence[str],
    *,
    weight_offset: float = 0.0,
    example_inputs: object = None,
    unchecked: bool = False,
) -> None:
    r"""Moves a root mean square norm's weight into the linears that read it, and puts ours in its place.

    .. math:: W (\mathrm{norm}(x) \cdot (w + o)) + b = (W \, \mathrm{diag}(w + o)) \, \mathrm{norm}(x) + b

    The product is taken in float32 (float64 where either is float64) and rounded once to the linear's dtype: each of
    its elements is off by at most the unit roundoff of that dtype, 2^-24 of it for float32, 2^-8 for bfloat16, 2^-11
    for float16 (2^-25 absolute where it is subnormal there), and by another 2^-24 where there is an offset to add. The
    norm's output is rounded once, where the weighted one's was rounded for the norm and again for the product.

    The norm must prove to be ``norm(x) * (weight + weight_offset)`` up to roundings, on probe rows as in
    :func:`srmsnorm.convert`. Who reads its output is looked up: with ``example_inputs`` in a call of the model in eval
    mode, on the path that these take and as far as PyTorch's dispatcher sees (a kernel called past it is not seen); who
    keeps the output after the call is a reader as well. Without, in a symbolic trace by :mod:`torch.fx`, which follows
    no control flow and does not see an output that is kept as an attribute.

    ``state_dict`` loses the norm's weight and has the products for the linears' weights: fold before an optimizer is
    made, and before ``torch.compile``, FSDP or quantization.

    Args:
        model: any module. Left as it is where this raises.
        norm_name: the norm's name in it, as in ``named_modules``. Of one parameter, of shape (dim,); any class.
        linear_names: the names of all ``nn.Linear`` that read the norm's output.
        weight_offset: what the norm adds to its weight before it multiplies: 1.0 for Gemma's.
        example_inputs: positional arguments of the model in a tuple, or named ones in a mapping, or one tensor.
        unchecked: fold also where there are no ``example_inputs`` and the model cannot be traced. Another reader that
            is found is an error all the same, and so is a call that raises.

    Raises:
        ValueError: a name that is none; a norm that is another function; a weight that is shared, tied or a view of
            other memory; hooks, parametrizations, quantized, sharded or meta weights; another reader of the norm's
            output; a linear that reads something else as well; a product that overflows; a model that cannot be traced
            or raises. Nothing is written then.
        TypeError: ``model`` is no module, or ``weight_offset`` no number.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"srmsnorm: fold takes an nn.Module, got {type(model).__name__}")
    if isinstance(weight_offset, bool) or not isinstance(weight_offset, Real) or not math.isfinite(weight_offset):
        raise TypeError(f"srmsnorm: fold takes a finite number for weight_offset, got {weight_offset!r}")
    names = [linear_names] if isinstance(linear_names, str) else list(linear_names)
    try:
        norm, holders = _found(model, norm_name)
        weight = _checked_norm(model, norm)
        linears = _checked_linears(model, names, weight.numel())
        fit = _checked_function(norm, weight, float(weight_offset))
        _check_readers(model, norm, linears, example_inputs, unchecked)
        products = [_product(name, linear, weight, float(weight_offset)) for name, linear in linears.items()]
    except Refused as reason:
        raise ValueError(f"srmsnorm: cannot fold {norm_name!r} into {names}: {reason}") from reason
    ours = SRMSNorm(weight.numel(), fit.eps).train(norm.training)
    with torch.no_grad():
        for linear, product in zip(linears.values(), products, strict=True):
            linear.weight.copy_(product)
    holders[-1]._modules[norm_name.rpartition(".")[2]] = ours


def _found(model: nn.Module, name: str) -> tuple[nn.Module, list[nn.Module]]:
    """The module of that name, and the modules that hold it from the model down."""
    holders, module = [], model
    for part in name.split(".") if name else ():
        holders.append(module)
        held = dict(module._modules.items()).get(part)
        if held is None:
            raise Refused(f"the model has no module {name!r}")
        module = held
    others = [path for path, one, _ in places(model) if one is module]
    if len(others) > 1:
        raise Refused(f"{name!r} is shared: it is {' and '.join(map(repr, others))}")
    if reason := why_not_swapped(module, holders):
        raise Refused(f"{name!r} {reason}")
    return module, holders


def _checked_norm(model: nn.Module, norm: nn.Module) -> Tensor:
    """Its weight."""
    parameters, buffers = dict(norm.named_parameters()), dict(norm.named_buffers())
    if len(parameters) != 1 or buffers or list(norm.children()):
        held = [*parameters, *buffers, *(name for name, _ in norm.named_children())]
        raise Refused(f"the norm ({type(norm).__name__}) must hold one weight and nothing else, it holds {held}")
    (weight,) = parameters.values()
    if weight.ndim != 1:
        raise Refused(f"the norm's weight must have one dimension, it has the shape {list(weight.shape)}")
    _check_weight(model, "the norm's weight", weight)
    return weight


def _checked_linears(model: nn.Module, names: list[str], dim: int) -> dict[str, nn.Linear]:
    if not names or len(set(names)) < len(names):
        raise Refused("linear_names must name at least one linear, and each once")
    linears = {}
    for name in names:
        linear, _ = _found(model, name)
        if not isinstance(linear, nn.Linear) or type(linear).forward is not nn.Linear.forward:
            raise Refused(f"{name!r} must be an nn.Linear with its forward, it is {type(linear).__qualname__}")
        _check_weight(model, f"the weight of {name!r}", linear.weight)
        if linear.weight.shape[-1] != dim:
            raise Refused(f"the weight of {name!r} is {list(linear.weight.shape)}, beside a norm of dim {dim}")
        linears[name] = linear
    return linears


def _check_weight(model: nn.Module, name: str, weight: Tensor) -> None:
    """One that may be read and written: a plain dense tensor, and in memory of its own."""
    if type(weight) is not nn.Parameter or weight.dtype not in DTYPES or weight.layout != torch.strided:
        kind = f"{type(weight).__name__} of {dtype_name(weight.dtype)}"
        raise Refused(f"{name} must be a plain parameter of a float dtype, it is a {kind}")
    if weight.is_meta:
        raise Refused(f"{name} is on the meta device, without values")
    if weight.is_inference() or 0 in weight.stride():
        raise Refused(f"{name} cannot be written: it was made in inference mode, or is expanded")
    memory = weight.untyped_storage().data_ptr()
    held = [
        tensor for module in model.modules() for tensor in (*module._parameters.values(), *module._buffers.values())
    ]
    sharing = [
        tensor
        for tensor in held
        if tensor is not None and tensor.layout == torch.strided and tensor.device == weight.device
        if tensor is weight or tensor.untyped_storage().data_ptr() == memory
    ]
    if len(sharing) > 1:
        raise Refused(f"{name} is tied: {len(sharing)} parameters or buffers of the model share its memory")


def _check_readers(
    model: nn.Module, norm: nn.Module, linears: dict[str, nn.Linear], inputs: object, unchecked: bool
) -> None:
    if inputs is not None:
        check_by_running(model, norm, linears, inputs)
        return
    try:
        check_by_tracing(model, norm, linears)
    except Untraceable as error:
        if not unchecked:
            give = "give example_inputs, or unchecked=True folds without a look at who reads the norm"
            raise Refused(f"{error}; {give}") from error


def _product(name: str, linear: nn.Linear, weight: Tensor, offset: float) -> Tensor:
    wide = torch.float64 if torch.float64 in (linear.weight.dtype, weight.dtype) else torch.float32
    with torch.no_grad():
        scale = weight.to(linear.weight.device, wide) + offset
        product = (linear.weight.to(wide) * scale).to(linear.weight.dtype)
        overflows = ~product.isfinite() & linear.weight.isfinite()
        if overflows.any():
            raise Refused(f"{int(overflows.sum())} products of {name!r} overflow {dtype_name(product.dtype)}")
    return product


# ---- what the norm is


class _OfUnitWeight(nn.Module):
    """The norm with a weight that is 1 with its offset, in the input's dtype: probed as one without a weight."""

    def __init__(self, norm: nn.Module, offset: float) -> None:
        super().__init__()
        self.weighted, self.weight_value = (norm,), 1.0 - offset  # in a tuple: not a submodule
        for name, value in vars(norm).items():
            if isinstance(value, float):  # an eps may be among them
                setattr(self, f"held_{name}", value)

    def forward(self, x: Tensor) -> Tensor:
        weight = x.new_full(x.shape[-1:], self.weight_value)
        return _with_weight(self.weighted[0], weight, x).train(self.training)(x)


def _with_weight(norm: nn.Module, weight: Tensor, like: Tensor) -> nn.Module:
    """A copy with that weight, in the dtype and on the device of another tensor."""
    twin = copy.deepcopy(norm).to(like.device, like.dtype)
    with torch.no_grad():
        next(twin.parameters()).copy_(weight)
    return twin


def _checked_function(norm: nn.Module, weight: Tensor, offset: float) -> Fit:
    """That it is norm(x) * (weight + offset), up to roundings; with its eps."""
    dim, device = weight.numel(), weight.device
    with undisturbed(device):
        try:
            fit = fit_at(_OfUnitWeight(norm, offset), (dim,), device)
            _check_weighted(norm, fit, dim, offset, device)
            return fit
        except Unfit as reason:
            hint, other = "", 0.0 if offset else 1.0
            with contextlib.suppress(Unfit):
                _check_weighted(norm, fit_at(_OfUnitWeight(norm, other), (dim,), device), dim, other, device)
                hint = f"; weight_offset={other} fits"
            function = f"norm(x) * (weight + {offset})" if offset else "norm(x) * weight"
            raise Refused(f"the norm ({type(norm).__name__}) is not {function}, it {reason}{hint}") from reason


def _check_weighted(norm: nn.Module, fit: Fit, dim: int, offset: float, device: torch.device) -> None:
    weight = torch.randn(dim, generator=torch.Generator("cpu").manual_seed(2), device="cpu")
    for dtype in DTYPES:
        x = rows(dim, dtype, device)[: KINDS["ordinary"]]
        try:
            twin = _with_weight(norm, weight, x)
            outputs = [twin.train(mode)(x).double() for mode in (True, False)]
        except Exception:
            continue  # a dtype that it does not take; in some it was found to be the norm
        h, scale = x.double(), next(twin.parameters()).double() + offset
        eps = default_eps(dtype) if fit.eps is None else fit.eps
        truth = h * (h.square().mean(-1, keepdim=True) + eps).rsqrt() * scale
        narrow = torch.finfo(torch.float32 if dtype == torch.float64 else dtype)
        bound = 2 * ROUNDINGS * narrow.eps / 2 * truth.abs() + narrow.tiny
        if not all(((y - truth).abs() <= bound).all() for y in outputs):
            raise Unfit("does not multiply the norm by its weight")
