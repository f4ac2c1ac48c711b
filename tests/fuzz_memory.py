"""The memory of a fuzzed call: buffers that know what they held, operands that are views of them, and how those lie."""

import math

import torch
from fuzz_calls import Call, Operand
from fuzz_operators import NUMBERS
from samples import BFLOAT, DOUBLE, FLOAT, HALF
from torch import Tensor

INTEGERS = {HALF: torch.int16, BFLOAT: torch.int16, FLOAT: torch.int32, DOUBLE: torch.int64}


class Pool:
    """Normal numbers with a mean, drawn once: every buffer is a slice."""

    def __init__(self, device: str):
        generator = torch.Generator().manual_seed(0)
        numbers = torch.randn(1 << 22, generator=generator, dtype=DOUBLE) + 0.25
        self.numbers = {DOUBLE: numbers.to(device)}
        self.numbers |= {dtype: numbers.to(dtype).to(device) for dtype in (HALF, BFLOAT, FLOAT)}
        self.scales = torch.randint(-(1 << 10), 1 << 10, (1 << 20,), generator=generator).to(device)

    def slice(self, dtype, start: int, count: int) -> Tensor:
        whole = self.numbers[dtype]
        if start + count <= whole.numel():
            return whole[start : start + count]
        return whole.repeat(-(-(start + count) // whole.numel()))[start : start + count]


class Memory:
    """A call's buffers, as they were and as they are, and the operands that are views of them."""

    def __init__(self, call: Call, pool: Pool):
        self.operands: dict[str, Tensor] = {}
        self.before: dict[str, Tensor] = {}
        self.buffers: list[Tensor] = []
        if call.shared:
            self._share(call, pool)
        else:
            for name, operand in call.operands.items():
                self._add(name, operand, pool, call.fault)
        for name, operand in call.cotangents.items():
            self._add(name, operand, pool, ())

    def _add(self, name: str, operand: Operand, pool: Pool, fault: tuple) -> None:
        buffer = _fill(operand, pool, operand.length + operand.margin)
        view = buffer.as_strided(operand.sizes, operand.strides, operand.offset)
        if (
            operand.spread
            and view.numel()
            and 0 not in [stride for size, stride in zip(operand.sizes, operand.strides, strict=True) if size > 1]
        ):
            leading = (*operand.sizes[:-1], 1) if operand.rows else operand.sizes
            rows = math.prod(leading)
            start = operand.start % (1 << 19)
            exponents = pool.scales[start : start + rows].remainder(2 * operand.spread + 1) - operand.spread
            view.mul_(torch.exp2(exponents.to(operand.dtype)).view(leading))
        if fault and fault[0] == name:
            _break(view, fault)
        self._keep(name, operand, buffer, buffer.clone())

    def _share(self, call: Call, pool: Pool) -> None:
        """Filled in the narrowest dtype: pairs of numbers of 16 bits make decent ones of 32."""
        narrowest = min(call.operands.values(), key=lambda operand: operand.dtype.itemsize)
        nbytes = max(operand.length * operand.dtype.itemsize for operand in call.operands.values())
        size = max(operand.dtype.itemsize for operand in call.operands.values())
        count = (-(-nbytes // size) + 2) * size // narrowest.dtype.itemsize
        buffer = _fill(narrowest, pool, count)
        if any(name in NUMBERS for name in call.operands):
            buffer = buffer.abs_()
        before = buffer.clone()
        for name, operand in call.operands.items():
            self._keep(name, operand, buffer.view(operand.dtype), before.view(operand.dtype))
        self.buffers = [(buffer, before)]

    def _keep(self, name: str, operand: Operand, buffer: Tensor, before: Tensor) -> None:
        view = buffer.as_strided(operand.sizes, operand.strides, operand.offset)
        old = before.as_strided(operand.sizes, operand.strides, operand.offset)
        if operand.negated:
            view, old = torch._neg_view(view), -old
        if operand.lazy:
            view = torch._lazy_clone(view)
        self.operands[name], self.before[name] = view, old
        self.buffers.append((buffer, before))

    def untouched(self) -> bool:
        return all(torch.equal(_bits(now), _bits(before)) for now, before in self.buffers)


def _fill(operand: Operand, pool: Pool, count: int) -> Tensor:
    values = pool.slice(operand.dtype, operand.start, count)
    if operand.content == "zero":
        return torch.zeros_like(values)
    if operand.content == "positive":
        return values.abs() + 2.0**-6
    factor = 2.0**operand.scale * (2.0**-12 if operand.content == "small" else 1.0)
    return values * factor if factor != 1.0 else values.clone()


def _break(view: Tensor, fault: tuple) -> None:
    _, row, place, kind = fault
    index = [int(row * size) for size in view.shape]
    index[-1:] = [int(place * size) for size in view.shape[-1:]]
    if kind == "all bits":
        bits = torch.iinfo(INTEGERS[view.dtype]).max
        view.view(INTEGERS[view.dtype])[tuple(index)] = bits
    else:
        view[tuple(index)] = float(kind)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(INTEGERS[tensor.dtype]) if tensor.dtype in INTEGERS else tensor


# ---- how a tensor lies


def nests(sizes, strides) -> bool:
    """Each dimension steps over all that the smaller ones reach: no element lies on another."""
    reach = 1
    for stride, size in sorted((stride, size) for size, stride in zip(sizes, strides, strict=True) if size > 1):
        if stride < reach:
            return False
        reach += stride * (size - 1)
    return True


def copy_lying_alike(tensor: Tensor) -> Tensor:
    """With the same strides, and as many bytes past 16: on a GPU bits depend on that."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    past = tensor.data_ptr() % 16 // tensor.itemsize
    span = span if tensor.numel() else 0
    buffer = torch.empty(past + span, dtype=tensor.dtype, device=tensor.device)
    if tensor.numel():
        buffer[past:].copy_(tensor.as_strided((span,), (1,)))
    return buffer.as_strided(tensor.shape, tensor.stride(), past)


def shares_bytes(tensors: list[Tensor]) -> bool:
    """Whether any byte belongs to two elements, in one tensor or in two."""
    found = []
    for tensor in tensors:
        address = torch.full((), address_of(tensor), dtype=torch.int64)
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            address = address.unsqueeze(-1) + torch.arange(size) * stride * tensor.itemsize
        found.append((address.unsqueeze(-1) + torch.arange(tensor.itemsize)).flatten())
    every = torch.cat(found).sort().values
    return bool((every[1:] == every[:-1]).any())


def address_of(tensor: Tensor) -> int:
    """Without making a lazy copy its own, as data_ptr() would."""
    return torch._C._data_address(tensor) + tensor.storage_offset() * tensor.itemsize
