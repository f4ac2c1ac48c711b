"""Quantised results of DTensors: by rows without communication, a scale of all everywhere, in place on the shards."""

import torch
from distributed_samples import GATHER, check, collectives, flat_mesh, ops, tensor
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import srmsnorm

DIM = 128  # whole groups
WAYS = [{}, {"power_of_two": True}, {"group_size": 64}, {"scale": 0.1}, {"scale": "bound"}, {"dtype": torch.int8}]


def assert_shard(actual, placement, whole, what):
    """The process's own part of what one process computes, byte by byte; gloo gathers no fp8."""
    assert actual.placements == (placement,), f"{what}: {actual.placements}, expected {placement}"
    assert actual.shape == whole.shape and actual.dtype == whole.dtype, what
    want = distribute_tensor(whole.float(), actual.device_mesh, [placement]).to_local()
    assert torch.equal(actual.to_local().float(), want), f"{what}: not what one process computes"


def assert_all(actual, placement, whole, options, what):
    given = options.get("scale") is not None
    for i, (a, b) in enumerate(zip(actual, whole, strict=True)):
        assert_shard(a, Replicate() if given and i == 1 else placement, b, f"{what} {options} result {i}")


@check(2, 4)
def quantized_rows_run_locally():
    """Shards of leading dimensions, uneven and empty ones, and replicas."""
    mesh = flat_mesh()
    for placement, shape in (
        (Shard(0), (8, 4, DIM)),
        (Shard(1), (8, 4, DIM)),
        (Shard(0), (7, DIM)),
        (Shard(0), (1, DIM)),
        (Replicate(), (6, DIM)),
    ):
        x, r = tensor(*shape, dtype=torch.bfloat16), tensor(*shape, dtype=torch.float32, seed=1)
        X, R = (distribute_tensor(t, mesh, [placement]) for t in (x, r))
        for options in WAYS:
            with collectives():
                alone = srmsnorm.srms_norm_quantized(X, **options)
                both = srmsnorm.add_srms_norm_quantized(X, R, **options)
                stream = R.clone()
                memory = stream.to_local().data_ptr()
                in_place = srmsnorm.add_srms_norm_quantized_(X, stream, **options)
            assert stream.to_local().data_ptr() == memory
            want = srmsnorm.add_srms_norm_quantized(x, r, **options)
            assert_all(alone, placement, srmsnorm.srms_norm_quantized(x, **options), options, placement)
            assert_all(both, placement, want, options, placement)
            assert_all((*in_place, stream), placement, want, options, placement)


@check(2, 4)
def placements_of_quantized_rows():
    """(input, residual) -> (placement of q, collectives)."""
    mesh, shape = flat_mesh(), (8, 4, DIM)
    x, r = tensor(*shape, dtype=torch.float32), tensor(*shape, dtype=torch.float32, seed=1)
    R, S, T, LAST = Replicate(), Shard(0), Shard(1), Shard(2)
    for (of_x, of_r), placement, expected in (
        ((S, R), S, []),
        ((R, S), S, []),
        ((LAST, LAST), R, [GATHER, GATHER]),
        ((LAST, S), S, None),
        ((T, S), T, None),
    ):
        X, RESIDUAL = distribute_tensor(x, mesh, [of_x]), distribute_tensor(r, mesh, [of_r])
        for options in WAYS:
            want = srmsnorm.add_srms_norm_quantized(x, r, **options)
            if expected is None:
                found = srmsnorm.add_srms_norm_quantized(X, RESIDUAL, **options)
            else:
                with collectives(*expected):
                    found = srmsnorm.add_srms_norm_quantized(X, RESIDUAL, **options)
            assert_all(found, placement, want, options, f"{of_x} {of_r}")


@check(2, 4)
def a_given_scale_of_quantized_rows():
    """One element is everywhere the same; one a row goes with the rows. Options are part of the cache's key."""
    mesh = flat_mesh()
    x = tensor(8, DIM, dtype=torch.float32)
    X = distribute_tensor(x, mesh, [Shard(0)])
    for _ in range(2):
        for scale, placement in ((torch.full((1,), 0.25), Replicate()), (x.abs().amax(1, keepdim=True), Shard(0))):
            SCALE = distribute_tensor(scale, mesh, [placement])
            with collectives():
                q, used = ops.srms_norm_quantized(X, None, SCALE)
            want = ops.srms_norm_quantized(x, None, scale)
            assert_shard(q, Shard(0), want[0], "given")
            assert_shard(used, placement, want[1], "given")
            assert srmsnorm.srms_norm_quantized(X, scale=SCALE)[1] is SCALE
        for value in (0.1, 0.2):
            for dtype in ("int8", "float8_e5m2"):
                got = ops.srms_norm_quantized(X, dtype=dtype, scale_value=value)
                assert_shard(got[0], Shard(0), ops.srms_norm_quantized(x, dtype=dtype, scale_value=value)[0], dtype)


@check(2, 4)
def quantized_in_place_refuses_what_it_would_redistribute():
    mesh = flat_mesh()
    x, r = tensor(8, 4, DIM, dtype=torch.float32), tensor(8, 4, DIM, dtype=torch.float32, seed=1)
    stream = distribute_tensor(r, mesh, [Shard(2)])
    before = stream.to_local().clone()
    try:
        srmsnorm.add_srms_norm_quantized_(distribute_tensor(x, mesh, [Shard(0)]), stream)
    except RuntimeError as error:
        assert "redistributed copy" in str(error), error
    else:
        raise AssertionError("no error")
    assert torch.equal(stream.to_local(), before)
    stream = distribute_tensor(r, mesh, [Shard(0)])
    q, _ = srmsnorm.add_srms_norm_quantized_(distribute_tensor(x, mesh, [Shard(2)]), stream)  # which is only read
    assert_shard(q, Shard(0), srmsnorm.srms_norm_quantized(x, r)[0], "in place")
