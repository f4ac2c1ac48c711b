"""Compiled add_srms_norm_ on parts of one buffer: eager's values, whatever the compiler makes of two mutated views."""

import fresh
import pytest
import torch
from torch._inductor.utils import run_and_get_code

import srmsnorm

EPS = 1e-3
SHAPE = (4, 8, 16)


@pytest.fixture(autouse=True)
def fresh_dynamo(plain_memory):
    torch._dynamo.reset()
    with (
        torch._inductor.config.patch(fx_graph_cache=False),
        torch._functorch.config.patch(enable_autograd_cache=False),
        torch._dynamo.config.patch(capture_scalar_outputs=True),
    ):
        yield
    torch._dynamo.reset()


def step(x, stream):
    torch.ops.srmsnorm.add_srms_norm_(x, stream, eps=EPS)


# Two parts of a buffer: begins apart, rows apart, columns of the same rows, and the same with a part between.
PARTS = {
    "batch": lambda t: (t[0], t[1]),
    "reversed": lambda t: (t[3], t[1]),
    "rows": lambda t: (t[1, :4], t[1, 4:]),
    "every other": lambda t: (t[1, ::2], t[1, 1::2]),
    "packed": lambda t: (t[..., :8], t[..., 8:]),
    "packed qkv": lambda t: (t[1:, :, 4:8], t[1:, :, 10:14]),
    "detached": lambda t: (t[0].detach(), t[1].detach()),
    "as_strided": lambda t: (t.as_strided((8, 16), (16, 1), 0), t.as_strided((8, 16), (16, 1), 128)),
}


def assert_as_eager(function, compiled, *args):
    """On a buffer with more in it than the call may touch."""
    buffer = torch.randn(SHAPE)
    twin = buffer.clone()
    function(buffer, *args)
    compiled(twin, *args)
    torch.testing.assert_close(twin, buffer)


MODES = [torch.enable_grad, torch.no_grad, torch.inference_mode]


@pytest.mark.parametrize("parts,mode", [(parts, MODES[i % 3]) for i, parts in enumerate(PARTS)])
def test_views_as_inputs(parts, mode):
    """With a base that autograd knows, and without."""
    compiled = torch.compile(step, fullgraph=True)

    def call(function, buffer):
        with mode():
            operands = PARTS[parts](buffer)
        with torch.inference_mode(mode is torch.inference_mode):
            function(*operands)

    assert_as_eager(lambda t: call(step, t), lambda t: call(compiled, t))


@pytest.mark.parametrize("parts", PARTS)
def test_views_made_inside(parts):
    """Of a graph's input, and of what the graph itself makes."""

    def function(buffer):
        srmsnorm.add_srms_norm_(*PARTS[parts](buffer), eps=EPS)
        copy = buffer * 2
        step(*PARTS[parts](copy))
        buffer += copy

    assert_as_eager(function, torch.compile(function, fullgraph=True))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_dynamic_index(backend):
    """An index that is a symbol: of both operands, of one, and one that only the data tells."""

    def both(buffer, i, j):
        step(buffer[i], buffer[j])

    def one(buffer, i, j):
        other = torch.ones(SHAPE[1:])
        step(buffer[i], other)
        buffer[j] += other

    def items(buffer, i, j):
        both(buffer, i.item(), j.item())

    compiled = {f: torch.compile(f, fullgraph=True, dynamic=True, backend=backend) for f in (both, one, items)}
    for function, call in (
        (both, compiled[both]),
        (one, compiled[one]),
        (both, lambda buffer, i, j: compiled[items](buffer, torch.tensor(i), torch.tensor(j))),
    ):
        for i, j in ((1, 2), (3, 0)):
            assert_as_eager(function, call, i, j)


def test_part_of_an_input_that_is_one():
    """Offsets are those in the storage, not in the graph's input."""

    def function(buffer, other):
        step(buffer[0], other[1])
        step(other[0], buffer[1])

    def call(function):
        return lambda buffer: function(buffer[2:], buffer[:2].clone())

    assert_as_eager(call(function), call(torch.compile(function, fullgraph=True)))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_overlap(backend):
    """Raises as in eager mode: views that are the graph's inputs, made inside, and at an index that is a symbol."""
    operands = lambda t: (t[0:2], t[1:3])  # noqa: E731
    inside = lambda t: step(*operands(t))  # noqa: E731
    index = lambda t, i: step(t[i], t[i])  # noqa: E731
    for function, args in (
        (step, operands(torch.ones(SHAPE))),
        (inside, (torch.ones(SHAPE),)),
        (index, (torch.ones(SHAPE), 2)),
    ):
        compiled = torch.compile(function, fullgraph=True, backend=backend, dynamic=function is index)
        with pytest.raises(Exception, match="overlap in memory"):
            compiled(*args)


def test_two_storages_stay_in_place():
    """The operator itself and nothing else: no copy before, after or beside it."""

    def function(x, stream):
        step(x, stream)
        step(x[1:], stream[1:])

    operands = [torch.randn(8, 16) for _ in "xs"]
    twins = [t.clone() for t in operands]
    function(*twins)
    _, (code,) = run_and_get_code(torch.compile(function, fullgraph=True), *operands)
    torch.testing.assert_close(operands, twins)
    assert code.count("torch.ops.srmsnorm.add_srms_norm_.default(") == 2
    assert not any(
        word in code for word in ("async_compile.cpp_pybinding(", "async_compile.triton(", "= empty_strided")
    )


CACHED = """
import torch, srmsnorm
def step(x, stream): srmsnorm.add_srms_norm_(x, stream)
buffer = torch.randn(4, 8, 16)
pair = {parts}
twins = [t.clone() for t in pair]
step(*twins)
torch.compile(step)(*pair)
torch.testing.assert_close(list(pair), twins)
"""
VIEWS, APART = "buffer[0], buffer[1]", "buffer[0].clone(), buffer[1].clone()"


@pytest.mark.parametrize("order", [(VIEWS, APART), (APART, VIEWS)], ids=["views first", "apart first"])
def test_cache_on_disk(tmp_path, order):
    """What one process compiled for two views serves tensors that share nothing, and the other way round."""
    for parts in order:
        done = fresh.run(CACHED.format(parts=parts), TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
        assert done.returncode == 0, done.stderr
