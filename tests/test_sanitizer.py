"""Every kernel family once, on few rows: what compute-sanitizer runs over (select with -m sanitizer).

Values are made and checked on the CPU, so that little runs beside the kernels.
"""

import functools

import plans
import pytest
import samples
import torch
import truth
from samples import BFLOAT, DOUBLE, FLOAT, HALF, Kind
from tolerances import assert_backward, assert_gated, assert_gated_gradients, assert_output, assert_rstd

import srmsnorm
from srmsnorm import reference

pytestmark = [pytest.mark.sanitizer, pytest.mark.usefixtures("plain_memory")]
LAYOUTS = {True: samples.contiguous, False: samples.padded}


def families(kind, aligned, **options) -> list[int]:
    """One dim for each way a row is taken: part of a warp or whole ones, vectors, cluster, twice, shifted, edges.
    Results are fresh, so that padded operands lie differently."""
    found, options = {}, {"in_phase": aligned, **options}
    for dim in sorted({*plans.around(kind, **options), 64, 200, 4096, 65_536, 2**20}):
        plan = plans.launch(dim, kind, **options)
        way = plan["threads_per_row"] >= 32, plan["rows_per_block"] > 1, plan["vectors"], plan["cluster"] > 1
        parts = plan["vectors"] == 0 and dim < plan["vector_elements"]  # of more than two rows in a vector
        found.setdefault((*way, plan["twice"], plan["shifted"], plan["edges"], parts), dim)
    return sorted(found.values())


def rows_for(dim):
    """A partly filled block of short rows, behind filled ones but of 1 and 2 elements; two of long ones, one of a row
    that takes a while."""
    return 400 if dim < 112 else 5 if dim < 2048 else 2 if dim < 2**18 else 1


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(
    "kind", [Kind(BFLOAT), Kind(HALF), Kind(HALF, HALF), Kind(BFLOAT, FLOAT), Kind(FLOAT), Kind(DOUBLE)], ids=str
)
def test_forward(cuda, kind, aligned):
    for dim in families(kind, aligned):
        held = samples.forward(kind, (rows_for(dim), dim))
        input, residual = (
            None if t is None else LAYOUTS[aligned](t.shape, dtype=t.dtype, device=cuda).copy_(t) for t in held
        )
        assert_output(srmsnorm.srms_norm(input, residual).cpu(), truth.forward(*held)[0])
        if residual is not None:
            y, sum, _ = torch.ops.srmsnorm._add_srms_norm(input, residual, None)
            assert torch.equal(sum.cpu(), truth.rounded_sum(*held))
            srmsnorm.add_srms_norm_(input, residual)
            assert torch.equal(input.cpu(), y.cpu()) and torch.equal(residual.cpu(), sum.cpu())


@pytest.mark.parametrize("grad_sum", [False, True])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("kind", [Kind(BFLOAT), Kind(HALF, FLOAT), Kind(FLOAT)], ids=str)
def test_backward(cuda, kind, aligned, grad_sum):
    for dim in families(kind, aligned, operator=plans.BACKWARD, grad_sum=grad_sum):
        shape = rows_for(dim), dim
        y, rstd = torch.ops.srmsnorm._srms_norm(*samples.forward(kind, shape), None)
        held = samples.grad_output(kind, shape), y, samples.grad_sum(kind, shape) if grad_sum else None
        g, output, gh = (
            None if t is None else LAYOUTS[aligned](t.shape, dtype=t.dtype, device=cuda).copy_(t) for t in held
        )
        operands = g, output, rstd.to(cuda), gh
        expected = truth.backward(held[0], y, rstd, held[2])
        grads = [torch.ops.srmsnorm._srms_norm_backward(*operands)]
        if kind in samples.MIXED:
            grads += torch.ops.srmsnorm._srms_norm_backward_pair(*operands)
        for grad in grads:
            assert_backward(grad.cpu(), expected, held[0], y, rstd, held[2])


def guarded(values, layout, device):
    """The values laid out so, within a buffer of their own kind of which nothing else may change: (buffer, view)."""
    view = layout(values.shape, dtype=values.dtype, device=device)
    buffer = torch.full((view.storage_offset() + view.untyped_storage().nbytes() // view.itemsize,), 7.0,
                        dtype=view.dtype, device=device)  # fmt: skip
    return buffer, buffer.as_strided(view.shape, view.stride(), view.storage_offset()).copy_(values)


OUT_OF_PHASE = [
    (samples.contiguous, samples.padded), (samples.padded, samples.contiguous), (samples.padded, samples.misaligned)
]  # fmt: skip


def names(layouts):
    return "+".join(layout.__name__ for layout in layouts)


def at_the_end(values, offset, device):
    """The values so many elements past an aligned address, up to the end of their memory: (memory, view)."""
    memory = torch.full((offset + values.numel(),), 7.0, dtype=values.dtype, device=device)
    return memory, memory[offset:].view(values.shape).copy_(values)


def assert_true_and_nothing_else_written(kind, shape, first, second):
    """Against the truth, fresh and in place, of input and output placed by ``first``, a function of the values as
    ``guarded``, and of the operands beside them by ``second``; what is beside the rows stays as it was."""
    held = samples.forward(kind, shape)
    want, sum = truth.forward(*held)[0], truth.rounded_sum(*held)
    around_input, input = first(held[0])
    around_residual, residual = second(held[1])
    y, fresh_sum, rstd = torch.ops.srmsnorm._add_srms_norm(input, residual, None)
    assert_output(y.cpu(), want)
    assert torch.equal(fresh_sum.cpu(), sum)

    g, gh = samples.grad_output(kind, shape), samples.grad_sum(kind, shape)
    for sum_gradient in (None, gh):
        late = None if sum_gradient is None else second(sum_gradient)[1]
        grad = torch.ops.srmsnorm._srms_norm_backward(second(g)[1], first(y.cpu())[1], rstd, late)
        expected = truth.backward(g, y.cpu(), rstd.cpu(), sum_gradient)
        assert_backward(grad.cpu(), expected, g, y.cpu(), rstd.cpu(), sum_gradient)

    srmsnorm.add_srms_norm_(input, residual)
    assert torch.equal(input, y) and torch.equal(residual.cpu(), sum)
    for around, view in ((around_input, input), (around_residual, residual)):
        view.fill_(7.0)
        assert (around == 7.0).all()


@pytest.mark.parametrize("layouts", OUT_OF_PHASE, ids=names)
@pytest.mark.parametrize(
    "kind", [Kind(BFLOAT, BFLOAT), Kind(HALF, FLOAT), Kind(FLOAT, FLOAT), Kind(DOUBLE, DOUBLE)], ids=str
)
def test_operands_that_lie_differently(cuda, kind, layouts):
    """Lanes, warps, blocks with and without clusters, read once and twice."""
    places = [functools.partial(guarded, layout=layout, device=cuda) for layout in layouts]
    for dim in (12, 64, 200, 300, 1024, 8192 * 2 // kind.dtype.itemsize, 65_536, 2**20):
        assert_true_and_nothing_else_written(kind, (rows_for(dim), dim), *places)


@pytest.mark.parametrize("offsets", [(0, 1), (1, 0), (3, 7), (7, 4)], ids=str)
@pytest.mark.parametrize("kind", [Kind(BFLOAT, BFLOAT), Kind(HALF, FLOAT), Kind(FLOAT, FLOAT)], ids=str)
def test_short_rows_that_lie_differently(cuda, kind, offsets):
    """What is read with its neighbours, and stored across lanes: one row, a few, and one behind full blocks."""
    places = [functools.partial(at_the_end, offset=offset, device=cuda) for offset in offsets]
    for dim in (1, 2, 5, 9, 33):
        block = srmsnorm.launch_plan(dim, kind.dtype, kind.residual)["rows_per_block"]
        for rows in (1, 2, block + 1, 2 * block + 1):
            assert_true_and_nothing_else_written(kind, (rows, dim), *places)


@pytest.mark.parametrize("kind", [Kind(FLOAT, FLOAT), Kind(BFLOAT, FLOAT)], ids=str)
def test_rows_by_level(cuda, kind):
    """Leading dimensions that do not merge: the row index is taken apart. Vectors and edges, lanes to clusters."""

    def gapped(values):
        return samples.gapped(values.shape, dtype=values.dtype, device=cuda).copy_(values)

    for dim in (24, 25, 4096, 65_536):
        shape = (2, 3, 2, 3, dim) if dim < 2048 else (2, 2, dim)
        held = samples.forward(kind, shape)
        want, _, root = truth.forward(*held)
        input, residual = (gapped(values) for values in held)
        y, sum, rstd = torch.ops.srmsnorm._add_srms_norm(input, residual, None)
        assert_output(y.cpu(), want)
        assert_rstd(rstd.cpu(), root)
        assert torch.equal(sum.cpu(), truth.rounded_sum(*held))

        g, gh = samples.grad_output(kind, shape), samples.grad_sum(kind, shape)
        expected = truth.backward(g, y.cpu(), rstd.cpu(), gh)
        grad = torch.ops.srmsnorm._srms_norm_backward(gapped(g), gapped(y), rstd, gapped(gh))
        assert_backward(grad.cpu(), expected, g, y.cpu(), rstd.cpu(), gh)

        srmsnorm.add_srms_norm_(input, residual)
        assert torch.equal(input, y) and torch.equal(residual, sum)


@pytest.mark.parametrize("kind", [Kind(BFLOAT, BFLOAT), Kind(HALF, FLOAT), Kind(FLOAT, FLOAT)], ids=str)
def test_rows_past_the_l2(cuda, kind):
    """So many that they are kept in the L2, and that the last ones release it; that blocks are kept apart; that short
    ones are prefetched; the same 16 over and over."""

    def many(values):
        return values.repeat(36_000_000 // values.numel(), 1)

    def gradients(g, y, rstd):
        if kind in samples.MIXED:
            return torch.ops.srmsnorm._srms_norm_backward_pair(g, y, rstd)
        return [torch.ops.srmsnorm._srms_norm_backward(g, y, rstd)]

    def everything(input, residual, g):
        y, sum, rstd = torch.ops.srmsnorm._add_srms_norm(input, residual, None)
        return [result.cpu() for result in (y, sum, *gradients(g, y, rstd), srmsnorm.srms_norm(input))]

    for dim in (9, 64, 3000, 16_384, 32_768):
        held = *samples.forward(kind, (16, dim)), samples.grad_output(kind, (16, dim))
        few = everything(*(values.to(cuda) for values in held))
        kept = everything(*(many(values).to(cuda) for values in held))
        for got, want in zip(kept, few, strict=True):
            assert torch.equal(got, many(want))


@pytest.mark.parametrize("layouts", [(samples.contiguous, samples.contiguous), *OUT_OF_PHASE[:2]], ids=names)
@pytest.mark.parametrize("kind", [Kind(BFLOAT), Kind(HALF, FLOAT), Kind(FLOAT), Kind(DOUBLE)], ids=str)
def test_gated(cuda, kind, layouts):
    """Lanes, warps, blocks with and without clusters, edges, shifted and read twice; one gradient and both."""
    ops, options = torch.ops.srmsnorm, {"activation": "silu", "norm_before_gate": False}
    for dim in (5, 12, 64, 200, 300, 1000, 4096, 12_000, 16_384, 65_536, 2**20):
        shape = rows_for(dim), dim
        held = *samples.gated(kind, shape), samples.grad_output(kind, shape)
        input, gate, g = (
            layout(t.shape, dtype=t.dtype, device=cuda).copy_(t)
            for layout, t in zip((*layouts, layouts[0]), held, strict=True)
        )
        z, rstd = ops._gated_srms_norm(input, gate, **options, eps=None)
        assert_gated(z.cpu(), rstd.cpu(), *held[:2], **options, eps=None)
        grads = ops._gated_srms_norm_backward(g, input, gate, rstd, **options)
        assert_gated_gradients([grad.cpu() for grad in grads], held[2], *held[:2], rstd.cpu(), **options)
        assert torch.equal(ops._gated_srms_norm_backward_input(g, input, gate, rstd, **options), grads[0])
        assert torch.equal(ops._gated_srms_norm_backward_gate(g, input, gate, rstd, **options), grads[1])


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(
    "kind", [Kind(BFLOAT), Kind(HALF, HALF), Kind(BFLOAT, FLOAT), Kind(FLOAT), Kind(FLOAT, FLOAT)], ids=str
)
def test_quantized(cuda, kind, aligned):
    """Every launch, each dtype and way to a scale in some; what is behind the bytes stays as it was."""
    ways = [{}, {"group_size": 64}, {"scale": 0.02}, {"scale": "bound"}, {"power_of_two": True}]
    for i, least in enumerate(families(kind, aligned, operator="srms_norm_quantized")):
        for dim in {least, -(-least // 64) * 64}:
            held = samples.forward(kind, (rows_for(dim), dim))
            input, residual = (
                None if t is None else LAYOUTS[aligned](t.shape, dtype=t.dtype, device=cuda).copy_(t) for t in held
            )
            of_all = [way for way in ways if dim % way.get("group_size", 1) == 0]
            for options in (of_all[i % len(of_all)], of_all[1]):
                options = {**options, "dtype": list(reference.LARGEST)[i % 3]}
                y = srmsnorm.srms_norm(input, residual).cpu()
                want = reference.quantize(y, **options)
                found = [srmsnorm.srms_norm_quantized(input, residual, **options)]
                if residual is not None:
                    *fresh, sum = srmsnorm.add_srms_norm_quantized(input, residual, **options)
                    stream = residual.clone()
                    found += [fresh, srmsnorm.add_srms_norm_quantized_(input, stream, **options)]
                    assert torch.equal(stream, sum)
                for q, scale in found:
                    assert torch.equal(q.cpu().view(torch.uint8), want[0].view(torch.uint8))
                    assert torch.equal(scale.cpu(), want[1])
