"""The norm beside a gate, of DTensors: by rows without communication, forward and backward."""

import torch
from distributed_samples import (
    DIM,
    GATHER,
    SCATTER,
    assert_close,
    assert_is,
    check,
    collectives,
    flat_mesh,
    ops,
    pieces,
    tensor,
)
from samples import GATED, GATES, Kind
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

import srmsnorm


def operands(shape, kind):
    """input, gate, gradient of z."""
    dtypes = kind.dtype, kind.residual or kind.dtype, kind.dtype
    return [tensor(*shape, dtype=dtype, seed=seed) for seed, dtype in enumerate(dtypes)]


def results(input, gate, grad_output, options):
    leaves = [t.detach().requires_grad_() for t in (input, gate)]
    z = srmsnorm.gated_srms_norm(*leaves, **options)
    grads = torch.autograd.grad(z, leaves, grad_output, retain_graph=True)
    alone = [torch.autograd.grad(z, leaf, grad_output, retain_graph=True)[0] for leaf in leaves]
    with torch.no_grad():
        return [z, *grads, *alone, srmsnorm.gated_srms_norm(*leaves, **options)]


@check(2, 4)
def gated_rows_run_locally():
    """Shards of leading dimensions, uneven and empty ones, and replicas."""
    mesh = flat_mesh()
    for i, kind in enumerate(GATED):
        for placement, shape in (
            (Shard(0), (8, 4, DIM)),
            (Shard(1), (8, 4, DIM)),
            (Shard(0), (7, DIM)),
            (Shard(0), (1, DIM)),
            (Replicate(), (6, DIM)),
        ):
            options = GATES[i % len(GATES)]
            whole = operands(shape, kind)
            expected = results(*whole, options)
            distributed = [distribute_tensor(t, mesh, [placement]) for t in whole]
            with collectives():
                actual = results(*distributed, options)
            for a, b in zip(actual, expected, strict=True):
                assert_is(a, [placement], b, f"{kind} {shape} {placement}")


@check(2, 4)
def options_of_a_gate_are_not_cached():
    """DTensor keeps what it has found out about a call by its key, of which these are part."""
    x, gate, g = operands((4, DIM), Kind(torch.float64))
    mesh = flat_mesh()
    X, GATE, G = (distribute_tensor(t, mesh, [Shard(0)]) for t in (x, gate, g))
    for _ in range(2):
        for options in [*GATES, {"activation": "swish"}, {}]:
            for eps in (None, 1.0):
                z, rstd = ops._gated_srms_norm(x, gate, **options, eps=eps)
                Z, RSTD = ops._gated_srms_norm(X, GATE, **options, eps=eps)
                assert_is(Z, [Shard(0)], z, f"{options}")
                assert_is(RSTD, [Shard(0)], rstd, f"{options}")
            for a, b in zip(
                ops._gated_srms_norm_backward(G, X, GATE, RSTD, **options),
                ops._gated_srms_norm_backward(g, x, gate, rstd, **options),
                strict=True,
            ):
                assert_is(a, [Shard(0)], b, f"{options}")


@check(2, 4)
def placements_beside_a_gate():
    """(input, gate) -> (z, collectives)."""
    mesh, shape = flat_mesh(), (8, 4, DIM)
    x, gate, _ = operands(shape, Kind(torch.float64))
    R, S, T, LAST = Replicate(), Shard(0), Shard(1), Shard(2)
    for (of_x, of_gate), placement, expected in (
        ((R, R), R, []),
        ((S, R), S, []),
        ((R, S), S, []),
        ((LAST, LAST), R, [GATHER, GATHER]),
        ((T, S), T, None),
    ):
        X, G = distribute_tensor(x, mesh, [of_x]), distribute_tensor(gate, mesh, [of_gate])
        if expected is None:
            z = srmsnorm.gated_srms_norm(X, G, activation="silu")
        else:
            with collectives(*expected):
                z = srmsnorm.gated_srms_norm(X, G, activation="silu")
        assert_is(z, [placement], srmsnorm.gated_srms_norm(x, gate, activation="silu"), f"{of_x} {of_gate}")


@check(2, 4)
def partial_gradients_beside_a_gate():
    """Backward is linear in z's gradient alone: partial ones stay partial beside replicas, without communication."""
    mesh, shape = flat_mesh(), (8, DIM)
    x, gate, _ = operands(shape, Kind(torch.float64))
    for options in GATES:
        rstd = ops._gated_srms_norm(x, gate, **options)[1]
        for kept, gradient, expected in ((Replicate(), Partial(), []), (Shard(0), Shard(0), [SCATTER])):
            g = pieces(mesh, *shape, seed=1)
            saved = [distribute_tensor(t, mesh, [kept]) for t in (x, gate, rstd)]
            with collectives(*expected):
                actual = ops._gated_srms_norm_backward(g, *saved, **options)
            want = ops._gated_srms_norm_backward(g.full_tensor(), x, gate, rstd, **options)
            for a, b in zip(actual, want, strict=True):
                assert a.placements == (gradient,), f"{a.placements}, expected {gradient}"
                assert_close(a.full_tensor(), b, f"{options}")


@check(2)
def second_derivatives_beside_a_gate():
    mesh = flat_mesh()
    found = []
    for place in (lambda t: t, lambda t: distribute_tensor(t, mesh, [Shard(0)])):
        x, gate, g = (place(t).requires_grad_() for t in operands((5, DIM), Kind(torch.float64)))
        with collectives():
            z = srmsnorm.gated_srms_norm(x, gate, activation="silu", eps=1e-3)
            first = torch.autograd.grad(z, (x, gate), g, create_graph=True)
            found.append(torch.autograd.grad(first, (x, gate, g), [t.detach() for t in (g, x)]))
    for whole, actual in zip(*found, strict=True):
        assert actual.placements == (Shard(0),)
        assert_close(actual.full_tensor(), whole, "second derivative")


@check(2)
def a_gated_module_by_rows():
    x, gate, _ = operands((6, DIM), Kind(torch.bfloat16))
    module = srmsnorm.SRMSNormGated(DIM, activation="sigmoid", norm_before_gate=False)
    X, G = (distribute_tensor(t, flat_mesh(), [Shard(0)]) for t in (x, gate))
    with collectives():
        z = module(X, G)
    assert_is(z, [Shard(0)], module(x, gate))
