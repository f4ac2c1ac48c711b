"""Values, dtypes and shapes of the forward operators against float64."""

import numpy as np
import plans
import pytest
import samples
import torch
import truth
from samples import BFLOAT, DOUBLE, FLOAT, HALF, Kind
from tolerances import BACKWARD_ROUNDINGS, FORWARD_ULP, RSTD_ULP, assert_output, assert_rstd, unit_roundoff

import srmsnorm
from srmsnorm import reference

EPS = 1e-6


def check_forward(input, residual=None, eps=EPS):
    """Every forward operator on these operands; returns y."""
    y_truth, _, rstd_truth = truth.forward(input, residual, eps)
    y = srmsnorm.srms_norm(input, residual, eps=eps)
    assert (y.dtype, y.shape, y.device) == (input.dtype, input.shape, input.device)
    assert_output(y, y_truth)
    y_again, rstd = torch.ops.srmsnorm._srms_norm(input, residual, eps)
    assert (rstd.dtype, rstd.shape) == (reference.accumulation_dtype(input.dtype), input.shape[:-1])
    assert_rstd(rstd, rstd_truth)
    assert torch.equal(y, y_again)
    if residual is not None:
        check_sum(input, residual, eps, y, rstd)
    return y


def check_sum(input, residual, eps, y, rstd):
    y_beside, sum = srmsnorm.add_srms_norm(input, residual, eps=eps)
    internal = torch.ops.srmsnorm._add_srms_norm(input, residual, eps)
    assert (sum.dtype, sum.shape, sum.device) == (residual.dtype, residual.shape, residual.device)
    expected = truth.rounded_sum(input, residual)
    for got, want in [(y_beside, y), (sum, expected), *zip(internal, (y, expected, rstd), strict=True)]:
        assert torch.equal(got, want)


def test_poison_reaches_the_operators(device):
    """The other tests rest on this: what the operators allocate is NaN until they write it."""
    assert torch.empty(3, device=device).isnan().all()
    assert torch.empty_strided((2, 2), (1, 2), device=device).isnan().all()
    input = torch.ones(2, 8, device=device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        srmsnorm.add_srms_norm(input, input)
    assert sum(event.name == "aten::fill_" for event in profile.events()) >= 2


def test_by_hand(device):
    input = torch.tensor([[3.0, 4.0], [0.0, 2.0]], device=device)
    residual = torch.tensor([[0.0, 0.0], [1.0, -1.0]], device=device)
    y, sum = srmsnorm.add_srms_norm(input, residual, eps=0.0)
    expected = torch.tensor([[3 / 12.5**0.5, 4 / 12.5**0.5], [1.0, 1.0]], device=device)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=0)
    assert torch.equal(sum, torch.tensor([[3.0, 4.0], [1.0, 1.0]], device=device))


@pytest.mark.parametrize("shape", samples.SHAPES + samples.EMPTY_SHAPES, ids=str)
@pytest.mark.parametrize("kind", samples.KINDS, ids=str)
def test_against_float64(device, kind, shape):
    check_forward(*samples.forward(kind, shape, device))


@pytest.mark.parametrize("kind", samples.KINDS, ids=str)
def test_reference(kind):
    """The definition in plain PyTorch has the accuracy it asks for."""
    input, residual = samples.forward(kind, (7, 129))
    assert_output(reference.srms_norm(input, residual, eps=EPS), truth.forward(input, residual, EPS)[0])
    if residual is not None:
        y, sum = reference.add_srms_norm(input, residual, eps=EPS)
        assert torch.equal(y, reference.srms_norm(input, residual, eps=EPS))
        assert torch.equal(sum, truth.rounded_sum(input, residual))


@pytest.mark.parametrize("kind", samples.KINDS, ids=str)
def test_some_plan_boundaries_on_the_cpu(kind):
    for dim in plans.around(kind, limit=20_000)[::7]:
        check_forward(*samples.forward(kind, (2, dim)))


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("kind", samples.KINDS, ids=str)
def test_every_plan_boundary(cuda, kind, aligned):
    layout = samples.contiguous if aligned else samples.misaligned
    for dim in plans.around(kind, aligned=aligned)[:: 4 if kind.dtype == HALF else 1]:  # float16 has bfloat16's plans
        check_forward(*samples.forward(kind, (3, dim), cuda, layout=layout))


@pytest.mark.parametrize("kind", samples.KINDS, ids=str)
def test_every_small_dim(device, kind):
    for dim in [*range(1, 80), *range(80, 1100, 61)]:
        check_forward(*samples.forward(kind, (5, dim), device))


@pytest.mark.parametrize("kind", samples.KINDS, ids=str)
def test_every_number_of_rows(device, kind):
    """A block takes several short rows: every count of rows left over."""
    for rows in [*range(1, 40), 63, 65, 127, 129, 255, 257, 1023, 4099]:
        for dim in (1, 24) if device == "cpu" else (1, 8, 24, 33, 43, 200):
            check_forward(*samples.forward(kind, (rows, dim), device))


@pytest.mark.parametrize("dim", [70_001, 150_000, 2**20, 2**20 + 1])
@pytest.mark.parametrize("kind", [Kind(BFLOAT, FLOAT), Kind(FLOAT), Kind(FLOAT, FLOAT), Kind(DOUBLE)], ids=str)
def test_wide_rows(device, kind, dim):
    if device == "cpu" and dim in (150_000, 2**20):
        pytest.skip("others have as many vectors or more, and a rest")
    check_forward(*samples.forward(kind, (2, dim), device))


@pytest.mark.parametrize("shape", [(3, 1), (5, 3), (4, 33), (3, 1000), (2, 8191), (1, 70_001)], ids=str)
def test_float64_in_extended_precision(device, shape):
    if np.finfo(np.longdouble).eps > 1e-18:
        pytest.skip("needs an extended long double")
    for residual in (None, torch.zeros(shape, dtype=DOUBLE, device=device)):
        input = samples.tensor(shape, DOUBLE, device)
        expected = truth.forward_extended(input, EPS)
        got = srmsnorm.srms_norm(input, residual, eps=EPS).cpu().numpy()
        assert (np.abs(got - expected) <= 1e-15 * np.abs(expected)).all()


@pytest.mark.parametrize("dim", [2**20, 2**20 + 7])
def test_long_rows_add_no_error(device, dim):
    """The length of a row costs no accuracy: a plain sum of these squares loses each, and all together are 4e-14."""
    if np.finfo(np.longdouble).eps > 1e-18:
        pytest.skip("needs an extended long double")
    input = torch.full((1, dim), 0.2, dtype=DOUBLE, device=device)
    input[0, 0] = 2.0**30
    x = input.cpu().numpy().astype(np.longdouble)
    mean = (x * x).mean(-1, keepdims=True)
    y, rstd = torch.ops.srmsnorm._srms_norm(input, None, 0.0)
    assert (np.abs(rstd.cpu().numpy() * np.sqrt(mean[:, 0]) - 1) <= RSTD_ULP * np.finfo(np.float64).eps).all()
    assert (np.abs(y.cpu().numpy() * np.sqrt(mean) / x - 1) <= FORWARD_ULP * np.finfo(np.float64).eps).all()
    grad = torch.ops.srmsnorm._srms_norm_backward(input, input, torch.ones(1, dtype=DOUBLE, device=device))
    error, size = np.abs(grad.cpu().numpy() - (x - x * mean)), x + x * mean
    assert (error <= BACKWARD_ROUNDINGS * unit_roundoff(DOUBLE) * size).all()


@pytest.mark.parametrize("kind", [Kind(HALF, HALF), Kind(BFLOAT, BFLOAT)], ids=str)
def test_sum_is_not_rounded_before_the_norm(device, kind):
    """input is lost from a 16-bit sum, but y shows it."""
    shape = (2, 64)
    residual = torch.ones(shape, dtype=kind.dtype, device=device)
    input = torch.full(shape, torch.finfo(kind.dtype).eps / 4, dtype=kind.dtype, device=device)
    input[:, 0] = 16.0
    small = check_forward(input, residual)
    assert_output(small, truth.forward(input, residual, EPS)[0])
    # Alternating halves of an ulp: a rounded sum would make all of them ties to even.
    input = samples.tensor(shape, kind.dtype, device) * torch.finfo(kind.dtype).eps / 2
    residual = samples.tensor(shape, kind.dtype, device, name="residual")
    rounded = (input.float() + residual.float()).to(kind.dtype)
    assert not torch.equal(check_forward(input, residual), srmsnorm.srms_norm(rounded, eps=EPS))


@pytest.mark.parametrize("dtype", samples.DTYPES, ids=str)
def test_zero_rows(device, dtype):
    zeros = torch.zeros(3, 24, dtype=dtype, device=device)
    assert torch.equal(srmsnorm.srms_norm(zeros, eps=EPS), zeros)
    assert torch.equal(srmsnorm.srms_norm(zeros, eps=None), zeros)
    assert srmsnorm.srms_norm(zeros, eps=0.0).isnan().all()  # 0 * inf, as in the definition


def test_extreme_values(device):
    """Squares of float16 do not overflow float32, nor are small ones lost."""
    for scale in (60_000.0, 1.0, 2.0**-14, 2.0**-24):
        check_forward(torch.full((2, 40), scale, dtype=HALF, device=device), eps=0.0)
    for scale in (1e17, 1e-16):
        check_forward(samples.tensor((3, 40), FLOAT, device) * scale, eps=0.0)
        check_forward(samples.tensor((3, 40), BFLOAT, device) * scale, eps=0.0)


def test_one_element_carries_the_row(device):
    """y is sqrt(dim) there and zero elsewhere."""
    input = torch.zeros(1, 2**20, dtype=HALF, device=device)
    input[0, 77] = 3.0
    y = srmsnorm.srms_norm(input, eps=0.0)
    assert y[0, 77] == 1024 and torch.count_nonzero(y) == 1


@pytest.mark.parametrize("kind", samples.KINDS, ids=str)
def test_autocast_casts_nothing(device, kind):
    input, residual = samples.forward(kind, (3, 33), device)
    with torch.autocast(device, dtype=BFLOAT):
        y = srmsnorm.srms_norm(input, residual, eps=EPS)
    assert y.dtype == input.dtype
    assert torch.equal(y, srmsnorm.srms_norm(input, residual, eps=EPS))


@pytest.mark.parametrize("kind", samples.KINDS, ids=str)
def test_inference_mode(device, kind):
    input, residual = samples.forward(kind, (3, 33), device)
    expected = srmsnorm.srms_norm(input, residual, eps=EPS)
    with torch.inference_mode():
        inside = samples.forward(kind, (3, 33), device)
        for operands in ((input, residual), inside):
            y = srmsnorm.srms_norm(*operands, eps=EPS)
            assert y.is_inference() and torch.equal(y, expected)


@pytest.mark.parametrize("kind", samples.WITH_RESIDUAL, ids=str)
@pytest.mark.parametrize("shape", [(5, 3), (4, 33), (2, 2, 500), (0, 8)], ids=str)
def test_in_place(device, kind, shape):
    input, residual = samples.forward(kind, shape, device)
    y, sum = srmsnorm.add_srms_norm(input, residual, eps=EPS)
    versions = input._version, residual._version
    assert srmsnorm.add_srms_norm_(input, residual, eps=EPS) is None
    assert torch.equal(input, y) and torch.equal(residual, sum)
    assert (input._version, residual._version) == (versions[0] + 1, versions[1] + 1)


def test_second_device(cuda):
    """The operands' device is used, whichever is current."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    input, residual = samples.forward(Kind(FLOAT, FLOAT), (4, 33), "cuda:1")
    y, sum = srmsnorm.add_srms_norm(input, residual)
    assert y.device == sum.device == input.device and torch.cuda.current_device() == 0
    assert torch.equal(y.cpu(), srmsnorm.srms_norm(input.to(cuda), residual.to(cuda)).cpu())


def test_negated_views(device):
    """A lazily negated tensor (the imaginary part of a conjugate) is read with its sign."""
    input = torch.randn(3, 8, dtype=torch.complex64, device=device).conj().imag
    assert input.is_neg()
    residual = samples.tensor((3, 8), FLOAT, device)
    y, sum = srmsnorm.add_srms_norm(input, residual)
    y_expected, sum_expected = srmsnorm.add_srms_norm(input.resolve_neg().contiguous(), residual)
    assert torch.equal(y, y_expected) and torch.equal(sum, sum_expected)


def test_operators_and_functions_agree(device):
    input, residual = samples.forward(Kind(BFLOAT, FLOAT), (3, 33), device)
    assert torch.equal(torch.ops.srmsnorm.srms_norm(input), srmsnorm.srms_norm(input))
    pairs = zip(torch.ops.srmsnorm.add_srms_norm(input, residual), srmsnorm.add_srms_norm(input, residual), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
