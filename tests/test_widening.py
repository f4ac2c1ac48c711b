"""A norm's 16-bit input in float32 under inline_under_compile("auto"): written once where a matrix product reads it."""

import re

import pytest
import torch
from decided import FORMULA, OPERATOR, decided, ours
from graphs import run
from samples import BFLOAT, FLOAT, HALF
from tolerances import assert_compiled
from torch._inductor.utils import run_and_get_code

import srmsnorm

ROWS, STREAMS, DIM = 6, 4, 64
CAST = torch.ops.prims.convert_element_type.default
VIEW = torch.ops.aten.as_strided.default

pytestmark = pytest.mark.usefixtures("fresh_dynamo", "formulas")


@pytest.fixture
def formulas(table):
    table([FORMULA])


def norm(x, dtype=FLOAT):
    return srmsnorm.srms_norm(x, eps=1e-3, dtype=dtype)


def hyper_connected(x, w, m):
    """Streams that are weighed by the norm of all four, and mixed."""
    streams = (x * 3).to(BFLOAT)
    weights = norm(streams.flatten(-2)) @ w
    return m @ streams.float(), weights.unsqueeze(-1) * (m.mT @ streams.float())


def operands():
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(*shape, generator=generator)
        for shape in ((ROWS, STREAMS, DIM), (STREAMS * DIM, STREAMS), (ROWS, STREAMS, STREAMS))
    ]


def forward_of(function, tensors, **options):
    """The graph of forward without gradients, decided; and what it computes beside eager code."""
    compiled, _, after = decided(function, **options)
    with srmsnorm.inline_under_compile("auto"), torch.no_grad():
        got = compiled(*tensors)
    assert_compiled(got, function(*tensors))
    return after[0]


def found(graph, target):
    return graph.find_nodes(op="call_function", target=target)


def casts(graph):
    return [node for node in found(graph, CAST) if node.args[1] is FLOAT]


def test_one_cast():
    """For both products and the norm, which reads it in memory as the view that its input is."""
    graph = forward_of(hyper_connected, operands())
    (cast,), (view,) = casts(graph), found(graph, VIEW)
    assert view.args == (cast, torch.Size([ROWS, STREAMS * DIM]), (STREAMS * DIM, 1), 0) and len(cast.users) == 3
    assert not ours(graph)


def test_generated_code():
    """Makes the streams once: one kernel reads what they are made of."""
    tensors = operands()
    with srmsnorm.inline_under_compile("auto"), torch.no_grad():
        got, (code,) = run_and_get_code(torch.compile(hyper_connected, fullgraph=True), *tensors)
    want = hyper_connected(*tensors)
    assert_compiled([a.to(BFLOAT) for a in got], [a.to(BFLOAT) for a in want])  # the streams may go unrounded
    assert len(re.findall(r"cpp_fused\w*\(arg0_1, buf\d+\)", code)) == 1 == len(re.findall(r"\(.*arg0_1.*buf", code))


def test_training():
    """Backward keeps y and the streams in float32, for the products, and no streams in 16 bits."""
    compiled, _, after = decided(hyper_connected)
    with srmsnorm.inline_under_compile("auto"):
        got = run(compiled, operands())
    assert_compiled(got, run(hyper_connected, operands()))
    assert len(casts(after[0])) == 1 == len(found(after[0], VIEW))
    kept = [node.meta["val"] for node in after[1].nodes if node.op == "placeholder"]
    assert [value.dtype for value in kept if value.numel() == ROWS * STREAMS * DIM].count(FLOAT) >= 2
    assert BFLOAT not in [value.dtype for value in kept]


def of_a_part(x, w, m):
    streams = (x * 3).to(BFLOAT)
    return norm(streams[1:, 2]), m @ streams.float()


def in_its_dtype(x, w, m):
    streams = (x * 3).to(HALF)
    return norm(streams, dtype=None), m @ streams.float()


def cast_before(x, w, m):
    streams = (x * 3).to(BFLOAT)
    mixed = m @ streams.float()
    return norm(streams), mixed, m.mT @ streams.float()


@pytest.mark.parametrize("function", [of_a_part, in_its_dtype, cast_before], ids=lambda function: function.__name__)
def test_found(function):
    graph = forward_of(function, operands())
    (view,) = found(graph, VIEW)
    assert view.args[0].target is CAST and len(casts(graph)) == 1


def of_an_operand(x, w, m):
    return norm(x), m @ x.float(), m.mT @ x.float()


def test_operand():
    """In memory in 16 bits: the sum and y read it so. One cast for both products nevertheless."""
    x, w, m = operands()
    graph = forward_of(of_an_operand, [x.to(BFLOAT), w, m])
    assert not found(graph, VIEW)
    assert sum(len(cast.users) == 2 for cast in casts(graph)) == 1


def no_product(x, w, m):
    streams = (x * 3).to(BFLOAT)
    return norm(streams), streams.float() * m.sum()


def with_holes(x, w, m):
    """The cast closes them: no view of one is that view of the other."""
    streams = (x * 3).to(BFLOAT)[:, :, ::2]
    return norm(streams[1:]), m @ streams.float()


def of_other_numbers(x, w, m):
    """The same bits, read as another dtype."""
    streams = (x * 3).to(BFLOAT)
    return norm(streams.view(HALF)), m @ streams.float()


def past_its_source(x, w, m):
    """A view of memory that is not in the cast."""
    part = (x * 3).to(BFLOAT)[:2]
    return norm(part.as_strided((4, DIM), (2 * DIM, 1), 2 * STREAMS * DIM)), m[:2] @ part.float()


def behind_a_copy(x, w, m):
    """Which is written, and the cast is not."""
    streams = (x * 3).to(BFLOAT)
    return norm(streams), m[:1] @ torch.cat([streams.float(), x])


def of_two(x, w, m):
    streams = (x * 3).to(BFLOAT)
    return srmsnorm.srms_norm(streams, streams.sin(), eps=1e-3), m @ streams.float()


def to_half(x, w, m):
    streams = (x * 3).to(BFLOAT)
    return norm(streams), m.half() @ streams.half()


def of_float(x, w, m):
    streams = x * 3
    return norm(streams), m @ streams.float()


@pytest.mark.parametrize(
    "function",
    [no_product, with_holes, of_other_numbers, past_its_source, behind_a_copy, of_two, to_half, of_float],
    ids=lambda function: function.__name__,
)
def test_left_alone(function):
    """No view that is not the function's own."""
    tensors = [tensor.abs() for tensor in operands()]  # the bits of one 16-bit dtype are no NaN of the other
    assert all(view.args[0].target is not CAST for view in found(forward_of(function, tensors), VIEW))


def test_changing_sizes():
    assert not found(forward_of(hyper_connected, operands(), dynamic=True), VIEW)


def test_changing_part():
    """Of streams whose sizes are known."""
    x, w, m = operands()
    counted = torch.ones(3)
    torch._dynamo.mark_dynamic(counted, 0)

    def function(x, m, counted):
        streams = (x * 3).to(BFLOAT)
        return norm(streams[: counted.shape[0]]), m @ streams.float()

    assert not found(forward_of(function, [x, m, counted]), VIEW)


def returned(x, w, m):
    streams = (x * 3).to(BFLOAT)
    first, second = streams.float(), streams.float()
    return norm(streams), m @ first, m.mT @ second, first, second.flatten()


def test_returned_casts():
    """Eager code may write into either: they stay two."""
    outputs = forward_of(returned, operands()).output_node().args[0]
    assert outputs[3] is not outputs[4].args[0]


def test_kept_casts():
    """One is returned, the other kept for backward: what is written into the first does not reach the gradient."""

    def function(x, w, m):
        streams = (x * 3).to(BFLOAT)
        with torch.no_grad():
            apart = streams.float()
        return norm(streams), m @ apart, streams.float() @ w, apart

    def gradient(function):
        x, w, m = operands()
        w = w[:DIM].requires_grad_()
        *_, product, apart = function(x, w, m)
        with torch.no_grad():
            apart.zero_()
        return torch.autograd.grad(product.square().sum(), w)

    with srmsnorm.inline_under_compile("auto"):
        assert_compiled(
            [g.to(BFLOAT) for g in gradient(decided(function)[0])], [g.to(BFLOAT) for g in gradient(function)]
        )


def test_table_decides(table):
    """An operator reads its input in 16 bits; both products read one cast."""
    table([OPERATOR])
    graph = forward_of(hyper_connected, operands())
    assert not found(graph, VIEW) and len(casts(graph)) == 1
    assert ours(graph) == ["srmsnorm.srms_norm.default"]
