"""The norm beside a gate: derivatives of every order and mode, torch.func's transforms, and no gradient that nobody
asked for."""

from functools import partial

import pytest
import samples
import torch
import torch.autograd.forward_ad as forward_ad
from modes import DispatchLog
from samples import BFLOAT, DOUBLE, FLOAT, Kind
from test_derivatives import assert_close_rows, choices, leaves, pulled
from test_gated import EVERY, GATES
from test_transforms import _is_ours, _leads_to_ours, loss
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._pytree import tree_leaves

import srmsnorm
from srmsnorm import reference

EPS = 1e-3
ops = torch.ops.srmsnorm
SHAPE = (2, 5)
PAIR, INPUT, GATE = (
    ops._gated_srms_norm_backward.default,
    ops._gated_srms_norm_backward_input.default,
    ops._gated_srms_norm_backward_gate.default,
)
FORWARD = [SHAPE, SHAPE]
BACKWARD = [SHAPE, SHAPE, SHAPE, SHAPE[:-1]]
OPERATORS = {
    "public": (lambda options: partial(srmsnorm.gated_srms_norm, **options, eps=EPS), FORWARD),
    "with rstd": (lambda options: partial(ops._gated_srms_norm, **options, eps=EPS), FORWARD),
    "pair": (lambda options: partial(ops._gated_srms_norm_backward, **options), BACKWARD),
    "input": (lambda options: partial(ops._gated_srms_norm_backward_input, **options), BACKWARD),
    "gate": (lambda options: partial(ops._gated_srms_norm_backward_gate, **options), BACKWARD),
}
NAMES = pytest.mark.parametrize("name", OPERATORS)


def operator(name, options):
    make, shapes = OPERATORS[name]
    return make(options), shapes


# ---- in float64


@GATES
@NAMES
def test_gradcheck(device, name, options):
    if device == "cuda" and name != "pair":
        pytest.skip("the wiring knows no device")
    function, shapes = operator(name, options)
    operands = leaves(*shapes, device=device)
    modes = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(function, operands, **modes)


@GATES
@NAMES
def test_gradgradcheck(name, options):
    function, shapes = operator(name, options)
    assert gradgradcheck(function, leaves(*shapes), check_fwd_over_rev=True, check_batched_grad=True)


@GATES
@pytest.mark.parametrize(("name", "position"), [(n, i) for n in OPERATORS for i in range(len(OPERATORS[n][1]))])
def test_gradcheck_of_one_operand(name, position, options):
    """The others are constants."""
    function, shapes = operator(name, options)
    operands = [t.detach() for t in leaves(*shapes)]
    operands[position].requires_grad_()
    assert gradcheck(function, operands, check_forward_ad=True)
    assert gradgradcheck(function, operands)


@GATES
def test_zero_rows_and_gates(options):
    """Nothing is divided by a row's size, or by a gate."""
    for zero in (0, 1):
        operands = list(leaves((2, 4), (2, 4)))
        operands[zero] = torch.zeros(2, 4, dtype=DOUBLE, requires_grad=True)
        function = operator("with rstd", options)[0]
        assert gradcheck(function, operands, check_forward_ad=True)
        assert gradgradcheck(function, operands)


@GATES
def test_strided_operands(options):
    """Halves of one projection, the gate from every other element."""
    packed = samples.values((2, 3, 6), DOUBLE).requires_grad_()
    function = lambda t: srmsnorm.gated_srms_norm(t[..., :2], t[..., 2::2], **options, eps=EPS)  # noqa: E731
    assert gradcheck(function, packed, check_forward_ad=True)
    assert gradgradcheck(function, packed)


@GATES
def test_third_order(options):
    x, gate = leaves(SHAPE, SHAPE)
    results = []
    for norm in (srmsnorm.gated_srms_norm, reference.gated_srms_norm):
        value = norm(x, gate, **options, eps=EPS).pow(3).sum()
        for _ in range(3):
            value = sum(t.sin().sum() for t in torch.autograd.grad(value, (x, gate), create_graph=True))
        results.append(torch.autograd.grad(value, (x, gate)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


# ---- in other dtypes, against the same operators in float64 and the same operands


def pushed(function, operands, tangents, carry):
    """Tangents of the results; zeros where a result does not depend on what carries one."""
    with forward_ad.dual_level():
        given = [forward_ad.make_dual(t, tangents[i]) if i in carry else t for i, t in enumerate(operands)]
        parts = [forward_ad.unpack_dual(output) for output in tree_leaves(function(*given))]
        return [torch.zeros_like(part.primal) if part.tangent is None else part.tangent.detach() for part in parts]


@GATES
@pytest.mark.parametrize("name", ["with rstd", "pair", "input", "gate"])
@pytest.mark.parametrize("kind", [Kind(FLOAT), Kind(BFLOAT), *samples.MIXED], ids=str)
def test_other_dtypes(device, kind, name, options):
    """Both modes, every operand alone and all: each result in its dtype, and as good as it."""
    shape = (4, 33)
    input, gate = (t.clamp(-3, 3) for t in samples.gated(kind, shape, device))
    operands = [input, gate]
    if OPERATORS[name][1] is BACKWARD:
        rstd = ops._gated_srms_norm(input, gate, **options, eps=EPS)[1]
        operands = [samples.grad_output(kind, shape, device).clamp(-3, 3), input, gate, rstd]
    function, wide = operator(name, options)[0], [t.to(DOUBLE) for t in operands]
    moved = [samples.values(t.shape, t.dtype, device, name=f"moved {i}").clamp(-3, 3) for i, t in enumerate(operands)]
    wide_moved = [t.to(DOUBLE) for t in moved]
    absolute = [[t.abs() for t in each] for each in (wide, wide_moved)]
    for carry in choices(len(operands)):
        got, want = pushed(function, operands, moved, carry), pushed(function, wide, wide_moved, carry)
        terms = pushed(function, *absolute, carry)  # of rstd's tangent, a sum over the row that may cancel
        for result, tangent, expected, size in zip(tree_leaves(function(*operands)), got, want, terms, strict=True):
            assert tangent.dtype == result.dtype
            if result.ndim == 1 and OPERATORS[name][1] is FORWARD:
                assert ((tangent - expected).abs() <= 8 * torch.finfo(result.dtype).eps * size.abs()).all()
            else:
                assert_close_rows(tangent, expected, result.dtype)
    results = tree_leaves(function(*operands))
    v = [samples.values(t.shape, t.dtype, device, name=f"v {i}").clamp(-3, 3) for i, t in enumerate(results)]
    for a, b, operand in zip(
        pulled(function, operands, v), pulled(function, wide, [t.to(DOUBLE) for t in v]), operands, strict=True
    ):
        assert a.dtype == operand.dtype
        if operand.ndim == 1:  # of rstd: a difference of two sums over the row, of which up to 3/4 cancels here
            torch.testing.assert_close(a.double(), b, rtol=0, atol=32 * torch.finfo(a.dtype).eps * float(b.norm()))
        else:
            assert_close_rows(a, b, operand.dtype)


@GATES
@pytest.mark.parametrize("size", [1e-13, 1e13, 1e15])
def test_rows_of_any_size(device, size, options):
    """Derivatives are made of y, never of rstd to the third power, which is 0 or infinite for rows that y is one of."""
    input, gate, *moved = (samples.values((4, 33), FLOAT, device, name=name).clamp(-3, 3) for name in "xgtuv")
    input, moved[0] = input * size, moved[0] * size

    def results(function, input, gate, moved):
        one, first = partial(function, **options, eps=0.0), tuple(moved[:2])
        pushed = jvp(one, (input, gate), first)[1]
        pulled = vjp(lambda *at: vjp(one, *at)[1](moved[2]), input, gate)[1](tuple(moved[:2]))
        return pushed, *pulled

    got = results(srmsnorm.gated_srms_norm, input, gate, moved)
    want = results(reference.gated_srms_norm, input.double(), gate.double(), [t.double() for t in moved])
    for a, b in zip(got, want, strict=True):
        assert_close_rows(a, b, FLOAT)


@GATES
def test_closed_gates(device, options):
    """Gates of -32 before the norm: rstd is about 1e14."""
    input = samples.values((4, 33), FLOAT, device).clamp(-3, 3)
    gate = samples.values((4, 33), FLOAT, device, name="gate").clamp(-3, 3) - (32 if options["activation"] else 0)
    moved = samples.values((4, 33), FLOAT, device, name="moved").clamp(-3, 3)

    def results(function, input, gate, moved):
        one = partial(function, **options, eps=0.0)
        pulled = vjp(lambda *at: vjp(one, *at)[1](moved), input, gate)[1]((moved, moved))
        return jvp(one, (input, gate), (moved, moved))[1], *pulled

    got = results(srmsnorm.gated_srms_norm, input, gate, moved)
    want = results(reference.gated_srms_norm, *(t.double() for t in (input, gate, moved)))
    for a, b in zip(got, want, strict=True):
        assert a.isfinite().all()
        assert_close_rows(a, b, FLOAT)


@EVERY
def test_tangents_share_no_storage(device, kind):
    """Nor does what happens to z in place reach them. (Of every operator: test_tangents.py.)"""
    for options in samples.GATES:
        operands = samples.gated(kind, (2, 3, 16), device)
        tangents = [samples.values(t.shape, t.dtype, device, name="tangent") for t in operands]
        kept = [t.clone() for t in tangents]
        with forward_ad.dual_level():
            z = srmsnorm.gated_srms_norm(*map(forward_ad.make_dual, operands, tangents), **options)
            own = forward_ad.unpack_dual(z).tangent.untyped_storage().data_ptr()
            assert own not in [t.untyped_storage().data_ptr() for t in (*operands, *tangents)]
            z.mul_(2)
        assert all(torch.equal(a, b) for a, b in zip(tangents, kept, strict=True))


# ---- what is asked for


@GATES
@EVERY
def test_one_gradient_of_two(device, kind, options, plain_memory):
    """Its operator alone, and the bits of the call that wants both."""
    operands = [t.requires_grad_() for t in samples.gated(kind, (4, 16), device)]
    g = samples.grad_output(kind, (4, 16), device)

    def asked(z, which):
        with DispatchLog() as log:
            got = torch.autograd.grad(z, [operands[i] for i in which], g, retain_graph=True)
        return got, [call for call in log.calls if "srmsnorm" in str(call)]

    z = srmsnorm.gated_srms_norm(*operands, **options)
    both, called = asked(z, (0, 1))
    assert called == [PAIR]
    for i, single in enumerate((INPUT, GATE)):
        (got,), called = asked(z, (i,))
        assert called == [single] and torch.equal(got, both[i])
        alone = [t if k == i else t.detach() for k, t in enumerate(operands)]
        (got,), called = asked(srmsnorm.gated_srms_norm(*alone, **options), (i,))
        assert called == [single] and torch.equal(got, both[i])


class Cut(torch.autograd.Function):
    """Hands a tensor on, and no gradient back."""

    @staticmethod
    def forward(context, tensor):
        return tensor.clone()

    @staticmethod
    def backward(context, grad):
        return None


@GATES
def test_no_gradient(device, options):
    """The node runs, is given nothing, and gives nothing; so do those of second order."""
    operands = [t.requires_grad_() for t in samples.gated(Kind(BFLOAT, FLOAT), (4, 33), device)]
    rest = lambda: sum(t.float().sum() for t in operands)  # noqa: E731
    z = srmsnorm.gated_srms_norm(*operands, **options)
    assert all(grad.eq(1).all() for grad in torch.autograd.grad(Cut.apply(z).sum() + rest(), operands))
    for wanted in (operands, operands[:1], operands[1:]):
        z = srmsnorm.gated_srms_norm(*operands, **options)
        firsts = torch.autograd.grad(z, wanted, samples.grad_output(Kind(BFLOAT), (4, 33), device), create_graph=True)
        total = sum(Cut.apply(t).float().sum() for t in firsts) + rest()
        assert all(grad.eq(1).all() for grad in torch.autograd.grad(total, operands))


def test_expanded_gradients(device):
    """As sum() sends them: one number, all strides 0; and a gate's gradient that sums over what was expanded."""
    input, gate = (t.requires_grad_() for t in samples.gated(Kind(FLOAT), (4, 33), device))
    for options in samples.GATES:
        z = srmsnorm.gated_srms_norm(input, gate, **options)
        got = torch.autograd.grad(z.sum(), (input, gate), retain_graph=True)
        want = torch.autograd.grad(z, (input, gate), torch.ones_like(z))
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    row = gate.detach()[:1].clone().requires_grad_()
    (got,) = torch.autograd.grad(srmsnorm.gated_srms_norm(input, row.expand(4, 33)).sum(), row)
    (want,) = torch.autograd.grad(reference.gated_srms_norm(input, row.expand(4, 33)).sum(), row)
    torch.testing.assert_close(got, want)


# ---- torch.func

B = (2, 3, 5)
TRANSFORMS = {
    "grad": lambda n, x, g: (grad(loss(n), (0, 1))(x, g), grad(loss(n), 0)(x, g), grad(loss(n), 1)(x, g)),
    "vjp": lambda n, x, g: vjp(n, x, g)[1](x),
    "jvp": lambda n, x, g: (jvp(n, (x, g), (g, x)), jvp(lambda t: n(x, t), (g,), (x,))),
    "jacobians": lambda n, x, g: (jacrev(n, (0, 1))(x, g), jacfwd(n, (0, 1))(x, g)),
    "hessian": lambda n, x, g: hessian(loss(n), (0, 1))(x, g),
    "hessian, reverse over reverse": lambda n, x, g: jacrev(jacrev(loss(n), (0, 1)), (0, 1))(x, g),
    "hessian, forward over forward": lambda n, x, g: jacfwd(jacfwd(loss(n), (0, 1)), (0, 1))(x, g),
    "jvp of jvp": lambda n, x, g: jvp(lambda p, q: jvp(n, (p, q), (g, x))[1], (x, g), (g, x)),
    "grad of grad": lambda n, x, g: grad(lambda p: grad(loss(n), 1)(p, g).pow(2).sum())(x),
    "vmap": lambda n, x, g: [
        vmap(n, in_dims=(i, k), out_dims=o)(x.movedim(0, i), g.movedim(0, k))
        for i, k, o in ((0, 0, 0), (1, 0, 1), (2, 1, -1), (-1, 2, 0))
    ],
    "one batched": lambda n, x, g: (vmap(n, in_dims=(0, None))(x, g[0]), vmap(n, in_dims=(None, 1))(x[:, 0], g)),
    "nested": lambda n, x, g: vmap(vmap(n))(x, g),
    "nested, crossed": lambda n, x, g: vmap(vmap(n, in_dims=(0, None)), in_dims=(None, 0))(x[0], g[:, 0]),
    "vmap of grad": lambda n, x, g: vmap(grad(loss(n), (0, 1)))(x, g),
    "vmap of grad, one batched": lambda n, x, g: vmap(grad(loss(n), (0, 1)), in_dims=(0, None))(x, g[0]),
    "grad of vmap": lambda n, x, g: grad(loss(vmap(n)), (0, 1))(x, g),
    "vmap of jvp": lambda n, x, g: vmap(lambda p, q: jvp(n, (p, q), (q, p)))(x, g),
    "vmap of hessian": lambda n, x, g: vmap(hessian(loss(n), (0, 1)))(x[:, :1], g[:, :1]),
}


@pytest.mark.parametrize("options", [samples.GATES[1], samples.GATES[5]], ids=["silu", "sigmoid first"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transform(device, name, options):
    operands = [samples.values(B, DOUBLE, device, name=n).clamp(-3, 3) for n in ("x", "g")]
    norms = [partial(norm, **options, eps=EPS) for norm in (srmsnorm.gated_srms_norm, reference.gated_srms_norm)]
    got, want = (tree_leaves(TRANSFORMS[name](norm, *operands)) for norm in norms)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("batched", range(1, 16))
def test_vmap_of_the_backward_operators(device, batched):
    """Every choice of operands with a batch dimension."""
    shapes = ((3, 5), (3, 5), (3, 5), (3,))
    in_dims = tuple(i % 2 if batched >> i & 1 else None for i in range(4))
    operands = [
        samples.values(s, DOUBLE, device, name=str(i))
        if d is None
        else samples.values((2, *s), DOUBLE, device, name=str(i)).movedim(0, d)
        for i, (s, d) in enumerate(zip(shapes, in_dims, strict=True))
    ]
    for op, options in ((PAIR, samples.GATES[1]), (INPUT, samples.GATES[4]), (GATE, samples.GATES[2])):
        got = tree_leaves(vmap(partial(op, **options), in_dims=in_dims)(*operands))
        for k in range(2):
            one = [t if d is None else t.select(d, k) for t, d in zip(operands, in_dims, strict=True)]
            for a, b in zip(got, tree_leaves(op(*one, **options)), strict=True):
                torch.testing.assert_close(a[k], b, rtol=1e-12, atol=1e-12)


KEPT, BOTH = "srmsnorm::_gated_srms_norm", "srmsnorm::_gated_srms_norm_backward"
COUNTED = {
    "nested": (lambda n, x, g: vmap(vmap(n))(x, g), ["srmsnorm::gated_srms_norm"]),
    "one batched": (lambda n, x, g: vmap(n, in_dims=(None, 1))(x[:, 0], g), ["srmsnorm::gated_srms_norm"]),
    "gradients": (lambda n, x, g: vmap(grad(loss(n), (0, 1)))(x, g), [KEPT, BOTH]),
    "the gate's": (lambda n, x, g: vmap(grad(loss(n), 1), in_dims=(0, None))(x, g[0]), [KEPT, f"{BOTH}_gate"]),
    "jacobian": (lambda n, x, g: jacrev(n)(x[0, 0], g[0, 0]), [KEPT, f"{BOTH}_input"]),
}


@pytest.mark.parametrize("name", COUNTED)
def test_one_call_for_a_batch(device, name, plain_memory):
    function, expected = COUNTED[name]
    x, g = (samples.values((4, 3, 16), FLOAT, device, name=name) for name in "xg")
    norm = partial(srmsnorm.gated_srms_norm, activation="silu")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function(norm, x, g)
    assert [event.name for event in profile.events() if _is_ours(event) and not _leads_to_ours(event)] == expected
