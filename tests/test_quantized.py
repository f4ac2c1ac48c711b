"""Quantised results: bit for bit what the plain formula makes of our own y, and scales where they belong."""

import itertools
import math

import plans
import pytest
import samples
import torch
from samples import BFLOAT, DOUBLE, FLOAT, HALF, Kind

import srmsnorm
from srmsnorm import reference

FP8, WIDE, INT8 = torch.float8_e4m3fn, torch.float8_e5m2, torch.int8
DTYPES = (FP8, WIDE, INT8)
KINDS = [kind for kind in samples.KINDS if kind.dtype != DOUBLE]
EVERY = pytest.mark.parametrize("kind", KINDS, ids=str)
EACH = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EPS = 1e-3


def options_for(dim, device="cpu"):
    """Every way to a scale that such rows have."""
    given = torch.tensor([0.0123], device=device)
    found = [{}, {"power_of_two": True}, {"scale": 0.037}, {"scale": given}, {"scale": "bound"}, {"scale_ub": 1.25}]
    found += [{"scale_ub": 0.3, "power_of_two": True}, {"scale": 1e-3}]
    if dim % 64 == 0:
        found += [{"group_size": 64}, {"group_size": 64, "power_of_two": True, "scale_ub": 0.7}]
    if dim % 128 == 0:
        found += [{"group_size": 128}, {"group_size": 128, "power_of_two": True}]
    return found


def bits(tensor):
    """As integers; every NaN the same."""
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.itemsize]
    found = tensor.contiguous().view(whole)
    return found if tensor.dtype == INT8 else torch.where(tensor.float().isnan(), 0x7F, found)


def assert_same(got, want):
    for a, b in zip(got, want, strict=True):
        assert (a.dtype, a.shape, a.device) == (b.dtype, b.shape, b.device)
        differs = bits(a) != bits(b)
        assert not differs.any(), f"{int(differs.sum())} of {a.numel()}, first {a[differs][:4]} for {b[differs][:4]}"


def assert_scale_lies_as_promised(scale, input, options):
    if options.get("scale") is not None:
        return
    rows, group = input.numel() // input.shape[-1], options.get("group_size")
    assert scale.shape == (*input.shape[:-1], 1 if group is None else input.shape[-1] // group)
    if group is None:
        assert scale.is_contiguous()
    elif rows > 1:
        assert scale.view(-1, scale.shape[-1]).stride() == (1, rows)


def check(input, residual, dtype, options, eps=EPS):
    """Every operator on these operands, against the formula on our own norm."""
    y = srmsnorm.srms_norm(input, residual, eps=eps)
    want = reference.quantize(y, dtype=dtype, **options)
    got = srmsnorm.srms_norm_quantized(input, residual, dtype=dtype, **options, eps=eps)
    assert got[0].is_contiguous()
    assert_same(got, want)
    assert_scale_lies_as_promised(got[1], input, options)
    if residual is None:
        return got
    sum = srmsnorm.add_srms_norm(input, residual, eps=eps)[1]
    fresh = srmsnorm.add_srms_norm_quantized(input, residual, dtype=dtype, **options, eps=eps)
    assert_same(fresh, (*want, sum))
    assert fresh[2].stride() == sum.stride()
    if residual.stride(-1) == 1 and 0 not in residual.stride():
        stream, version = residual.clone(), 0
        stream = torch.empty_strided(residual.shape, residual.stride(), dtype=residual.dtype, device=residual.device)
        stream.copy_(residual)
        version = stream._version
        assert_same(srmsnorm.add_srms_norm_quantized_(input, stream, dtype=dtype, **options, eps=eps), want)
        assert_same([stream], [sum])
        assert stream._version == version + 1
    return got


def check_all(kind, shape, device, *, layout=samples.contiguous, residual_layout=None, some=1):
    """Each way to a scale with one dtype after the other; every some-th of them."""
    operands = samples.forward(kind, shape, device, layout=layout, residual_layout=residual_layout)
    for i, options in enumerate(options_for(shape[-1], device)[::some]):
        check(*operands, DTYPES[i % 3], options)


# ---- values


def test_by_hand(device):
    """A row of root mean square 1 has itself for y."""
    input = torch.tensor([[1.5, -0.5, 0.25, math.sqrt(4 - 2.5625)]], device=device)
    q, scale = srmsnorm.srms_norm_quantized(input, dtype=INT8, eps=0.0)
    assert scale.shape == (1, 1) and abs(scale.item() - 1.5 / 127) < 1e-8
    assert q.tolist() == [[127, -42, 21, 102]]
    q, scale = srmsnorm.srms_norm_quantized(input, scale=0.25, eps=0.0)
    assert scale.tolist() == [0.25] and q.float().tolist() == [[6, -2, 1, 5]]
    q, scale = srmsnorm.srms_norm_quantized(input, power_of_two=True, eps=0.0)
    assert scale.tolist() == [[2.0**-8]] and q.float().tolist() == [[384, -128, 64, 320]]


@EACH
@pytest.mark.parametrize("shape", samples.SHAPES + samples.EMPTY_SHAPES, ids=str)
@EVERY
def test_against_the_formula(device, kind, shape, dtype):
    for options in options_for(shape[-1], device):
        check(*samples.forward(kind, shape, device), dtype, options)


@EVERY
def test_groups(device, kind):
    for i, dim in enumerate((64, 128, 192, 256, 320, 384, 512, 640, 768, 1024, 1536, 4096, 5120, 8192)):
        for group in (64, 128) if dim % 128 == 0 else (64,):
            for power_of_two in (False, True):
                options = {"group_size": group, "power_of_two": power_of_two}
                check(*samples.forward(kind, (5, dim), device), DTYPES[i % 3], options)


@EACH
@pytest.mark.parametrize("kind", samples.PLAIN[:3], ids=str)
def test_every_rounding(device, kind, dtype):
    """Many quotients, ties and ends of the range among them: of a scale that is given and of one that is found."""
    numbers = torch.arange(-(2**15), 2**15, device=device, dtype=FLOAT).view(-1, 4096) / 2**7
    input = torch.cat([numbers, numbers * 2**-9, numbers * 2**-20]).to(kind.dtype)
    for scale in (1.0, 0.5, 2.0**-6, 2.0**-9, 2.0**-14, 0.3, 1e-4, 3.0, 2.0**-140):
        for value in (scale, torch.full((1,), scale, device=device)):
            check(input, None, dtype, {"scale": value})
    for options in ({}, {"scale_ub": 1e-4}, {"group_size": 64}, {"power_of_two": True}):
        check(input, None, dtype, options)


# Near the largest number of each type, exactly between two of its numbers.
TIES = {FP8: [16 * odd for odd in range(17, 28, 2)], WIDE: [4096 * odd for odd in (9, 11, 13)],
        INT8: [odd / 2 for odd in range(131, 254, 20)]}  # fmt: skip


def scales_of_ties(y, dtype):
    """Found scales by which some of y are exactly between two bytes, or off it by the rounding of the scale alone."""
    numbers = y.float().abs().flatten().unique()
    numbers = numbers[(numbers > 2.0**-4) & (numbers < y.abs().amax(-1).min() / 2)]
    for number in numbers[:: len(numbers) // 6].tolist():
        for tie in TIES[dtype]:
            scale = torch.tensor(number / tie)
            yield from (scale, torch.nextafter(scale, torch.tensor(0.0)), torch.nextafter(scale, torch.tensor(1.0)))


@EACH
@pytest.mark.parametrize("kind", samples.PLAIN[:2], ids=str)
def test_ties_of_found_scales(device, kind, dtype):
    magnitudes = torch.exp2(-(torch.arange(2048, device=device) % 24).float())
    input = (samples.tensor((4, 2048), FLOAT, device) * magnitudes).to(kind.dtype)
    y = srmsnorm.srms_norm(input, eps=EPS)
    for scale in scales_of_ties(y, dtype):
        bound = torch.tensor(scale.item() * reference.LARGEST[dtype])
        found = check(input, None, dtype, {"scale_ub": bound.item()})[1]
        assert (found == bound / reference.LARGEST[dtype]).all()


@EACH
@pytest.mark.parametrize("kind", samples.PLAIN[:3], ids=str)
def test_what_the_bytes_are_worth(device, kind, dtype):
    """q * scale is y but for half a step of q, whatever the formula says."""
    input = samples.tensor((33, 640), kind.dtype, device)
    y = srmsnorm.srms_norm(input).double()
    for options in ({}, {"group_size": 128}, {"power_of_two": True}, {"scale": "bound"}):
        q, scale = srmsnorm.srms_norm_quantized(input, dtype=dtype, **options)
        spread = scale.double().repeat_interleave(640 // scale.shape[-1], -1) if scale.dim() > 1 else scale.double()
        relative, smallest = {FP8: (2**-4, 2**-10), WIDE: (2**-3, 2**-17), INT8: (0, 0.5)}[dtype]
        error = (q.to(FLOAT).double() * spread - y).abs()
        assert (
            error <= (relative * y.abs()).maximum(smallest * spread) + 2**-23 * y.abs()
        ).all()  # the quotient rounds


@EACH
def test_bound(device, dtype):
    """Nothing saturates: neither one large element nor many alike."""
    most = reference.LARGEST[dtype]
    for dim in (1, 2, 3, 64, 100, 4096, 200_704, 200_705, 127**2 * 4, 127**2 * 4 + 1):
        input = torch.zeros(2, dim, device=device)
        input[0, dim // 2], input[1] = -3.0, 2.0
        for kind in (FLOAT, BFLOAT, HALF):
            q, scale = check(input.to(kind), None, dtype, {"scale": "bound"}, eps=0.0)
            exponent = math.log2(scale.item())
            assert exponent == int(exponent) and scale.shape == (1,)
            assert 4**exponent * most**2 >= dim > 4 ** (exponent - 1) * most**2
            assert q[0].to(FLOAT).abs().max() <= most


@EVERY
@EACH
def test_zero_rows(device, kind, dtype):
    shape = (4, 128)
    input = torch.zeros(shape, dtype=kind.dtype, device=device)
    residual = None if kind.residual is None else torch.zeros(shape, dtype=kind.residual, device=device)
    smallest = torch.finfo(FLOAT).eps if dtype == INT8 else torch.tensor(1 / (512 * reference.LARGEST[dtype])).item()
    for options in ({}, {"group_size": 64}, {"scale_ub": 1e-30}):
        q, scale = check(input, residual, dtype, options)
        assert not q.to(FLOAT).any() and scale.eq(smallest).all()
    q, scale = check(input, residual, dtype, {"power_of_two": True})
    assert scale.eq(2 ** math.ceil(math.log2(smallest))).all()
    for options in ({}, {"group_size": 64}, {"scale_ub": 1.0}, {"power_of_two": True}):
        q, scale = check(input, residual, dtype, options, eps=0.0)  # 0 / 0
        assert scale.isnan().all() and (not q.any() if dtype == INT8 else q.float().isnan().all())


def one_element_off(tensor):
    return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)


@pytest.mark.parametrize("fault", [float("nan"), float("inf"), float("-inf")], ids=str)
@EVERY
@EACH
def test_faults(device, kind, dtype, fault):
    """A row, or a group of it, and nothing else; also where rows do not begin at 16 bytes."""
    for dim, place in itertools.product((8, 33, 640), (torch.clone, one_element_off)):
        input, residual = samples.forward(kind, (7, dim), device)
        for options in options_for(dim, device):
            bad = place(input)
            want = srmsnorm.srms_norm_quantized(bad, residual, dtype=dtype, **options, eps=EPS)
            bad[3, dim // 2] = fault
            got = check(bad, residual, dtype, options)
            others = torch.arange(7, device=device) != 3
            assert_same([got[0][others]], [want[0][others]])
            if options.get("group_size") and math.isinf(fault):
                assert got[1][3].isnan().sum() == 1  # of the others y is 0
            elif options.get("scale") is None:
                assert got[1][3].isnan().all() and got[1][others].isfinite().all()


@pytest.mark.parametrize("kind", samples.PLAIN[:3], ids=str)
def test_tiny_rows(device, kind):
    """Squares that vanish, with eps and without."""
    smallest = torch.finfo(kind.dtype).smallest_normal * torch.finfo(kind.dtype).eps
    signs = samples.tensor((5, 128), FLOAT, device).sign()
    for factor in (1, 7):
        for options in options_for(128, device):
            for eps in (EPS, 0.0, 1e-38):
                check((signs * smallest * factor).to(kind.dtype), None, FP8, options, eps=eps)


# ---- rows of all sizes and everywhere


@EVERY
def test_every_small_dim(device, kind):
    for i, dim in enumerate([*range(1, 80), *range(80, 1100, 61)]):
        check_all(kind, (5, dim), device, some=1 + i % 3)


@EVERY
def test_every_number_of_rows(device, kind):
    for rows in [*range(1, 40, 1 if device == "cuda" else 7), 63, 65, 257, 1023, 4099]:
        for dim in (1, 64) if device == "cpu" else (1, 8, 24, 33, 64, 200):
            check_all(kind, (rows, dim), device, some=3)


@pytest.mark.parametrize("dim", [70_001, 131_072, 2**20 + 1])
@pytest.mark.parametrize("kind", [Kind(BFLOAT), Kind(BFLOAT, FLOAT), Kind(FLOAT)], ids=str)
def test_wide_rows(device, kind, dim):
    check_all(kind, (2, dim), device, some=1 if device == "cuda" else 4)


@pytest.mark.parametrize("dim", [20_480, 40_960, 49_152, 65_536])
@pytest.mark.parametrize("kind", [Kind(BFLOAT), Kind(FLOAT)], ids=str)
def test_rows_of_many_blocks(cuda, kind, dim):
    """So many that a sum in another order than the norm's would show in one of them."""
    input, _ = samples.forward(kind, (256, dim), cuda)
    for options in ({}, {"group_size": 128}):
        check(input, None, FP8, options)


@pytest.mark.parametrize("layout", [*samples.READABLE, *samples.COPIED], ids=lambda f: f.__name__)
@EVERY
def test_layouts(device, kind, layout):
    for shape in ((2, 3, 128), (7, 33), (2, 3, 2, 192), (3, 4096), (3, 3001)):
        check_all(kind, shape, device, layout=layout)
        if layout is not samples.contiguous:
            check_all(kind, shape, device, layout=layout, residual_layout=samples.contiguous, some=2)


def test_many_leading_dims_that_do_not_merge(device):
    for shape in ((2, 3, 2, 3, 2, 3, 64), (2,) * 9 + (3,)):
        layouts = {"layout": samples.gapped, "residual_layout": samples.transposed}
        check_all(Kind(BFLOAT, FLOAT), shape, device, **layouts)


@pytest.mark.parametrize("aligned", [True, False])
@EVERY
def test_every_plan_boundary(cuda, kind, aligned):
    layout = samples.contiguous if aligned else samples.misaligned
    dims = plans.around(kind, operator="srms_norm_quantized", aligned=aligned)[
        :: 4 if kind.dtype == HALF else 1
    ]  # float16 has bfloat16's plans
    for i, dim in enumerate(dims):
        for near in {dim, -(-dim // 128) * 128}:
            operands = samples.forward(kind, (3, near), cuda, layout=layout)
            ways = options_for(near, cuda)
            for options in (ways[i % len(ways)], ways[-1]):
                check(*operands, DTYPES[i % 3], options)


@EVERY
def test_number_of_rows(device, kind):
    """A row's bytes and scale know nothing of the others."""
    for dim in (64, 100, 1024, 4096, *((65_536,) if device == "cuda" else ())):
        input, residual = samples.forward(kind, (70, dim), device)
        for i, options in enumerate(options_for(dim, device)):
            given = {**options, "dtype": DTYPES[i % 3]}
            q, scale = srmsnorm.srms_norm_quantized(input, residual, **given)
            for part in (slice(0, 1), slice(16, 17), slice(35, 70)):
                rest = None if residual is None else residual[part]
                one, own = srmsnorm.srms_norm_quantized(input[part], rest, **given)
                assert_same([one, own], [q[part], scale if scale.dim() == 1 else scale[part]])


def test_a_scale_for_each_row(device):
    """As a call without one returns it."""
    input = samples.tensor((2, 5, 128), BFLOAT, device)
    y, scales = srmsnorm.srms_norm(input), srmsnorm.srms_norm_quantized(input)[1] * 1.5
    q, used = srmsnorm.srms_norm_quantized(input, scale=scales)
    assert used is scales
    assert_same([q], [reference.quantize(y, scale=scales)[0]])
    returned = torch.ops.srmsnorm.srms_norm_quantized(input, None, scales)[1]
    assert torch.equal(returned, scales) and returned.data_ptr() != scales.data_ptr()
    one = torch.full((), 0.25, device=device)
    returned = torch.ops.srmsnorm.srms_norm_quantized(input, None, one)[1]
    assert torch.equal(returned, one.view(1))


# ---- the next layer


def rows_of(device, rows=48, inner=256, dtype=BFLOAT):
    return samples.tensor((rows, inner), dtype, device), samples.tensor((64, inner), FLOAT, device, name="weight")


def relative_error(product, exact):
    return ((product.double() - exact).norm() / exact.norm()).item()


def test_int8_feeds_int_mm(device):
    """Without a copy; within 2 % of the unquantised product."""
    input, weight = rows_of(device)
    q, scale = srmsnorm.srms_norm_quantized(input, dtype=INT8)
    weights = (weight / (of_weight := weight.abs().amax(1, keepdim=True) / 127)).round().to(INT8)
    product = torch._int_mm(q, weights.t()) * scale * of_weight.t()
    exact = srmsnorm.srms_norm(input).double() @ weight.double().t()
    assert relative_error(product, exact) < 0.02


@pytest.mark.parametrize("options", [{}, {"power_of_two": True}, {"scale": "bound"}], ids=str)
def test_fp8_feeds_scaled_mm(cuda, options):
    """A scale of each row, or one of all; within 5 % of the unquantised product."""
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs fp8 products")
    input, weight = rows_of(cuda)
    q, scale = srmsnorm.srms_norm_quantized(input, **options)
    by_row = scale.dim() > 1
    of_weight = weight.abs().amax(1, keepdim=True) / 448 if by_row else weight.abs().max().view(1) / 448
    weights = (weight / of_weight).to(FP8)
    product = torch._scaled_mm(q, weights.t(), scale, of_weight.t() if by_row else of_weight, out_dtype=BFLOAT)
    exact = srmsnorm.srms_norm(input).double() @ weight.double().t()
    assert relative_error(product, exact) < 0.05


def test_groups_feed_scaled_mm(cuda):
    """Scales of 1 x 128 beside a weight's of 128 x 128, where torch takes them."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs products of such groups")
    input, weight = samples.tensor((48, 512), BFLOAT, cuda), samples.tensor((256, 512), FLOAT, cuda, name="weight")
    q, scale = srmsnorm.srms_norm_quantized(input, group_size=128)
    blocks = weight.view(2, 128, 4, 128)
    of_weight = blocks.abs().amax((1, 3)) / 448
    weights = (blocks / of_weight[:, None, :, None]).view(256, 512).to(FP8)
    product = torch._scaled_mm(q, weights.t(), scale, of_weight.t(), out_dtype=BFLOAT)
    exact = srmsnorm.srms_norm(input).double() @ weight.double().t()
    assert relative_error(product, exact) < 0.05
