"""A NaN or an inf stays in its row."""

import pytest
import samples
import torch
from samples import BFLOAT, FLOAT, HALF, Kind

import srmsnorm
from srmsnorm import reference

KINDS = [Kind(HALF), Kind(BFLOAT, BFLOAT), Kind(BFLOAT, FLOAT), Kind(FLOAT, FLOAT), Kind(samples.DOUBLE)]
ROWS = 37
BAD = 16
FAULTS = [float("nan"), float("inf"), float("-inf")]


def dims(device):
    return (1, 3, 8, 33, 64, 500, 2048, 3001) + ((16_384, 65_536, 131_073, 262_144) if device == "cuda" else ())


def broken(tensor, fault):
    tensor = tensor.clone()
    tensor[BAD, tensor.shape[-1] // 2] = fault
    return tensor


def assert_neighbours(got, want):
    others = torch.arange(ROWS) != BAD
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a.cpu()[others], b.cpu()[others])
        assert b.isfinite().all()


@pytest.mark.parametrize("fault", FAULTS, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_forward(device, kind, fault):
    for dim in dims(device):
        input, residual = samples.forward(kind, (ROWS, dim), device)
        if residual is None:
            call = lambda t: torch.ops.srmsnorm._srms_norm(t, None, 1e-6)  # noqa: E731
        else:
            call = lambda t: torch.ops.srmsnorm._add_srms_norm(t, residual, 1e-6)  # noqa: B023, E731
        bad = broken(input, fault)
        got = call(bad)
        assert_neighbours(got, call(input))
        expected = reference.srms_norm(bad, residual, eps=1e-6)[BAD]
        assert torch.equal(got[0][BAD].isnan(), expected.isnan())
        assert torch.equal(got[0][BAD].nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0))


@pytest.mark.parametrize("fault", FAULTS, ids=str)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.residual], ids=str)
def test_fault_in_the_residual(device, kind, fault):
    for dim in dims(device):
        input, residual = samples.forward(kind, (ROWS, dim), device)
        bad = broken(residual, fault)
        got = srmsnorm.add_srms_norm(input, bad)
        assert_neighbours(got, srmsnorm.add_srms_norm(input, residual))
        srmsnorm.add_srms_norm_(input, bad)
        for a, b in zip((input, bad), got, strict=True):
            assert torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("where", [0, 1, 2, 3])
@pytest.mark.parametrize("fault", FAULTS[:2], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_backward(device, kind, fault, where):
    """In grad_output, output, rstd or grad_sum."""
    for dim in dims(device):
        shape = (ROWS, dim)
        output, rstd = torch.ops.srmsnorm._srms_norm(*samples.forward(kind, shape, device), 1e-6)
        operands = [samples.grad_output(kind, shape, device), output, rstd, samples.grad_sum(kind, shape, device)]
        want = torch.ops.srmsnorm._srms_norm_backward(*operands)
        operands[where] = operands[where].clone()
        operands[where][BAD] = fault
        got = torch.ops.srmsnorm._srms_norm_backward(*operands)
        assert_neighbours([got], [want])
        assert not got[BAD].isfinite().any()
