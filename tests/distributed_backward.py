"""Gradients of DTensors: their placements, partial ones above all, their dtypes, and second derivatives."""

import torch
from distributed_samples import (
    DIM,
    GATHER,
    REDUCE,
    SCATTER,
    assert_close,
    assert_is,
    check,
    collectives,
    flat_mesh,
    operands,
    ops,
    pieces,
    tensor,
)
from samples import WITH_RESIDUAL
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

import srmsnorm


@check(2, 4)
def placements_of_gradients():
    """(grad_output, output and rstd, grad_sum) -> (gradient, collectives)."""
    mesh, shape = flat_mesh(), (8, 4, DIM)
    R, P, A, M = Replicate(), Partial(), Partial("avg"), Partial("max")
    S, T, LAST = Shard(0), Shard(1), Shard(2)
    y, rstd = ops._srms_norm(tensor(*shape, seed=9), None, 1e-6)
    for (g, kept, gs), gradient, expected in (
        ((P, R, None), P, []),
        ((P, R, P), P, []),
        ((P, R, R), P, []),
        ((R, R, P), P, []),
        ((A, R, A), A, []),
        ((P, R, A), R, [REDUCE, REDUCE]),
        ((R, R, R), R, []),
        ((S, R, None), S, []),
        ((R, S, R), S, []),
        ((S, S, R), S, []),
        ((P, S, None), S, [SCATTER]),
        ((P, S, P), S, [SCATTER, SCATTER]),
        ((P, R, S), S, [SCATTER]),
        ((T, S, T), S, [GATHER, GATHER]),
        ((M, R, None), R, [REDUCE]),
        ((M, R, P), R, [REDUCE, REDUCE]),
        ((LAST, R, None), LAST, [REDUCE]),
    ):
        what = f"grad_output {g}, output {kept}, grad_sum {gs}"
        placed = []
        for seed, p in enumerate((g, gs), 1):
            if p in (P, A, M):
                placed.append(pieces(mesh, *shape, reduce_op=p.reduce_op, seed=seed))
            else:
                placed.append(p and distribute_tensor(tensor(*shape, seed=seed), mesh, [p]))
        whole = [t if t is None else t.full_tensor() for t in placed]
        saved = [distribute_tensor(t, mesh, [kept]) for t in (y, rstd)]
        with collectives(*expected):
            actual = ops._srms_norm_backward(placed[0], *saved, placed[1])
        assert actual.placements == (gradient,), f"{what}: {actual.placements}, expected {gradient}"
        assert_close(actual.full_tensor(), ops._srms_norm_backward(whole[0], y, rstd, whole[1]), what)


@check(2, 4)
def partial_gradients_of_two_dtypes():
    mesh, shape = flat_mesh(), (4, DIM)
    y, rstd = ops._srms_norm(tensor(*shape, dtype=torch.bfloat16), None, 1e-6)
    g = pieces(mesh, *shape, dtype=torch.bfloat16, seed=1)
    gs = pieces(mesh, *shape, dtype=torch.float32, seed=2)
    saved = [distribute_tensor(t, mesh, [Replicate()]) for t in (y, rstd)]
    with collectives():
        gradients = ops._srms_norm_backward_pair(g, *saved, gs)
    for actual, local in zip(
        gradients, ops._srms_norm_backward_pair(g.to_local(), y, rstd, gs.to_local()), strict=True
    ):
        assert actual.placements == (Partial(),)
        assert actual.dtype == local.dtype
        assert torch.equal(actual.to_local(), local)


@check(2, 4)
def a_partial_gradient_through_autograd():
    """A column-sharded product leaves its input a partial gradient, which passes the norm as it is."""
    mesh = flat_mesh()
    x, weight = tensor(5, DIM), tensor(DIM, 8, seed=1)
    whole = x.clone().requires_grad_()
    (srmsnorm.srms_norm(whole) @ weight).square().sum().backward()
    X = distribute_tensor(x, mesh, [Replicate()]).requires_grad_()
    W = distribute_tensor(weight, mesh, [Shard(1)])
    with collectives():
        (srmsnorm.srms_norm(X) @ W).square().sum().backward()
    assert X.grad.placements == (Partial(),)
    assert_close(X.grad.full_tensor(), whole.grad, "input.grad")


@check(2, 4)
def only_some_operands_need_a_gradient():
    """Each asks for another backward operator or dtype; placements and shapes are the same."""
    mesh = flat_mesh()
    for kind in WITH_RESIDUAL:
        x, residual, g, gs = operands((4, DIM), kind)
        for grad_sum in (gs, None, gs):
            for wants in ((True, False), (False, True), (True, True), (True, False)):
                grads = []
                for place in (lambda t: t, lambda t: distribute_tensor(t, mesh, [Shard(0)])):
                    leaves = [
                        place(t.clone()).requires_grad_(want) for t, want in zip((x, residual), wants, strict=True)
                    ]
                    y, total = srmsnorm.add_srms_norm(*leaves)
                    pairs = [(y, place(g))] if grad_sum is None else [(y, place(g)), (total, place(grad_sum))]
                    torch.autograd.backward(*zip(*pairs, strict=True))
                    grads.append([leaf.grad for leaf in leaves])
                for whole, actual, want in zip(*grads, wants, strict=True):
                    assert (actual is not None) == want
                    if want:
                        assert_is(actual, [Shard(0)], whole, f"{kind}, gradients of {wants}")


@check(2, 4)
def the_dtype_of_a_gradient_is_not_cached():
    """DTensor keeps an operator's result types by its operands' types alone. In inference mode there is no autograd key
    at which the operator with a dtype would become the one for it."""
    shape = (4, DIM)
    y, rstd = ops._srms_norm(tensor(*shape, dtype=torch.bfloat16), None, 1e-6)
    g, gs = tensor(*shape, dtype=torch.bfloat16, seed=1), tensor(*shape, dtype=torch.float32, seed=2)
    mesh = flat_mesh()
    G, Y, RSTD, GS = (distribute_tensor(t, mesh, [Shard(0)]) for t in (g, y, rstd, gs))
    for inference in (False, True, False):
        for dtype in (torch.bfloat16, torch.float32, None, torch.float32, torch.bfloat16):
            for whole, distributed in ((None, None), (gs, GS), (None, None)):
                expected = ops._srms_norm_backward(g, y, rstd, whole, dtype=dtype)
                with torch.inference_mode(inference):
                    actual = ops._srms_norm_backward(G, Y, RSTD, distributed, dtype=dtype)
                assert_is(actual, [Shard(0)], expected)


@check(2, 4)
def double_backward():
    mesh = flat_mesh()
    wholes = [tensor(5, DIM, seed=seed) for seed in range(3)]
    found = []
    for place in (lambda t: t, lambda t: distribute_tensor(t, mesh, [Shard(0)])):
        x, g, v = (place(t) for t in wholes)
        x.requires_grad_()
        g.requires_grad_()
        with collectives():
            (first,) = torch.autograd.grad(srmsnorm.srms_norm(x, eps=1e-3), x, g, create_graph=True)
            found.append(torch.autograd.grad(first, (x, g), v))
    for whole, actual, what in zip(*found, ("x", "g"), strict=True):
        assert actual.placements == (Shard(0),)
        assert_close(actual.full_tensor(), whole, f"second derivative by {what}")
