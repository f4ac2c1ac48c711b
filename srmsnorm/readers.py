"""Who reads what a module returns: what must be known before its values may change."""

import contextlib
import gc
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .probing import first_line, undisturbed

__all__ = ["Refused", "Untraceable", "check_by_running", "check_by_tracing"]


class Refused(Exception):
    """Something else reads it, with what."""


class Untraceable(Exception):
    """Nobody can say, with why."""


# ---- without inputs: a symbolic trace


class _Tracer(fx.Tracer):
    """Keeps the norm and the linears whole."""

    def __init__(self, whole: set[int]) -> None:
        super().__init__()
        self.whole = whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        holds = any(id(module) in self.whole for module in m.modules())
        return id(m) in self.whole or (not holds and super().is_leaf_module(m, module_qualified_name))


def check_by_tracing(model: nn.Module, norm: nn.Module, linears: Mapping[str, nn.Module]) -> None:
    """That the linears alone read the norm, they read nothing else, and nothing else reads their weights.

    Raises:
        Refused: not so.
        Untraceable: torch.fx cannot trace the model.
    """
    whole = {id(module) for module in (norm, *linears.values())}
    try:
        graph = _Tracer(whole).trace(model)
    except Exception as error:
        raise Untraceable(f"torch.fx cannot trace it: {first_line(error)}") from error
    called: dict[int, list[fx.Node]] = {key: [] for key in whole}
    for node in graph.nodes:
        if _module_of(model, node) in whole:
            called[_module_of(model, node)].append(node)
        if node.op == "get_attr":
            _check_attribute(model, node, norm, linears)
    norms = called[id(norm)]
    if not norms:
        raise Refused("the model does not call the norm")
    readers = {id(linear) for linear in linears.values()}
    for user in dict.fromkeys(user for node in norms for user in node.users):
        if _module_of(model, user) not in readers:
            if user.op == "call_function" and user.target is getattr and user.args[1] in ("shape", "dtype", "device"):
                continue
            raise Refused(f"the norm is also read by {user.op} {user.target}")
    for name, linear in linears.items():
        if not called[id(linear)]:
            raise Refused(f"the model does not call {name!r}")
        if any(node.args[:1] not in [(norm_node,) for norm_node in norms] for node in called[id(linear)]):
            raise Refused(f"{name!r} also reads something else than the norm")


def _module_of(model: nn.Module, node: fx.Node) -> int:
    """The id of the module that a node calls, 0 if it calls none."""
    return id(model.get_submodule(str(node.target))) if node.op == "call_module" else 0


def _check_attribute(model: nn.Module, node: fx.Node, norm: nn.Module, linears: Mapping[str, nn.Module]) -> None:
    path, _, attribute = str(node.target).rpartition(".")
    held = getattr(model.get_submodule(path), attribute)
    owned = [parameter for module in (norm, *linears.values()) for parameter in module.parameters()]
    if any(held is parameter for parameter in owned):
        raise Refused(f"{node.target!r} is also read outside of its module")


# ---- with inputs: a run that is watched


class _Watch(TorchDispatchMode):
    """Refuses operators that read watched memory outside of the modules that may.

    Storages are told apart by their address, so that all are kept until the run is over.
    """

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[int, str] = {}
        self.kept: list[Tensor] = []
        self.inside = 0
        self.found = ""

    def refuse(self, reason: str) -> NoReturn:
        """Kept as well, for a model that catches what is raised in it."""
        self.found = self.found or reason
        raise Refused(reason)

    def watch(self, tensor: Tensor, name: str) -> None:
        self.watched[tensor.untyped_storage().data_ptr()] = name
        self.kept.append(tensor)

    def name_of(self, tensor: object) -> str | None:
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or not tensor.numel():
            return None
        return self.watched.get(tensor.untyped_storage().data_ptr())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.inside and not func.is_view:
            for tensor in tree_leaves((args, kwargs)):
                if name := self.name_of(tensor):
                    self.refuse(f"{name} is also read by {func}")
        return func(*args, **(kwargs or {}))


def check_by_running(model: nn.Module, norm: nn.Module, linears: Mapping[str, nn.Linear], inputs: object) -> None:
    """As :func:`check_by_tracing`, for the path that the model takes with these inputs: a call in eval mode without
    gradients, after which modes, buffers and random state are as before.

    Raises:
        Refused: not so, or the call raises.
    """
    watch = _Watch()
    calls = dict.fromkeys(("", *linears), 0)
    outputs: list[Tensor] = []

    def enter(module: nn.Module, args: Any) -> None:
        watch.inside += 1

    def leave_norm(module: nn.Module, args: Any, output: Tensor) -> None:
        watch.inside -= 1
        calls[""] += 1
        outputs.append(output)
        watch.watch(output, "the norm")

    def enter_linear(name: str) -> Any:
        def check(module: nn.Module, args: Any, kwargs: Any) -> None:
            read = args[0] if args else kwargs.get("input")
            if not any(_are_rows(read, output) for output in outputs):
                watch.refuse(f"{name!r} also reads something else than rows of the norm")
            calls[name] += 1
            watch.inside += 1

        return check

    def leave(module: nn.Module, args: Any, output: Tensor) -> None:
        watch.inside -= 1

    hooks = [norm.register_forward_pre_hook(enter), norm.register_forward_hook(leave_norm)]
    for name, linear in linears.items():
        hooks += [
            linear.register_forward_pre_hook(enter_linear(name), with_kwargs=True),
            linear.register_forward_hook(leave),
        ]
    for name, module in {"the norm": norm, **linears}.items():
        watch.watch(next(module.parameters()).detach(), f"the weight of {name}")
    try:
        args, kwargs = _arguments(inputs)
        with _as_before(model), watch:
            result = model(*args, **kwargs)
    except Refused:
        raise
    except Exception as error:
        raise Refused(f"it raises for the example_inputs: {first_line(error)}") from error
    finally:
        for hook in hooks:
            hook.remove()
    if watch.found:
        raise Refused(watch.found)
    for name, count in calls.items():
        if not count:
            raise Refused(f"the model does not call {repr(name) if name else 'the norm'} with the example_inputs")
    if returned := next(filter(None, map(watch.name_of, _tensors(result))), None):
        raise Refused(f"{returned} is also returned by the model")
    memory = [StorageWeakRef(output.untyped_storage()) for output in outputs]
    outputs.clear()
    watch.kept.clear()
    if not _all_freed(memory):
        raise Refused("the norm's output is kept after the call: an attribute of a module, or another object, holds it")


def _all_freed(memory: list[StorageWeakRef]) -> bool:
    if not all(one.expired() for one in memory):
        gc.collect()  # what holds it may hold itself and nothing else
    return all(one.expired() for one in memory)


def _arguments(inputs: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):  # not a dict alone: tokenizers return others
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}


@contextlib.contextmanager
def _as_before(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; modes, buffers and random state put back."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with undisturbed(device):
        try:
            for module, _ in modes:
                module.training = False  # not by eval(): a train() of its own, as of merged weights, would do more
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for module, name, buffer, values in buffers:
                module._buffers[name] = buffer
                if not torch.equal(buffer, values):
                    buffer.copy_(values)


def _are_rows(read: object, output: Tensor) -> bool:
    """Whether a tensor is some of the whole rows of another, in any order."""
    if not isinstance(read, Tensor) or read.untyped_storage().data_ptr() != output.untyped_storage().data_ptr():
        return False
    if (read.shape, read.stride(), read.storage_offset()) == (output.shape, output.stride(), output.storage_offset()):
        return True
    dim, start = output.shape[-1], read.storage_offset() - output.storage_offset()
    steps = [stride for size, stride in zip(read.shape[:-1], read.stride(), strict=False) if size > 1]
    whole = read.shape[-1:] == (dim,) and (dim == 1 or read.stride(-1) == 1)
    return output.is_contiguous() and whole and all(step % dim == 0 for step in [start, *steps])


def _tensors(value: object, seen: set[int] | None = None) -> Iterator[Tensor]:
    """Those in a result, in containers and in the attributes of objects such as a cache."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, (str, int, float, type, nn.Module)):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item, seen)
    elif isinstance(value, (tuple, list, set)):
        for item in value:
            yield from _tensors(item, seen)
    elif hasattr(value, "__dict__"):
        yield from _tensors(vars(value), seen)
