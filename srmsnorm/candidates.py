"""Which modules of a model may be weightless norms, and which of them could give their place to another."""

import inspect
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize

from .any_dim import SRMSNormAnyDim
from .module import SRMSNorm

__all__ = ["has_hooks", "is_candidate", "is_norm_by_name", "places", "why_not_asked", "why_not_swapped"]

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


# (its name, the module, the modules that hold it from the model down)
Place = tuple[str, nn.Module, list[nn.Module]]


def places(model: nn.Module) -> Iterator[Place]:
    """Every name under which a module holds another, and the model itself; each holder's names once."""
    walked: set[int] = set()

    def walk(path: str, module: nn.Module, holders: list[nn.Module]) -> Iterator[Place]:
        yield path, module, holders
        if id(module) not in walked:
            walked.add(id(module))
            for name, child in module._modules.items():
                if child is not None:
                    yield from walk(f"{path}.{name}" if path else name, child, [*holders, module])

    return walk("", model, [])


def is_norm_by_name(path: str, module: nn.Module) -> bool:
    """A leaf of PyTorch's class, or whose class or own name says norm: what a report has a line for, whatever it is."""
    names = type(module).__name__ + " " + path.rpartition(".")[2]
    is_norm = isinstance(module, nn.RMSNorm) or "norm" in names.lower()
    return is_norm and {held for held, _ in module.named_children()} <= {"parametrizations"}


def is_candidate(path: str, module: nn.Module) -> bool:
    return is_norm_by_name(path, module) or why_not_asked(module) is None


def why_not_asked(module: nn.Module) -> str | None:
    """None, or why a call of it on its own would mean nothing."""
    if isinstance(module, (SRMSNorm, SRMSNormAnyDim)):
        return "is ours"
    if list(module.children()):
        return "has submodules"
    parameters = [name for name, _ in module.named_parameters()]
    if parameters:
        return f"has the parameter {parameters[0]}" + ("" if parameters[1:] else "; srmsnorm.fold may move it")
    buffers = [name for name, _ in module.named_buffers()]
    if buffers or module.state_dict():
        return f"has the buffer {buffers[0]}" if buffers else "has a state_dict"
    if isinstance(module, nn.RMSNorm) and len(module.normalized_shape) != 1:
        return f"is over {len(module.normalized_shape)} dimensions: {list(module.normalized_shape)}"
    if type(module).__module__.startswith("torch.nn.") and type(module) is not nn.RMSNorm:
        return "is another function"
    return _why_not_of_one_tensor(module)


def _why_not_of_one_tensor(module: nn.Module) -> str | None:
    try:
        taken = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return "has a forward without a signature"
    if len(taken) == 1 and taken[0].kind in (taken[0].POSITIONAL_ONLY, taken[0].POSITIONAL_OR_KEYWORD):
        return None
    return f"does not take one tensor: forward({', '.join(map(str, taken))})"


def has_hooks(module: nn.Module) -> bool:
    return any(getattr(module, name, None) for name in _HOOKS)


def why_not_swapped(module: nn.Module, holders: list[nn.Module]) -> str | None:
    """None, or why another module in its place would do something else, whatever it computes."""
    if not holders:
        return "is the model itself, which nothing holds"
    if any(isinstance(one, torch.jit.ScriptModule) for one in [module, *holders]):
        return "is TorchScript"
    if "_orig_mod" in holders[-1]._modules or module._compiled_call_impl is not None:
        return "is compiled on its own"
    if isinstance(holders[-1], parametrize.ParametrizationList):
        return "is a parametrization"
    if parametrize.is_parametrized(module):
        return "is parametrized"
    if has_hooks(module):
        return "has hooks"
    if "forward" in vars(module) or type(module).__call__ is not nn.Module.__call__:
        return "has a forward or a call of its own"
    return None
