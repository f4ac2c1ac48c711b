"""Derivatives of every order and mode, of the forward and of the backward operators."""

import functools

import pytest
import samples
import torch
import torch.autograd.forward_ad as forward_ad
from samples import BFLOAT, DOUBLE, FLOAT, HALF, Kind
from torch.autograd import gradcheck, gradgradcheck

import srmsnorm
from srmsnorm import reference

EPS = 1e-3
ops = torch.ops.srmsnorm


def leaves(*shapes, device="cpu"):
    """Small numbers of float64 that need gradients, the same every time."""
    return tuple(
        samples.values(shape, DOUBLE, device, name=str(i)).clamp(-3, 3).requires_grad_()
        for i, shape in enumerate(shapes)
    )


SHAPE = (2, 5)
X, G = SHAPE, SHAPE  # the shapes of a row operand
R = SHAPE[:-1]
FUNCTIONS = {
    "srms_norm": (lambda x: srmsnorm.srms_norm(x, eps=EPS), (X,)),
    "srms_norm with residual": (lambda x, s: srmsnorm.srms_norm(x, s, eps=EPS), (X, X)),
    "add_srms_norm": (lambda x, s: srmsnorm.add_srms_norm(x, s, eps=EPS), (X, X)),
    "_srms_norm": (lambda x: ops._srms_norm(x, None, EPS), (X,)),
    "_srms_norm with residual": (lambda x, s: ops._srms_norm(x, s, EPS), (X, X)),
    "_add_srms_norm": (lambda x, s: ops._add_srms_norm(x, s, EPS), (X, X)),
    "_srms_norm_backward_input": (lambda g, y, r: ops._srms_norm_backward_input(g, y, r), (G, X, R)),
    "_srms_norm_backward_input with sum": (lambda g, y, r, s: ops._srms_norm_backward_input(g, y, r, s), (G, X, R, X)),
    "_srms_norm_backward": (lambda g, y, r, s: ops._srms_norm_backward(g, y, r, s, dtype=DOUBLE), (G, X, R, X)),
    "rstd": (lambda x: srmsnorm.rstd(x, eps=EPS), (X,)),
    "rstd with residual": (lambda x, s: srmsnorm.rstd(x, s, eps=EPS), (X, X)),
    "_scale_rows": (lambda x, r: ops._scale_rows(x, None, r), (X, R)),
    "_scale_rows with all": (lambda x, s, r, f: ops._scale_rows(x, s, r, f), (X, X, R, R)),
}
EVERY = pytest.mark.parametrize("name", FUNCTIONS)


ON_THE_GPU = ("_add_srms_norm", "_srms_norm_backward_input with sum")  # the wiring knows no device


def skip_most_on_the_gpu(name, device):
    if device == "cuda" and name not in ON_THE_GPU:
        pytest.skip("checked on the CPU")


@EVERY
def test_gradcheck(device, name):
    skip_most_on_the_gpu(name, device)
    function, shapes = FUNCTIONS[name]
    modes = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(function, leaves(*shapes, device=device), **modes)


@EVERY
def test_gradgradcheck(device, name):
    skip_most_on_the_gpu(name, device)
    function, shapes = FUNCTIONS[name]
    operands = leaves(*shapes, device=device)
    assert gradgradcheck(function, operands, check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize(
    ("name", "position"), [(name, i) for name in FUNCTIONS for i in range(len(FUNCTIONS[name][1]))]
)
def test_gradcheck_of_one_operand(name, position):
    """The others are constants."""
    function, shapes = FUNCTIONS[name]
    operands = [t.detach() for t in leaves(*shapes)]
    operands[position].requires_grad_()
    assert gradcheck(function, operands, check_forward_ad=True)
    assert gradgradcheck(function, operands, check_fwd_over_rev=True)


@pytest.mark.parametrize("shape", [(5,), (1, 1), (2, 1, 3), (1, 40)], ids=str)
def test_gradcheck_of_other_shapes(shape):
    for name in ("_srms_norm", "_add_srms_norm"):
        function, shapes = FUNCTIONS[name]
        operands = leaves(*([shape] * len(shapes)))
        assert gradcheck(function, operands, check_forward_ad=True)
        assert gradgradcheck(function, operands, check_fwd_over_rev=True)


def test_zero_row(device):
    """The formulas hold there too: nothing is divided by a row's size."""
    zeros = torch.zeros(2, 4, dtype=DOUBLE, device=device, requires_grad=True)
    assert gradcheck(lambda x: ops._srms_norm(x, None, EPS), zeros, check_forward_ad=True)
    assert gradgradcheck(lambda x: srmsnorm.srms_norm(x, eps=EPS), zeros, check_fwd_over_rev=True)


def test_strided_operands(device):
    """Of a packed tensor, with an expanded gradient."""
    packed = samples.values((2, 3, 6), DOUBLE, device).requires_grad_()
    function = lambda t: srmsnorm.add_srms_norm(t[..., 2:4], t[..., 1:5:2], eps=EPS)  # noqa: E731
    assert gradcheck(function, packed, check_forward_ad=True)
    assert gradgradcheck(function, packed, check_fwd_over_rev=True)
    assert gradgradcheck(lambda t: srmsnorm.srms_norm(t, eps=EPS).sum(), packed)


# ---- dtypes that gradcheck cannot take: against the reference in float64

MEASURED = [Kind(FLOAT), Kind(FLOAT, FLOAT), Kind(BFLOAT), Kind(BFLOAT, BFLOAT), *samples.MIXED]


def first_and_second(function, operands, cotangents, seconds):
    """Gradients, and gradients of a product of these with fixed vectors, of every operand and cotangent."""
    operands = [t.detach().requires_grad_() for t in operands]
    cotangents = [t.detach().requires_grad_() for t in cotangents]
    outputs = function(*operands)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    firsts = torch.autograd.grad(outputs, operands, cotangents, create_graph=True)
    return [*firsts, *torch.autograd.grad(firsts, [*operands, cotangents[0]], seconds)]


def assert_close_rows(got, want, dtype):
    """Rows of second derivatives add up about ten roundings of terms that partly cancel: 16 u times the largest row."""
    assert got.dtype != DOUBLE and got.shape == want.shape
    error = torch.linalg.vector_norm(got.double() - want, dim=-1)
    size = torch.linalg.vector_norm(want, dim=-1)
    assert (error <= 8 * torch.finfo(dtype).eps * size.max()).all(), (error / size.max()).max()


@pytest.mark.parametrize("kind", MEASURED, ids=str)
def test_second_derivatives_in_other_dtypes(device, kind):
    shape = (4, 33)
    operands = [t.clamp(0.5, 2) for t in samples.forward(kind, shape, device) if t is not None]
    cotangents = [samples.grad_output(kind, shape, device).clamp(-1, 1)]
    function = functools.partial(srmsnorm.srms_norm, eps=EPS)
    plain = functools.partial(reference.srms_norm, eps=EPS)
    if kind.residual is not None:
        cotangents.append(samples.grad_sum(kind, shape, device).clamp(-1, 1))
        function, plain = (
            functools.partial(srmsnorm.add_srms_norm, eps=EPS),
            functools.partial(reference.add_srms_norm, eps=EPS),
        )
    seconds = [samples.values(shape, t.dtype, device, name=f"second {i}").clamp(-1, 1) for i, t in enumerate(operands)]
    got = first_and_second(function, operands, cotangents, seconds)
    widened = [[t.double() for t in tensors] for tensors in (operands, cotangents, seconds)]
    want = first_and_second(plain, *widened)
    for a, b, like in zip(got, want, [*operands, *operands, cotangents[0]], strict=True):
        assert a.dtype == like.dtype
        assert_close_rows(a, b, kind.dtype)


CARRIED = [(kind, (True,)) for kind in MEASURED if kind.residual is None] + [
    (kind, carries)
    for kind in MEASURED
    if kind.residual is not None
    for carries in ((True, True), (True, False), (False, True))
]


@pytest.mark.parametrize(("kind", "carries"), CARRIED, ids=str)
def test_tangents_in_other_dtypes(device, kind, carries):
    """Forward mode, with a tangent on either operand: dtypes are those of the outputs."""
    shape = (4, 33)
    operands = [t for t in samples.forward(kind, shape, device) if t is not None]
    tangents = [samples.values(shape, t.dtype, device, name=f"tangent {i}") for i, t in enumerate(operands)]

    def push(function, operands, tangents):
        with forward_ad.dual_level():
            duals = [
                forward_ad.make_dual(t, v) if on else t for t, v, on in zip(operands, tangents, carries, strict=True)
            ]
            outputs = function(*duals)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            return [forward_ad.unpack_dual(output) for output in outputs]

    operator, plain = (
        (srmsnorm.srms_norm, reference.srms_norm)
        if len(operands) == 1
        else (srmsnorm.add_srms_norm, reference.add_srms_norm)
    )
    got = push(functools.partial(operator, eps=EPS), operands, tangents)
    want = push(functools.partial(plain, eps=EPS), [t.double() for t in operands], [t.double() for t in tangents])
    for a, b in zip(got, want, strict=True):
        assert a.tangent.dtype == a.primal.dtype
        assert_close_rows(a.tangent, b.tangent, kind.dtype)


# ---- of these very operands, so that a result is as good as its own dtype: float32 beside 16 bits too


def assert_each_close(got, want):
    for a, b in zip(got, want, strict=True):
        assert_close_rows(a, b.to(DOUBLE), a.dtype)


def choices(count):
    """Each alone, and all."""
    return [*((i,) for i in range(count)), tuple(range(count))]


def pushed(function, operands, tangents, carry):
    with forward_ad.dual_level():
        given = [forward_ad.make_dual(t, tangents[i]) if i in carry else t for i, t in enumerate(operands)]
        outputs = function(*given)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return [forward_ad.unpack_dual(output).tangent.detach() for output in outputs]


def pulled(function, operands, cotangents):
    leaves = [t.detach().requires_grad_() for t in operands]
    outputs = function(*leaves)
    return torch.autograd.grad(outputs, leaves, cotangents[: len(outputs) if isinstance(outputs, tuple) else 1])


def backward_operands(kind, device):
    shape = (4, 33)
    y, rstd = ops._srms_norm(*samples.forward(kind, shape, device), EPS)
    operands = [samples.grad_output(kind, shape, device), y, rstd, samples.grad_sum(kind, shape, device)]
    return operands, [samples.values(t.shape, t.dtype, device, name=f"moved {i}") for i, t in enumerate(operands)]


def double_of(count):
    """The operator in float64, its gradient once for each result."""

    def function(*operands):
        return (ops._srms_norm_backward_input(*operands),) * count

    return function


OPERATORS = {
    "input": ops._srms_norm_backward_input,
    "residual": ops._srms_norm_backward_residual,
    "pair": ops._srms_norm_backward_pair,
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("kind", [*samples.MIXED, Kind(BFLOAT), Kind(FLOAT)], ids=str)
def test_derivatives_of_the_backward_operators(device, kind, name):
    """In both modes, with every operand alone and all, each result as good as its dtype."""
    if name != "input" and kind not in samples.MIXED:
        pytest.skip("float32 beside 16 bits alone")
    operands, moved = backward_operands(kind, device)
    wide, wide_moved = ([t.to(DOUBLE) for t in tensors] for tensors in (operands, moved))
    function, results = OPERATORS[name], 2 if name == "pair" else 1
    for carry in choices(len(operands)):
        assert_each_close(pushed(function, operands, moved, carry), pushed(double_of(results), wide, wide_moved, carry))
    dtypes = {"input": [kind.dtype], "residual": [FLOAT], "pair": [kind.dtype, FLOAT]}[name]
    v = [samples.values((4, 33), dtype, device, name=f"v {i}") for i, dtype in enumerate(dtypes)]
    want = pulled(double_of(results), wide, [t.to(DOUBLE) for t in v])
    assert_each_close(pulled(function, operands, v), want)


@pytest.mark.parametrize("carry", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("kind", samples.MIXED, ids=str)
def test_float32_tangents_beside_16_bits(device, kind, carry):
    """Of the sum and of rstd: the formula of y and rstd as they are."""
    operands = samples.forward(kind, (4, 33), device)
    tangents = [samples.values((4, 33), t.dtype, device, name=f"tangent {i}") for i, t in enumerate(operands)]
    y, _, rstd = (t.double() for t in ops._add_srms_norm(*operands, EPS))
    got = pushed(lambda x, r: ops._add_srms_norm(x, r, EPS), operands, tangents, carry)
    t = sum(tangents[i].double() for i in carry)
    assert [g.dtype for g in got] == [kind.dtype, FLOAT, FLOAT]
    assert_close_rows(got[0], rstd[:, None] * (t - y * (y * t).mean(-1, keepdim=True)), kind.dtype)
    assert_close_rows(got[1], t, FLOAT)
    assert_close_rows(got[2], -(t * y).mean(-1) * rstd.square(), FLOAT)


@pytest.mark.parametrize("kind", samples.MIXED, ids=str)
def test_float32_gradients_beside_16_bits(device, kind):
    """Of the residual, with gradients of y, of the sum and of rstd, each alone and all."""
    operands = [t.requires_grad_() for t in samples.forward(kind, (4, 33), device)]
    outputs = ops._add_srms_norm(*operands, EPS)
    y, _, rstd = (t.detach().double() for t in outputs)
    cotangents = [samples.values(t.shape, t.dtype, device, name=f"cotangent {i}") for i, t in enumerate(outputs)]
    g, gh, v = (t.double() for t in cotangents)
    r = rstd[:, None]
    parts = [r * (g - y * (y * g).mean(-1, keepdim=True)), gh, -v[:, None] * r.square() * y / 33]
    for given in choices(3):
        got = torch.autograd.grad(
            [outputs[i] for i in given], operands, [cotangents[i] for i in given], retain_graph=True
        )
        for grad, dtype in zip(got, (kind.dtype, FLOAT), strict=True):
            assert grad.dtype == dtype
            assert_close_rows(grad, sum(parts[i] for i in given), dtype)


@pytest.mark.parametrize("kind", samples.MIXED, ids=str)
def test_float32_is_projected_before_it_is_rounded(device, kind):
    """Beside 16 bits, a tangent of the residual and a cotangent of its gradient: almost all of it along y, which the
    projection takes away, and what is left lies below the last bit of 16."""
    operands = samples.forward(kind, (4, 33), device)
    y, _, rstd = ops._add_srms_norm(*operands, 0.0)
    v = 1024 * y.float() + samples.values((4, 33), FLOAT, device, name="v").clamp(-1, 1)
    Y, V = y.double(), v.double()
    want = rstd.double()[:, None] * (V - Y * (Y * V).mean(-1, keepdim=True))
    (got, _) = pushed(lambda x, r: srmsnorm.add_srms_norm(x, r, eps=0.0), operands, (None, v), (1,))
    assert got.dtype == kind.dtype
    assert_close_rows(got, want, kind.dtype)
    g = samples.grad_output(kind, (4, 33), device).requires_grad_()
    (got,) = torch.autograd.grad(ops._srms_norm_backward_residual(g, y, rstd), g, v)
    assert got.dtype == kind.dtype
    assert_close_rows(got, want, kind.dtype)


@pytest.mark.parametrize("dtype", [HALF, BFLOAT, FLOAT], ids=str)
def test_gradient_of_rstd_alone(device, dtype):
    """Public calls never ask for it; second derivatives do."""
    input = samples.tensor((4, 33), dtype, device).requires_grad_()
    rstd = ops._srms_norm(input, None, EPS)[1]
    (got,) = torch.autograd.grad(rstd.sum(), input)
    wide = input.detach().double().requires_grad_()
    (want,) = torch.autograd.grad((wide.square().mean(-1) + EPS).rsqrt().sum(), wide)
    assert got.dtype == dtype
    assert_close_rows(got, want, dtype)


def test_third_order(device):
    (x,) = leaves(SHAPE, device=device)
    results = []
    for norm in (srmsnorm.srms_norm, reference.srms_norm):
        value = norm(x, eps=EPS).pow(3).sum()
        for _ in range(3):
            (value,) = torch.autograd.grad(value.sin().sum(), x, create_graph=True)
        results.append(value)
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-8)
