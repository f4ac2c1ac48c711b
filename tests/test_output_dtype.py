"""y in another dtype than the input's: the same numbers, rounded once, and gradients of the operands' dtypes."""

import copy
import pickle

import pytest
import samples
import torch
import truth
from modes import DispatchLog
from samples import BFLOAT, DOUBLE, FLOAT, HALF, OTHERS, Kind, name
from test_derivatives import assert_close_rows, leaves
from test_memory import saved_by
from tolerances import assert_backward, unit_roundoff
from torch.autograd import gradcheck, gradgradcheck

import srmsnorm
from srmsnorm import SRMSNorm, reference

ops = torch.ops.srmsnorm
EPS = 1e-3
EVERY = pytest.mark.parametrize("kind", [kind for kind in samples.KINDS if kind.dtype != DOUBLE], ids=str)
TO = [(kind, dtype) for kind in samples.KINDS for dtype in OTHERS[kind.dtype]]
CONVERSIONS = pytest.mark.parametrize(("kind", "dtype"), TO, ids=str)


def equal(a, b):
    """To the bit, but for a NaN's sign and payload."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


def both(x, stream, dtype):
    """(y, rstd, y and rstd of the norm in the input's dtype); the sum's must be the same."""
    y, rstd = ops._srms_norm(x, stream, EPS, dtype=name(dtype))
    assert equal(srmsnorm.srms_norm(x, stream, eps=EPS, dtype=dtype), y)
    own, own_rstd = ops._srms_norm(x, stream, EPS)
    if stream is not None:
        again, sum, rstd_again = ops._add_srms_norm(x, stream, EPS, dtype=name(dtype))
        assert equal(again, y) and equal(rstd_again, rstd)
        assert equal(sum, ops._add_srms_norm(x, stream, EPS)[1])
        assert all(map(equal, srmsnorm.add_srms_norm(x, stream, eps=EPS, dtype=dtype), (y, sum)))
    return y, rstd, own, own_rstd


def check(x, stream, dtype):
    """The wider of the two y, rounded, is the other one: both are rounded once, from the same number."""
    y, rstd, own, own_rstd = both(x, stream, dtype)
    assert (y.dtype, y.shape, y.device) == (dtype, x.shape, x.device)
    assert equal(rstd, own_rstd)
    if FLOAT in (dtype, x.dtype):
        narrow, wide = (own, y) if dtype == FLOAT else (y, own)
        assert equal(wide.to(narrow.dtype), narrow)
    else:
        assert equal(srmsnorm.srms_norm(x, stream, eps=EPS, dtype=FLOAT).to(dtype), y)


@pytest.mark.parametrize("shape", samples.SHAPES + samples.EMPTY_SHAPES, ids=str)
@CONVERSIONS
def test_one_rounding(device, kind, dtype, shape):
    check(*samples.forward(kind, shape, device), dtype)


@pytest.mark.parametrize("layout", samples.READABLE + samples.COPIED, ids=lambda f: f.__name__)
@CONVERSIONS
def test_layouts(device, kind, dtype, layout):
    for shape in ((3, 5, 64), (2, 3, 33), (2, 2, 1000), (1, 2, 9001)):
        check(*samples.forward(kind, shape, device, layout=layout), dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [2048, 4096, 8192, 16384, 20000, 40001, 65536, 140000, 262144, 600000])
@CONVERSIONS
def test_every_launch(kind, dtype, dim):
    for layout in (samples.contiguous, samples.misaligned, samples.padded):
        check(*samples.forward(kind, (3, dim), "cuda", layout=layout), dtype)


@CONVERSIONS
def test_faults_and_extremes(device, kind, dtype):
    x, stream = samples.forward(kind, (6, 70), device)
    x[0, 3], x[1, 5], x[2] = torch.nan, torch.inf, 0
    x[3] = torch.finfo(x.dtype).max
    x[4] = torch.finfo(x.dtype).tiny
    check(x, stream, dtype)


# ---- what is kept, and gradients


@EVERY
def test_the_own_dtype_is_none(device, kind):
    """To the bit and to what is kept."""
    operands = [t.requires_grad_() for t in samples.forward(kind, (3, 33), device) if t is not None]
    (plain, kept), (named, kept_too) = (
        saved_by(lambda dtype=dtype: srmsnorm.srms_norm(*operands, eps=EPS, dtype=dtype))
        for dtype in (None, kind.dtype)
    )
    assert equal(plain, named)
    assert same(kept[0], plain) and same(kept_too[0], named) and len(kept) == len(kept_too) == 2


def same(a, b):
    return a.data_ptr() == b.data_ptr() and a.dtype == b.dtype


@CONVERSIONS
def test_what_is_kept(device, kind, dtype):
    """y and rstd; but the input and rstd where y is wider and there is no residual."""
    operands = [t.requires_grad_() for t in samples.forward(kind, (3, 33), device) if t is not None]
    y, kept = saved_by(lambda: srmsnorm.srms_norm(*operands, eps=EPS, dtype=dtype))
    wide = kind.residual is None and dtype == FLOAT
    assert same(kept[0], operands[0] if wide else y)
    assert [t.shape for t in kept[1:]] == [(3,)]


def gradients(x, stream, dtype, g, gh=None):
    """Of every operand, by autograd, beside what float64 makes of what was kept."""
    operands = [t.detach().requires_grad_() for t in (x, stream) if t is not None]
    if gh is None:
        outputs, cotangents = [srmsnorm.srms_norm(*operands, eps=EPS, dtype=dtype)], [g]
    else:
        outputs, cotangents = srmsnorm.add_srms_norm(*operands, eps=EPS, dtype=dtype), [g, gh]
    y, rstd = ops._srms_norm(x, stream, EPS, dtype=name(dtype))
    if stream is None and dtype == FLOAT and x.dtype != FLOAT:
        y = x.double() * rstd.double().unsqueeze(-1)
    grads = torch.autograd.grad(outputs, operands, cotangents)
    return operands, grads, (truth.backward(g, y, rstd, gh), g, y, rstd, gh)


@pytest.mark.parametrize("shape", [(2, 3, 16), (4, 33), (3, 1000), (2, 2049), (2, 0, 8)], ids=str)
@CONVERSIONS
def test_gradients(device, kind, dtype, shape):
    x, stream = samples.forward(kind, shape, device)
    for layout in (samples.contiguous, samples.padded, *([samples.expanded] if 0 not in shape else [])):
        g, gh = samples.grad_output(Kind(dtype), shape, device, layout=layout), samples.grad_sum(kind, shape, device)
        for sum in (None,) if stream is None else (None, gh):
            operands, grads, expected = gradients(x, stream, dtype, g, sum)
            for operand, grad in zip(operands, grads, strict=True):
                assert (grad.dtype, grad.shape) == (operand.dtype, operand.shape)
                assert_backward(grad, *expected)


@CONVERSIONS
def test_one_kernel_for_each_gradient(kind, dtype):
    """And one for both where they share a dtype, or are a pair."""
    operands = [t.requires_grad_() for t in samples.forward(kind, (3, 33)) if t is not None]
    y = srmsnorm.srms_norm(*operands, eps=EPS, dtype=dtype)
    g = torch.ones_like(y)
    with DispatchLog() as log:
        torch.autograd.grad(y, operands, g)
    calls = [call for call in log.calls if call.namespace == "srmsnorm"]
    others = [call for call in log.calls if call.namespace != "srmsnorm" and "detach" not in str(call)]
    assert len(calls) == 1
    # From one 16-bit dtype to the other, the gradient is rounded from float32 by a pass of its own.
    assert [str(call) for call in others] == (["aten._to_copy.default"] if FLOAT not in (dtype, kind.dtype) else [])


@pytest.mark.parametrize("dtype", [HALF, BFLOAT], ids=str)
@pytest.mark.parametrize("layout", [samples.contiguous, samples.padded, samples.misaligned, samples.expanded],
                         ids=lambda f: f.__name__)  # fmt: skip
@pytest.mark.parametrize("dim", [5, 64, 1000, 2049, 9001])
def test_backward_operators(device, dim, layout, dtype):
    """A gradient beside a float32 y is the one in float32, rounded."""
    shape = (2, 3, dim)
    g, y, gh = (samples.tensor(shape, FLOAT, device, layout=layout, name=of) for of in ("g", "y", "gh"))
    rstd = samples.values((2, 3, 1), FLOAT, device)[..., 0].abs() / 64  # nothing overflows
    for sum in (None, gh):
        full = ops._srms_norm_backward_input(g, y, rstd, sum)
        narrow = ops._srms_norm_backward_input(g, y, rstd, sum, dtype=name(dtype))
        assert equal(narrow, full.to(dtype))
        assert all(map(equal, ops._srms_norm_backward_pair(g, y, rstd, sum, dtype=name(dtype)), (narrow, full)))
    x = samples.tensor(shape, dtype, device, layout=layout)
    dx = ops._srms_norm_backward_of_input(g, x, rstd)
    kept = x.double() * rstd.double().unsqueeze(-1)
    assert dx.dtype == dtype
    assert_backward(dx, truth.backward(g, kept, rstd), g, kept, rstd)


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [2048, 4096, 16384, 20000, 40001, 65536, 140000, 262144])
@pytest.mark.parametrize("dtype", [HALF, BFLOAT], ids=str)
def test_every_backward_launch(dtype, dim):
    for layout in (samples.contiguous, samples.misaligned, samples.padded):
        test_backward_operators("cuda", dim, layout, dtype)


@CONVERSIONS
def test_second_derivatives(device, kind, dtype):
    """Of what autograd makes, against float64."""
    shape = (3, 17)
    operands = [t.clamp(-3, 3) for t in samples.forward(kind, shape, device) if t is not None]
    g = samples.grad_output(Kind(dtype), shape, device).clamp(-3, 3)
    v = samples.values(shape, DOUBLE, device, name="v").clamp(-3, 3)

    def second(function, operands, g):
        operands = [t.detach().requires_grad_() for t in operands]
        g = g.detach().requires_grad_()
        first = torch.autograd.grad(function(*operands), operands, g, create_graph=True)
        return torch.autograd.grad(first, [g, *operands], [v.to(t.dtype) for t in first])

    got = second(lambda *t: srmsnorm.srms_norm(*t, eps=EPS, dtype=dtype), operands, g)
    want = second(lambda *t: reference.srms_norm(*t, eps=EPS), [t.double() for t in operands], g.double())
    worst = max((kind.dtype, dtype), key=unit_roundoff)
    for a, b, like in zip(got, want, [g, *operands], strict=True):
        assert a.dtype == like.dtype
        assert_close_rows(a.float(), b, worst)


@CONVERSIONS
def test_tangents(device, kind, dtype):
    shape = (3, 17)
    operands = [t.clamp(-3, 3) for t in samples.forward(kind, shape, device) if t is not None]
    moved = [samples.values(shape, t.dtype, device, name=f"moved {i}").clamp(-3, 3) for i, t in enumerate(operands)]
    y, got = torch.func.jvp(lambda *t: srmsnorm.srms_norm(*t, eps=EPS, dtype=dtype), tuple(operands), tuple(moved))
    wide = [tuple(t.double() for t in each) for each in (operands, moved)]
    _, want = torch.func.jvp(lambda *t: reference.srms_norm(*t, eps=EPS), *wide)
    assert y.dtype == got.dtype == dtype
    assert_close_rows(got.float(), want, dtype)


def test_float64_stays_alone(device):
    x = leaves((2, 5), device=device)
    assert gradcheck(lambda x: srmsnorm.srms_norm(x, eps=EPS, dtype=DOUBLE), x)
    assert gradgradcheck(lambda x: srmsnorm.srms_norm(x, eps=EPS, dtype=DOUBLE), x)


# ---- arguments


@pytest.mark.parametrize(("own", "asked"), [(FLOAT, DOUBLE), (DOUBLE, FLOAT), (BFLOAT, torch.int8), (HALF, torch.bool)])
def test_another_dtype(device, own, asked):
    x = torch.zeros(2, 4, dtype=own, device=device)
    for call in (srmsnorm.srms_norm, lambda x, **more: srmsnorm.add_srms_norm(x, x.clone(), **more)):
        with pytest.raises(RuntimeError, match=f"srmsnorm: dtype must be .* got {name(asked)} beside {name(own)}"):
            call(x, dtype=asked)


@pytest.mark.parametrize("wrong", ["float32", 1, float])
def test_no_dtype(wrong):
    with pytest.raises(TypeError, match=r"srmsnorm: dtype must be a torch.dtype or None, got"):
        srmsnorm.srms_norm(torch.zeros(2, 4), dtype=wrong)


def test_backward_operators_refuse():
    g, y, rstd, x = torch.zeros(2, 4), torch.zeros(2, 4), torch.ones(2), torch.zeros(2, 4, dtype=HALF)
    with pytest.raises(RuntimeError, match="pair of gradients is one of 16 bits and one in float32, got dtype float32"):
        ops._srms_norm_backward_pair(g.half(), y.half(), rstd, dtype="float32")
    with pytest.raises(RuntimeError, match="or one of both float32, got BFloat16"):
        ops._srms_norm_backward_input(g.half(), y.half(), rstd, dtype="bfloat16")
    with pytest.raises(RuntimeError, match="grad_output must be float32 beside the input of a wider output, got Half"):
        ops._srms_norm_backward_of_input(x, x, rstd)
    with pytest.raises(RuntimeError, match="input of a wider output must be float16 or bfloat16, got Float"):
        ops._srms_norm_backward_of_input(g, y, rstd)
    with pytest.raises(RuntimeError, match="rstd must have one element a row"):
        ops._srms_norm_backward_of_input(g, x, torch.ones(3))


# ---- the module


def test_module(device):
    x = samples.values((3, 16), BFLOAT, device)
    norm = SRMSNorm(16, out_dtype=FLOAT)
    assert equal(norm(x), srmsnorm.srms_norm(x, eps=1e-6, dtype=FLOAT))
    y, sum = norm(x, x, return_sum=True)
    assert (y.dtype, sum.dtype) == (FLOAT, BFLOAT)
    assert repr(norm) == "SRMSNorm(16, eps=1e-06, out_dtype=torch.float32)"
    assert repr(SRMSNorm(16)) == "SRMSNorm(16, eps=1e-06)"
    for other in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm)), torch.jit.script(norm)):
        assert equal(other(x), norm(x))
    with pytest.raises(
        ValueError, match="takes an out_dtype of float16, bfloat16, float32, float64 or None, got 'float32'"
    ):
        SRMSNorm(16, out_dtype="float32")


def test_a_module_pickled_before():
    old = SRMSNorm(4)
    state = old.__dict__.copy()
    del state["out_dtype"]
    new = SRMSNorm.__new__(SRMSNorm)
    new.__setstate__(state)
    assert equal(new(torch.ones(2, 4)), old(torch.ones(2, 4)))


# ---- compilers, transforms, subclasses


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("own", "asked"), [(BFLOAT, FLOAT), (FLOAT, BFLOAT)])
def test_compiled(device, own, asked, dynamic):
    x = samples.values((3, 16), own, device).requires_grad_()
    step = lambda x: srmsnorm.srms_norm(x, eps=EPS, dtype=asked)  # noqa: E731
    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    assert equal(compiled(x), step(x))
    g = torch.ones_like(step(x))
    assert equal(*(torch.autograd.grad(f(x), x, g)[0] for f in (compiled, step)))


def test_inlined(device):
    x = samples.values((3, 16), BFLOAT, device)
    with srmsnorm.inline_under_compile():
        y = torch.compile(lambda x: srmsnorm.srms_norm(x, eps=EPS, dtype=FLOAT), backend="aot_eager")(x)
    torch.testing.assert_close(y, srmsnorm.srms_norm(x, eps=EPS, dtype=FLOAT))


def test_one_call_for_a_batch(device):
    x = samples.values((4, 3, 16), BFLOAT, device)
    with DispatchLog() as log:
        y = torch.func.vmap(lambda x: srmsnorm.srms_norm(x, eps=EPS, dtype=FLOAT), in_dims=1, out_dims=1)(x)
    assert equal(y, srmsnorm.srms_norm(x, eps=EPS, dtype=FLOAT))
    assert [str(call) for call in log.calls if call.namespace == "srmsnorm"] == ["srmsnorm.srms_norm.default"]


def test_nested(device):
    parts = [samples.values((n, 16), BFLOAT, device, name=str(n)) for n in (2, 5)]
    x = torch.nested.nested_tensor(parts, layout=torch.jagged)
    for part, y in zip(parts, srmsnorm.srms_norm(x, eps=EPS, dtype=FLOAT).unbind(), strict=True):
        assert equal(y, srmsnorm.srms_norm(part, eps=EPS, dtype=FLOAT))


def test_autocast(device):
    """Says nothing: an operator that is not in autocast's lists takes its operands as they are."""
    x = samples.values((3, 16), BFLOAT, device)
    with torch.autocast(device, dtype=HALF):
        assert srmsnorm.srms_norm(x, dtype=FLOAT).dtype == FLOAT


def test_package(tmp_path):
    """A dtype in an exported graph is a name."""

    class Norm(torch.nn.Module):
        def forward(self, x):
            return [srmsnorm.srms_norm(x, dtype=dtype) for dtype in (None, HALF, BFLOAT, FLOAT)] + [srmsnorm.rstd(x)]

    x = samples.values((3, 16), BFLOAT)
    program = torch.export.export(Norm(), (x,))
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "package.pt2"))
    for got in (program.module()(x), torch._inductor.aoti_load_package(path)(x)):
        assert all(map(equal, got, Norm()(x)))
