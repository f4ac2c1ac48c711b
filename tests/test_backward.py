"""First derivatives: values against float64, dtypes, which gradients are asked for and which are given."""

import plans
import pytest
import samples
import torch
import truth
from samples import BFLOAT, FLOAT, HALF, Kind
from tolerances import assert_backward, assert_gradient

import srmsnorm

EPS = 1e-6
GRADIENTS = samples.PLAIN + samples.MIXED  # a residual of the input's dtype changes nothing for these operators
backward = torch.ops.srmsnorm._srms_norm_backward_input
backward_residual = torch.ops.srmsnorm._srms_norm_backward_residual
backward_pair = torch.ops.srmsnorm._srms_norm_backward_pair


def saved(kind, shape, device, *, layout=samples.contiguous):
    """What a backward call gets: (grad_output, output, rstd, grad_sum)."""
    input, residual = samples.forward(kind, shape, device)
    output, rstd = torch.ops.srmsnorm._srms_norm(input, residual, EPS)
    held = samples.tensor(shape, kind.dtype, device, layout=layout).copy_(output)
    return (
        samples.grad_output(kind, shape, device, layout=layout),
        held,
        rstd,
        samples.grad_sum(kind, shape, device, layout=layout),
    )


def check_operators(kind, g, y, rstd, grad_sum):
    """Every backward operator on these operands, with and without a gradient of the sum."""
    for gh in (None, grad_sum):
        expected = truth.backward(g, y, rstd, gh)
        grad = backward(g, y, rstd, gh)
        assert (grad.dtype, grad.shape) == (kind.dtype, y.shape)
        assert_backward(grad, expected, g, y, rstd, gh)
        if kind in samples.MIXED:
            wide = backward_residual(g, y, rstd, gh)
            assert_backward(wide, expected, g, y, rstd, gh)
            pair = backward_pair(g, y, rstd, gh)
            assert torch.equal(pair[0], grad) and torch.equal(pair[1], wide)


def gradients(kind, input, residual, g, gh, needs=(True, True)):
    """Gradients of the inputs by autograd: g of y, gh of the sum; either may be None."""
    input = input.detach().requires_grad_(needs[0])
    if residual is None:
        return torch.autograd.grad(srmsnorm.srms_norm(input, eps=EPS), input, g)
    residual = residual.detach().requires_grad_(needs[1])
    y, sum = srmsnorm.add_srms_norm(input, residual, eps=EPS)
    outputs, grads = zip(*((o, grad) for o, grad in ((y, g), (sum, gh)) if grad is not None), strict=True)
    return torch.autograd.grad(outputs, [t for t in (input, residual) if t.requires_grad], grads)


def check_gradients(kind, input, residual, g, gh):
    """Through autograd, from exact inputs: the bound that keeping a rounded y leaves."""
    y, _, rstd = truth.forward(input, residual, EPS)
    expected = truth.backward(g, y, rstd, gh)
    for grad, like in zip(gradients(kind, input, residual, g, gh), (input, residual), strict=False):
        assert grad.dtype == like.dtype and grad.shape == like.shape
        assert_gradient(grad, expected, g, kind.dtype, y, rstd, gh)


@pytest.mark.parametrize("shape", samples.SHAPES + samples.EMPTY_SHAPES, ids=str)
@pytest.mark.parametrize("kind", GRADIENTS, ids=str)
def test_operators_against_float64(device, kind, shape):
    check_operators(kind, *saved(kind, shape, device))


@pytest.mark.parametrize("shape", samples.SHAPES + samples.EMPTY_SHAPES, ids=str)
@pytest.mark.parametrize("kind", samples.KINDS, ids=str)
def test_gradients_against_float64(device, kind, shape):
    input, residual = samples.forward(kind, shape, device)
    g = samples.grad_output(kind, shape, device)
    check_gradients(kind, input, residual, g, None)
    if residual is not None:
        check_gradients(kind, input, residual, g, samples.grad_sum(kind, shape, device))


@pytest.mark.parametrize("parallel", [1.0, 10.0, 1e3])
@pytest.mark.parametrize("kind", samples.KINDS, ids=str)
def test_grad_output_parallel_to_y(device, kind, parallel):
    """g along y is projected away: what is left shows the rounding of y."""
    for dim in (24, 1000, 4096):
        input, residual = samples.forward(kind, (8, dim), device)
        y = srmsnorm.srms_norm(input, residual, eps=EPS)
        g = (parallel * y.double() + samples.grad_output(kind, y.shape, device).double()).to(kind.dtype)
        check_gradients(kind, input, residual, g, None)
        rstd = torch.ops.srmsnorm._srms_norm(input, residual, EPS)[1]
        check_operators(kind, g, y, rstd, samples.grad_sum(kind, y.shape, device))


@pytest.mark.parametrize("kind", GRADIENTS, ids=str)
def test_some_plan_boundaries_on_the_cpu(kind):
    for dim in plans.around(kind, limit=20_000, operator=plans.BACKWARD)[::16]:
        check_operators(kind, *saved(kind, (2, dim), "cpu"))


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("kind", GRADIENTS, ids=str)
def test_every_plan_boundary(cuda, kind, aligned):
    layout = samples.contiguous if aligned else samples.misaligned
    dims = {
        dim
        for with_sum in (False, True)
        for dim in plans.around(kind, operator=plans.BACKWARD, grad_sum=with_sum, aligned=aligned)
    }
    for dim in sorted(dims)[:: 4 if kind.dtype == HALF else 1]:  # float16 has bfloat16's plans
        check_operators(kind, *saved(kind, (3, dim), cuda, layout=layout))


@pytest.mark.parametrize("kind", GRADIENTS, ids=str)
def test_every_small_dim(device, kind):
    for dim in [*range(1, 80), *range(80, 1100, 61)]:
        check_operators(kind, *saved(kind, (5, dim), device))


@pytest.mark.parametrize("kind", GRADIENTS, ids=str)
def test_every_number_of_rows(device, kind):
    for rows in [*range(1, 40, 1 if device == "cuda" else 3), 63, 65, 127, 129, 255, 257, 1023, 4099]:
        for dim in (1, 24) if device == "cpu" else (1, 8, 24, 33, 43, 200):
            check_operators(kind, *saved(kind, (rows, dim), device))


@pytest.mark.parametrize("dim", [70_001, 2**20, 2**20 + 1])
@pytest.mark.parametrize("kind", [Kind(BFLOAT, FLOAT), Kind(FLOAT), Kind(samples.DOUBLE)], ids=str)
def test_wide_rows(device, kind, dim):
    if device == "cpu" and dim == 2**20:
        pytest.skip("the next one has the same whole vectors, and a rest")
    check_operators(kind, *saved(kind, (2, dim), device))


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize("given", ["y", "sum", "both"])
@pytest.mark.parametrize("kind", samples.WITH_RESIDUAL, ids=str)
def test_which_gradients(device, kind, given, needs):
    """Every choice of operands that need a gradient, and of outputs that have one."""
    shape = (4, 33)
    input, residual = samples.forward(kind, shape, device)
    g = samples.grad_output(kind, shape, device) if given != "sum" else None
    gh = samples.grad_sum(kind, shape, device) if given != "y" else None
    y, rstd = torch.ops.srmsnorm._srms_norm(input, residual, EPS)
    wanted = [t for t, need in zip((input, residual), needs, strict=True) if need]
    got = gradients(kind, input, residual, g, gh, needs)
    assert [grad.dtype for grad in got] == [t.dtype for t in wanted]
    for grad in got:
        if g is None:
            assert torch.equal(grad, gh.to(grad.dtype))
        else:
            assert_backward(grad, truth.backward(g, y, rstd, gh), g, y, rstd, gh)


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize("kind", samples.WITH_RESIDUAL, ids=str)
def test_residual_without_its_sum(device, kind, needs):
    shape = (4, 33)
    input, residual = samples.forward(kind, shape, device)
    leaves = [t.detach().requires_grad_(need) for t, need in zip((input, residual), needs, strict=True)]
    g = samples.grad_output(kind, shape, device)
    y = srmsnorm.srms_norm(*leaves, eps=EPS)
    got = torch.autograd.grad(y, [t for t in leaves if t.requires_grad], g)
    assert all(torch.equal(a, b) for a, b in zip(got, gradients(kind, input, residual, g, None, needs), strict=True))


class Cut(torch.autograd.Function):
    """Hands its tensors on, and no gradients back."""

    @staticmethod
    def forward(context, *tensors):
        return tuple(t.clone() for t in tensors)

    @staticmethod
    def backward(context, *grads):
        return (None,) * len(grads)


@pytest.mark.parametrize("kind", [Kind(FLOAT, FLOAT), Kind(BFLOAT, FLOAT)], ids=str)
def test_neither_output_has_a_gradient(device, kind):
    """The norm's node runs, is given nothing, and gives nothing; so does its double backward."""
    leaves = [t.requires_grad_() for t in samples.forward(kind, (4, 33), device)]
    used = lambda tensors: sum(t.float().sum() for t in (*Cut.apply(*tensors), *leaves))  # noqa: E731
    outputs = srmsnorm.add_srms_norm(*leaves, eps=EPS)
    reached = []
    outputs[0].grad_fn.register_hook(lambda after, before: reached.append((after, before)))
    assert all(grad.eq(1).all() for grad in torch.autograd.grad(used(outputs), leaves))
    assert reached == [((None, None), (None, None, None))]

    y = srmsnorm.srms_norm(*leaves, eps=EPS)
    firsts = torch.autograd.grad(y, leaves, samples.grad_output(kind, (4, 33), device), create_graph=True)
    assert all(grad.eq(1).all() for grad in torch.autograd.grad(used(firsts), leaves))


def test_one_tensor_as_both_operands(device):
    kind, shape = Kind(FLOAT, FLOAT), (4, 33)
    input = samples.tensor(shape, FLOAT, device).requires_grad_()
    g, gh = samples.grad_output(kind, shape, device), samples.grad_sum(kind, shape, device)
    outputs = srmsnorm.add_srms_norm(input, input, eps=EPS)
    (grad,) = torch.autograd.grad(outputs, input, (g, gh))
    half = gradients(kind, input, input, g, gh)
    assert torch.equal(grad, half[0] + half[1])


def test_gradients_accumulate(device):
    """Both operands get the one tensor where dtypes allow: no .grad may write into the other."""
    input, residual = (t.requires_grad_() for t in samples.forward(Kind(FLOAT, FLOAT), (4, 33), device))
    for _ in range(3):
        y, sum = srmsnorm.add_srms_norm(input, residual, eps=EPS)
        torch.autograd.backward((y, sum), (torch.ones_like(y), torch.ones_like(sum)))
        (2 * input).sum().backward()
    once = gradients(Kind(FLOAT, FLOAT), input, residual, torch.ones_like(input), torch.ones_like(input))[0]
    assert torch.equal(residual.grad, once + once + once)
    torch.testing.assert_close(input.grad, residual.grad + 6)
    input.grad.zero_()
    assert torch.equal(residual.grad, once + once + once)


@pytest.mark.parametrize("layout", [*samples.READABLE, *samples.COPIED], ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("kind", [Kind(BFLOAT, FLOAT), Kind(FLOAT, FLOAT), Kind(HALF)], ids=str)
def test_gradients_of_any_layout(device, kind, layout):
    """Expanded and strided gradients, as sum() and slices send them."""
    shape = (3, 4, 17)
    input, residual = samples.forward(kind, shape, device)
    g = samples.grad_output(kind, shape, device, layout=layout)
    gh = samples.grad_sum(kind, shape, device, layout=layout) if residual is not None else None
    got = gradients(kind, input, residual, g, gh)
    want = gradients(kind, input, residual, g.contiguous(), gh if gh is None else gh.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_gradient_of_a_plain_sum(device):
    """sum() sends one number, all strides 0."""
    input = samples.tensor((4, 33), FLOAT, device).requires_grad_()
    srmsnorm.srms_norm(input, eps=EPS).sum().backward()
    ones = gradients(Kind(FLOAT), input, None, torch.ones(4, 33, device=device), None)[0]
    assert torch.equal(input.grad, ones)


def test_autocast_backward(device):
    input = samples.tensor((4, 33), FLOAT, device).requires_grad_()
    with torch.autocast(device, dtype=BFLOAT):
        y = srmsnorm.srms_norm(input, eps=EPS)
        y.pow(2).sum().backward()
    assert y.dtype == FLOAT and input.grad.dtype == FLOAT


def test_output_of_no_grad_has_no_history(device):
    input = samples.tensor((4, 33), FLOAT, device).requires_grad_()
    with torch.no_grad():
        assert not srmsnorm.srms_norm(input).requires_grad
    y, sum = srmsnorm.add_srms_norm(input, input.detach())
    assert y.requires_grad and sum.requires_grad and y.grad_fn is sum.grad_fn


def test_backward_twice(device):
    """Freed graphs raise PyTorch's usual error, kept ones give the same again."""
    input = samples.tensor((4, 33), FLOAT, device).requires_grad_()
    y = srmsnorm.srms_norm(input, eps=EPS)
    g = torch.ones_like(y)
    first = torch.autograd.grad(y, input, g, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(y, input, g)[0], first)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, input, g)
