"""In place, on the shards themselves or not at all; and the operators' own errors."""

import torch
from distributed_samples import DIM, assert_is, check, collectives, flat_mesh, operands, pieces, tensor
from samples import WITH_RESIDUAL
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

import srmsnorm


@check(2, 4)
def in_place_writes_the_shards():
    mesh = flat_mesh()
    for kind in WITH_RESIDUAL:
        for rows in (8, 5, 1):
            for placement in (Shard(0), Replicate()):
                x, residual = operands((rows, DIM), kind)[:2]
                y, total = srmsnorm.add_srms_norm(x, residual)
                X, stream = (distribute_tensor(t, mesh, [placement]) for t in (x, residual))
                memory = X.to_local().data_ptr(), stream.to_local().data_ptr()
                with collectives():
                    srmsnorm.add_srms_norm_(X, stream)
                assert memory == (X.to_local().data_ptr(), stream.to_local().data_ptr())
                assert_is(X, [placement], y)
                assert_is(stream, [placement], total)


@check(2, 4)
def in_place_refuses_what_it_would_redistribute():
    mesh, shape = flat_mesh(), (8, 4, DIM)
    for placements in (
        (Shard(0), Replicate()),
        (Replicate(), Shard(0)),
        (Shard(0), Shard(1)),
        (Shard(2), Shard(2)),
        (Partial(), Partial()),
        (Replicate(), Partial()),
    ):
        pair = [
            pieces(mesh, *shape, seed=seed) if p == Partial() else distribute_tensor(tensor(*shape), mesh, [p])
            for seed, p in enumerate(placements)
        ]
        before = [t.to_local().clone() for t in pair]
        with collectives():
            try:
                srmsnorm.add_srms_norm_(*pair)
            except RuntimeError as error:
                assert "redistributed copy" in str(error), error
            else:
                raise AssertionError(f"{placements}: no error")
        assert all(torch.equal(t.to_local(), b) for t, b in zip(pair, before, strict=True)), f"{placements}: written"


@check(2, 4)
def errors_are_the_operators_own():
    mesh = flat_mesh()
    x = distribute_tensor(tensor(4, DIM), mesh, [Shard(0)])
    for residual, message in (
        (tensor(1, DIM), "must have the shape of input"),
        (tensor(4, DIM, dtype=torch.bfloat16), "must have the dtype of input"),
    ):
        try:
            srmsnorm.srms_norm(x, distribute_tensor(residual, mesh, [Shard(0)]))
        except RuntimeError as error:
            assert message in str(error), error
        else:
            raise AssertionError(f"no error: {message}")
