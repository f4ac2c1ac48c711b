"""How a compiler makes ``add_srms_norm_`` and ``add_srms_norm_quantized_`` functional.

PyTorch's own rule keeps the call, and Inductor runs it in place again without a copy. That is right on operands of two
storages, and on parts of one tensor, where such a tensor begins where its storage does, offsets are plain numbers and
nothing is lazily negated. Elsewhere the call becomes that of another operator and copies, for PyTorch's rule takes a
negated view for its base, and Inductor an offset that is a symbol for 0. In torch 2.11 it also counts offsets from a
graph input's first element, not its storage's, and of two inputs that share a storage it copies the second from the
storage's first byte, in code that the cache on disk then hands to other tensors.
"""

from typing import Any

import torch
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode

from . import _library  # noqa: F401  (loads the operators)

__all__: list[str] = []

_add_srms_norm_ = torch.ops.srmsnorm.add_srms_norm_.default
_add_srms_norm_quantized_ = torch.ops.srmsnorm.add_srms_norm_quantized_.default


def _functionalize(mode: FunctionalTensorMode, input: Any, residual: Any, *, eps: float | None = None) -> None:
    if _can_be_in_place(input, residual):
        return mode.__torch_dispatch__(_add_srms_norm_, (), (input, residual), {"eps": eps})
    with mode:
        if _base(input) is _base(residual):
            _expect_apart(input, residual, "add_srms_norm_ overwrites its operands")
        y, sum = torch.ops.srmsnorm.add_srms_norm(input, residual, eps=eps)
        input.copy_(y)
        residual.copy_(sum)


def _functionalize_quantized(
    mode: FunctionalTensorMode, input: Any, residual: Any, scale: Any = None, **options: Any
) -> Any:
    functional = all(isinstance(tensor, FunctionalTensor) for tensor in (input, residual))
    if functional and _base(input) is _base(residual):  # the call kept would get a copy of the residual alone
        with mode:
            _expect_apart(input, residual, "add_srms_norm_quantized_ overwrites its residual")
    if _can_be_in_place(input, residual):
        return mode.__torch_dispatch__(_add_srms_norm_quantized_, (), (input, residual, scale), options)
    with mode:
        q, used, sum = torch.ops.srmsnorm.add_srms_norm_quantized(input, residual, scale, **options)
        residual.copy_(sum)
        return q, used


def _can_be_in_place(input: Any, residual: Any) -> bool:
    if not all(isinstance(tensor, FunctionalTensor) for tensor in (input, residual)):
        return True  # whatever PyTorch makes of them
    if input.is_neg() or residual.is_neg() or not (_is_plain(input) and _is_plain(residual)):
        return False
    return _base(input) is _base(residual) or _storage(input) != _storage(residual)


def _is_plain(tensor: FunctionalTensor) -> bool:
    base = _base(tensor)
    if base is tensor:
        return True
    begin = base.storage_offset()
    return isinstance(tensor.storage_offset(), int) and isinstance(begin, int) and begin == 0


def _base(tensor: FunctionalTensor) -> torch.Tensor:
    base = tensor._inference_mode_base if torch.is_inference_mode_enabled() else tensor._base
    return tensor if base is None else base


def _storage(tensor: FunctionalTensor) -> int:
    return tensor.from_functional().untyped_storage()._cdata


def _expect_apart(input: FunctionalTensor, residual: FunctionalTensor, what: str) -> None:
    """The operator's own check, which sees copies then, as far as offsets and sizes tell: of contiguous operands."""
    from torch.fx.experimental.symbolic_shapes import sym_or

    if not (input.is_contiguous() and residual.is_contiguous()):
        return
    begins = [tensor.storage_offset() * tensor.element_size() for tensor in (input, residual)]
    sizes = [tensor.numel() * tensor.element_size() for tensor in (input, residual)]
    ends = [begin + size for begin, size in zip(begins, sizes, strict=True)]
    torch._check(
        sym_or(ends[0] <= begins[1], ends[1] <= begins[0]),
        lambda: (
            f"srmsnorm: {what}, but they overlap in memory: bytes {begins[0]} to {ends[0]} and {begins[1]} to "
            f"{ends[1]} of one buffer"
        ),
    )


if FunctionalTensorMode not in _add_srms_norm_.python_key_table:  # else the package is imported a second time
    _add_srms_norm_.py_impl(FunctionalTensorMode)(_functionalize)
    _add_srms_norm_quantized_.py_impl(FunctionalTensorMode)(_functionalize_quantized)
