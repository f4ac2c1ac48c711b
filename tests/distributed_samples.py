"""What the checks of DTensor share: operands, what is expected of them, and which collectives may run."""

import contextlib

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

import srmsnorm

DIM = 48  # rows of all dtypes begin at multiples of 16 bytes, in a shard as in the whole: same rows, same bits
GATHER, REDUCE, SCATTER = "all_gather_into_tensor", "all_reduce", "reduce_scatter_tensor"
ops = torch.ops.srmsnorm


def check(*worlds):
    """A function that all processes of a world run together, in worlds of these sizes."""

    def mark(function):
        function.worlds = worlds
        return function

    return mark


@contextlib.contextmanager
def collectives(*expected):
    """Exactly these run inside."""
    with CommDebugMode() as mode:
        yield
    counted = [packet.__name__ for packet, count in mode.get_comm_counts().items() for _ in range(count)]
    assert sorted(counted) == sorted(expected), f"expected the collectives {sorted(expected)}, got {sorted(counted)}"


def flat_mesh():
    return init_device_mesh("cpu", (dist.get_world_size(),))


def tensor(*shape, dtype=torch.float64, seed=0):
    """The same on every process."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def pieces(mesh, *shape, reduce_op="sum", dtype=torch.float64, seed=0):
    """A partial DTensor, another tensor on each process."""
    return DTensor.from_local(
        tensor(*shape, dtype=dtype, seed=1000 * seed + dist.get_rank()), mesh, [Partial(reduce_op)] * mesh.ndim
    )


def operands(shape, kind):
    """input, residual (or None), gradient of y, gradient of the sum (or None)."""
    dtypes = [kind.dtype, kind.residual, kind.dtype, kind.residual]
    return [dtype and tensor(*shape, dtype=dtype, seed=seed) for seed, dtype in enumerate(dtypes)]


def results(input, residual, grad_output, grad_sum):
    """By name, everything that one norm with these operands computes: forward, backward, without a gradient."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in (input, residual)]
    named = {}
    if residual is None:
        named["y"] = srmsnorm.srms_norm(leaves[0])
        named["y"].backward(grad_output)
    else:
        named["y"], named["sum"] = srmsnorm.add_srms_norm(*leaves)
        torch.autograd.backward((named["y"], named["sum"]), (grad_output, grad_sum))
        with torch.no_grad():
            named["inference y"], named["inference sum"] = srmsnorm.add_srms_norm(*leaves)
        named["residual.grad"] = leaves[1].grad
    with torch.no_grad():
        named["unwritten sum's y"] = srmsnorm.srms_norm(*leaves)
    return {**named, "input.grad": leaves[0].grad}


def assert_is(actual, placements, whole, what="result"):
    """A DTensor of these placements whose whole has these bits; of this dtype also for the operators that follow."""
    assert actual.placements == tuple(placements), f"{what}: {actual.placements}, expected {tuple(placements)}"
    dtypes = {actual.dtype, actual.to_local().dtype, actual._spec.tensor_meta.dtype}
    assert dtypes == {whole.dtype}, f"{what}: {dtypes}, expected {whole.dtype}"
    assert torch.equal(actual.full_tensor(), whole), f"{what}: not what one process computes"


def assert_runs_locally(mesh, placements, shape, kind):
    whole = operands(shape, kind)
    distributed = [None if t is None else distribute_tensor(t, mesh, placements) for t in whole]
    expected = results(*whole)
    with collectives():
        actual = results(*distributed)
    for name, value in expected.items():
        assert_is(actual[name], placements, value, f"{kind} {shape} {placements}: {name}")


def assert_close(actual, expected, what):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12, msg=lambda text: f"{what}: {text}")
