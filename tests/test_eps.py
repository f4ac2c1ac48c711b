"""What eps means: inside the root, and by default what torch.nn.functional.rms_norm means."""

import pytest
import samples
import torch
import truth
from tolerances import assert_output, assert_rstd

import srmsnorm
from srmsnorm import reference

# Mean squares near the accumulation type's epsilon: another eps, or one outside the root, changes every digit.
SCALES = {samples.HALF: 2.0**-12, samples.BFLOAT: 2.0**-12, samples.FLOAT: 2.0**-12, samples.DOUBLE: 2.0**-26}


def tiny(dtype, device):
    return samples.tensor((6, 48), dtype, device) * SCALES[dtype]


@pytest.mark.parametrize("dtype", samples.DTYPES, ids=str)
def test_none_is_that_of_rms_norm(device, dtype):
    input = tiny(dtype, device)
    got = srmsnorm.srms_norm(input)
    assert_output(torch.nn.functional.rms_norm(input, (48,)), truth.forward(input, None, None)[0])
    assert_output(got, truth.forward(input, None, None)[0])
    assert torch.equal(got, srmsnorm.srms_norm(input, eps=reference.default_eps(dtype)))
    assert not torch.equal(got, srmsnorm.srms_norm(input, eps=2 * reference.default_eps(dtype)))


@pytest.mark.parametrize("kind", samples.WITH_RESIDUAL, ids=str)
def test_none_with_a_residual(device, kind):
    """The input's dtype decides, also beside a wider residual."""
    input, residual = tiny(kind.dtype, device), tiny(kind.dtype, device).to(kind.residual) / 3
    assert_output(srmsnorm.srms_norm(input, residual), truth.forward(input, residual, None)[0])
    y, _ = srmsnorm.add_srms_norm(input, residual)
    assert torch.equal(y, srmsnorm.srms_norm(input, residual, eps=reference.default_eps(kind.dtype)))


@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-8, 1e-6, 1e-5, 1e-3, 1.0, 100.0, float("inf")])
@pytest.mark.parametrize("dtype", samples.DTYPES, ids=str)
def test_values(device, dtype, eps):
    for input in (tiny(dtype, device), samples.tensor((6, 48), dtype, device)):
        y_truth, _, rstd_truth = truth.forward(input, None, eps)
        y, rstd = torch.ops.srmsnorm._srms_norm(input, None, eps)
        assert_output(y, y_truth)
        assert_rstd(rstd, rstd_truth)


FORMULA = torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse1)  # of devices without a kernel
EXTREMES = [0.0, -0.0, 5e-324, 1e-320, 1e-50, 1e-45, 1e-40, 1e-38, 3e38, 1e39, 1e300, float("inf")]


@pytest.mark.parametrize("eps", EXTREMES)
@pytest.mark.parametrize("dtype", samples.DTYPES, ids=str)
def test_rounded_to_the_accumulation_type_first(device, dtype, eps):
    """Too small for it is 0, NaN for a row of zeros; too large is infinity, 0 for every row. The same everywhere."""
    rounded = truth.rounded_eps(eps, dtype)
    zeros, rows = torch.zeros(2, 48, dtype=dtype, device=device), samples.tensor((6, 48), dtype, device)
    nested = torch.nested.nested_tensor([zeros[:1], zeros[1:]], layout=torch.jagged)
    y, rstd = torch.ops.srmsnorm._srms_norm(zeros, None, eps)
    stream = zeros.clone(), zeros.clone()
    srmsnorm.add_srms_norm_(*stream, eps=eps)
    for got in (
        y,
        srmsnorm.srms_norm(zeros, eps=eps),
        srmsnorm.add_srms_norm(zeros, zeros, eps=eps)[0],
        srmsnorm.SRMSNorm(48, eps=eps)(zeros),
        srmsnorm.srms_norm(nested, eps=eps).values(),
        torch.func.vmap(lambda row: srmsnorm.srms_norm(row, eps=eps))(zeros),
        torch.ops.srmsnorm.srms_norm.default.redispatch(FORMULA, zeros, None, eps=eps),
        reference.srms_norm(zeros, eps=eps),
        stream[0],
    ):
        assert torch.equal(got.nan_to_num(nan=1.0), torch.full_like(zeros, float(rounded == 0)))
    want = torch.full_like(rstd.double(), abs(rounded)).rsqrt()
    torch.testing.assert_close(rstd.double(), want, rtol=4 * torch.finfo(rstd.dtype).eps, atol=0)
    y_truth = truth.forward(rows, None, eps)[0]
    for got in (
        srmsnorm.srms_norm(rows, eps=eps),
        torch.ops.srmsnorm.srms_norm.default.redispatch(FORMULA, rows, None, eps=eps),
    ):
        assert_output(got, y_truth)
        assert torch.equal(got == 0, reference.srms_norm(rows, eps=eps) == 0)
    assert torch.equal(srmsnorm.srms_norm(rows, eps=eps), srmsnorm.srms_norm(rows, eps=rounded))


@pytest.mark.parametrize("eps", [1e-50, 1e39])
def test_rounded_in_compiled_code(device, eps, plain_memory):
    """The operator, and the formula in its place."""
    zeros = torch.zeros(2, 48, device=device)
    for inlined in (False, True):
        torch._dynamo.reset()
        with srmsnorm.inline_under_compile(inlined):
            compiled = torch.compile(lambda x: srmsnorm.srms_norm(x, eps=eps), fullgraph=True, backend="inductor")
            assert compiled(zeros).isnan().all() == (eps == 1e-50)


def bad_calls(device, eps):
    x, r = samples.values((3, 8), samples.FLOAT, device), samples.values((3, 8), samples.FLOAT, device)
    nested = torch.nested.nested_tensor([x], layout=torch.jagged)
    ops = torch.ops.srmsnorm
    for call in (
        srmsnorm.add_srms_norm,
        srmsnorm.add_srms_norm_,
        srmsnorm.srms_norm,
        torch.func.vmap(srmsnorm.srms_norm),
    ):
        yield lambda call=call: call(x, r, eps=eps)
    yield lambda: srmsnorm.srms_norm(nested, eps=eps)
    yield lambda: ops._srms_norm(x, None, eps)
    yield lambda: ops._add_srms_norm(x, r, eps)
    yield lambda: ops.srms_norm.default.redispatch(FORMULA, x, None, eps=eps)
    yield lambda: srmsnorm.srms_norm(x.to("meta"), eps=eps)
    yield lambda: srmsnorm.gated_srms_norm(x, r, eps=eps)
    yield lambda: srmsnorm.gated_srms_norm(nested, nested, eps=eps)
    yield lambda: torch.func.vmap(srmsnorm.gated_srms_norm)(x, r, eps=eps)
    yield lambda: ops._gated_srms_norm(x, r, eps=eps)


@pytest.mark.parametrize("eps", [-5e-324, -1e-50, -1.0, float("-inf"), float("nan")])
def test_negative_or_nan(device, eps):
    """Also one that would round to -0, which itself is 0."""
    for call in bad_calls(device, eps):
        with pytest.raises(RuntimeError, match="srmsnorm: eps must not be negative or NaN, got (-|nan)"):
            call()


@pytest.mark.parametrize("dtype", samples.DTYPES, ids=str)
def test_zero_makes_every_row_a_unit_row(device, dtype):
    y = srmsnorm.srms_norm(samples.tensor((6, 48), dtype, device), eps=0.0)
    mean_square = y.double().square().mean(-1)
    torch.testing.assert_close(mean_square, torch.ones_like(mean_square), rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", [samples.FLOAT, samples.DOUBLE], ids=str)
def test_gradient_where_eps_counts(device, dtype):
    """No division by a row's size: y = 0 gives g * eps^-1/2."""
    zeros = torch.zeros(3, 8, dtype=dtype, device=device, requires_grad=True)
    g = samples.values((3, 8), dtype, device)
    (grad,) = torch.autograd.grad(srmsnorm.srms_norm(zeros, eps=0.25), zeros, g)
    assert torch.equal(grad, 2 * g)


def test_module_default():
    assert srmsnorm.SRMSNorm(8).eps == 1e-6
    input = tiny(samples.FLOAT, "cpu")
    assert torch.equal(srmsnorm.SRMSNorm(48)(input), srmsnorm.srms_norm(input, eps=1e-6))
    assert torch.equal(srmsnorm.SRMSNorm(48, eps=None)(input), srmsnorm.srms_norm(input))
