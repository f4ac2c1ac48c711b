"""Any shape, any pointer: strided, misaligned and expanded operands give what contiguous ones give, with no copy."""

import pytest
import samples
import torch
from samples import BFLOAT, DOUBLE, FLOAT, HALF, Kind

import srmsnorm

KINDS = [Kind(HALF), Kind(BFLOAT, BFLOAT), Kind(BFLOAT, FLOAT), Kind(FLOAT, FLOAT), Kind(DOUBLE, DOUBLE)]
SHAPES = [(3, 4, 17), (5, 64), (2, 3, 2, 40), (2, 513), (7, 1), (2, 1, 3, 8), (8,)]
LAYOUTS = [*samples.READABLE, *samples.COPIED]
ALLOWED = ("srmsnorm::", "aten::empty", "aten::resolve", "aten::alias", "aten::detach", "detach", "[memory]")
LAUNCH = "cudaLaunchKernelExC"  # the profiler's word for a launch, on a GPU


def name(layout):
    return layout.__name__


def operators_called(call) -> list[str]:
    """The names of everything dispatched below; not of a process's first call, which asks the GPU what it is."""
    if torch.cuda.is_available():
        srmsnorm.srms_norm(torch.ones(1, device="cuda"))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    names = [event.name for event in profile.events()]
    assert any(name.startswith("srmsnorm::") for name in names)
    return names


def copies(call) -> list[str]:
    names = operators_called(call)
    assert names.count(LAUNCH) <= 1
    return [name for name in names if not name.startswith(ALLOWED) and name != LAUNCH]


def assert_same(got, want):
    """Not bit by bit: at another alignment a row may be summed in another order. So: one rounding, some of float32."""
    for a, b in zip(got, want, strict=True):
        rtol = {HALF: 2**-10, BFLOAT: 2**-7, FLOAT: 2**-21, DOUBLE: 2**-50}[b.dtype]
        torch.testing.assert_close(a, b, rtol=rtol, atol=2**-4 * rtol * float(b.abs().max()))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=name)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_forward(device, kind, layout, shape):
    """input and residual each in this layout, and both."""
    plain = samples.forward(kind, shape, device, layout=samples.contiguous)
    strided = samples.forward(kind, shape, device, layout=layout)
    for input, residual in ((strided[0], plain[1]), (plain[0], strided[1]), strided):
        if residual is None:
            assert_same([srmsnorm.srms_norm(input)], [srmsnorm.srms_norm(input.contiguous())])
        else:
            contiguous = input.contiguous(), residual.contiguous()
            assert_same(srmsnorm.add_srms_norm(input, residual), srmsnorm.add_srms_norm(*contiguous))
            assert_same([srmsnorm.srms_norm(input, residual)], [srmsnorm.srms_norm(*contiguous)])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=name)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_backward(device, kind, layout, shape):
    backward = torch.ops.srmsnorm._srms_norm_backward
    output, rstd = torch.ops.srmsnorm._srms_norm(*samples.forward(kind, shape, device), None)
    g = samples.grad_output(kind, shape, device, layout=layout)
    gh = samples.grad_sum(kind, shape, device, layout=layout)
    plain = g.contiguous(), output, rstd, gh.contiguous()
    strided_output = (
        output if layout is samples.expanded else layout(shape, dtype=kind.dtype, device=device).copy_(output)
    )
    strided_rstd = torch.stack([rstd, rstd], -1)[..., 0]
    for position, operand in enumerate((g, strided_output, strided_rstd, gh)):
        operands = [*plain[:position], operand, *plain[position + 1 :]]
        assert_same([backward(*operands)], [backward(*plain)])
    assert_same([backward(g, strided_output, strided_rstd, gh)], [backward(*plain)])
    assert_same([backward(g, strided_output, strided_rstd)], [backward(*plain[:3])])


def strides(tensor):
    """None for a dimension of size 1, where no stride matters."""
    return [stride if size > 1 else None for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]


def dense(shape, order):
    """The strides of a tensor without gaps whose dimensions are in this order in memory, outermost first."""
    found, step = [None] * len(shape), 1
    for dim in reversed(order):
        found[dim] = step if shape[dim] > 1 else None
        step *= shape[dim]
    return found


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=name)
def test_strides_of_outputs(device, layout, shape):
    """Without gaps, the leading dimensions in the order that they have in the operand, the last one innermost."""
    input = samples.tensor(shape, BFLOAT, device, layout=layout)
    residual = samples.tensor(shape, FLOAT, device, layout=layout, name="residual")
    leading = list(range(len(shape) - 1))
    want = dense(shape, [*(leading[::-1] if layout is samples.transposed else leading), len(shape) - 1])
    y, sum = srmsnorm.add_srms_norm(input, residual)
    assert strides(y) == strides(sum) == strides(srmsnorm.srms_norm(input)) == want
    meta = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta") for t in (input, residual)]
    assert [strides(t) for t in srmsnorm.add_srms_norm(*meta)] == [want, want]


def test_strides_of_each_output(device):
    """y's are input's, the sum's are the residual's, the gradients' are y's, whatever those of grad_output."""
    shape = (3, 4, 16)
    rows, columns = dense(shape, (0, 1, 2)), dense(shape, (1, 0, 2))
    for layouts in ((samples.contiguous, samples.transposed), (samples.transposed, samples.contiguous)):
        input, residual = samples.forward(
            Kind(BFLOAT, FLOAT), shape, device, residual_layout=layouts[1], layout=layouts[0]
        )
        want = (rows, columns) if layouts[0] is samples.contiguous else (columns, rows)
        y, sum, rstd = torch.ops.srmsnorm._add_srms_norm(input, residual, None)
        assert (strides(y), strides(sum)) == want
        g = samples.grad_output(Kind(BFLOAT), shape, device, layout=layouts[1])
        assert strides(g) == want[1]
        gradients = torch.ops.srmsnorm._srms_norm_backward_pair(g, y, rstd)
        assert [strides(t) for t in gradients] == [want[0]] * 2


@pytest.mark.parametrize("layout", [((1, 2, 3), (4, 1, 1)), ((1, 5, 8), (1, 1, 1)), ((3, 5, 8), (8, 1, 1))], ids=str)
def test_windows_that_overlap(device, layout):
    """What unfold makes. PyTorch's empty_like cannot tell the order of such dimensions: its last stride is not 1."""
    input = samples.values((40,), FLOAT, device).as_strided(*layout)
    assert torch.empty_like(input).stride(-1) != 1
    y, sum, rstd = torch.ops.srmsnorm._add_srms_norm(input, input, None)
    want = torch.ops.srmsnorm._add_srms_norm(*[input.contiguous()] * 2, None)
    assert_same((y, sum, rstd), want)
    g = samples.values((40,), FLOAT, device, name="g").as_strided(*layout)
    backward = torch.ops.srmsnorm._srms_norm_backward
    assert_same([backward(g, input, rstd)], [backward(g.contiguous(), input.contiguous(), rstd)])


def test_rows_of_one_element_have_any_stride(device, plain_memory):
    """Nothing is copied, and they are overwritten in place."""
    base = samples.values((9, 7), FLOAT, device)
    input, residual = base[2:3, :6].T, base[5:7, :6].T[:, ::2]
    assert input.stride() == (1, 7) and residual.stride() == (1, 14)
    assert copies(lambda: srmsnorm.add_srms_norm(input, residual)) == []
    want = srmsnorm.add_srms_norm(input.clone(), residual.clone())
    srmsnorm.add_srms_norm_(input, residual)
    assert torch.equal(input, want[0]) and torch.equal(residual, want[1])


@pytest.mark.parametrize(
    "format,shape", [(torch.channels_last, (2, 5, 3, 4)), (torch.channels_last_3d, (2, 5, 3, 2, 4))], ids=str
)
def test_channels_last(device, format, shape):
    """The last dimension's stride is the number of channels: copied once, forward and backward, compiled or not."""
    x = samples.values(shape, FLOAT, device).to(memory_format=format)
    g = samples.values(shape, FLOAT, device, name="g").to(memory_format=format)
    plain = [t.contiguous() for t in (x, g)]
    y, sum, rstd = torch.ops.srmsnorm._add_srms_norm(x, x, None)
    want = torch.ops.srmsnorm._add_srms_norm(plain[0], plain[0], None)
    assert all(torch.equal(a, b) for a, b in zip((y, sum, rstd), want, strict=True))
    dx = torch.ops.srmsnorm._srms_norm_backward(g, y, rstd)
    assert torch.equal(dx, torch.ops.srmsnorm._srms_norm_backward(plain[1], *want[::2]))
    for result in (y, sum, dx):
        assert strides(result) == dense(shape, range(len(shape)))
    meta = torch.ops.srmsnorm._add_srms_norm(*[torch.empty(shape, device="meta", memory_format=format)] * 2, None)
    assert [t.stride() for t in meta] == [t.stride() for t in (y, sum, rstd)]
    with pytest.raises(RuntimeError, match="last dimension of stride 1"):
        srmsnorm.add_srms_norm_(x, x.clone())


@pytest.mark.parametrize("layout", samples.UNIT_STRIDE, ids=name)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_in_place(device, kind, layout):
    for shape in SHAPES:
        input, residual = samples.forward(kind, shape, device, layout=layout)
        if residual is None:
            residual = samples.tensor(shape, kind.dtype, device, layout=layout, name="residual")
        want = srmsnorm.add_srms_norm(input, residual)
        srmsnorm.add_srms_norm_(input, residual)
        assert torch.equal(input, want[0]) and torch.equal(residual, want[1])


def test_in_place_writes_nothing_around_it(device):
    """The q and v beside a k, and the gaps between rows, stay as they are."""
    base = samples.tensor((4, 3, 17), BFLOAT, device)
    before = base.clone()
    stream = samples.tensor((4, 3, 17), FLOAT, device, name="residual")
    stream_before = stream.clone()
    srmsnorm.add_srms_norm_(base[:, 1], stream[:, 1])
    for got, want in ((base, before), (stream, stream_before)):
        assert torch.equal(got[:, ::2], want[:, ::2]) and not torch.equal(got[:, 1], want[:, 1])


@pytest.mark.parametrize("shape", [(2, 3, 2, 3, 2, 3, 5), (2,) * 9 + (3,), (3, 1, 2, 1, 2, 2, 2, 1, 8)], ids=str)
@pytest.mark.parametrize("kind", [Kind(FLOAT, FLOAT), Kind(BFLOAT, FLOAT)], ids=str)
def test_many_leading_dims_that_do_not_merge(device, kind, shape):
    input, residual = samples.forward(kind, shape, device, layout=samples.gapped, residual_layout=samples.transposed)
    got = srmsnorm.add_srms_norm(input, residual)
    assert_same(got, srmsnorm.add_srms_norm(input.contiguous(), residual.contiguous()))
    output, rstd = torch.ops.srmsnorm._srms_norm(input, residual, None)
    g = samples.grad_output(kind, shape, device, layout=samples.transposed)
    backward = torch.ops.srmsnorm._srms_norm_backward
    assert_same([backward(g, output, rstd)], [backward(g.contiguous(), output.contiguous(), rstd)])
    input, residual = input.clone(), residual.clone()
    srmsnorm.add_srms_norm_(input, residual)
    assert_same((input, residual), got)


@pytest.mark.parametrize("kind", [Kind(FLOAT, FLOAT), Kind(BFLOAT, FLOAT)], ids=str)
def test_dimensions_of_size_1_are_no_levels(device, kind):
    """Whatever strides they have: more of them than there is room for levels, between rows that merge."""
    sizes, ones = [3, 4], [1] * 34
    shape = (*ones, sizes[0], *ones, sizes[1], 16)
    odd = [7 * i + 5 for i in range(34)]
    input, residual = (
        t.as_strided(shape, (*odd, 64, *odd[::-1], 16, 1)) for t in samples.forward(kind, (12, 16), device)
    )
    want = srmsnorm.add_srms_norm(input.reshape(12, 16), residual.reshape(12, 16))
    assert_same([t.reshape(12, 16) for t in srmsnorm.add_srms_norm(input, residual)], want)
    output, rstd = torch.ops.srmsnorm._srms_norm(input, residual, None)
    g = samples.grad_output(kind, (12, 16), device)
    got = torch.ops.srmsnorm._srms_norm_backward(g.as_strided(shape, input.stride()), output, rstd)
    rows = output.reshape(12, 16), rstd.reshape(12)
    assert_same([got.reshape(12, 16)], [torch.ops.srmsnorm._srms_norm_backward(g, *rows)])
    srmsnorm.add_srms_norm_(input, residual)
    assert_same([t.reshape(12, 16) for t in (input, residual)], want)


def test_dimensions_of_size_1_cost_no_launch(cuda):
    """Levels of their own would be more than a launch has."""
    shape, strides = (2, 1, 3, 1, 2, 1, 3, 1, 16), (576, 5, 192, 7, 96, 11, 32, 13, 1)
    input = torch.randn(1152, device=cuda).as_strided(shape, strides)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        srmsnorm.srms_norm(input)
    assert len([event for event in profile.events() if "row_kernel" in event.name]) == 1


def test_rows_in_memory_order_take_one_launch(cuda):
    """However the dimensions of all operands are permuted, and with more of them than a launch has levels."""
    input = samples.tensor((2, 3, 2, 3, 2, 3, 16), BFLOAT, cuda).permute(5, 3, 1, 0, 2, 4, 6)
    residual = torch.empty_like(input).copy_(input)
    assert residual.stride() == input.stride()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        srmsnorm.add_srms_norm(input, residual)
    assert len([event for event in profile.events() if "row_kernel" in event.name]) == 1


@pytest.mark.parametrize("layout", samples.READABLE, ids=name)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_no_hidden_copies(device, kind, layout, plain_memory):
    shape = (3, 4, 17)
    input, residual = samples.forward(kind, shape, device, layout=layout)
    assert copies(lambda: srmsnorm.srms_norm(input, residual)) == []
    if residual is not None:
        assert copies(lambda: srmsnorm.add_srms_norm(input, residual)) == []
        if layout is not samples.expanded:
            assert copies(lambda: srmsnorm.add_srms_norm_(input, residual)) == []
    output, rstd = torch.ops.srmsnorm._srms_norm(input, residual, None)
    g = samples.grad_output(kind, shape, device, layout=layout)
    gh = samples.grad_sum(kind, shape, device, layout=layout)
    assert copies(lambda: torch.ops.srmsnorm._srms_norm_backward(g, output, rstd, gh)) == []
    if kind in samples.MIXED:
        assert copies(lambda: torch.ops.srmsnorm._srms_norm_backward_pair(g, output, rstd, gh)) == []


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_autograd_adds_no_operator(device, kind, plain_memory):
    """Between y's gradient and the operands' there is our operator alone: no fill, no cast, no sum."""
    operands = [t.requires_grad_() for t in samples.forward(kind, (3, 4, 17), device) if t is not None]
    g, gh = samples.grad_output(kind, (3, 4, 17), device), samples.grad_sum(kind, (3, 4, 17), device)
    y = srmsnorm.srms_norm(*operands)
    engine = "SRMSNormBackward", "autograd::engine::evaluate_function", "torch::autograd::GraphRoot"
    called = copies(lambda: torch.autograd.grad(y, operands, g))
    assert [name for name in called if not name.startswith(engine)] == []
    if kind.residual is not None:
        outputs = srmsnorm.add_srms_norm(*operands)
        called = copies(lambda: torch.autograd.grad(outputs, operands, (g, gh)))
        assert [name for name in called if not name.startswith(engine)] == []


@pytest.mark.parametrize("layout", samples.COPIED, ids=name)
def test_other_last_strides_are_copied_once(device, layout, plain_memory):
    input = samples.tensor((3, 4, 17), FLOAT, device, layout=layout)
    names = operators_called(lambda: srmsnorm.srms_norm(input))
    assert names.count("aten::copy_") == 1
    output, rstd = torch.ops.srmsnorm._srms_norm(input, None, None)
    names = operators_called(lambda: torch.ops.srmsnorm._srms_norm_backward(input, output, rstd))
    assert names.count("aten::copy_") == 1


@pytest.mark.parametrize("kind", [Kind(BFLOAT, BFLOAT), Kind(BFLOAT, FLOAT)], ids=str)
def test_beyond_32_bit_indexing(cuda, kind):
    """More than 2**31 elements: many rows, and few wide ones far apart."""
    for rows, dim in ((2**21 + 3, 1024), (2**25 + 5, 65), (2**11 + 1, 2**20)):
        size = rows * dim * (4 if kind.residual == BFLOAT else 6)
        if torch.cuda.mem_get_info()[0] < 3 * size:
            pytest.skip(f"needs {3 * size / 2**30:.0f} GiB of free GPU memory")
        _check_ends(cuda, kind, rows, dim)
        torch.cuda.empty_cache()


def _check_ends(device, kind, rows, dim):
    """A few rows from everywhere against the same rows alone."""
    torch.use_deterministic_algorithms(False)
    input = torch.randn(rows, dim, device=device, dtype=kind.dtype)
    residual = torch.randn(rows, dim, device=device, dtype=kind.residual)
    picked = torch.tensor([0, 1, rows // 2, 2**31 // dim - 1, 2**31 // dim, rows - 2, rows - 1], device=device)
    some = input[picked], residual[picked]
    y, sum, rstd = torch.ops.srmsnorm._add_srms_norm(input, residual, None)
    y_want, sum_want, rstd_want = torch.ops.srmsnorm._add_srms_norm(*some, None)
    assert_same((y[picked], sum[picked], rstd[picked]), (y_want, sum_want, rstd_want))
    del residual, sum
    grad = torch.ops.srmsnorm._srms_norm_backward(input, y, rstd)
    assert_same([grad[picked]], [torch.ops.srmsnorm._srms_norm_backward(some[0], y_want, rstd_want)])


def test_far_apart_rows(cuda):
    """Offsets past 2**31 from strides, with few elements."""
    if torch.cuda.mem_get_info()[0] < 8 * 2**30:
        pytest.skip("needs 8 GiB of free GPU memory")
    torch.use_deterministic_algorithms(False)
    base = torch.empty(3 * 2**30, dtype=BFLOAT, device=cuda)
    input = base.as_strided((3, 64), (2**30 + 8, 1))
    input.copy_(samples.values((3, 64), BFLOAT, cuda))
    assert_same([srmsnorm.srms_norm(input)], [srmsnorm.srms_norm(input.contiguous())])
