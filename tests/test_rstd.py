"""rstd alone, and rows times numbers, which is its gradient."""

import pytest
import samples
import torch
import truth
from modes import DispatchLog
from samples import BFLOAT, DOUBLE, FLOAT, HALF, Kind, name
from test_memory import allocated, nbytes, saved_by
from tolerances import assert_rstd, assert_within, ulp

import srmsnorm
from srmsnorm import reference

ops = torch.ops.srmsnorm
EPS = 1e-3
EVERY = pytest.mark.parametrize("kind", samples.KINDS, ids=str)


def check(x, stream, eps=EPS):
    """The norm's own number, to the bit."""
    r = srmsnorm.rstd(x, stream, eps=eps)
    assert (r.dtype, r.shape, r.device) == (reference.accumulation_dtype(x.dtype), x.shape[:-1], x.device)
    assert torch.equal(r, ops._srms_norm(x, stream, eps)[1])
    return r


@pytest.mark.parametrize("shape", samples.SHAPES + samples.EMPTY_SHAPES, ids=str)
@EVERY
def test_against_float64(device, kind, shape):
    x, stream = samples.forward(kind, shape, device)
    assert_rstd(check(x, stream), truth.forward(x, stream, EPS)[2])
    assert_rstd(check(x, stream, None), truth.forward(x, stream)[2])


@pytest.mark.parametrize("layout", samples.READABLE + samples.COPIED, ids=lambda f: f.__name__)
@EVERY
def test_layouts(device, kind, layout):
    for shape in ((3, 5, 64), (2, 3, 33), (2, 2, 1000), (1, 2, 9001)):
        check(*samples.forward(kind, shape, device, layout=layout))


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [2048, 4096, 8192, 16384, 20000, 40001, 65536, 140000, 262144, 600000])
@EVERY
def test_every_launch(kind, dim):
    for layout in (samples.contiguous, samples.misaligned, samples.padded):
        x, stream = samples.forward(kind, (3, dim), "cuda", layout=layout)
        r = check(x, stream)
        check_scaled(x, stream, r, r * -0.5, x.dtype)


def test_one_allocation(device, plain_memory):
    x = samples.values((64, 48), BFLOAT, device)
    assert allocated(lambda: srmsnorm.rstd(x), device) == (4 * 64, 1)


# ---- rows times numbers


def check_scaled(x, stream, scale, factor, dtype):
    """To the bit: three operations in the accumulation type, one rounding."""
    h = x.to(scale.dtype) if stream is None else x.to(scale.dtype) + stream.to(scale.dtype)
    want = h * scale.unsqueeze(-1)
    if factor is not None:
        want = want * factor.unsqueeze(-1)
    got = ops._scale_rows(x, stream, scale, factor, dtype=name(dtype))
    assert got.dtype == dtype
    assert torch.equal(got, want.to(dtype))


@pytest.mark.parametrize("layout", samples.READABLE + samples.COPIED, ids=lambda f: f.__name__)
@EVERY
def test_scaled(device, kind, layout):
    for shape in ((3, 5, 64), (2, 3, 33), (2, 2, 1000), (1, 2, 9001)):
        x, stream = samples.forward(kind, shape, device, layout=layout)
        scale = samples.values((*shape[:-1], 1), reference.accumulation_dtype(kind.dtype), device, name="scale")[..., 0]
        for factor in (None, scale.flip(0)):
            for dtype in (kind.dtype, *samples.OTHERS[kind.dtype]):
                check_scaled(x, stream, scale, factor, dtype)


# ---- gradients: dh = -dr r^3 h / dim


def gradient(x, stream, v, r):
    h = x.double() if stream is None else x.double() + stream.double()
    return -(v.double() * r.double() ** 3 / x.shape[-1]).unsqueeze(-1) * h


@pytest.mark.parametrize("shape", [(8,), (4, 33), (2, 3, 1000), (2, 0, 8)], ids=str)
@EVERY
def test_gradients(device, kind, shape):
    operands = [t.requires_grad_() for t in samples.forward(kind, shape, device) if t is not None]
    r = srmsnorm.rstd(*operands, eps=EPS)
    v = torch.linspace(-1, 2, r.numel(), device=device, dtype=r.dtype).view(r.shape)
    with DispatchLog() as log:
        grads = torch.autograd.grad(r, operands, v)
    want = gradient(operands[0], operands[1] if operands[1:] else None, v, r)
    for operand, grad in zip(operands, grads, strict=True):
        assert (grad.dtype, grad.shape) == (operand.dtype, operand.shape)
        rounded = 0.5 * ulp(want, grad.dtype) + 4 * ulp(want, r.dtype)  # h, three products of the factor, two of h
        assert_within(grad, want, rounded)
    assert len([call for call in log.calls if call.namespace == "srmsnorm"]) == len({t.dtype for t in operands})


@pytest.mark.parametrize("power", [-60, 60])
def test_rows_whose_cube_is_no_number(device, power):
    """r^3 overflows, or vanishes, where the gradient does not."""
    x = (samples.values((2, 33), FLOAT, device) * 2.0**power).requires_grad_()
    r = srmsnorm.rstd(x, eps=0.0)
    v = (2.0 ** (2 * power)) * torch.ones_like(r)
    (grad,) = torch.autograd.grad(r, x, v)
    torch.testing.assert_close(grad.double(), gradient(x, None, v, r), rtol=1e-6, atol=0)


def test_what_is_kept():
    for stream in (None, torch.ones(3, 16)):
        operands = [torch.ones(3, 16, requires_grad=True)] + ([] if stream is None else [stream])
        r, kept = saved_by(lambda operands=operands: srmsnorm.rstd(*operands))
        assert [t.data_ptr() for t in kept] == [t.data_ptr() for t in (*operands, r)]
        assert nbytes(kept[-1]) == 12


def test_scales_a_product(device):
    """What it is for."""
    x = samples.values((5, 16), FLOAT, device).requires_grad_()
    linear = torch.nn.Linear(16, 8, bias=False, device=device)
    with torch.no_grad():
        linear.weight.copy_(samples.values((8, 16), FLOAT, device, name="weight") / 8)
    late, early = (linear(x) * srmsnorm.rstd(x, eps=EPS).unsqueeze(-1), linear(srmsnorm.srms_norm(x, eps=EPS)))
    torch.testing.assert_close(late, early, rtol=1e-5, atol=1e-5)
    a, b = (torch.autograd.grad(y.sin().sum(), x, retain_graph=True)[0] for y in (late, early))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# ---- arguments, compilers, transforms


def test_refusals(device):
    x, r = torch.zeros(2, 4, device=device), torch.zeros(2, device=device)
    with pytest.raises(RuntimeError, match="residual must have the shape of input"):
        srmsnorm.rstd(x, x[:1])
    with pytest.raises(RuntimeError, match="scale must have one element a row"):
        ops._scale_rows(x, None, r[:1])
    with pytest.raises(RuntimeError, match="factor must be Float beside a Half input, got Half"):
        ops._scale_rows(x.half(), None, r, r.half())
    with pytest.raises(RuntimeError, match="dtype must be .* got float64 beside float32"):
        ops._scale_rows(x, None, r, dtype="float64")


def test_compiled(device):
    x = samples.values((3, 16), BFLOAT, device).requires_grad_()
    compiled = torch.compile(lambda x: srmsnorm.rstd(x, eps=EPS), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), srmsnorm.rstd(x, eps=EPS))
    a, b = (torch.autograd.grad(f(x).sum(), x)[0] for f in (compiled, lambda x: srmsnorm.rstd(x, eps=EPS)))
    assert torch.equal(a, b)
    with srmsnorm.inline_under_compile():
        inlined = torch.compile(lambda x: srmsnorm.rstd(x, eps=EPS), backend="aot_eager")(x)
    torch.testing.assert_close(inlined, srmsnorm.rstd(x, eps=EPS))


def test_one_call_for_a_batch(device):
    x = samples.values((4, 3, 16), HALF, device)
    with DispatchLog() as log:
        r = torch.func.vmap(lambda x: srmsnorm.rstd(x, eps=EPS), in_dims=1, out_dims=1)(x)
    assert torch.equal(r, srmsnorm.rstd(x, eps=EPS))
    assert [str(call) for call in log.calls if call.namespace == "srmsnorm"] == ["srmsnorm.rstd.default"]


def test_nested(device):
    parts = [samples.values((n, 16), FLOAT, device, name=str(n)) for n in (2, 5)]
    x = torch.nested.nested_tensor(parts, layout=torch.jagged)
    for part, r in zip(parts, srmsnorm.rstd(x, eps=EPS).unbind(), strict=True):
        assert torch.equal(r, srmsnorm.rstd(part, eps=EPS))


@pytest.mark.parametrize("kind", [Kind(DOUBLE, DOUBLE), Kind(BFLOAT, FLOAT)], ids=str)
def test_inference_and_meta(device, kind):
    x, stream = samples.forward(kind, (3, 16), device)
    with torch.inference_mode():
        assert torch.equal(srmsnorm.rstd(x, stream, eps=EPS), check(x, stream))
    meta = srmsnorm.rstd(x.to("meta"), stream.to("meta"))
    assert (meta.shape, meta.dtype) == ((3,), reference.accumulation_dtype(kind.dtype))
