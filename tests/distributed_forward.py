"""One norm of DTensors: where it runs, what it communicates, and that the bits are those of one process."""

import importlib

import torch
import torch.distributed as dist
from distributed_samples import (
    DIM,
    REDUCE,
    SCATTER,
    assert_close,
    assert_is,
    assert_runs_locally,
    check,
    collectives,
    flat_mesh,
    operands,
    pieces,
    tensor,
)
from samples import KINDS, Kind
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

import srmsnorm


@check(2, 4)
def nothing_registered_before_the_import():
    """First of all: the processes have imported srmsnorm alone."""
    x = distribute_tensor(tensor(4, DIM), flat_mesh(), [Shard(0)])
    try:
        srmsnorm.srms_norm(x)
    except NotImplementedError as error:
        assert "sharding strategy" in str(error)
    else:
        raise AssertionError("DTensor knew the operator")
    importlib.import_module("srmsnorm.distributed")
    assert srmsnorm.srms_norm(x).placements == (Shard(0),)


@check(2)
def compiled():
    """Early: in torch 2.15, some eager calls on DTensors make a later compilation fail, also of native operators."""

    def step(x, residual):
        y, total = srmsnorm.add_srms_norm(x, residual)
        return y * 2, total

    mesh = flat_mesh()
    x, residual, g, gs = operands((4, DIM), Kind(torch.bfloat16, torch.float32))
    found = []
    for place, run in (
        (lambda t: t, step),
        (lambda t: distribute_tensor(t, mesh, [Shard(0)]), torch.compile(step, backend="aot_eager", fullgraph=True)),
    ):
        leaves = [place(t.clone()).requires_grad_() for t in (x, residual)]
        outputs = run(*leaves)
        torch.autograd.backward(outputs, (place(g), place(gs)))
        found.append([*outputs, *(leaf.grad for leaf in leaves)])
    for whole, actual in zip(*found, strict=True):
        assert_is(actual, [Shard(0)], whole)


@check(2, 4)
def leading_shards_run_locally():
    for kind in KINDS:
        assert_runs_locally(flat_mesh(), [Shard(0)], (8, 4, DIM), kind)
        assert_runs_locally(flat_mesh(), [Shard(1)], (8, 4, DIM), kind)


@check(2, 4)
def uneven_shards_run_locally():
    """Rows that the processes do not divide, and fewer rows than processes."""
    for rows in (7, 5, 1):
        for kind in (Kind(torch.float32), Kind(torch.bfloat16, torch.float32)):
            assert_runs_locally(flat_mesh(), [Shard(0)], (rows, DIM), kind)
            assert_runs_locally(flat_mesh(), [Shard(1)], (2, rows, DIM), kind)


@check(2, 4)
def replicas_stay_replicas():
    for kind in KINDS:
        assert_runs_locally(flat_mesh(), [Replicate()], (6, DIM), kind)


@check(4)
def two_mesh_dimensions():
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    for placements in (
        [Shard(0), Shard(1)],
        [Shard(1), Shard(0)],
        [Shard(0), Shard(0)],
        [Shard(0), Replicate()],
        [Replicate(), Shard(1)],
    ):
        assert_runs_locally(mesh, placements, (6, 5, DIM), Kind(torch.bfloat16, torch.float32))


@check(4)
def two_mesh_dimensions_flattened():
    """Batch and sequence, both sharded and then viewed as one dimension: a strided shard."""
    mesh = init_device_mesh("cpu", (2, 2))
    placements = [Shard(0), _StridedShard(0, split_factor=2)]
    local = tensor(6, DIM, seed=dist.get_rank())
    flat = DTensor.from_local(local, mesh, placements, shape=(24, DIM), stride=(DIM, 1))
    with collectives():
        y, total = srmsnorm.add_srms_norm(flat, flat)
    for actual, expected in zip((y, total), srmsnorm.add_srms_norm(local, local), strict=True):
        assert actual.placements == tuple(placements)
        assert actual.shape == (24, DIM)
        assert torch.equal(actual.to_local(), expected)


@check(2, 4)
def a_partial_input_is_reduced():
    """The norm is not linear. Beside a sharded residual, the reduced input is sharded like it."""
    mesh = flat_mesh()
    x, residual = pieces(mesh, 8, DIM), tensor(8, DIM, seed=7)
    expected_y, expected_total = srmsnorm.add_srms_norm(x.full_tensor(), residual)
    for placement, collective in ((Replicate(), REDUCE), (Shard(0), SCATTER)):
        stream = distribute_tensor(residual, mesh, [placement])
        with collectives(collective):
            y, total = srmsnorm.add_srms_norm(x, stream)
        assert y.placements == total.placements == (placement,)
        assert_close(y.full_tensor(), expected_y, f"y beside {placement}")
        assert_close(total.full_tensor(), expected_total, f"the sum beside {placement}")


@check(2, 4)
def a_replica_beside_a_shard_is_cut():
    mesh = flat_mesh()
    x, residual = tensor(7, DIM), tensor(7, DIM, seed=1)
    expected = srmsnorm.srms_norm(x, residual)
    for placements in ((Replicate(), Shard(0)), (Shard(0), Replicate())):
        pair = [distribute_tensor(t, mesh, [p]) for t, p in zip((x, residual), placements, strict=True)]
        with collectives():
            y = srmsnorm.srms_norm(*pair)
        assert_is(y, [Shard(0)], expected)


@check(2, 4)
def eps_is_not_cached():
    x = tensor(4, DIM) / 100
    X = distribute_tensor(x, flat_mesh(), [Shard(0)])
    for eps in (1e-6, 1.0, None, 0.0):
        assert_is(srmsnorm.srms_norm(X, eps=eps), [Shard(0)], srmsnorm.srms_norm(x, eps=eps))
