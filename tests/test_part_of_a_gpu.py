"""A part of a GPU, where clusters of 16 blocks have no room: same row, same bits within it, captured or not."""

import fresh
import pytest
import samples
import torch
from captured import captured, launches
from samples import BFLOAT, FLOAT, HALF, Kind

import srmsnorm

KINDS = [Kind(BFLOAT), Kind(HALF, HALF), Kind(BFLOAT, FLOAT), Kind(FLOAT, FLOAT)]
DIMS = [20_480, 65_536, 65_537, 131_072, 262_144]  # wider than a block takes, in every dtype
CLUSTERS = [1, 2, 4, 8, 16]
PART = 8  # multiprocessors: the fewest that a Hopper GPU gives away


@pytest.fixture
def part(cuda):
    """A green context that has not as many multiprocessors as the largest cluster has blocks."""
    contexts = pytest.importorskip("torch.cuda.green_contexts")
    if not contexts.SUPPORTED or torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs green contexts and clusters")
    return contexts.GreenContext.create(PART, 0)


def operands(kind, shape):
    input, residual = samples.forward(kind, shape, "cuda")
    return input, residual, samples.grad_output(kind, shape, "cuda"), samples.grad_sum(kind, shape, "cuda")


def everything(input, residual, g, gh):
    y, rstd = torch.ops.srmsnorm._srms_norm(input, residual, None)
    found = [
        y,
        rstd,
        torch.ops.srmsnorm._srms_norm_backward(g, y, rstd),
        torch.ops.srmsnorm._srms_norm_backward(g, y, rstd, torch.zeros_like(gh)),
        torch.ops.srmsnorm._srms_norm_backward(g, y, rstd, gh),
    ]
    if residual is not None:
        found += torch.ops.srmsnorm._add_srms_norm(input, residual, None)
    return found


def on(stream, call):
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results = call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    return results


def assert_bits(got, want):
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert torch.equal(a, b), i


def clusters_of(kind, dim, rows, graph, **options):
    """The largest clusters whose plan the one launch of a graph fits."""
    (launch,) = launches(graph)
    found = set()
    for largest in CLUSTERS:
        plan = srmsnorm.launch_plan(dim, kind.dtype, kind.residual, max_cluster=largest, **options)
        if launch.threads == (plan["threads_per_row"], 1) and launch.blocks == rows * plan["cluster"]:
            found.add(largest)
    return found


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_captured_or_not(part, kind, plain_memory):
    stream = part.Stream()
    for dim in DIMS:
        whole = operands(kind, (3, dim))
        want = on(stream, lambda: everything(*whole))  # noqa: B023
        graph, got = captured(lambda: everything(*whole), stream)  # noqa: B023
        on(stream, graph.replay)
        assert_bits(got, want)
        assert_bits(on(stream, lambda: everything(*whole)), want)  # noqa: B023
        assert torch.equal(want[3], want[2])  # a gradient of the sum that is 0 changes no bit
        if kind.residual is not None:
            assert torch.equal(want[5], want[0]) and torch.equal(want[7], want[1])


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_few_rows_or_many(part, kind, plain_memory):
    """The many move more than the L2 holds: on some GPUs their blocks are kept apart, by shared memory."""
    stream = part.Stream()
    for dim in DIMS[:-1]:
        rows = (160 << 20) // (dim * kind.dtype.itemsize) // 16 * 16
        whole = operands(kind, (rows, dim))
        want = on(stream, lambda: everything(*whole))  # noqa: B023
        for some in (slice(0, 1), slice(rows - 16, rows - 13)):
            few = [None if t is None else t[some] for t in whole]
            assert_bits(on(stream, lambda: everything(*few)), [t[some] for t in want])  # noqa: B023
        graph, got = captured(lambda: everything(*whole), stream)  # noqa: B023
        on(stream, graph.replay)
        assert_bits(got, want)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_plans(part, kind, plain_memory):
    """Every launch in a context follows the plan of one largest cluster: less than 16 in the part of the GPU, 16 in
    the whole of one that has them, and each in turn."""
    fit = {"whole": set(CLUSTERS), "part": set(CLUSTERS)}
    streams = {"whole": torch.cuda.Stream(), "part": part.Stream()}
    for dim in DIMS:
        input, residual, g, gh = operands(kind, (3, dim))
        y, rstd = torch.ops.srmsnorm._srms_norm(input, residual, None)
        calls = {
            (False, False): lambda: srmsnorm.srms_norm(input, residual),  # noqa: B023
            (True, False): lambda: torch.ops.srmsnorm._srms_norm_backward(g, y, rstd),  # noqa: B023
            (True, True): lambda: torch.ops.srmsnorm._srms_norm_backward(g, y, rstd, gh),  # noqa: B023
        }
        for (backward, grad_sum), call in calls.items():
            for name, stream in streams.items():
                graph, _ = captured(call, stream)
                options = {"backward": backward, "grad_sum": grad_sum, "aligned": dim % 8 == 0}
                fit[name] &= clusters_of(kind, dim, 3, graph, **options)
    assert len(fit["part"]) == 1 and max(fit["part"]) < 16, fit
    if torch.cuda.get_device_capability() in ((9, 0), (10, 0)):
        assert fit["whole"] == {16}, fit


@pytest.mark.parametrize("kind", KINDS[:3], ids=str)
def test_contexts_in_turn(part, kind):
    """Each keeps its bits, whichever was asked last; a stream's context counts, and for the default stream the
    current one."""
    whole, inside = torch.cuda.Stream(), part.Stream()
    for dim in DIMS:
        these = operands(kind, (3, dim))
        of_whole, of_part = (on(stream, lambda: everything(*these)) for stream in (whole, inside))  # noqa: B023
        for _ in range(3):
            assert_bits(on(inside, lambda: everything(*these)), of_part)  # noqa: B023
            assert_bits(on(whole, lambda: everything(*these)), of_whole)  # noqa: B023
        part.set_context()
        try:
            current = everything(*these)
            torch.cuda.synchronize()
        finally:
            part.pop_context()
        assert_bits(current, of_part)
        assert_bits(everything(*these), of_whole)


def test_autograd_follows_the_stream(part):
    """Its thread has another current context; the work goes to the stream of forward."""
    stream = part.Stream()
    for dim in DIMS:
        input, _, g, _ = operands(Kind(FLOAT), (3, dim))
        leaf = input.clone().requires_grad_()
        on(stream, lambda: srmsnorm.srms_norm(leaf).backward(g))  # noqa: B023
        y, rstd, *_ = on(stream, lambda: torch.ops.srmsnorm._srms_norm(input, None, None))  # noqa: B023
        want = on(stream, lambda: torch.ops.srmsnorm._srms_norm_backward(g, y, rstd))  # noqa: B023
        assert torch.equal(leaf.grad, want)


FIRST_CALL = """
import torch, srmsnorm
from torch.cuda.green_contexts import GreenContext
x = torch.randn(4, {dim}, device="cuda", dtype=torch.bfloat16)
part = GreenContext.create({part}, 0)
stream = part.Stream()
torch.cuda.synchronize()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph, stream=stream):
    y = srmsnorm.srms_norm(x, x)
with torch.cuda.stream(stream):
    graph.replay()
    want = srmsnorm.srms_norm(x, x)
torch.cuda.synchronize()
assert torch.equal(y, want)
"""


def test_first_call_is_captured_in_a_part(part):
    for dim in (2048, 262_144):
        done = fresh.run(FIRST_CALL.format(dim=dim, part=PART))
        assert done.returncode == 0, done.stderr


# Handles come again: a context that is gone must not answer for the next one at its address.
ONE_AFTER_THE_OTHER = """
import torch, srmsnorm
from torch.cuda.green_contexts import GreenContext
x = torch.randn(4, 262144, device="cuda", dtype=torch.bfloat16)
found = {}
for multiprocessors in (8, 64, 8, 64, 16, 64, 8):
    part = GreenContext.create(multiprocessors, 0)
    part.set_context()
    got = torch.ops.srmsnorm._srms_norm(x, None, None)
    got = [t.cpu() for t in got]
    torch.cuda.synchronize()
    part.pop_context()
    torch.cuda.synchronize()
    del part
    want = found.setdefault(multiprocessors, got)
    assert all(torch.equal(a, b) for a, b in zip(got, want)), multiprocessors
"""


def test_contexts_that_come_and_go(part):
    done = fresh.run(ONE_AFTER_THE_OTHER)
    assert done.returncode == 0, done.stderr


def test_threads_ask_at_once(part):
    """The first wide calls of a process, in many threads."""
    program = """
import threading, torch, srmsnorm
from torch.cuda.green_contexts import GreenContext
x = torch.randn(4, 262144, device="cuda", dtype=torch.bfloat16)
part = GreenContext.create(8, 0)
streams = [part.Stream() if i % 2 else torch.cuda.Stream() for i in range(16)]
torch.cuda.synchronize()
results, start = [None] * 16, threading.Barrier(16)
def call(i):
    start.wait()
    with torch.cuda.stream(streams[i]):
        results[i] = torch.ops.srmsnorm._srms_norm(x, None, None)
        streams[i].synchronize()
threads = [threading.Thread(target=call, args=(i,)) for i in range(16)]
for thread in threads: thread.start()
for thread in threads: thread.join()
for i in range(16):
    assert all(torch.equal(a, b) for a, b in zip(results[i], results[i % 2])), i
"""
    done = fresh.run(program)
    assert done.returncode == 0, done.stderr
