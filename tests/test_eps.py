"""What eps means: inside the root, and by default what torch.nn.functional.rms_norm means."""

import pytest
import samples
import torch
import truth
from tolerances import assert_output

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
        if eps == float("inf"):
            assert (rstd == 0).all() and (rstd_truth == 0).all()


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
