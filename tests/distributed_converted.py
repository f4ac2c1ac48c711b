"""A y of another dtype, and rstd alone, of DTensors: by rows without communication, forward and backward."""

import torch
from distributed_samples import (
    DIM,
    assert_close,
    assert_is,
    check,
    collectives,
    flat_mesh,
    ops,
    pieces,
    tensor,
)
from samples import FLOAT, KINDS, OTHERS, Kind, name
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

import srmsnorm

BFLOAT = torch.bfloat16
BY_ROWS = [
    (Shard(0), (8, 4, DIM)),
    (Shard(1), (2, 7, DIM)),  # uneven
    (Shard(0), (1, DIM)),  # fewer rows than processes
    (Replicate(), (6, DIM)),
]


def converted(leaves, dtype, g, gh):
    """Everything that a norm with a y of that dtype computes: forward, backward, without a gradient."""
    if gh is None:
        outputs, cotangents = [srmsnorm.srms_norm(*leaves, dtype=dtype)], [g]
    else:
        outputs, cotangents = srmsnorm.add_srms_norm(*leaves, dtype=dtype), [g, gh]
    grads = torch.autograd.grad(outputs, leaves, cotangents)
    with torch.no_grad():
        return [*outputs, *grads, srmsnorm.srms_norm(*leaves, dtype=dtype)]


def rstd(leaves, v):
    r = srmsnorm.rstd(*leaves)
    return [r, *torch.autograd.grad(r, leaves, v)]


def assert_runs_locally(placement, function, leaves, *others):
    """leaves: of which gradients are asked."""
    mesh, found = flat_mesh(), []
    for place in (lambda t: t, lambda t: distribute_tensor(t, mesh, [placement])):
        operands = [place(t) if isinstance(t, torch.Tensor) else t for t in others]
        placed = [place(t).requires_grad_() for t in leaves]
        with collectives():
            found.append(function(placed, *operands))
    for whole, actual in zip(*found, strict=True):
        assert_is(actual, [placement], whole, f"{function.__name__} {placement} {[t.dtype for t in leaves]}")


@check(2, 4)
def converted_rows_run_locally():
    kinds = [(kind, dtype) for kind in KINDS for dtype in OTHERS[kind.dtype]]
    for i, (kind, dtype) in enumerate(kinds):
        for placement, shape in BY_ROWS[i % 2 :: 2] if i % 3 else BY_ROWS:
            leaves = [tensor(*shape, dtype=d, seed=i) for i, d in enumerate((kind.dtype, kind.residual)) if d]
            g = tensor(*shape, dtype=dtype, seed=2)
            gh = kind.residual and tensor(*shape, dtype=kind.residual, seed=3)
            assert_runs_locally(placement, converted, leaves, dtype, g, gh)


@check(2, 4)
def rstd_of_rows_runs_locally():
    for kind in KINDS:
        for placement, shape in BY_ROWS:
            leaves = [tensor(*shape, dtype=d, seed=i) for i, d in enumerate((kind.dtype, kind.residual)) if d]
            r = srmsnorm.rstd(*leaves)
            assert_runs_locally(placement, rstd, leaves, tensor(*shape[:-1], dtype=r.dtype, seed=2))


@check(2, 4)
def the_dtype_of_y_is_not_cached():
    """DTensor keeps what it has found out about a call by its key, of which this is part."""
    mesh, shape = flat_mesh(), (4, DIM)
    x, stream, g = tensor(*shape, dtype=BFLOAT), tensor(*shape, dtype=FLOAT), tensor(*shape, dtype=FLOAT, seed=2)
    r = srmsnorm.rstd(x, stream)
    X, STREAM, G, R = (distribute_tensor(t, mesh, [Shard(0)]) for t in (x, stream, g, r))
    for inference in (False, True, False):
        for dtype in (None, FLOAT, torch.float16, BFLOAT, FLOAT, None):
            to = dtype and name(dtype)
            with torch.inference_mode(inference):
                for actual, whole in (
                    (srmsnorm.srms_norm(X, dtype=dtype), srmsnorm.srms_norm(x, dtype=dtype)),
                    (ops._srms_norm(X, STREAM, None, dtype=to)[0], ops._srms_norm(x, stream, None, dtype=to)[0]),
                    (ops.add_srms_norm(X, STREAM, dtype=to)[0], ops.add_srms_norm(x, stream, dtype=to)[0]),
                    (ops._scale_rows(X, STREAM, R, dtype=to), ops._scale_rows(x, stream, r, dtype=to)),
                    (
                        ops._srms_norm_backward_input(G, STREAM, R, dtype=to),
                        ops._srms_norm_backward_input(g, stream, r, dtype=to),
                    ),
                ):
                    assert_is(actual, [Shard(0)], whole, f"to {dtype}")


@check(2, 4)
def partial_gradients_stay_partial():
    """Of a y wider or narrower than the input, and of rstd, beside replicas: backward is linear in them."""
    mesh, shape = flat_mesh(), (4, DIM)
    for kind, dtype in ((Kind(BFLOAT), FLOAT), (Kind(FLOAT), BFLOAT), (Kind(BFLOAT, BFLOAT), FLOAT)):
        leaves = [tensor(*shape, dtype=d, seed=i) for i, d in enumerate((kind.dtype, kind.residual)) if d]
        g, v = pieces(mesh, *shape, dtype=dtype, seed=2), pieces(mesh, shape[0], dtype=FLOAT, seed=3)
        found = []
        for place in (lambda t: t.detach().clone(), lambda t: distribute_tensor(t, mesh, [Replicate()])):
            operands = [place(t).requires_grad_() for t in leaves]
            y, r = srmsnorm.srms_norm(*operands, dtype=dtype), srmsnorm.rstd(*operands)
            cotangents = (g, v) if found else (g.to_local(), v.to_local())
            with collectives():
                of_y = torch.autograd.grad(y, operands, cotangents[0])
                found.append([*of_y, *torch.autograd.grad(r, operands, cotangents[1])])
        for local, actual in zip(*found, strict=True):
            assert actual.placements == (Partial(),), f"{kind} to {dtype}: {actual.placements}"
            assert actual.dtype == local.dtype
            assert torch.equal(actual.to_local(), local)


@check(2)
def second_derivatives_of_wide_rows():
    """Where the operator itself is derived, and where its formula is."""
    mesh, shape = flat_mesh(), (5, DIM)
    found = []
    for place in (lambda t: t, lambda t: distribute_tensor(t, mesh, [Shard(0)])):
        x, g = place(tensor(*shape, dtype=BFLOAT)), place(tensor(*shape, dtype=FLOAT, seed=1))
        operands = [x.requires_grad_(), g.requires_grad_()]
        with collectives():
            y = srmsnorm.srms_norm(x, eps=1e-3, dtype=FLOAT) * srmsnorm.rstd(x, eps=1e-3).unsqueeze(-1)
            (first,) = torch.autograd.grad(y, x, g, create_graph=True)
            found.append(torch.autograd.grad(first, operands, x.detach()))
    for whole, actual in zip(*found, strict=True):
        assert actual.placements == (Shard(0),)
        assert_close(actual.full_tensor(), whole, "second derivative")
