"""Shapes and layouts that nobody thought of."""

import pytest
import samples
import torch
import truth
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerances import assert_backward, assert_output

import srmsnorm

quick = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
shapes = st.lists(st.integers(0, 5), max_size=5).flatmap(
    lambda leading: st.one_of(st.integers(1, 70), st.integers(1, 1500)).map(lambda dim: (*leading, dim))
)
kinds = st.sampled_from(samples.KINDS)
eps = st.one_of(st.none(), st.floats(1e-8, 10.0))


@st.composite
def strided(draw, shape, dtype, device, name):
    """A view of that shape: dimensions in any order in memory, each with a gap or none, from any offset."""
    order = draw(st.permutations(range(len(shape) - 1)))
    last = draw(st.sampled_from([False, False, False, True]))  # seldom: the last dimension is not innermost
    order = [len(shape) - 1, *order] if not last else [*order, len(shape) - 1]
    strides, step = [0] * len(shape), 1
    for dim in order:
        if dim != len(shape) - 1 and draw(st.integers(0, 7)) == 0:
            continue  # expanded
        strides[dim] = step
        step = step * max(shape[dim], 1) + draw(st.sampled_from([0, 0, 0, 1, 3, 8]))
    offset = draw(st.integers(0, 9))
    base = samples.values((offset + max(step, 1) + 1,), dtype, device, name=name)
    return base.as_strided(shape, strides, offset)


@given(data=st.data(), shape=shapes, kind=kinds, eps=eps)
@quick
def test_forward(device, data, shape, kind, eps):
    input = data.draw(strided(shape, kind.dtype, device, "input"))
    residual = None
    if kind.residual is not None:
        residual = data.draw(strided(shape, kind.residual, device, "residual"))
        sum = srmsnorm.add_srms_norm(input, residual, eps=eps)[1]
        assert torch.equal(sum, truth.rounded_sum(input, residual))
    y = srmsnorm.srms_norm(input, residual, eps=eps)
    assert y.shape == shape and y.dtype == kind.dtype
    assert_output(y, truth.forward(input, residual, eps)[0])


@given(data=st.data(), shape=shapes, kind=kinds, with_sum=st.booleans())
@quick
def test_backward(device, data, shape, kind, with_sum):
    g = data.draw(strided(shape, kind.dtype, device, "grad_output"))
    y = data.draw(strided(shape, kind.dtype, device, "output"))
    rstd_dtype = torch.float64 if kind.dtype == torch.float64 else torch.float32
    rstd = samples.values((*shape[:-1], 1), rstd_dtype, device, name="rstd")[..., 0].abs()
    gh = data.draw(strided(shape, kind.residual or kind.dtype, device, "grad_sum")) if with_sum else None
    grad = torch.ops.srmsnorm._srms_norm_backward(g, y, rstd, gh)
    assert grad.shape == shape and grad.dtype == kind.dtype
    assert_backward(grad, truth.backward(g, y, rstd, gh), g, y, rstd, gh)


def can_be_overwritten(tensor):
    """No two elements in one place, rows of neighbours; nothing is asked of the strides of tensors without elements."""
    if tensor.stride(-1) != 1 and tensor.shape[-1] != 1:
        return False
    places = torch.arange(tensor.untyped_storage().nbytes() // tensor.itemsize)
    return places.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).unique().numel() == tensor.numel()


@given(data=st.data(), shape=shapes, kind=st.sampled_from(samples.WITH_RESIDUAL))
@quick
def test_in_place_or_an_error(device, data, shape, kind):
    """Of any two views: what add_srms_norm gives; where elements of one overlap or the last stride is another, an error
    and nothing written."""
    input = data.draw(strided(shape, kind.dtype, device, "input"))
    residual = data.draw(strided(shape, kind.residual, device, "residual"))
    want = srmsnorm.add_srms_norm(input, residual)
    before = input.clone(), residual.clone()
    if all(can_be_overwritten(t) for t in (input, residual)):
        srmsnorm.add_srms_norm_(input, residual)
    else:
        want = before
        with pytest.raises(RuntimeError, match="srmsnorm: .*(overlap|stride 1)"):
            srmsnorm.add_srms_norm_(input, residual)
    assert torch.equal(input, want[0]) and torch.equal(residual, want[1])


@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5)),
    strides=st.lists(st.tuples(st.integers(0, 24), st.integers(0, 12)), min_size=1, max_size=2),
    offsets=st.tuples(st.integers(0, 12), st.integers(0, 40)),
)
@quick
def test_in_place_within_one_storage(device, sizes, strides, offsets):
    """Two views of one storage, of equal or other strides: an error where an element is shared, and only there."""
    base = samples.values((140,), torch.float32, device)
    places = torch.arange(140)
    views = [(sizes, (*strides[i % len(strides)], 1), offsets[i]) for i in range(2)]
    input, residual = (base.as_strided(*view) for view in views)
    touched = torch.cat([places.as_strided(*view).flatten() for view in views])
    before = base.clone()
    y, sum = srmsnorm.add_srms_norm(input, residual)
    if touched.unique().numel() == touched.numel():
        srmsnorm.add_srms_norm_(input, residual)
        assert torch.equal(input, y) and torch.equal(residual, sum)
    else:
        with pytest.raises(RuntimeError, match="srmsnorm: .*overlap"):
            srmsnorm.add_srms_norm_(input, residual)
        assert torch.equal(base, before)
