"""torch.func: every transform and nesting gives what plain PyTorch gives, in one call of the operator."""

from functools import partial

import pytest
import samples
import torch
from samples import BFLOAT, DOUBLE, FLOAT, Kind
from torch.func import grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.utils._pytree import tree_leaves, tree_map

import srmsnorm
from srmsnorm import reference

EPS = 1e-3
ops = torch.ops.srmsnorm


def norm(x, residual=None):
    return srmsnorm.srms_norm(x, residual, eps=EPS)


def add_norm(x, residual):
    return srmsnorm.add_srms_norm(x, residual, eps=EPS)


def plain_norm(x, residual=None):
    return reference.srms_norm(x, residual, eps=EPS)


def plain_add_norm(x, residual):
    return reference.add_srms_norm(x, residual, eps=EPS)


def loss(function):
    def total(*args):
        return sum((i + 1) * o.pow(3).sum() for i, o in enumerate(tree_leaves(function(*args))))

    return total


@pytest.fixture
def same(device):
    """same(f, *shapes): f(norm, add_norm, *tensors) and the same of the reference agree."""

    def check(function, *shapes):
        tensors = [samples.values(s, DOUBLE, device, name=str(i)).clamp(-3, 3) for i, s in enumerate(shapes)]
        got = tree_leaves(function(norm, add_norm, *tensors))
        want = tree_leaves(function(plain_norm, plain_add_norm, *tensors))
        assert len(got) == len(want) > 0
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)

    return check


S = (3, 5)
TRANSFORMS = {
    "grad": lambda n, a, x, r, v: (grad(loss(n))(x), grad(loss(n), (0, 1))(x, r), grad(loss(a), (0, 1))(x, r)),
    "grad of one": lambda n, a, x, r, v: (grad(loss(a), 0)(x, r), grad(loss(a), 1)(x, r), grad(loss(n), 1)(x, r)),
    "vjp": lambda n, a, x, r, v: vjp(a, x, r)[1]((v, r)),
    "jvp": lambda n, a, x, r, v: (jvp(n, (x,), (v,)), jvp(n, (x, r), (v, x)), jvp(a, (x, r), (v, x))),
    "jvp of one": lambda n, a, x, r, v: (jvp(lambda z: a(z, r), (x,), (v,)), jvp(lambda z: a(x, z), (r,), (v,))),
    "linearize": lambda n, a, x, r, v: linearize(a, x, r)[1](v, x),
    "jacrev": lambda n, a, x, r, v: jacrev(a, (0, 1))(x, r),
    "jacfwd": lambda n, a, x, r, v: jacfwd(a, (0, 1))(x, r),
    "hessian": lambda n, a, x, r, v: (hessian(loss(n))(x), hessian(loss(a), (0, 1))(x, r)),
    "hessian, reverse over reverse": lambda n, a, x, r, v: jacrev(jacrev(loss(a), (0, 1)), (0, 1))(x, r),
    "hessian, forward over forward": lambda n, a, x, r, v: jacfwd(jacfwd(loss(a), (0, 1)), (0, 1))(x, r),
    "hessian, reverse over forward": lambda n, a, x, r, v: jacrev(jacfwd(loss(a), (0, 1)), (0, 1))(x, r),
    "third order": lambda n, a, x, r, v: jacrev(jacrev(grad(loss(n))))(x),
    "third order, mixed": lambda n, a, x, r, v: jacfwd(jacrev(grad(loss(a))))(x, r),
    "grad of jvp": lambda n, a, x, r, v: grad(lambda z: loss(lambda q: jvp(n, (q,), (v,))[1])(z))(x),
    "jvp of jvp": lambda n, a, x, r, v: jvp(lambda z: jvp(n, (z,), (v,))[1], (x,), (r,)),
    "jvp of jvp, both": lambda n, a, x, r, v: jvp(lambda p, q: jvp(a, (p, q), (v, x))[1], (x, r), (r, v)),
    "jvp of grad": lambda n, a, x, r, v: jvp(grad(loss(a), (0, 1)), (x, r), (v, x)),
    "grad of grad": lambda n, a, x, r, v: grad(lambda z: grad(loss(a))(z, r).pow(2).sum())(x),
    "vjp of vjp": lambda n, a, x, r, v: vjp(lambda z: vjp(n, z)[1](v)[0], x)[1](r),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transform(same, name):
    same(TRANSFORMS[name], S, S, S)


B = (2, 3, 5)
VMAPS = {
    "front": lambda n, a, x, r: (vmap(n)(x), vmap(n)(x, r), vmap(a)(x, r)),
    "every dim": lambda n, a, x, r: [vmap(n, in_dims=i, out_dims=o)(x) for i in (0, 1, 2, -1) for o in (0, 1, -1)],
    "different dims": lambda n, a, x, r: vmap(a, in_dims=(0, 1))(x, r.movedim(0, 1)),
    "one batched": lambda n, a, x, r: (vmap(a, in_dims=(0, None))(x, r[0]), vmap(a, in_dims=(None, 0))(x[0], r)),
    "chunks": lambda n, a, x, r: vmap(a, chunk_size=1)(x, r),
    "rows": lambda n, a, x, r: vmap(vmap(a))(x, r),
    "nested, crossed": lambda n, a, x, r: vmap(vmap(a, in_dims=(0, None)), in_dims=(None, 0))(x[0], r[:, 0]),
    "nested, crossed the other way": lambda n, a, x, r: vmap(vmap(a, in_dims=(None, 0)), in_dims=(0, None))(
        x[:, 0], r[0]
    ),
    "nested, last dims": lambda n, a, x, r: vmap(vmap(n, in_dims=-1, out_dims=-1), in_dims=1, out_dims=1)(x),
    "three deep": lambda n, a, x, r: vmap(vmap(vmap(a)))(x[None], r[None]),
    "inner only": lambda n, a, x, r: vmap(lambda p: vmap(n, in_dims=(None, 0))(p, r[0]))(x[:, 0]),
    "of grad": lambda n, a, x, r: vmap(grad(loss(a), (0, 1)))(x, r),
    "of grad, one batched": lambda n, a, x, r: (
        vmap(grad(loss(a), (0, 1)), in_dims=(0, None))(x, r[0]),
        vmap(grad(loss(a), (0, 1)), in_dims=(None, 0))(x[0], r),
    ),
    "grad of": lambda n, a, x, r: grad(loss(vmap(a)), (0, 1))(x, r),
    "grad of, one batched": lambda n, a, x, r: grad(loss(vmap(a, in_dims=(0, None))), (0, 1))(x, r[0]),
    "of jvp": lambda n, a, x, r: vmap(lambda p, q: jvp(a, (p, q), (q, p)))(x, r),
    "of jvp, one tangent batched": lambda n, a, x, r: vmap(lambda v: jvp(n, (x[0],), (v,))[1])(r),
    "jvp of": lambda n, a, x, r: jvp(vmap(a), (x, r), (r, x)),
    "of vjp": lambda n, a, x, r: vmap(lambda g: vjp(n, x[0])[1](g))(r),
    "of vjp of two": lambda n, a, x, r: vmap(lambda g: vjp(a, x[0], r[0])[1]((g, x[1])))(r),
    "of hessian": lambda n, a, x, r: vmap(hessian(loss(n)))(x),
    "of grad of vmap": lambda n, a, x, r: vmap(grad(loss(vmap(a)), (0, 1)))(x, r),
    "grad of vmap of grad": lambda n, a, x, r: grad(lambda p: vmap(grad(loss(a)))(p, r).pow(2).sum())(x),
    "of jvp of vmap": lambda n, a, x, r: vmap(lambda p, q: jvp(vmap(n), (p,), (q,)))(x, r),
    "of jvp of grad": lambda n, a, x, r: vmap(lambda p, q: jvp(grad(loss(n)), (p,), (q,)))(x, r),
}


@pytest.mark.parametrize("name", VMAPS)
def test_vmap(same, name):
    same(VMAPS[name], B, B)


@pytest.mark.parametrize("batched", range(1, 16))
def test_vmap_of_the_backward_operator(device, batched):
    """Every choice of operands with a batch dimension."""
    shapes = (S, S, S[:-1], S)
    in_dims = tuple(i % 2 if batched >> i & 1 else None for i in range(4))
    operands = [
        samples.values(s, DOUBLE, device, name=str(i))
        if d is None
        else samples.values((2, *s), DOUBLE, device, name=str(i)).movedim(0, d)
        for i, (s, d) in enumerate(zip(shapes, in_dims, strict=True))
    ]
    got = vmap(ops._srms_norm_backward, in_dims=in_dims)(*operands)
    for k in range(2):
        one = [t if d is None else t.select(d, k) for t, d in zip(operands, in_dims, strict=True)]
        torch.testing.assert_close(got[k], ops._srms_norm_backward(*one), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [Kind(BFLOAT, FLOAT), Kind(FLOAT, FLOAT)], ids=str)
def test_vmap_of_every_operator(device, kind):
    """Batched as a loop would, bit for bit: rows are rows."""
    for name, args, kwargs in samples.calls(kind, (2, 3, 16), device):
        if name != "add_srms_norm_":
            in_dims = tuple(0 if isinstance(arg, torch.Tensor) else None for arg in args)
            got = vmap(partial(getattr(ops, name), **kwargs), in_dims=in_dims)(*args)
            for a, b in zip(tree_leaves(got), tree_leaves(getattr(ops, name)(*args, **kwargs)), strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize("kind", [*samples.MIXED, Kind(FLOAT, FLOAT), Kind(BFLOAT, BFLOAT)], ids=str)
def test_other_dtypes(device, kind):
    """torch.func gives what autograd gives, in the operands' dtypes, alone and for each of a batch."""
    x, r = samples.forward(kind, (2, 3, 16), device)
    total = loss(add_norm)
    leaves = x.clone().requires_grad_(), r.clone().requires_grad_()
    want = torch.autograd.grad(total(*leaves), leaves)
    gradients = grad(total, (0, 1))
    for got in (gradients(x, r), vmap(gradients)(x, r), vmap(vmap(gradients))(x, r)):
        for a, b in zip(got, want, strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b)
    primals, tangents = jvp(add_norm, (x, r), (r.to(x.dtype), x.to(r.dtype)))
    assert [t.dtype for t in tangents] == [t.dtype for t in primals] == [x.dtype, r.dtype]
    batched = vmap(lambda p, q, u, v: jvp(add_norm, (p, q), (u, v))[1])(x, r, r.to(x.dtype), x.to(r.dtype))
    assert all(torch.equal(a, b) for a, b in zip(batched, tangents, strict=True))


def test_the_slow_path_is_an_error():
    """The tests here rest on it (see conftest.py)."""

    @torch.library.custom_op("srmsnorm_tests::without_a_rule", mutates_args=())
    def without_a_rule(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    with pytest.raises(RuntimeError, match="vmap fallback"):
        vmap(without_a_rule)(torch.ones(2, 3))


FORWARD, WITH_SUM, BACKWARD = "srmsnorm::_srms_norm", "srmsnorm::_add_srms_norm", "srmsnorm::_srms_norm_backward_input"
COUNTED = {
    "every batch dim": (lambda x, r: [vmap(norm, in_dims=i)(x) for i in (0, 1, 2)], ["srmsnorm::srms_norm"] * 3),
    "nested": (lambda x, r: vmap(vmap(norm))(x, r), ["srmsnorm::srms_norm"]),
    "one batched": (
        lambda x, r: (vmap(add_norm, in_dims=(0, None))(x, r[0]), vmap(add_norm, in_dims=(None, 1))(x[:, 0], r)),
        ["srmsnorm::add_srms_norm"] * 2,
    ),
    "nested, crossed": (
        lambda x, r: vmap(vmap(add_norm, in_dims=(0, None)), in_dims=(None, 0))(x[:, 0], r[:, 0]),
        ["srmsnorm::add_srms_norm"],
    ),
    "gradients": (lambda x, r: vmap(grad(loss(add_norm), (0, 1)))(x, r), [WITH_SUM, BACKWARD]),
    "gradients, one batched": (
        lambda x, r: vmap(grad(loss(norm), (0, 1)), in_dims=(1, None))(x, r[:, 0]),
        [FORWARD, BACKWARD],
    ),
    "gradients, nested": (lambda x, r: vmap(vmap(grad(loss(norm))))(x, r), [FORWARD, BACKWARD]),
    "vjp of many": (lambda x, r: vmap(vjp(norm, x[0])[1])(r), [FORWARD, BACKWARD]),
    "tangents": (lambda x, r: vmap(lambda v: jvp(norm, (x[0],), (v,))[1])(r), [FORWARD, BACKWARD]),
    "jacobian": (lambda x, r: jacrev(norm)(x[0, 0]), [FORWARD, BACKWARD]),
}


@pytest.mark.parametrize("name", COUNTED)
def test_one_call_for_a_batch(device, name, plain_memory):
    """The kernel runs once, whatever is batched: counted where nothing of ours is called any more."""
    function, expected = COUNTED[name]
    x, r = (samples.values((4, 3, 16), FLOAT, device, name=name) for name in "xr")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function(x, r)
    assert [event.name for event in profile.events() if _is_ours(event) and not _leads_to_ours(event)] == expected


def _is_ours(event):
    return event.name.startswith("srmsnorm::")


def _leads_to_ours(event):
    return any(_is_ours(child) or _leads_to_ours(child) for child in event.cpu_children)


def test_vmap_in_place(device):
    x, r = samples.forward(Kind(FLOAT, FLOAT), (2, 3, 16), device)
    want = add_norm(x, r)
    vmap(lambda p, q: srmsnorm.add_srms_norm_(p, q, eps=EPS) or p)(x, r)
    assert torch.equal(x, want[0]) and torch.equal(r, want[1])
    for in_dims in ((0, None), (None, 0)):
        operands = [t if d == 0 else t[0] for t, d in zip((x, r), in_dims, strict=True)]
        with pytest.raises(RuntimeError, match="batched"):
            vmap(lambda p, q: srmsnorm.add_srms_norm_(p, q) or p, in_dims=in_dims)(*operands)


def test_grad_refuses_in_place(device):
    """Nothing is differentiated through it, and nobody gets a stale gradient."""
    r = samples.values(S, FLOAT, device)

    def function(x):
        y = x * 1
        srmsnorm.add_srms_norm_(y, r.clone())
        return y.sum()

    with pytest.raises(RuntimeError, match="requires grad"):
        grad(function)(samples.values(S, FLOAT, device))
    with pytest.raises(RuntimeError, match="forward gradient"):
        jvp(function, (samples.values(S, FLOAT, device),), (samples.values(S, FLOAT, device),))


def test_per_sample_gradients_of_a_model(device):
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), srmsnorm.SRMSNorm(8), torch.nn.Linear(8, 1)).to(device).double()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def one(parameters, x):
        return torch.func.functional_call(model, parameters, (x,)).sum()

    x = samples.values((5, 4), DOUBLE, device)
    got = vmap(grad(one), in_dims=(None, 0))(parameters, x)
    for i in range(5):
        want = grad(one)(parameters, x[i])
        tree_map(lambda a, b: torch.testing.assert_close(a[i], b), got, want)  # noqa: B023
