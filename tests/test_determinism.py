"""Same row, same bits: whatever is around the row, whatever else is written, wherever it runs."""

import functools
import json

import fresh
import pytest
import samples
import torch
from samples import BFLOAT, FLOAT, HALF, Kind

import srmsnorm

KINDS = [Kind(HALF), Kind(BFLOAT, BFLOAT), Kind(BFLOAT, FLOAT), Kind(FLOAT, FLOAT), Kind(samples.DOUBLE)]
DIMS = [1, 3, 7, 8, 9, 31, 33, 64, 100, 128, 257, 512, 1000, 1024, 2048, 2049]
WIDE = [4096, 8191, 16_384, 32_768, 65_536, 65_537, 131_072, 150_000, 262_144]


def everything(input, residual, g, gh):
    """Every operator's results on these operands, by name."""
    y, rstd = torch.ops.srmsnorm._srms_norm(input, residual, None)
    found = {
        "y": y,
        "rstd": rstd,
        "grad": torch.ops.srmsnorm._srms_norm_backward(g, y, rstd),
        "grad with sum": torch.ops.srmsnorm._srms_norm_backward(g, y, rstd, gh),
    }
    if residual is not None:
        found["sum"] = srmsnorm.add_srms_norm(input, residual)[1]
        if residual.dtype != input.dtype:
            found["pair"], found["wide"] = torch.ops.srmsnorm._srms_norm_backward_pair(g, y, rstd, gh)
    return found


def operands(kind, shape, device, layout=samples.contiguous):
    input, residual = samples.forward(kind, shape, device, layout=layout)
    g = samples.grad_output(kind, shape, device, layout=layout)
    return input, residual, g, samples.grad_sum(kind, shape, device, layout=layout)


def sliced(tensors, rows):
    return [None if t is None else t[rows] for t in tensors]


def moved(values, layout):
    return None if values is None else layout(values.shape, dtype=values.dtype, device=values.device).copy_(values)


def assert_bits(got, want):
    for key, tensor in want.items():
        assert torch.equal(got[key], tensor), key


def aligned_slices(rows, dim):
    """Slices whose rows lie in the fresh results as they lie in the whole ones: starts that are multiples of 16."""
    return [slice(0, 1), slice(0, rows // 2), slice(16, 17), slice(16, 19), slice(rows - rows % 16 - 16, rows)]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_number_of_rows(device, kind):
    rows = 70
    for dim in DIMS + (WIDE if device == "cuda" else WIDE[:2]):
        whole = operands(kind, (rows, dim), device)
        want = everything(*whole)
        for part in aligned_slices(rows, dim):
            assert_bits(everything(*sliced(whole, part)), {key: value[part] for key, value in want.items()})


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_many_rows(cuda, kind):
    """Launches for thousands of rows give the bits of launches for one. But for two, they move more than the L2
    holds, and their blocks are kept apart where that is faster."""
    for dim, rows in (
        (8, 2**17),
        (9, 2**22),
        (31, 2**15),
        (33, 2**20 + 16),
        (55, 2**15),
        (64, 2**20 + 64),
        (100, 2**15),
        (768, 2**16 + 64),
        (1024, 2**15 + 64),
        (4096, 2**13 + 16),
        (10_240, 2**12 + 16),
        (16_384, 2**11 + 16),
        (65_536, 2**9 + 16),
        (131_072, 2**9 + 16),
    ):
        whole = operands(kind, (rows, dim), cuda)
        want = everything(*whole)
        for part in (slice(0, 1), slice(rows // 2, rows // 2 + 16), slice(rows - 32, rows)):
            assert_bits(everything(*sliced(whole, part)), {key: value[part] for key, value in want.items()})


@pytest.mark.parametrize("dim", [1024, 4096, 12_288, 65_536])
def test_many_rows_of_another_size(cuda, dim):
    """Rows that become bytes or float32, which some GPUs prefetch where there are more than the L2 holds."""

    def results(input):
        quantized, scale = srmsnorm.srms_norm_quantized(input, dtype=torch.int8)
        return {"float32": srmsnorm.srms_norm(input, dtype=FLOAT), "int8": quantized, "scale": scale}

    rows = 2**26 // dim + 16
    input = samples.contiguous((rows, dim), dtype=BFLOAT, device=cuda).normal_()
    want = results(input)
    for part in (slice(0, 1), slice(rows // 2, rows // 2 + 16), slice(rows - 32, rows)):
        assert_bits(results(input[part]), {key: value[part] for key, value in want.items()})


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_many_rows_on_the_cpu(kind):
    """Past the grain of the parallel loop."""
    whole = operands(kind, (5000, 40), "cpu")
    want = everything(*whole)
    for part in (slice(0, 1), slice(2496, 2512), slice(4992, 5000)):
        assert_bits(everything(*sliced(whole, part)), {key: value[part] for key, value in want.items()})


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.residual], ids=str)
def test_with_and_without_the_sum(device, kind):
    for dim in DIMS + WIDE[:4] + ([50_257, 65_537] if device == "cuda" else []):
        input, residual, *_ = operands(kind, (3, dim), device)
        y = srmsnorm.srms_norm(input, residual)
        assert torch.equal(srmsnorm.add_srms_norm(input, residual)[0], y)
        assert torch.equal(torch.ops.srmsnorm._add_srms_norm(input, residual, None)[0], y)
        srmsnorm.add_srms_norm_(input, residual)
        assert torch.equal(input, y)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_with_and_without_gradients(device, kind):
    for dim in DIMS:
        input, residual, *_ = operands(kind, (3, dim), device)
        y = srmsnorm.srms_norm(input, residual)
        assert torch.equal(srmsnorm.srms_norm(input.requires_grad_(), residual), y)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_strides(device, kind):
    """Rows further apart, by a multiple of 16 elements so that each keeps its alignment."""
    for dim in DIMS + (WIDE if device == "cuda" else WIDE[:2]):
        want = everything(*operands(kind, (2, 3, dim), device))

        def spread(shape, **options):
            first, second, dim = shape
            return torch.empty((first, second + 16, dim), **options)[:, :second]

        def swapped(shape, **options):
            first, second, dim = shape
            return torch.empty((second, first + 1, dim), **options)[:, :first].transpose(0, 1)

        layouts = (
            (spread, swapped) if dim % 8 == 0 else (spread,)
        )  # the outputs are swapped too, and with them odd rows
        for layout in layouts:
            assert_bits(everything(*operands(kind, (2, 3, dim), device, layout)), want)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.residual], ids=str)
def test_other_operands_elsewhere(device, kind):
    """A row's vectors begin where its input's do (in backward: y's). The others may lie elsewhere, and are then read
    shifted or twice, or from rows by level."""
    for dim in (*DIMS, 4096, 8191) + ((12_288, 16_384, 65_536, 65_537, 262_144) if device == "cuda" else ()):
        input, *others = operands(kind, (2, 3, dim), device)
        want = everything(input, *others)
        for layout in (samples.misaligned, samples.padded, samples.gapped):
            moved = (layout(x.shape, dtype=x.dtype, device=device).copy_(x) for x in others)
            assert_bits(everything(input, *moved), want)


@pytest.mark.parametrize("layout", samples.UNIT_STRIDE, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_rows_alone(device, kind, layout):
    """Each row where it lies, alone: neither another row's alignment reaches it, nor a launch for aligned rows."""
    backward = torch.ops.srmsnorm._srms_norm_backward
    dims = (2, 5, 8, 12, 31, 33, 64, 100, 512, 1000) + (
        (2048, 4096, 32_768, 65_536, 262_144, 524_288) if device == "cuda" else ()
    )
    for dim in dims:
        input, residual, g, gh = operands(kind, (9 if dim < 10_000 else 3, dim), device, layout)
        y, rstd = torch.ops.srmsnorm._srms_norm(input, residual, None)
        grad = backward(g, y, rstd, gh)
        for i in range(len(input)):
            alone = torch.ops.srmsnorm._srms_norm(input[i], None if residual is None else residual[i], None)
            assert torch.equal(alone[0], y[i]) and torch.equal(alone[1], rstd[i])
            assert torch.equal(backward(g[i], y[i], rstd[i], gh[i]), grad[i])


ANYWHERE = [Kind(HALF), Kind(BFLOAT), Kind(FLOAT), Kind(HALF, HALF), Kind(BFLOAT, FLOAT), Kind(FLOAT, FLOAT)]


def neighbours(input, residual, g, y, rstd, gh):
    """What the norm's operators write, beside what stands next to it, by name."""
    ops = torch.ops.srmsnorm
    found = {"norm": ops._srms_norm(input, residual, None), "rstd": srmsnorm.rstd(input, residual)}
    if input.dtype != samples.DOUBLE:
        found["wide"] = srmsnorm.srms_norm(input, residual, dtype=FLOAT)
        found["bytes"], found["scale"] = srmsnorm.srms_norm_quantized(input, residual, dtype=torch.int8)
    found["grad"] = ops._srms_norm_backward(g, y, rstd, None)
    found["grad with sum"] = ops._srms_norm_backward(g, y, rstd, gh)
    if residual is not None:
        found["sum"] = ops._add_srms_norm(input, residual, None)
        found["gated"] = ops._gated_srms_norm(input, residual, eps=None)
        found["gated grads"] = ops._gated_srms_norm_backward(g, input, residual, rstd)
        if residual.dtype != input.dtype:
            found["pair"] = ops._srms_norm_backward_pair(g, y, rstd, gh)
    return {key: value if isinstance(value, tuple) else (value,) for key, value in found.items()}


def assert_neighbours(got, want, *what):
    for key, tensors in want.items():
        for one, tensor in zip(got[key], tensors, strict=True):
            assert torch.equal(one, tensor), (key, *what)


MOVED = [(samples.misaligned, samples.misaligned), (samples.misaligned, samples.contiguous),
         (samples.contiguous, samples.misaligned), (samples.padded, samples.padded)]  # fmt: skip


@pytest.mark.parametrize("layouts", MOVED, ids=lambda layouts: "+".join(layout.__name__ for layout in layouts))
@pytest.mark.parametrize("kind", ANYWHERE, ids=str)
def test_short_whole_rows_anywhere(cuda, kind, layouts):
    """Rows of whole vectors that a part of a warp takes are cut from their begin on, by all operators: not even their
    alignment matters, with gaps between rows and without, nor that half the threads take those that are not aligned
    (but of 8 and 192 in 16 bits, and 384)."""

    first, second = layouts
    for dim in (8, 16, 64, 128, 192, 256, 384):
        input, residual, g, gh = operands(kind, (70, dim), cuda)
        y, rstd = torch.ops.srmsnorm._srms_norm(input, residual, None)
        want = neighbours(input, residual, g, y, rstd, gh)
        elsewhere = neighbours(moved(input, first), moved(residual, second), moved(g, second), moved(y, first), rstd,
                               moved(gh, second))  # fmt: skip
        assert_neighbours(elsewhere, want, dim)
        assert torch.equal(elsewhere["rstd"][0], elsewhere["norm"][1])


SHORT = (*range(1, 8), 9, 12, 15, 31, 33, 43, 45, 55, 57, 60, 65, 97, 111)


def later(first, shape, **options):
    rows, dim = shape
    return torch.empty((rows * dim + first,), **options)[first:].view(shape)


def spread(first, shape, **options):
    rows, dim = shape
    return torch.empty((rows, dim + 16), **options)[:, first : dim + first]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_short_rows_with_and_without_gaps(cuda, kind):
    """Rows that blocks take many of, as one stream of elements or one by one: the same where each lies as far past 16
    bytes. Blocks begin and end within a vector or not; those shorter than one wherever they begin in it. Results lie
    otherwise than what is read, in 16 bytes."""
    for dim in SHORT:
        for first in range(8) if dim < 8 else (0, 1, 3, 6):
            for rows in (1, 5, 1500):
                input, residual, g, gh = operands(kind, (rows, dim), cuda)
                y, rstd = torch.ops.srmsnorm._srms_norm(input, residual, None)
                near, far = (functools.partial(layout, first) for layout in (later, spread))
                want, got = (
                    neighbours(*(moved(t, layout) for t in (input, residual, g, y)), rstd, moved(gh, layout))
                    for layout in (far, near)
                )
                assert_neighbours(got, want, dim, first, rows)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.residual], ids=str)
def test_short_rows_in_place(cuda, kind):
    """y where the input was and the sum where the residual was, each wherever it begins in 16 bytes, with or without
    the other; what is before and behind stays."""

    def amid(values, first):
        """A view with these values, the memory that it is a view of, and where in it."""
        memory = torch.arange(values.numel() + 40, device=cuda).to(values.dtype)
        own = slice(16 + first, 16 + first + values.numel())
        memory[own] = values.view(-1)
        return memory[own].view(values.shape), memory, own

    for dim in SHORT:
        for rows in (1, 3, 700):
            for first, second in ((0, 1), (1, 0), (3, 6), (6, 3), (5, 5), (7, 2)):
                values = samples.forward(kind, (rows, dim), cuda)
                (input, memory, own), (residual, other, others) = map(amid, values, (first, second))
                y, sum = srmsnorm.add_srms_norm(input, residual)
                want, want_other = memory.clone(), other.clone()
                want[own], want_other[others] = y.view(-1), sum.view(-1)
                srmsnorm.add_srms_norm_(input, residual)
                assert torch.equal(memory, want) and torch.equal(other, want_other), (dim, rows, first, second)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_short_rows_beside_others(cuda, kind):
    """It does not matter how other operands lie than the one that is reduced."""
    for dim in SHORT:
        for first, second in ((samples.contiguous, samples.misaligned), (samples.misaligned, samples.contiguous)):
            input, residual = samples.forward(kind, (1500, dim), cuda, layout=first)
            g, gh = samples.grad_output(kind, (1500, dim), cuda), samples.grad_sum(kind, (1500, dim), cuda)
            want = everything(input, residual, g, gh)

            assert_bits(everything(input, moved(residual, second), moved(g, second), moved(gh, second)), want)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_runs(device, kind):
    for dim in DIMS + (WIDE if device == "cuda" else WIDE[:2]):
        whole = operands(kind, (5, dim), device)
        want = everything(*whole)
        for _ in range(3):
            assert_bits(everything(*whole), want)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_threads(kind):
    whole = operands(kind, (300, 257), "cpu")
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(everything(*whole))
    finally:
        torch.set_num_threads(before)
    assert_bits(results[1], results[0])
    assert_bits(results[2], results[0])


def test_threads_that_begin_within_a_level():
    """A thread's first row is seldom the first of an innermost level; each run of rows ends with its level."""
    wide = samples.values((5, 1500, 64), FLOAT)
    input = wide[:, :1001]
    want = srmsnorm.srms_norm(input.contiguous())
    before = torch.get_num_threads()
    try:
        for threads in (2, 3, 4):
            torch.set_num_threads(threads)
            assert torch.equal(srmsnorm.srms_norm(input), want)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_side_stream(cuda, kind):
    """Work goes to the current stream, after what is queued there: a long kernel before the operands' values exist."""
    for dim in (33, 2048, 65_536):
        whole = operands(kind, (16, dim), cuda)
        want = everything(*whole)
        late = [None if t is None else torch.zeros_like(t) for t in whole]
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            for to, value in zip(late, whole, strict=True):
                if to is not None:
                    to.copy_(value)
            got = everything(*late)
        stream.synchronize()
        assert_bits(got, want)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_graph_replay(cuda, kind):
    """Captured, then replayed on other values."""
    for dim in (33, 1000, 2048, 65_536, 262_144):
        whole = operands(kind, (16, dim), cuda)
        want = everything(*whole)
        static = [None if t is None else torch.ones_like(t) for t in whole]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = everything(*static)
        for to, value in zip(static, whole, strict=True):
            if to is not None:
                to.copy_(value)
        graph.replay()
        torch.cuda.synchronize()
        assert_bits(got, want)


def test_capture_on_the_first_call(cuda):
    """Nothing is compiled, tuned or configured outside the capture: a fresh process captures its very first call."""
    program = """
import torch, srmsnorm
x = torch.randn(4, {dim}, device="cuda", dtype=torch.bfloat16)
torch.cuda.synchronize()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    y = srmsnorm.srms_norm(x, x)
graph.replay()
torch.cuda.synchronize()
assert torch.equal(y, srmsnorm.srms_norm(x, x))
"""
    for dim in (2048, 262_144):
        done = fresh.run(program.format(dim=dim))
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(device, backend, plain_memory):
    """Compiled calls, forward and backward, give the bits of eager ones, and of fewer rows."""

    def function(input, residual, g, gh):
        leaves = [input.detach().requires_grad_(), residual.detach().requires_grad_()]
        y, sum = compiled(*leaves)
        return dict(enumerate((y, sum, *torch.autograd.grad((y, sum), leaves, (g, gh)))))

    torch._dynamo.reset()
    whole = operands(Kind(BFLOAT, FLOAT), (70, 1000), device)
    compiled = srmsnorm.add_srms_norm
    want = function(*whole)
    compiled = torch.compile(srmsnorm.add_srms_norm, fullgraph=True, backend=backend)
    assert_bits(function(*whole), want)
    for part in aligned_slices(70, 1000):
        assert_bits(function(*sliced(whole, part)), {key: value[part] for key, value in want.items()})


@pytest.mark.parametrize("kind", [Kind(FLOAT, FLOAT), Kind(BFLOAT, FLOAT)], ids=str)
def test_deterministic_mode(device, kind):
    """Nothing to refuse: the same bits with torch.use_deterministic_algorithms as without."""
    whole = operands(kind, (16, 100), device)
    torch.use_deterministic_algorithms(False)
    want = everything(*whole)
    torch.use_deterministic_algorithms(True)
    assert_bits(everything(*whole), want)
    leaf = whole[0].clone().requires_grad_()
    srmsnorm.srms_norm(leaf, whole[1]).backward(whole[2])
    assert torch.equal(leaf.grad, torch.autograd.grad(srmsnorm.srms_norm(leaf, whole[1]), leaf, whole[2])[0])


@pytest.mark.parametrize("dim", [7, 8, 100, 1000, 4096, 20_000, 65_536])
def test_launch_does_not_depend_on_rows(cuda, dim, tmp_path):
    """One row and thousands get the block that the plan names, which decides the order of the sum."""
    plan = srmsnorm.launch_plan(dim, BFLOAT, BFLOAT)
    for rows in (1, 2, 33, 4096):
        input = samples.tensor((rows, dim), BFLOAT, cuda)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            srmsnorm.add_srms_norm(input, input)
        profile.export_chrome_trace(str(tmp_path / "trace.json"))
        events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
        (block,) = [event["args"]["block"] for event in events if "row_kernel" in event.get("name", "")]
        expected = [plan["threads_per_row"], plan["rows_per_block"], 1] if plan["vectors"] else [128, 1, 1]
        assert block == expected
