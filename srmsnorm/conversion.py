"""Weightless norms of a model swapped for ours, in place, with a report of what was done."""

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from .any_dim import SRMSNormAnyDim
from .candidates import is_candidate, is_norm_by_name, places, why_not_asked, why_not_swapped
from .module import SRMSNorm
from .probing import Fit, Unfit, probe

__all__ = ["Conversion", "Converted", "convert"]

Filter = str | Sequence[str] | Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class Converted:
    """What became of the module at one place.

    Attributes:
        path: its name in the model, as in ``named_modules``.
        cls: its class.
        replaced: whether ours stands there now; with ``dry_run``, whether it would.
        reason: why it stays; for a replaced one, by what it differs, empty if by nothing.
        eps: ours, where replaced.
    """

    path: str
    cls: str
    replaced: bool
    reason: str
    eps: float | None = None


@dataclass
class Conversion:
    """What :func:`convert` did. As a string, a table of it.

    Attributes:
        entries: one for each place of a norm, in the model's order.
        dry_run: whether nothing was changed.
    """

    entries: list[Converted]
    dry_run: bool = False
    _swaps: list["_Swap"] = field(default_factory=list, repr=False)

    @property
    def replaced(self) -> list[str]:
        """The paths of those that were replaced."""
        return [entry.path for entry in self.entries if entry.replaced]

    def revert(self) -> None:
        """Puts the modules back that were replaced, in the training or eval mode that ours are in by then.

        Raises:
            RuntimeError: another module stands in a place by now. Nothing is changed then. A second call does nothing.
        """
        for swap in self._swaps:
            if swap.parent._modules.get(swap.name) is not swap.ours:
                found = type(swap.parent._modules.get(swap.name)).__name__
                raise RuntimeError(f"srmsnorm: cannot revert, as there is another module at {swap.path!r}: {found}")
        for swap in self._swaps:
            swap.parent._modules[swap.name] = swap.theirs.train(swap.ours.training)
        self._swaps.clear()

    def __str__(self) -> str:
        """A line for each kind: names that differ in numbers alone, of one class and with one outcome, are one."""
        kinds: dict[tuple[str, Converted], list[str]] = {}
        for entry in self.entries:
            kinds.setdefault((re.sub(r"\d+", "*", entry.path), replace(entry, path="")), []).append(entry.path)
        rows = [("module", "", "class", "", "", "")]
        for (pattern, kind), paths in kinds.items():
            name = (pattern, f"x {len(paths)}") if len(paths) > 1 else (paths[0] or "(the model)", "")
            done = ("replaced", f"eps={kind.eps}") if kind.replaced else ("stays", "")
            rows.append((*name, kind.cls.rpartition(".")[2], *done, kind.reason))
        widths = [max(len(row[i]) for row in rows) for i in range(5)] + [0]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        would = "would be replaced" if self.dry_run else "replaced"
        return "\n".join([*lines, f"{len(self.replaced)} of {len(self.entries)} {would}"])


@dataclass(frozen=True)
class _Swap:
    parent: nn.Module
    name: str
    path: str
    theirs: nn.Module
    ours: nn.Module


def convert(
    model: nn.Module,
    *,
    include: Filter | None = None,
    exclude: Filter | None = None,
    allow_rounding: bool = False,
    dry_run: bool = False,
) -> Conversion:
    """Swaps a model's root mean square norms without a weight for ours, in place.

    Taken are ``nn.RMSNorm(..., elementwise_affine=False)`` over one dimension, and modules of any class that prove to
    be this function: a copy without parameters, buffers and submodules, whose ``forward`` takes one tensor, is called
    with ordinary, tiny, zero and large rows in each dtype, at several dims, without gradients, and gives the definition
    with one eps, to an accumulation type's few ulp before one rounding; and its gradient once. The random state is put
    back. A norm that computes float64 in float32 is taken, and said to be so; ours is in float64 there.

    What is swapped computes the same on the devices, float dtypes and shapes that it computed on before; in float32
    within a few ulp, in 16 bits the same bits but where those ulp decide a rounding. Other dtypes, and rows without an
    element, ours does not take. ``state_dict`` is unchanged. Convert before
    ``torch.compile`` or after, before an optimizer or after; before ``torch.jit.script``.

    Args:
        model: any module. Left as it is where this raises.
        include: the places to look at: patterns of :mod:`fnmatch` for their names, or ``f(name, module) -> bool``.
            Default: all.
        exclude: places to leave out, in the same way.
        allow_rounding: also takes norms that are this function but for roundings on the way, as of rstd to 16 bits.
        dry_run: changes nothing, and reports what would be.

    Returns:
        A report: print it for a table; ``.entries``, ``.replaced``, ``.revert()``.

    Raises:
        TypeError: ``model`` is no module, or a filter is neither patterns nor a function.
        ValueError: a pattern that fits no module's name.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"srmsnorm: convert takes an nn.Module, got {type(model).__name__}")
    wanted, unwanted = _filter(model, include, "include"), _filter(model, exclude, "exclude")
    device = _device(model)
    entries: list[Converted] = []
    swaps: list[_Swap] = []
    ours: dict[int, nn.Module] = {}  # by the id of theirs: a shared module stays shared
    known: dict[object, Fit | Unfit] = {}
    for path, module, holders in places(model):
        if not is_candidate(path, module):
            continue
        try:
            if not wanted(path, module) or unwanted(path, module):
                raise Unfit("left out by the filters")
            fit = _fit(module, holders, device, known)
            if fit.rounding and not allow_rounding:
                raise Unfit(f"{fit.rounding}; allow_rounding=True takes it")
        except Unfit as reason:
            if is_norm_by_name(path, module):  # of activations and the like nobody asked
                entries.append(Converted(path, _class(module), False, str(reason)))
            continue
        if id(module) not in ours:
            ours[id(module)] = _module(fit).train(module.training)
        parent, name = holders[-1], path.rpartition(".")[2]
        swaps.append(_Swap(parent, name, path, module, ours[id(module)]))
        differs = "; ".join(filter(None, [fit.rounding, fit.note]))
        entries.append(Converted(path, _class(module), True, differs, fit.eps))
    if dry_run:
        return Conversion(entries, dry_run=True)
    for swap in swaps:
        swap.parent._modules[swap.name] = swap.ours
    return Conversion(entries, _swaps=swaps)


def _module(fit: Fit) -> nn.Module:
    return SRMSNormAnyDim(fit.eps) if fit.dim is None else SRMSNorm(fit.dim, fit.eps)


def _class(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _filter(model: nn.Module, given: Filter | None, name: str) -> Callable[[str, nn.Module], bool]:
    if given is None:
        return lambda path, module: name == "include"
    if callable(given):
        return given
    patterns = [given] if isinstance(given, str) else list(given) if isinstance(given, Iterable) else [None]
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"srmsnorm: {name} takes patterns or a function of name and module, got {given!r}")
    paths = [path for path, _, _ in places(model)]
    for pattern in patterns:
        if not fnmatch.filter(paths, pattern):
            raise ValueError(f"srmsnorm: {name}={pattern!r} fits no module of the model")
    return lambda path, module: any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _device(model: nn.Module) -> torch.device:
    """Where the model is and can be asked; a module may only run there."""
    devices = [tensor.device for tensor in (*model.parameters(), *model.buffers())]
    return next((device for device in devices if device.type == "cuda"), torch.device("cpu"))


# ---- what a module is found to be


def _fit(module: nn.Module, holders: list[nn.Module], device: torch.device, known: dict[object, Fit | Unfit]) -> Fit:
    reason = why_not_swapped(module, holders) or why_not_asked(module)
    if reason:
        raise Unfit(reason)
    if type(module) is nn.RMSNorm and nn.RMSNorm.forward.__module__ == nn.RMSNorm.__module__:  # and not patched
        try:
            return Fit(SRMSNorm(module.normalized_shape, module.eps).eps, module.normalized_shape[0])
        except ValueError as error:
            raise Unfit(str(error).removeprefix("srmsnorm: ")) from error
    key = _key(module)
    if key is None or key not in known:
        try:
            known[key] = probe(module, device)
        except Unfit as unfit:
            known[key] = unfit
    found = known[key]
    if isinstance(found, Unfit):
        raise found
    return found


_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device)
_NOT_ASKED = {"training", "_parameters", "_buffers", "_modules"}  # the mode decides nothing, the others hold nothing
_BLANK = vars(nn.Module())


def _key(module: nn.Module) -> object:
    """The same for modules of one class and equal plain attributes, which are asked once; None where others decide."""
    own = {name: v for name, v in vars(module).items() if name not in _NOT_ASKED and not _is_blank(name, v)}
    return (type(module), repr(sorted(own.items()))) if all(map(_is_plain, own.values())) else None


def _is_plain(value: object) -> bool:
    """Of a value that its repr shows whole; a tensor's does not."""
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return type(value) in _PLAIN


def _is_blank(name: str, value: object) -> bool:
    """An attribute that every module has, as it was made."""
    return name in _BLANK and type(value) is type(_BLANK[name]) and value == _BLANK[name]
