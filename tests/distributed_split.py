"""Norms whose last dimension is sharded: results stay so, and one all-reduce of a number a row is all there is."""

import torch
import truth
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
    ops,
    pieces,
    tensor,
)
from samples import BFLOAT, DOUBLE, FLOAT, KINDS, OTHERS, Kind
from tolerances import assert_within, split_backward_bound, split_output_bound, split_rstd_bound
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

import srmsnorm
from srmsnorm import split_rows

R, S, LAST, P = Replicate(), Shard(0), Shard(1), Partial()
EPS = 1e-3


def operands(shape, kind, dtype=None):
    """(input, residual if the kind has one), gradient of y, gradient of the sum or None."""
    h = [tensor(*shape, dtype=d, seed=i) for i, d in enumerate((kind.dtype, kind.residual)) if d]
    g = tensor(*shape, dtype=dtype or kind.dtype, seed=2)
    return h, g, kind.residual and tensor(*shape, dtype=kind.residual, seed=3)


def assert_placed(actual, placements, dtype, what):
    assert actual.placements == tuple(placements), f"{what}: {actual.placements}, expected {placements}"
    dtypes = {actual.dtype, actual.to_local().dtype, actual._spec.tensor_meta.dtype}
    assert dtypes == {dtype}, f"{what}: {dtypes}, expected {dtype}"


def assert_stays_split(mesh, placements, shape, kind, dtype=None):
    """Forward and backward, each with one all-reduce a dimension of the mesh that splits rows."""
    what = f"{kind} to {dtype} {shape} {placements}"
    h, g, gh = operands(shape, kind, dtype)
    reduces = [REDUCE] * sum(p == Shard(len(shape) - 1) for p in placements)
    numbers = [R if p == Shard(len(shape) - 1) else p for p in placements]
    leaves = [distribute_tensor(t, mesh, placements).requires_grad_() for t in h]
    with collectives(*reduces):
        if gh is None:
            outputs = [srmsnorm.srms_norm(*leaves, eps=EPS, dtype=dtype)]
        else:
            outputs = [*srmsnorm.add_srms_norm(*leaves, eps=EPS, dtype=dtype)]
    cotangents = [distribute_tensor(t, mesh, placements) for t in (g, gh) if t is not None]
    with collectives(*reduces):
        grads = torch.autograd.grad(outputs, leaves, cotangents)
    with torch.no_grad(), collectives(*reduces, *reduces):
        alone = srmsnorm.srms_norm(*leaves, eps=EPS, dtype=dtype)
        r = srmsnorm.rstd(*leaves, eps=EPS)

    y_truth, _, r_truth = truth.forward(*h, *[None] * (2 - len(h)), EPS)
    for y in (outputs[0], alone):
        assert_placed(y, placements, dtype or kind.dtype, f"{what}: y")
        assert_within(y.full_tensor(), y_truth, split_output_bound(y_truth, y.dtype, mesh.size()))
    assert_placed(r, numbers, ops.rstd(h[0]).dtype, f"{what}: rstd")
    assert_within(r.full_tensor(), r_truth, split_rstd_bound(r_truth, r.dtype, mesh.size()))
    if gh is not None:
        assert_is(outputs[1], placements, truth.rounded_sum(*h), f"{what}: the sum")
    kept, r = outputs[0].full_tensor().double(), r.full_tensor()
    if dtype == FLOAT and kind.dtype != FLOAT and gh is None:
        kept = h[0].double() * r.double().unsqueeze(-1)
    dh = truth.backward(g, kept, r, gh)
    for grad, leaf in zip(grads, leaves, strict=True):
        assert_placed(grad, placements, leaf.dtype, f"{what}: a gradient")
        assert_within(grad.full_tensor(), dh, split_backward_bound(dh, grad.dtype, mesh.size(), g, kept, r, gh))


@check(2, 4)
def rows_in_pieces():
    """Even, uneven, with processes that have no column, of one dimension, and without rows."""
    for i, kind in enumerate(KINDS):
        assert_stays_split(flat_mesh(), [Shard(1)], (5, DIM), kind)
        shape = ((5, 7), (3, 1), (2, 3, 33), (DIM,), (0, 8))[i % 5]
        assert_stays_split(flat_mesh(), [Shard(len(shape) - 1)], shape, kind)


@check(2, 4)
def rows_in_pieces_of_another_dtype():
    for kind in KINDS:
        for dim, dtype in zip((DIM, 5), OTHERS[kind.dtype], strict=False):
            assert_stays_split(flat_mesh(), [LAST], (4, dim), kind, dtype)


@check(4)
def two_mesh_dimensions_in_pieces():
    mesh = init_device_mesh("cpu", (2, 2))
    for placements in ([S, LAST], [LAST, S], [LAST, LAST], [R, LAST]):
        for dim in (DIM, 3):
            assert_stays_split(mesh, placements, (5, dim), Kind(BFLOAT, FLOAT))
        assert_stays_split(mesh, placements, (3, DIM), Kind(BFLOAT), FLOAT)


@check(2, 4)
def gradients_of_rstd_of_pieces():
    """Nothing is communicated: each piece is scaled. A partial gradient is reduced first, a number a row."""
    mesh, (h, _, _) = flat_mesh(), operands((5, 7), Kind(DOUBLE, DOUBLE))
    v = tensor(5, seed=4)
    leaves = [t.clone().requires_grad_() for t in h]
    want = torch.autograd.grad(srmsnorm.rstd(*leaves), leaves, v)
    split = [distribute_tensor(t, mesh, [LAST]).requires_grad_() for t in h]
    with collectives(REDUCE):
        r = srmsnorm.rstd(*split)
    for gradient, expected in ((distribute_tensor(v, mesh, [R]), []), (pieces(mesh, 5), [REDUCE])):
        with collectives(*expected):
            grads = torch.autograd.grad(r, split, gradient, retain_graph=True)
        if expected:
            want = torch.autograd.grad(srmsnorm.rstd(*leaves), leaves, gradient.full_tensor())
        for grad, whole in zip(grads, want, strict=True):
            assert_placed(grad, [LAST], DOUBLE, "gradient of rstd")
            assert_close(grad.full_tensor(), whole, "gradient of rstd")


@check(2, 4)
def only_a_number_a_row_is_reduced():
    mesh = flat_mesh()
    X, G = (distribute_tensor(tensor(3, 5, DIM, dtype=BFLOAT, seed=seed), mesh, [Shard(2)]) for seed in range(2))
    reduced, right = [], split_rows.all_reduce
    split_rows.all_reduce = lambda t, *others: [reduced.append(t.shape), right(t, *others)][1]
    try:
        srmsnorm.srms_norm(X.requires_grad_()).backward(G)
    finally:
        split_rows.all_reduce = right
    assert reduced == [(3, 5), (3, 5)]


@check(2, 4)
def placements_beside_pieces():
    """(input, residual) -> (y, collectives)."""
    mesh = flat_mesh()
    (x, residual), _, _ = operands((8, DIM), Kind(DOUBLE, DOUBLE))
    for placements, placement, expected in (
        ((LAST, LAST), LAST, [REDUCE]),
        ((LAST, R), LAST, [REDUCE]),  # the replica is cut
        ((R, LAST), LAST, [REDUCE]),
        ((LAST, P), LAST, [SCATTER, REDUCE]),
        ((LAST, S), S, None),
    ):
        partial = pieces(mesh, 8, DIM)
        pair = [
            partial if p == P else distribute_tensor(t, mesh, [p])
            for t, p in zip((x, residual), placements, strict=True)
        ]
        wholes = [partial.full_tensor() if p == P else t for t, p in zip((x, residual), placements, strict=True)]
        if expected is None:
            y, total = srmsnorm.add_srms_norm(*pair)
        else:
            with collectives(*expected):
                y, total = srmsnorm.add_srms_norm(*pair)
        for actual, want in zip((y, total), srmsnorm.add_srms_norm(*wholes), strict=True):
            assert_placed(actual, [placement], DOUBLE, placements)
            assert_close(actual.full_tensor(), want, placements)


@check(4)
def a_process_outside_the_mesh():
    mesh = DeviceMesh("cpu", [1, 2])
    x = tensor(3, DIM)
    y, total = srmsnorm.add_srms_norm(*(distribute_tensor(t, mesh, [LAST]) for t in (x, x)))
    assert y.placements == total.placements == (LAST,) and y.shape == x.shape
    columns = DIM // 2 if mesh.get_coordinate() is not None else 0
    assert y.to_local().numel() == total.to_local().numel() == 3 * columns


@check(2, 4)
def others_gather():
    """Beside a gate. In place nothing is redistributed: in_place_refuses_what_it_would_redistribute."""
    x, gate = tensor(4, DIM), tensor(4, DIM, seed=1)
    X, GATE = (distribute_tensor(t, flat_mesh(), [LAST]) for t in (x, gate))
    with collectives(GATHER, GATHER):
        z = srmsnorm.gated_srms_norm(X, GATE)
    assert_is(z, [R], srmsnorm.gated_srms_norm(x, gate))


@check(2, 4)
def eps_and_extremes_of_pieces():
    """What one process computes, of rows that have their faults in one piece."""
    mesh = flat_mesh()
    x = tensor(6, DIM, dtype=FLOAT)
    x[0, 3], x[1, 40], x[2], x[3], x[4] = torch.nan, torch.inf, 0, x[3] * 2.0**100, x[4] * 2.0**-60
    X, G = distribute_tensor(x, mesh, [LAST]), distribute_tensor(torch.ones(6, DIM), mesh, [LAST])
    for eps in (None, 0.0, 1.0, 1e-3, None):
        leaf = x.clone().requires_grad_()
        whole = srmsnorm.srms_norm(leaf, eps=eps)
        y = srmsnorm.srms_norm(X.detach().requires_grad_(), eps=eps)
        assert y.placements == (LAST,)
        torch.testing.assert_close(y.full_tensor(), whole, rtol=1e-5, atol=1e-7, equal_nan=True)
    (grad,) = torch.autograd.grad(srmsnorm.srms_norm(leaf), leaf, torch.ones(6, DIM))
    X = X.detach().requires_grad_()
    (split,) = torch.autograd.grad(srmsnorm.srms_norm(X), X, G)
    assert torch.equal(split.full_tensor().isfinite(), grad.isfinite())


@check(2, 4)
def second_derivatives_of_pieces():
    for dim in (DIM, 5, 1):
        found = []
        for place in (lambda t: t, lambda t: distribute_tensor(t, flat_mesh(), [LAST])):
            x, residual, g, gh = (place(tensor(4, dim, seed=seed)).requires_grad_() for seed in range(4))
            y, total = srmsnorm.add_srms_norm(x, residual, eps=EPS)
            first = torch.autograd.grad((y, total), (x, residual), (g, gh), create_graph=True)
            second = torch.autograd.grad(first, (x, residual, g, gh), [t.detach() for t in (gh, g)])
            found.append([*first, *second])
        for whole, actual in zip(*found, strict=True):
            assert_close(actual.full_tensor(), whole, f"derivative of {dim} columns")


@check(2)
def compiled_pieces():
    def step(x, residual):
        y, total = srmsnorm.add_srms_norm(x, residual, eps=EPS)
        return y * 2, total, srmsnorm.rstd(x.detach(), eps=EPS)

    mesh, found = flat_mesh(), []
    for run in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        h, g, gh = operands((4, 7), Kind(BFLOAT, FLOAT))
        leaves = [distribute_tensor(t, mesh, [LAST]).requires_grad_() for t in h]
        outputs = run(*leaves)
        grads = torch.autograd.grad(outputs[:2], leaves, [distribute_tensor(t, mesh, [LAST]) for t in (g, gh)])
        found.append([*outputs, *grads])
    for eager, actual in zip(*found, strict=True):
        assert_is(actual, eager.placements, eager.full_tensor())
