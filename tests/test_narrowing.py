"""Reading 16 bits and rounding to them, pattern by pattern: exact, to nearest even, and a NaN stays one.

With grad_output and output zero and rstd one, what a backward operator returns is its grad_sum, rounded to each dtype;
with output and grad_sum zero it is grad_output."""

import pytest
import samples
import torch
from samples import BFLOAT, FLOAT, HALF

ops = torch.ops.srmsnorm
NARROW = pytest.mark.parametrize("dtype", [HALF, BFLOAT], ids=str)
DIMS = [1, 61, 79]  # of lanes and tails: patterns come to lie in all of them
ALL_BITS = torch.tensor([0x7FFFFFFF, -1, 0x7FFF8000, 0x7F800001, 0x7FC00000, 0x7FFFFFF0], dtype=torch.int32).view(FLOAT)


def narrow_patterns(dtype):
    return torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)


def wide_patterns(dtype):
    """Every number of that dtype in float32, the middle to its neighbour, and the neighbours of these in float32."""
    numbers = narrow_patterns(dtype).to(FLOAT)
    numbers = numbers[numbers.isfinite() & (numbers >= 0)].sort().values.double()
    beyond = numbers[-1] + (numbers[-1] - numbers[-2])  # where inf begins
    middles = (numbers + torch.cat([numbers[1:], beyond.view(1)])) / 2
    exact = torch.cat([numbers, middles]).to(FLOAT)
    infinity = torch.full_like(exact, torch.inf)
    near = torch.cat([exact, torch.nextafter(exact, infinity), torch.nextafter(exact, -infinity)])
    largest = torch.tensor([torch.finfo(FLOAT).max, torch.inf])
    return torch.cat([near, -near, largest, -largest, ALL_BITS])


def in_rows(patterns, dim, device):
    """As rows of that dim; the last one is filled with zeros."""
    rows = -(-len(patterns) // dim)
    return torch.cat([patterns, patterns.new_zeros(rows * dim - len(patterns))]).view(rows, dim).to(device)


def assert_same_numbers(got, want):
    want = want.to(got.device)
    same = (got == want) | (got.isnan() & want.isnan())
    assert same.all(), (got[~same][:5], want[~same][:5])


@pytest.mark.parametrize("dim", DIMS)
@NARROW
def test_rounding(device, dtype, dim):
    grad_sum = in_rows(wide_patterns(dtype), dim, device)
    zeros = torch.zeros_like(grad_sum, dtype=dtype)
    rstd = torch.ones(len(grad_sum), device=device)
    want = grad_sum.cpu().to(dtype)
    assert_same_numbers(ops._srms_norm_backward(zeros, zeros, rstd, grad_sum), want)
    narrow, wide = ops._srms_norm_backward_pair(zeros, zeros, rstd, grad_sum)
    assert_same_numbers(narrow, want)
    assert_same_numbers(wide, grad_sum)


@pytest.mark.parametrize("dim", DIMS)
@NARROW
def test_reading(device, dtype, dim):
    """A row with a NaN or an inf gives NaNs, so these patterns come in as a gradient of the sum."""
    patterns = narrow_patterns(dtype)
    finite = in_rows(patterns[patterns.isfinite()], dim, device)
    zeros, rstd = torch.zeros_like(finite), torch.ones(len(finite), device=device)
    assert_same_numbers(ops._srms_norm_backward_pair(finite, zeros, rstd)[1], finite.float())
    every = in_rows(patterns, dim, device)
    zeros, rstd = torch.zeros_like(every), torch.ones(len(every), device=device)
    assert_same_numbers(ops._srms_norm_backward_pair(zeros, zeros, rstd, every.float())[0], every)
    assert_same_numbers(ops._srms_norm_backward(zeros, zeros, rstd, every), every)


@NARROW
def test_rounding_of_the_sum(device, dtype):
    """Of two numbers of 16 bits, which come to lie between others, and past the largest."""
    input = in_rows(narrow_patterns(dtype), 61, device)
    residual = input.flatten().roll(4099).view_as(input)
    assert_same_numbers(ops.add_srms_norm(input, residual)[1], (input.cpu().float() + residual.cpu().float()).to(dtype))


@pytest.mark.parametrize("nan", ALL_BITS.view(torch.int32).tolist(), ids=lambda bits: f"{bits & 0xFFFFFFFF:08x}")
@NARROW
def test_a_nan_of_any_bits_stays_one(device, dtype, nan):
    """In a float32 residual: its whole row of y, and its place in the sum."""
    for dim in (1, 4, 16, 61):
        for place in {0, dim // 2, dim - 1}:
            input = samples.tensor((3, dim), dtype, device)
            residual = samples.tensor((3, dim), FLOAT, device, name="residual")
            residual.view(torch.int32)[1, place] = nan
            y, sum = ops.add_srms_norm(input, residual)
            assert torch.equal(sum.isnan(), residual.isnan())
            assert y[1].isnan().all() and y[::2].isfinite().all()
            rstd = ops._srms_norm(input, residual, None)[1]
            assert rstd[1].isnan() and rstd[::2].isfinite().all()
            ops.add_srms_norm_(input, residual)
            assert torch.equal(input.isnan(), y.isnan()) and torch.equal(residual.isnan(), sum.isnan())
            grads = ops._srms_norm_backward_pair(y.nan_to_num(), y.nan_to_num(), rstd, sum)
            for grad in grads:
                assert grad[1].isnan().all() and grad[::2].isfinite().all()
