"""The norm beside a gate: values, dtypes and shapes of the forward and the backward operators against float64."""

import plans
import pytest
import samples
import torch
import truth
from samples import BFLOAT, DOUBLE, FLOAT, HALF, Kind
from tolerances import assert_gated, assert_gated_gradients, gated_bounds, unit_roundoff

import srmsnorm
from srmsnorm import reference

EPS = 1e-6
ops = torch.ops.srmsnorm
GATES = pytest.mark.parametrize("options", samples.GATES, ids=lambda o: f"{o['activation']}-{o['norm_before_gate']}")
EVERY = pytest.mark.parametrize("kind", samples.GATED, ids=str)


def check_forward(input, gate, options, eps=EPS):
    """Both forward operators on these operands; returns (z, rstd)."""
    z = srmsnorm.gated_srms_norm(input, gate, **options, eps=eps)
    assert (z.dtype, z.shape, z.device) == (input.dtype, input.shape, input.device)
    again, rstd = ops._gated_srms_norm(input, gate, **options, eps=eps)
    assert (rstd.dtype, rstd.shape) == (reference.accumulation_dtype(input.dtype), input.shape[:-1])
    assert torch.equal(z, again)
    assert_gated(z, rstd, input, gate, **options, eps=eps)
    return z, rstd


def check_backward(g, input, gate, rstd, options):
    """Every backward operator on these operands; returns the two gradients."""
    pair = ops._gated_srms_norm_backward(g, input, gate, rstd, **options)
    for grad, operand in zip(pair, (input, gate), strict=True):
        assert (grad.dtype, grad.shape, grad.device) == (operand.dtype, operand.shape, operand.device)
    assert_gated_gradients(pair, g, input, gate, rstd, **options)
    assert torch.equal(ops._gated_srms_norm_backward_input(g, input, gate, rstd, **options), pair[0])
    assert torch.equal(ops._gated_srms_norm_backward_gate(g, input, gate, rstd, **options), pair[1])
    return pair


def check(kind, shape, device, options, *, layout=samples.contiguous):
    """Forward, and backward of what it keeps."""
    input, gate = samples.gated(kind, shape, device, layout=layout)
    _, rstd = check_forward(input, gate, options)
    check_backward(samples.grad_output(kind, shape, device, layout=layout), input, gate, rstd, options)


def rotated(options, values):
    """Each value with one activation and order after the other, beginning with these."""
    start = samples.GATES.index(options)
    return [(value, samples.GATES[(start + i) % len(samples.GATES)]) for i, value in enumerate(values)]


# ---- values


def test_by_hand(device):
    input = torch.tensor([[3.0, 4.0]], device=device)
    gate = torch.tensor([[2.0, -1.0]], device=device)
    z = srmsnorm.gated_srms_norm(input, gate, eps=0.0)
    torch.testing.assert_close(z, torch.tensor([[6.0, -4.0]], device=device) / 12.5**0.5, rtol=1e-6, atol=0)
    z = srmsnorm.gated_srms_norm(input, gate, norm_before_gate=False, eps=0.0)
    torch.testing.assert_close(z, torch.tensor([[6.0, -4.0]], device=device) / 26**0.5, rtol=1e-6, atol=0)
    zeros = torch.zeros_like(gate)
    z = srmsnorm.gated_srms_norm(input, zeros, activation="sigmoid", eps=0.0)
    torch.testing.assert_close(z, input / 12.5**0.5 / 2, rtol=1e-6, atol=0)
    assert not srmsnorm.gated_srms_norm(input, zeros, activation="silu").any()


@GATES
@pytest.mark.parametrize("shape", samples.SHAPES + samples.EMPTY_SHAPES, ids=str)
@EVERY
def test_against_float64(device, kind, shape, options):
    check(kind, shape, device, options)


@GATES
@EVERY
def test_gradients_against_float64(device, kind, options):
    """Through autograd, from exact inputs: as the operators, and what the kept rstd has lost."""
    for shape in ((3, 1), (2, 2, 33), (2, 513), (0, 8)):
        input, gate = samples.gated(kind, shape, device)
        g = samples.grad_output(kind, shape, device)
        leaves = [t.requires_grad_() for t in (input, gate)]
        grads = torch.autograd.grad(srmsnorm.gated_srms_norm(*leaves, **options, eps=EPS), leaves, g)
        assert [t.dtype for t in grads] == [input.dtype, gate.dtype]
        operands = input.detach(), gate.detach()
        rstd = truth.gated(*operands, **options, eps=EPS)[1]
        lost = (gated_bounds(*operands, **options, eps=EPS)[1] / rstd).unsqueeze(-1)
        assert_gated_gradients(grads, g, *operands, rstd, **options, rstd_error=lost)


@GATES
@EVERY
def test_reference(kind, options):
    """The definition in plain PyTorch has the accuracy it asks for."""
    input, gate = samples.gated(kind, (7, 129))
    z = reference.gated_srms_norm(input, gate, **options, eps=EPS)
    assert z.dtype == kind.dtype
    assert_gated(z, None, input, gate, **options, eps=EPS)


@EVERY
def test_names(device, kind):
    """swish is another name of silu; the operator's defaults are the function's."""
    input, gate = samples.gated(kind, (4, 33), device)
    for first in (True, False):
        named = [
            srmsnorm.gated_srms_norm(input, gate, activation=name, norm_before_gate=first) for name in ("silu", "swish")
        ]
        assert torch.equal(*named)
    rstd = torch.ones(4, dtype=reference.accumulation_dtype(kind.dtype), device=device)
    grads = [ops._gated_srms_norm_backward(input, input, gate, rstd, activation=name) for name in ("silu", "swish")]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    plain = srmsnorm.gated_srms_norm(input, gate)
    assert torch.equal(plain, ops.gated_srms_norm(input, gate))
    assert torch.equal(plain, ops.gated_srms_norm(input, gate, activation=None, norm_before_gate=True, eps=None))


# ---- sizes


@GATES
@EVERY
def test_every_small_dim(device, kind, options):
    dims = [*range(1, 80), *range(80, 1100, 61)]
    for dim, more in rotated(options, dims):
        check(kind, (5, dim), device, more)


@GATES
@EVERY
def test_every_number_of_rows(device, kind, options):
    for rows, more in rotated(options, [*range(1, 40, 1 if device == "cuda" else 5), 63, 65, 129, 257, 1023, 4099]):
        for dim in (1, 24) if device == "cpu" else (1, 8, 24, 33, 200):
            check(kind, (rows, dim), device, more)


@pytest.mark.parametrize("dim", [70_001, 2**20 + 1])
@pytest.mark.parametrize("kind", [Kind(BFLOAT), Kind(BFLOAT, FLOAT), Kind(FLOAT), Kind(DOUBLE)], ids=str)
def test_wide_rows(device, kind, dim):
    for options in samples.GATES if device == "cuda" else samples.GATES[1::3]:
        check(kind, (2, dim), device, options)


def boundaries(kind, **more):
    """Dims at which forward or backward takes another plan."""
    return sorted(
        {
            dim
            for operator in ("gated_srms_norm", "_gated_srms_norm_backward")
            for dim in plans.around(kind, operator=operator, **more)
        }
    )


@EVERY
def test_some_plan_boundaries_on_the_cpu(kind):
    for dim, options in rotated(samples.GATES[0], boundaries(kind, limit=20_000)[::19]):
        check(kind, (2, dim), "cpu", options)


@pytest.mark.parametrize("aligned", [True, False])
@EVERY
def test_every_plan_boundary(cuda, kind, aligned):
    layout = samples.contiguous if aligned else samples.misaligned
    dims = boundaries(kind, aligned=aligned)[:: 4 if kind.dtype == HALF else 1]  # float16 has bfloat16's plans
    for dim, options in rotated(samples.GATES[0], dims):
        check(kind, (3, dim), cuda, options, layout=layout)


# ---- numbers at the ends of their range


def extreme_gates(dtype, device):
    """Large, small, subnormal and zero gates, of both signs, in every row."""
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    numbers = [1e4, 1e2, 88.0, 87.0, 20.0, 17.0, 1.2784645, 1.0, 1e-4, torch.finfo(dtype).tiny, smallest, 0.0]
    return torch.tensor([*numbers, *(-n for n in numbers)], dtype=torch.float64, device=device).to(dtype).expand(4, 24)


@GATES
@EVERY
def test_extreme_gates(device, kind, options):
    """Everything within the bounds: neither an overflow of exp nor 1 - sigmoid(g) costs more than its share."""
    gate = extreme_gates(kind.residual or kind.dtype, device)
    input = samples.tensor((4, 24), kind.dtype, device).clamp(-2, 2)
    g = samples.grad_output(kind, (4, 24), device).clamp(-1, 1) / 4
    _, rstd = check_forward(input, gate, options)
    check_backward(g, input, gate, rstd, options)


@GATES
@EVERY
def test_zero_and_subnormal_rows(device, kind, options):
    gate = samples.gated(kind, (4, 24), device)[1]
    g = samples.grad_output(kind, (4, 24), device)
    smallest = torch.finfo(kind.dtype).smallest_normal * torch.finfo(kind.dtype).eps
    for value in (0.0, -0.0, smallest, 5 * smallest):
        input = torch.full((4, 24), value, dtype=kind.dtype, device=device)
        z, rstd = check_forward(input, gate, options, eps=0.25)
        assert rstd.eq(2).all()
        check_backward(g, input, gate, rstd, options)
        assert value or not z.any()
    nothing = torch.zeros(4, 24, dtype=kind.dtype, device=device)
    assert srmsnorm.gated_srms_norm(nothing, gate, **options, eps=0.0).isnan().all()  # 0 * inf, as in the definition


def test_gate_first_is_normed_whatever_the_gate(device):
    """A gate of one number cancels: but for its sign, z is the norm."""
    input = samples.tensor((3, 40), FLOAT, device)
    want = truth.forward(input, None, 0.0)[0]
    for number in (-1e4, -1e-4, 1e-4, 1e4):
        z = srmsnorm.gated_srms_norm(input, torch.full_like(input, number), norm_before_gate=False, eps=0.0)
        torch.testing.assert_close(z.double(), want if number > 0 else -want, rtol=16 * unit_roundoff(FLOAT), atol=0)


# ---- modes


@EVERY
def test_autocast_casts_nothing(device, kind):
    input, gate = (t.requires_grad_() for t in samples.gated(kind, (3, 33), device))
    with torch.autocast(device, dtype=BFLOAT):
        z = srmsnorm.gated_srms_norm(input, gate, activation="silu")
        grads = torch.autograd.grad(z, (input, gate), torch.ones_like(z))
    assert torch.equal(z, srmsnorm.gated_srms_norm(input, gate, activation="silu"))
    assert [t.dtype for t in (z, *grads)] == [input.dtype, input.dtype, gate.dtype]


@EVERY
def test_inference_mode(device, kind):
    input, gate = samples.gated(kind, (3, 33), device)
    want = srmsnorm.gated_srms_norm(input, gate)
    with torch.inference_mode():
        for operands in ((input, gate), samples.gated(kind, (3, 33), device)):
            z = srmsnorm.gated_srms_norm(*operands)
            assert z.is_inference() and torch.equal(z, want)


def test_second_device(cuda):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    input, gate = samples.gated(Kind(FLOAT), (4, 33), "cuda:1")
    z = srmsnorm.gated_srms_norm(input, gate, activation="silu")
    assert z.device == input.device and torch.cuda.current_device() == 0
    assert torch.equal(z.cpu(), srmsnorm.gated_srms_norm(input.to(cuda), gate.to(cuda), activation="silu").cpu())
