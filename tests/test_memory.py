"""What is kept and what is allocated: the outputs, and one number a row where there is a backward."""

import pytest
import samples
import torch
from samples import BFLOAT, FLOAT, HALF, Kind

import srmsnorm

SHAPE = (64, 48)


def allocated(call, device):
    """(bytes, allocations) of a call whose results are kept."""
    if device == "cuda":
        return _allocated_cuda(call)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = call()
    sizes = [event.self_cpu_memory_usage for event in profile.events()]
    del kept
    assert all(size >= 0 for size in sizes), "a temporary was freed"
    return sum(sizes), sum(size > 0 for size in sizes)


def _allocated_cuda(call):
    def stats():
        stats = torch.cuda.memory_stats()
        return stats["requested_bytes.all.allocated"], stats["allocation.all.allocated"]

    before = stats()
    kept = call()
    after = stats()
    del kept
    return tuple(b - a for a, b in zip(before, after, strict=True))


def saved_by(call):
    """The tensors that autograd keeps for backward."""
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        return call(), kept


def nbytes(*tensors):
    return sum(t.numel() * t.itemsize for t in tensors)


@pytest.mark.parametrize("kind", samples.KINDS, ids=str)
def test_forward_allocates_its_outputs_only(device, kind, plain_memory):
    input, residual = samples.forward(kind, SHAPE, device)
    assert allocated(lambda: srmsnorm.srms_norm(input, residual), device) == (nbytes(input), 1)
    if residual is not None:
        assert allocated(lambda: srmsnorm.add_srms_norm(input, residual), device) == (nbytes(input, residual), 2)
        assert allocated(lambda: srmsnorm.add_srms_norm_(input, residual), device) == (0, 0)


@pytest.mark.parametrize("kind", samples.KINDS, ids=str)
def test_forward_for_backward_adds_a_number_a_row(device, kind, plain_memory):
    input, residual = samples.forward(kind, SHAPE, device)
    rstd = SHAPE[0] * (8 if kind.dtype == torch.float64 else 4)
    input.requires_grad_()
    assert allocated(lambda: srmsnorm.srms_norm(input, residual), device) == (nbytes(input) + rstd, 2)
    with torch.no_grad():
        assert allocated(lambda: srmsnorm.srms_norm(input, residual), device) == (nbytes(input), 1)


@pytest.mark.parametrize("with_grad_sum", [False, True])
@pytest.mark.parametrize("kind", samples.KINDS, ids=str)
def test_backward_allocates_the_gradients_only(device, kind, with_grad_sum, plain_memory):
    """Equal dtypes share one gradient; a wider residual has one of its own."""
    operands = [t.requires_grad_() for t in samples.forward(kind, SHAPE, device) if t is not None]
    g, gh = samples.grad_output(kind, SHAPE, device), samples.grad_sum(kind, SHAPE, device)
    if kind.residual is None:
        outputs, grads = (srmsnorm.srms_norm(*operands),), (g,)
    else:
        outputs, grads = srmsnorm.add_srms_norm(*operands), (g, gh)
    count = 1 + with_grad_sum * (kind.residual is not None)

    def backward():
        return torch.autograd.grad(outputs[:count], operands, grads[:count], retain_graph=True)

    backward()  # starts the engine
    got = allocated(backward, device)
    assert got == ((nbytes(*operands), 2) if kind in samples.MIXED else (nbytes(operands[0]), 1))


@pytest.mark.parametrize("kind", samples.KINDS, ids=str)
def test_backward_keeps_y_and_rstd(device, kind):
    operands = [t.requires_grad_() for t in samples.forward(kind, SHAPE, device) if t is not None]
    calls = [lambda: (srmsnorm.srms_norm(*operands),)]
    if kind.residual is not None:
        calls.append(lambda: srmsnorm.add_srms_norm(*operands))
    for call in calls:
        (y, *_), (kept_y, kept_rstd) = saved_by(call)
        assert kept_y.data_ptr() == y.data_ptr() and kept_y.shape == y.shape
        assert kept_rstd.shape == y.shape[:-1] and kept_rstd.dtype in (torch.float32, torch.float64)


@pytest.mark.parametrize("kind", [Kind(FLOAT), Kind(BFLOAT, BFLOAT), Kind(HALF, FLOAT)], ids=str)
def test_inputs_die_with_their_owner(device, kind):
    import weakref

    operands = [t.requires_grad_() for t in samples.forward(kind, SHAPE, device) if t is not None]
    midway = [t * 1 for t in operands]
    watched = [weakref.ref(t) for t in midway]
    y = srmsnorm.srms_norm(*midway)
    del midway
    assert all(ref() is None for ref in watched)
    y.sum().backward()


@pytest.mark.parametrize("kind", [Kind(FLOAT), Kind(BFLOAT, BFLOAT), Kind(HALF, FLOAT)], ids=str)
def test_y_modified_before_backward_is_an_error(device, kind):
    operands = [t.requires_grad_() for t in samples.forward(kind, SHAPE, device) if t is not None]
    y = srmsnorm.srms_norm(*operands)
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_inputs_and_sum_may_be_modified_before_backward(device):
    input, residual = samples.forward(Kind(FLOAT, FLOAT), SHAPE, device)
    leaves = [t.clone().requires_grad_() for t in (input, residual)]
    y, sum = srmsnorm.add_srms_norm(*leaves)
    with torch.no_grad():
        for t in (*leaves, sum):
            t.zero_()
    (grad,) = torch.autograd.grad(y, leaves[0], torch.ones_like(y))
    again = [input.requires_grad_(), residual]
    assert torch.equal(grad, torch.autograd.grad(srmsnorm.srms_norm(*again), input, torch.ones_like(y))[0])
