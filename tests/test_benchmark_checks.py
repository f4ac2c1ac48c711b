"""What the benchmark refuses to time, and what an operation reads and writes beside its roof."""

import contextlib
import dataclasses

import pytest
import torch
from benchmark_samples import WrongGradient, WrongOutput
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.protocol import check, operations
from benchmarks.protocol.cell import Cell
from benchmarks.protocol.gates import GATES
from benchmarks.protocol.neighbours import NEIGHBOURS
from benchmarks.protocol.outputs import OUTPUTS
from benchmarks.providers import REGISTRY
from benchmarks.providers.pytorch import Eager


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("residual", [False, True])
def test_the_definition_passes(dtype, residual):
    x, r, g = (torch.randn(3, 5, 257, dtype=dtype, requires_grad=i < 2) for i in range(3))
    check.check_norm(Eager(), x, r if residual else None, g)


@pytest.mark.parametrize("provider", [WrongOutput, WrongGradient])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_wrong_result_is_refused(provider, dtype):
    x, g = torch.randn(4, 64, dtype=dtype, requires_grad=True), torch.randn(4, 64, dtype=dtype)
    with pytest.raises(check.WrongResult):
        check.check_norm(provider(), x, None, g)


def test_nan_is_refused():
    with pytest.raises(check.WrongResult):
        check.require("y", float("nan"))
    x = torch.randn(2, 8)
    y = Eager().norm(x)
    y[1, 3] = float("nan")
    with pytest.raises(check.WrongResult):
        check.require("y", check.forward_error(y, x, None, 1))


def test_a_status_is_one_plain_line():
    assert check.status_of(RuntimeError("\x1b[91merror:\x1b[0m no IR\nmore")) == "RuntimeError: error: no IR"


@pytest.mark.parametrize("dtype", operations.DTYPES)
@pytest.mark.parametrize("op", operations.OPS)
def test_every_provider_computes_every_operation(dtype, op, plain_memory):
    """Those that run here. torch.compile's share the functions of `to`."""
    if operations.operation(op, dtype) is None:
        pytest.skip("nothing is mixed without a residual")
    cell = Cell("cpu", dtype, op, 3, 129)
    for name in ("ours", "to", "rms"):
        provider = REGISTRY[name]()
        operands = cell.operands()
        with torch.no_grad():
            cell.operation.check(provider, operands, cell.operation.call(provider, operands)())


def test_a_wrong_operation_is_refused(plain_memory):
    """A sum that is the input; a pair whose second gradient misses the gradient of the sum."""

    class Wrong(Eager):
        def add_norm(self, x, residual):
            return super().add_norm(x, residual)[0], x

        def backward_pair(self, grad_output, saved, grad_sum=None):
            return super().backward_pair(grad_output, saved, grad_sum)[0], super().backward_pair(grad_output, saved)[1]

    for dtype, op in (("bf16", "forward+sum"), ("mixed", "backward+sum")):
        cell = Cell("cpu", dtype, op, 3, 64)
        operands = cell.operands()
        cell.operation.check(Eager(), operands, cell.operation.call(Eager(), operands)())
        with pytest.raises(ValueError if op == "forward+sum" else check.WrongResult):
            cell.operation.check(Wrong(), operands, cell.operation.call(Wrong(), operands)())


@pytest.mark.parametrize(("op", "dtype"), [(name, dtype) for name, op in NEIGHBOURS.items() for dtype in op.dtypes])
def test_every_provider_computes_the_neighbours(dtype, op, plain_memory):
    """Those that have the like."""
    cell = Cell("cpu", dtype, op, 3, 129 if NEIGHBOURS[op].divides == 1 else 2 * NEIGHBOURS[op].divides)
    for name in ("ours", "to", "rms"):
        provider = REGISTRY[name]()
        operands = cell.operands()
        with torch.no_grad(), contextlib.nullcontext() if name != "rms" else contextlib.suppress(NotImplementedError):
            cell.operation.check(provider, operands, cell.operation.call(provider, operands)())


def wrong_gates(op):
    """Results that are not the operation's, and what is wrong with each."""

    class Order(Eager):
        """The gate on the other side of the norm."""

        def gated(self, x, gate, how):
            return super().gated(x, gate, dataclasses.replace(how, norm_first=not how.norm_first))

        def gated_backward(self, grad_output, saved, how):
            other = dataclasses.replace(how, norm_first=not how.norm_first)
            return super().gated_backward(grad_output, super().gated_saved(*saved[:2], other), other)

    class Rounded(Eager):
        """The norm rounded before the gate."""

        def gated(self, x, gate, how):
            return (self.norm(x) * gate).to(x.dtype) if how.norm_first else super().gated(x, gate, how).mul(1.01)

        def gated_backward(self, grad_output, saved, how):
            dx, dgate = super().gated_backward(grad_output, saved, how)
            return (dx, dgate * 1.01) if how.norm_first else (dx * 1.01, dgate)

    class Dtype(Eager):
        """A result of the other dtype."""

        def gated(self, x, gate, how):
            return super().gated(x, gate, how).float()

        def gated_backward(self, grad_output, saved, how):
            dx, dgate = super().gated_backward(grad_output, saved, how)
            return dx, dgate.to(dx.dtype)

    return [(Order, check.WrongResult), (Rounded, check.WrongResult), (Dtype, TypeError)]


@pytest.mark.parametrize("op", GATES)
def test_a_wrong_gate_is_refused(op, plain_memory):
    cell = Cell("cpu", "mixed", op, 3, 64)
    operands = cell.operands()
    for wrong, error in wrong_gates(op):
        with torch.no_grad(), pytest.raises(error):
            cell.operation.check(wrong(), operands, cell.operation.call(wrong(), operands)())


@pytest.mark.parametrize("op", [op for op in GATES if "silu" in op and op.endswith("backward")])
@pytest.mark.parametrize(("dim", "gates"), [(7, (-1.28, -1.277)), (1, (-6, -3))], ids=str)
def test_a_gate_that_leaves_a_difference(op, dim, gates, plain_memory):
    """silu's derivative is 0 at -1.2785, where float32 has no digits of it, and so is that of the norm of a number near
    1: a gradient may be as far away as its terms' roundings are, and no further."""
    cell = Cell("cpu", "fp32", op, 20_000, dim)
    operands = cell.operands()
    operands["gate"].uniform_(*gates)
    with torch.no_grad():
        grads = cell.operation.call(REGISTRY["ours"](), operands)()
        cell.operation.check(REGISTRY["ours"](), operands, grads)
        with pytest.raises(check.WrongResult, match="grad_gate"):
            cell.operation.check(REGISTRY["ours"](), operands, (grads[0], grads[1] * 1.01))


class WrongOutputs(Eager):
    """y and its gradient by way of 16 bits, rstd without eps, and bytes of half the scale."""

    def wide_norm(self, x):
        return super().norm(x).float()

    def wide_backward(self, grad_output, saved):
        return super().wide_backward(grad_output.mul(1.01), saved)

    def rstd(self, x):
        return x.float().square().mean(-1).rsqrt()

    def quantized(self, x, group_size):
        q, scale = super().quantized(x, group_size)
        return q, scale / 2

    def add_quantized(self, x, residual):
        q, scale, sum = super().add_quantized(x, residual)
        return (q.float() * 2).to(q.dtype), scale / 2, sum


class OtherTypes(Eager):
    def wide_norm(self, x):
        return super().norm(x)

    def wide_backward(self, grad_output, saved):
        return super().wide_backward(grad_output, saved).float()

    def rstd(self, x):
        return super().rstd(x).to(x.dtype)

    def quantized(self, x, group_size):
        q, scale = super().quantized(x, group_size)
        return q.float(), scale

    def add_quantized(self, x, residual):
        return super().add_quantized(x, residual)[0].float(), residual, residual


@pytest.mark.parametrize("op", OUTPUTS)
def test_a_wrong_output_is_refused(op, plain_memory):
    cell = Cell("cpu", "bf16", op, 3, 256)
    operands = cell.operands()
    operands["x"] = operands["x"] * 1e-3  # of which eps is a part
    for wrong, error in ((WrongOutputs, check.WrongResult), (OtherTypes, TypeError)):
        with torch.no_grad(), pytest.raises(error):
            cell.operation.check(wrong(), operands, cell.operation.call(wrong(), operands)())


class Traffic(TorchDispatchMode):
    """Bytes of the tensors that operators take: what copy_, add and addcmul with an output read and write."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [t for t in (*args, *(kwargs or {}).values()) if isinstance(t, torch.Tensor)]
        self.bytes += sum(t.nbytes for t in tensors)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", operations.DTYPES)
@pytest.mark.parametrize("name", operations.OPS)
def test_a_roof_moves_the_bytes_of_its_operation(dtype, name):
    if (op := operations.operation(name, dtype)) is None:
        pytest.skip("nothing is mixed without a residual")
    cell = Cell("cpu", dtype, name, 2, 8)
    assert traffic(op, cell) == cell.moved


@pytest.mark.parametrize(
    ("name", "bytes", "numbers"),
    [
        ("float32 y", 6, 0),
        ("float32 y backward", 8, 0),
        ("rstd", 2, 1),
        ("fp8", 3, 1),
        ("fp8 groups", 3, 2),
        ("fp8+sum", 7, 1),
    ],
)
def test_a_copy_moves_the_bytes_of_an_output(name, bytes, numbers):
    """And of what there is once a row, or once a group of it."""
    cell = Cell("cpu", "bf16", name, 2, 256)
    assert traffic(cell.operation, cell) == cell.moved == 2 * (256 * bytes + 4 * numbers)


@pytest.mark.parametrize("dtype", operations.DTYPES)
@pytest.mark.parametrize("name", GATES)
def test_a_copy_moves_the_bytes_of_a_gate(dtype, name):
    """x, gate and z; or those, the gradient of z and the two gradients."""
    cell, tensors = Cell("cpu", dtype, name, 2, 8), 5 if name.endswith("backward") else 3
    gates = 2 if name.endswith("backward") else 1
    x, gate = (table[dtype].itemsize for table in (operations.DTYPES, operations.RESIDUAL_DTYPES))
    assert traffic(cell.operation, cell) == cell.moved == 16 * ((tensors - gates) * x + gates * gate)


def traffic(op, cell):
    call = operations.roof(op, cell.dtype, cell.operands())
    with Traffic() as seen:
        call()
    return seen.bytes
