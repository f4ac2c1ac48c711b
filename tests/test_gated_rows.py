"""The norm beside a gate, row by row: layouts without copies, the same bits for the same row, faults that stay in it,
and what is kept and allocated."""

import weakref

import pytest
import samples
import torch
import truth
from samples import BFLOAT, DOUBLE, FLOAT, HALF, Kind
from test_gated import EVERY, GATES, check
from test_layouts import copies, dense, operators_called, strides
from test_memory import allocated, nbytes, saved_by
from tolerances import assert_gated, assert_gated_gradients

import srmsnorm
from srmsnorm import reference

ops = torch.ops.srmsnorm
EPS = 1e-6
SHAPE = (3, 4, 17)
LAYOUTS = [*samples.READABLE, *samples.COPIED]
SILU = samples.GATES[1]


def name(layout):
    return layout.__name__


def everything(input, gate, g, options):
    """Every operator's results on these operands, by name."""
    z, rstd = ops._gated_srms_norm(input, gate, **options)
    dx, dgate = ops._gated_srms_norm_backward(g, input, gate, rstd, **options)
    return {"z": z, "rstd": rstd, "input's gradient": dx, "gate's gradient": dgate}


def operands(kind, shape, device, layout=samples.contiguous):
    return (
        *samples.gated(kind, shape, device, layout=layout),
        samples.grad_output(kind, shape, device, layout=layout),
    )


def assert_bits(got, want):
    for key, tensor in want.items():
        assert torch.equal(got[key], tensor), key


# ---- layouts


@pytest.mark.parametrize("shape", [SHAPE, (5, 64), (2, 3, 2, 40), (7, 1), (8,), (2, 513)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=name)
@EVERY
def test_layouts(device, kind, layout, shape):
    """Each operand in this layout beside contiguous ones, and all: within the bounds of contiguous ones."""
    plain, strided = operands(kind, shape, device), operands(kind, shape, device, layout)
    for i, chosen in enumerate(((0,), (1,), (2,), (0, 1), (0, 1, 2))):
        options = samples.GATES[(i + LAYOUTS.index(layout)) % len(samples.GATES)]
        input, gate, g = (strided[i] if i in chosen else plain[i] for i in range(3))
        z, rstd = ops._gated_srms_norm(input, gate, **options, eps=EPS)
        assert_gated(z, rstd, input, gate, **options, eps=EPS)
        spread = torch.stack([rstd, rstd], -1)[..., 0]
        for kept in (rstd, spread):
            grads = ops._gated_srms_norm_backward(g, input, gate, kept, **options)
            assert_gated_gradients(grads, g, input, gate, rstd, **options)


@pytest.mark.parametrize("layout", LAYOUTS, ids=name)
@pytest.mark.parametrize("shape", [SHAPE, (2, 3, 2, 40), (7, 1)], ids=str)
def test_strides_of_results(device, layout, shape):
    """z and the input's gradient as the input lies, the gate's gradient as the gate does; without gaps."""
    leading = list(range(len(shape) - 1))
    order = [*(leading[::-1] if layout is samples.transposed else leading), len(shape) - 1]
    for beside in (samples.contiguous, layout):
        input, gate = samples.gated(Kind(BFLOAT, FLOAT), shape, device, layout=layout, gate_layout=beside)
        found = everything(input, gate, samples.grad_output(Kind(BFLOAT), shape, device), SILU)
        assert strides(found["z"]) == strides(found["input's gradient"]) == dense(shape, order)
        of_gate = order if beside is layout else [*leading, len(shape) - 1]
        assert strides(found["gate's gradient"]) == dense(shape, of_gate)
        meta = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta") for t in (input, gate, input)]
        for key, tensor in everything(*meta, SILU).items():
            assert strides(tensor) == strides(found[key]) and tensor.dtype == found[key].dtype


@pytest.mark.parametrize("layout", samples.READABLE, ids=name)
@EVERY
def test_no_hidden_copies(device, kind, layout, plain_memory):
    input, gate, g = operands(kind, SHAPE, device, layout)
    rstd = ops._gated_srms_norm(input, gate)[1]
    for options in samples.GATES:
        assert copies(lambda: srmsnorm.gated_srms_norm(input, gate, **options)) == []  # noqa: B023
        for op in (
            ops._gated_srms_norm_backward,
            ops._gated_srms_norm_backward_input,
            ops._gated_srms_norm_backward_gate,
        ):
            assert copies(lambda: op(g, input, gate, rstd, **options)) == []  # noqa: B023


@EVERY
def test_autograd_adds_no_operator(device, kind, plain_memory):
    leaves = [t.requires_grad_() for t in samples.gated(kind, SHAPE, device)]
    z, g = srmsnorm.gated_srms_norm(*leaves, **SILU), samples.grad_output(kind, SHAPE, device)
    called = copies(lambda: torch.autograd.grad(z, leaves, g))
    ours_and_the_engine = "GatedSRMSNormBackward", "autograd::engine::evaluate_function", "torch::autograd::GraphRoot"
    assert [name for name in called if not name.startswith(ours_and_the_engine)] == []


@pytest.mark.parametrize("layout", samples.COPIED, ids=name)
def test_other_last_strides_are_copied_once(device, layout, plain_memory):
    plain, strided = operands(Kind(FLOAT), SHAPE, device), operands(Kind(FLOAT), SHAPE, device, layout)
    rstd = ops._gated_srms_norm(*plain[:2])[1]
    for i in range(3):
        input, gate, g = (strided[k] if k == i else plain[k] for k in range(3))
        names = operators_called(lambda: ops._gated_srms_norm_backward(g, input, gate, rstd))  # noqa: B023
        assert names.count("aten::copy_") == 1
        if i < 2:
            names = operators_called(lambda: srmsnorm.gated_srms_norm(input, gate))  # noqa: B023
            assert names.count("aten::copy_") == 1


def test_many_leading_dims_that_do_not_merge(device):
    kind = Kind(BFLOAT, FLOAT)
    for shape in ((2, 3, 2, 3, 2, 3, 5), (2,) * 9 + (3,)):
        input, gate = samples.gated(kind, shape, device, layout=samples.gapped, gate_layout=samples.transposed)
        g = samples.grad_output(kind, shape, device, layout=samples.transposed)
        z, rstd = ops._gated_srms_norm(input, gate, **SILU, eps=EPS)
        assert_gated(z, rstd, input, gate, **SILU, eps=EPS)
        grads = ops._gated_srms_norm_backward(g, input, gate, rstd, **SILU)
        assert_gated_gradients(grads, g, input, gate, rstd, **SILU)


@GATES
def test_one_tensor_as_both_operands(device, options):
    """x and its own gate, a view of one storage; and halves of one product, as a gated projection gives them."""
    input = samples.tensor((4, 33), FLOAT, device).requires_grad_()
    z = srmsnorm.gated_srms_norm(input, input, **options, eps=EPS)
    assert_gated(z, None, input.detach(), input.detach(), **options, eps=EPS)
    (grad,) = torch.autograd.grad(z, input, torch.ones_like(z))
    twins = [input.detach().clone().requires_grad_() for _ in range(2)]
    apart = torch.autograd.grad(srmsnorm.gated_srms_norm(*twins, **options, eps=EPS), twins, torch.ones_like(z))
    assert torch.equal(grad, apart[0] + apart[1])
    both = samples.tensor((4, 66), BFLOAT, device)
    check_halves = both[:, :33], both[:, 33:]
    z = srmsnorm.gated_srms_norm(*check_halves, **options, eps=EPS)
    assert_gated(z, None, *check_halves, **options, eps=EPS)


# ---- the same row, the same bits


@EVERY
def test_number_of_rows(device, kind):
    wide = (4096, 16_384, 65_536, 131_072) if device == "cuda" else (4096,)
    for i, dim in enumerate((1, 7, 8, 33, 64, 100, 257, 1000, 2048, 2049, *wide)):
        options = samples.GATES[i % len(samples.GATES)]
        whole = operands(kind, (70, dim), device)
        want = everything(*whole, options)
        for part in (slice(0, 1), slice(0, 35), slice(16, 17), slice(48, 70)):
            got = everything(*(t[part] for t in whole), options)
            assert_bits(got, {key: value[part] for key, value in want.items()})


@EVERY
def test_many_rows(device, kind):
    """Past the grain of the CPU's parallel loop; on a GPU more than one wave of blocks."""
    for dim, rows in ((40, 5008), (8, 2**17), (1024, 2**15 + 64)) if device == "cuda" else ((40, 5008),):
        whole = operands(kind, (rows, dim), device)
        want = everything(*whole, SILU)
        for part in (slice(0, 1), slice(rows // 2, rows // 2 + 16), slice(rows - 16, rows)):
            got = everything(*(t[part] for t in whole), SILU)
            assert_bits(got, {key: value[part] for key, value in want.items()})


@GATES
@EVERY
def test_strides_and_runs(device, kind, options):
    """Rows further apart, by a multiple of 16 elements; a second run; the gate alone elsewhere."""

    def spread(shape, **more):
        first, second, dim = shape
        return torch.empty((first, second + 16, dim), **more)[:, :second]

    for dim in (1, 8, 33, 257, 1000):
        plain = operands(kind, (2, 3, dim), device)
        want = everything(*plain, options)
        assert_bits(everything(*plain, options), want)
        assert_bits(everything(*operands(kind, (2, 3, dim), device, spread), options), want)
        for layout in (samples.misaligned, samples.padded, samples.gapped):
            input, *others = plain
            moved = [layout(t.shape, dtype=t.dtype, device=device).copy_(t) for t in others]
            assert_bits(everything(input, *moved, options), want)


@EVERY
def test_with_and_without_gradients(device, kind):
    input, gate = samples.gated(kind, (5, 100), device)
    for options in samples.GATES:
        z = srmsnorm.gated_srms_norm(input, gate, **options)
        for needs in ((True, False), (False, True), (True, True)):
            leaves = [t.clone().requires_grad_(need) for t, need in zip((input, gate), needs, strict=True)]
            assert torch.equal(srmsnorm.gated_srms_norm(*leaves, **options), z)


@EVERY
def test_threads(kind):
    whole = operands(kind, (300, 257), "cpu")
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(everything(*whole, SILU))
    finally:
        torch.set_num_threads(before)
    assert_bits(results[1], results[0])
    assert_bits(results[2], results[0])


@EVERY
def test_stream_and_capture(cuda, kind):
    """On the current stream, and in a graph that is replayed on other values."""
    for dim in (33, 2048, 65_536):
        whole = operands(kind, (16, dim), cuda)
        want = everything(*whole, SILU)
        static = [torch.ones_like(t) for t in whole]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = everything(*static, SILU)
        for to, value in zip(static, whole, strict=True):
            to.copy_(value)
        graph.replay()
        torch.cuda.synchronize()
        assert_bits(got, want)


# ---- faults

ROWS, BAD = 19, 8


def same_faults(got, want):
    """NaN and inf where the formula has them."""
    return torch.equal(got.isnan(), want.isnan()) and torch.equal(got.isinf(), want.isinf())


@pytest.mark.parametrize("fault", [float("nan"), float("inf"), float("-inf")], ids=str)
@GATES
@EVERY
def test_faults(device, kind, options, fault):
    """In input, gate or the gradient: other rows keep their bits, and in its own the formula decides."""
    for dim in (1, 8, 33, 500, 3001):
        whole = operands(kind, (ROWS, dim), device)
        want = everything(*whole, options)
        others = torch.arange(ROWS, device=device) != BAD
        for position in range(3):
            bad = [t.clone() for t in whole]
            bad[position][BAD, dim // 2] = fault
            got = everything(*bad, options)
            for key, tensor in want.items():
                assert tensor.isfinite().all()
                assert torch.equal(got[key][others], tensor[others]), key
            row = [t[BAD] for t in bad]
            z = reference.gated_srms_norm(row[0], row[1], **options)
            assert same_faults(got["z"][BAD], z)
            grads = truth.gated_backward(row[2], row[0], row[1], got["rstd"][BAD], **options)
            for key, grad in zip(("input's gradient", "gate's gradient"), grads, strict=True):
                assert torch.equal(got[key][BAD].isfinite(), grad.isfinite()), (key, position, dim)


# ---- what is kept, and what is allocated


@EVERY
def test_backward_keeps_input_gate_and_rstd(device, kind):
    """The very tensors, and 4 bytes a row: neither z nor the norm."""
    leaves = [t.requires_grad_() for t in samples.gated(kind, (64, 48), device)]
    for options in samples.GATES:
        _, kept = saved_by(lambda: srmsnorm.gated_srms_norm(*leaves, **options))  # noqa: B023
        assert [t.data_ptr() for t in kept[:2]] == [t.data_ptr() for t in leaves]
        assert [(t.shape, t.dtype) for t in kept[2:]] == [((64,), reference.accumulation_dtype(kind.dtype))]


@EVERY
def test_allocations(device, kind, plain_memory):
    input, gate = samples.gated(kind, (64, 48), device)
    g, rstd = samples.grad_output(kind, (64, 48), device), 64 * (8 if kind.dtype == DOUBLE else 4)
    call = lambda: srmsnorm.gated_srms_norm(input, gate, **SILU)  # noqa: E731
    assert allocated(call, device) == (nbytes(input), 1)
    leaves = [t.requires_grad_() for t in (input, gate)]
    assert allocated(call, device) == (nbytes(input) + rstd, 2)
    z = call()
    for wanted in (leaves, leaves[:1], leaves[1:]):
        backward = lambda: torch.autograd.grad(z, wanted, g, retain_graph=True)  # noqa: B023, E731
        backward()  # starts the engine
        assert allocated(backward, device) == (nbytes(*wanted), len(wanted))


@pytest.mark.parametrize("kind", [Kind(FLOAT), Kind(HALF, FLOAT)], ids=str)
def test_what_is_kept_must_not_be_modified(device, kind):
    """z may be: the next layer's own."""
    for position in range(2):
        leaves = [t.requires_grad_() for t in samples.gated(kind, (4, 16), device)]
        operands = [t * 1 for t in leaves]
        z = srmsnorm.gated_srms_norm(*operands, **SILU)
        operands[position].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            z.sum().backward()
    leaves = [t.requires_grad_() for t in samples.gated(kind, (4, 16), device)]
    z = srmsnorm.gated_srms_norm(*leaves, **SILU)
    watched = weakref.ref(z)
    (z * 2).mul_(3).sum().backward()
    del z
    assert watched() is None and all(leaf.grad is not None for leaf in leaves)


def test_sizes(device):
    """A gate that is expanded over rows or heads is read as it is, and so is its gradient's operand."""
    input = samples.tensor((6, 4, 16), BFLOAT, device)
    gate = samples.tensor((6, 1, 16), BFLOAT, device, name="gate").expand(6, 4, 16)
    z, rstd = ops._gated_srms_norm(input, gate, **SILU, eps=EPS)
    assert_gated(z, rstd, input, gate, **SILU, eps=EPS)
    check(Kind(BFLOAT), (6, 4, 16), device, SILU, layout=samples.expanded)
