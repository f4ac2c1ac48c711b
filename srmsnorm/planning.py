"""torch.compile with Inductor: the results of an operator are memory that Inductor plans.

What Inductor knows nothing of makes its results itself, beside memory that is free by then. Here a call becomes that of
``srmsnorm_out.*``, which writes into buffers that Inductor allocates, frees and uses again, and which the generated
code calls without PyTorch's boxing. The bits, the graphs and so the keys of caches are the same with it and without,
and so is what code from a cache computes, whoever wrote it.

Registered when the first call is traced for Inductor. Its C++ wrapper (AOTInductor's too) calls what makes its results;
so does all else where Inductor's names have moved, which a warning says once.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch

from . import tracing

__all__ = ["enabled"]

_MODULE = "_srmsnorm"  # as generated code names the Python face
enabled = True  # read while compiling, to measure one against the other; no cache knows of it


def _register() -> None:
    try:
        from torch._inductor import ir, lowering
        from torch._inductor.codegen.wrapper import PythonWrapperCodegen
        from torch._library.utils import get_layout_constraint_tag

        for names, holder in (
            (("create", "tensor_to_layout", "codegen_args", "codegen_comment"), ir.FallbackKernel),
            (("val_to_arg_str", "writeline"), PythonWrapperCodegen),
        ):
            for name in names:
                getattr(holder, name)
        lowerings: Any = lowering.lowerings
        for name in tracing.OPERATORS:
            operator = getattr(torch.ops.srmsnorm, name).default
            tag = get_layout_constraint_tag(operator, with_default=True)
            lowering.make_fallback(operator, lowering.tag_to_layout_constraint(tag))  # what Inductor makes of it
            lowerings[operator] = _planned(name, lowerings[operator])
    except (ImportError, AttributeError, LookupError, TypeError) as error:
        warnings.warn(
            f"srmsnorm: in compiled code, operators make their results themselves, as torch {torch.__version__} is not "
            f"what it knows ({type(error).__name__}: {error})",
            stacklevel=2,
        )


def _planned(name: str, fallback: Callable[..., Any]) -> Callable[..., Any]:
    """The rule by which Inductor makes code of a call."""
    from torch._inductor import ir
    from torch._inductor.lowering import lowerings
    from torch._inductor.virtualized import V

    out = getattr(torch.ops.srmsnorm_out, name).default
    written = [argument.name for argument in out._schema.arguments if argument.is_write]

    def allocate(result: torch.Tensor) -> Any:
        lies = ir.FallbackKernel.tensor_to_layout(result)
        allocate: Any = lowerings[torch.ops.aten.empty_strided.default]
        return allocate(lies.size, lies.stride, dtype=lies.dtype, device=lies.device)

    def lower(*args: Any, **kwargs: Any) -> Any:
        results = V.graph.current_node.meta.get("val")
        if results is None or not enabled or V.graph.cpp_wrapper or getattr(V.graph, "fx_wrapper", False):
            return fallback(*args, **kwargs)
        alone = isinstance(results, torch.Tensor)
        buffers = tuple(allocate(result) for result in ([results] if alone else results))
        _call().create(out, *args, **kwargs, **dict(zip(written, buffers, strict=True)))
        return buffers[0] if alone else buffers

    return lower


@functools.cache
def _call() -> Any:
    """Inductor's node of a call into given buffers."""
    from torch._inductor import ir

    class Call(ir.FallbackKernel):
        def codegen(self, wrapper: Any) -> None:
            """A line of its own: the Python face takes all arguments, in the schema's order."""
            self.codegen_comment(wrapper)
            operator: Any = self.op_overload
            schema = operator._schema
            given = {argument.name: repr(argument.default_value) for argument in schema.arguments}
            given |= dict(zip(given, self.codegen_args(), strict=False))
            given |= {name: wrapper.val_to_arg_str(value) for name, value in self.kwargs.items()}
            wrapper.add_import_once(f"from srmsnorm._library import _C as {_MODULE}")
            name = schema.name.removeprefix("srmsnorm_out::")
            wrapper.writeline(f"{_MODULE}._out_{name}({', '.join(given.values())})")

    return Call


tracing.before_inductor.append(_register)
