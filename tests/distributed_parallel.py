"""Models whose norms are parallel: tensor and sequence parallel, fully sharded, and both."""

import torch
from distributed_model import PLAN, Stack
from distributed_samples import DIM, GATHER, SCATTER, assert_close, assert_is, check, collectives, flat_mesh, tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import PrepareModuleInput, SequenceParallel, parallelize_module

import srmsnorm


def train(model, batches, place=lambda batch: batch):
    """The parameters after a step for each batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for batch in batches:
        model(place(batch)).sub(1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: getattr(p, "full_tensor", lambda p=p: p)() for name, p in model.named_parameters()}


def assert_trains_alike(parallel, place):
    model, batches = model_and_batches()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    alone, together = train(model, batches), train(parallel, batches, place)
    for name, value in alone.items():
        assert (value - start[name]).abs().max() > 1e-4, f"{name} has not moved"
        assert_close(together[name], value, name)


def model_and_batches():
    torch.manual_seed(0)
    return Stack(DIM, heads=4, depth=2).double(), [tensor(4, 8, DIM, seed=seed) for seed in range(3)]


@check(2, 4)
def module_styles():
    """SequenceParallel for norm(x); PrepareModuleInput where there is a residual, which that style would drop."""
    mesh = flat_mesh()
    x, residual = tensor(2, 8, DIM), tensor(2, 8, DIM, seed=1)
    shard_x, shard_residual = (distribute_tensor(t, mesh, [Shard(1)]).to_local() for t in (x, residual))
    alone = parallelize_module(srmsnorm.SRMSNorm(DIM), mesh, SequenceParallel())
    layouts = (Shard(1), Shard(1))
    paired = parallelize_module(
        srmsnorm.SRMSNorm(DIM), mesh, PrepareModuleInput(input_layouts=layouts, desired_input_layouts=layouts)
    )
    with collectives():
        y, (z, total) = alone(shard_x), paired(shard_x, shard_residual, return_sum=True)
    assert_is(y, [Shard(1)], srmsnorm.srms_norm(x, eps=1e-6))
    expected_z, expected_total = srmsnorm.add_srms_norm(x, residual, eps=1e-6)
    assert_is(z, [Shard(1)], expected_z)
    assert_is(total, [Shard(1)], expected_total)


@check(2, 4)
def tensor_and_sequence_parallel_block():
    """Each half of a block gathers once and scatters once; the norms between them add nothing."""
    (model, batches), (parallel, _) = model_and_batches(), model_and_batches()
    mesh = flat_mesh()
    for block in parallel.blocks:
        parallelize_module(block, mesh, PLAN)

    def place(batch):
        return distribute_tensor(batch, mesh, [Shard(1)])

    sharded = place(batches[0])
    with collectives(*[GATHER, SCATTER] * 2 * len(parallel.blocks)):
        output = parallel(sharded)
    assert output.placements == (Shard(1),)
    assert_close(output.full_tensor(), model(batches[0]), "output")
    assert_trains_alike(parallel, place)


@check(2, 4)
def fsdp():
    """Data parallel, parameters sharded by fully_shard: each process has its part of the batch."""
    sharded, _ = model_and_batches()
    mesh = flat_mesh()
    for block in sharded.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    assert_trains_alike(sharded, lambda batch: batch.chunk(mesh.size())[mesh.get_rank()])


@check(4)
def fsdp_and_tensor_parallel():
    sharded, _ = model_and_batches()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    for block in sharded.blocks:
        parallelize_module(block, mesh["tensor"], PLAN)
        fully_shard(block, mesh=mesh["data"])
    fully_shard(sharded, mesh=mesh["data"])

    def place(batch):
        part = batch.chunk(2)[mesh.get_local_rank("data")]
        return distribute_tensor(part, mesh["tensor"], [Shard(1)])

    assert_trains_alike(sharded, place)
