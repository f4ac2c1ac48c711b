"""Sizes that only the data tells (masked and routed rows): compiled and exported in one graph, checked at run time."""

import pytest
import samples
import torch
from samples import BFLOAT, FLOAT, Kind
from torch._dynamo.decorators import mark_unbacked
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import srmsnorm

ops = torch.ops.srmsnorm
EPS = 1e-3
ROWS = 6


@pytest.fixture(autouse=True)
def unbacked_sizes(plain_memory):
    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True):
        yield
    torch._dynamo.reset()


def norm(x, stream):
    return (srmsnorm.srms_norm(x, stream, eps=EPS),)


def norms(x, stream):
    y, sum = srmsnorm.add_srms_norm(x, stream, eps=EPS)
    return srmsnorm.srms_norm(y.sin(), eps=EPS), sum


def module(x, stream):
    return srmsnorm.SRMSNorm(16, EPS)(x, stream, return_sum=True)


def in_place(x, stream):
    x, stream = x * 1, stream * 1
    srmsnorm.add_srms_norm_(x, stream, eps=EPS)
    return x, stream


def gradients(x, stream):
    """What the autograd kernels call, in forward and backward."""
    y, sum, rstd = ops._add_srms_norm(x, stream, EPS)
    pair = ops._srms_norm_backward_pair(x, y, rstd, sum) if x.dtype != stream.dtype else ()
    return y, sum, rstd, *pair, ops._srms_norm_backward(x, y, rstd, sum)


def masked(function):
    def call(x, stream, count):
        mask = torch.arange(ROWS) < count
        return function(x[mask], stream[mask])

    return call


def sliced(function):
    return lambda x, stream, count: function(x[: count.item()], stream[: count.item()])


def transposed(function):
    """Three dimensions in another order, of which two are symbols."""

    def call(x, stream, count):
        parts = [t[torch.arange(ROWS) < count].view(-1, 2, 8).transpose(0, 1) for t in (x, stream)]
        return function(*parts)

    return call


def results(function, tensors, requires_grad, count):
    leaves = [t.clone().requires_grad_(requires_grad) for t in tensors]
    outputs = function(*leaves, torch.tensor(count))
    if requires_grad:
        sum((i + 1) * o.float().square().sum() for i, o in enumerate(outputs)).backward()
    return [*outputs, *(leaf.grad for leaf in leaves if requires_grad)]


def assert_same(got, want):
    """The bits and, but for dimensions of size 1 or of none, the strides."""
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b) and a.dtype == b.dtype
        if b.numel():
            strides = [[stride for size, stride in zip(t.shape, t.stride(), strict=True) if size > 1] for t in (a, b)]
            assert strides[0] == strides[1]


@pytest.mark.parametrize("kind", [Kind(FLOAT, FLOAT), Kind(BFLOAT, FLOAT)], ids=str)
@pytest.mark.parametrize("rows", [masked, sliced, transposed])
@pytest.mark.parametrize(
    "function,requires_grad",
    [(norm, False), (norm, True), (norms, False), (norms, True), (module, True), (in_place, False), (gradients, False)],
)
def test_rows(function, requires_grad, rows, kind):
    """One graph for every number of rows, none among them."""
    if rows is transposed and function is module:
        function = norms
    tensors = samples.forward(kind, (ROWS, 16))
    compiled = torch.compile(rows(function), fullgraph=True, backend="aot_eager")
    for count in (4, 1, 0):
        got, want = (results(f, tensors, requires_grad, count) for f in (compiled, rows(function)))
        assert_same(got, want)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_inductor(requires_grad):
    tensors = samples.forward(Kind(FLOAT, FLOAT), (ROWS, 16))
    function = masked(lambda x, stream: (*norms(x, stream), *(() if requires_grad else in_place(x, stream))))
    compiled = torch.compile(function, fullgraph=True)
    for count in (4, 0):
        got, want = (results(f, tensors, requires_grad, count) for f in (compiled, function))
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    "dims,backend", [((0,), "aot_eager"), ((1,), "aot_eager"), ((0, 1), "aot_eager"), ((0, 1), "eager")]
)
@pytest.mark.parametrize("function", [norm, norms, module, in_place, gradients])
@pytest.mark.parametrize("inline", [False, True])
def test_mark_unbacked(inline, function, dims, backend):
    """Rows, the last dimension, both; the module's own check becomes an assertion."""
    requires_grad = function in (norm, norms, module)
    compiled = torch.compile(function, fullgraph=True, backend=backend)

    def marked(x, stream, count):
        for dim in dims:
            mark_unbacked(x, dim)
            mark_unbacked(stream, dim)
        return compiled(x, stream)

    for rows, dim in ((ROWS, 16), (2, 16 if function is module or 1 not in dims else 33)):
        tensors = samples.forward(Kind(BFLOAT, FLOAT), (rows, dim))
        with srmsnorm.inline_under_compile(inline):
            got = results(marked, tensors, requires_grad, 0)
        want = results(lambda x, stream, count: function(x, stream), tensors, requires_grad, 0)
        if inline:
            torch.testing.assert_close(got, want, rtol=0.05, atol=0.05)
        else:
            assert_same(got, want)


def test_double_backward():
    """Divides by the size of the last dimension."""

    def second(x, stream):
        leaves = [t.detach().requires_grad_() for t in (x, stream)]
        (first,) = torch.autograd.grad(norm(*leaves)[0].pow(3).sum(), leaves[:1], create_graph=True)
        return torch.autograd.grad(first.square().sum(), leaves)

    tensors = samples.forward(Kind(FLOAT, FLOAT), (ROWS, 16))
    shapes = ShapeEnv()
    with FakeTensorMode(shape_env=shapes):
        sizes = shapes.create_unbacked_symint(), shapes.create_unbacked_symint()
        fake = second(torch.empty(sizes), torch.empty(sizes))
    assert [t.shape for t in fake] == [sizes, sizes]
    assert [t.stride() for t in fake] == [(sizes[1], 1)] * 2
    assert [t.shape for t in second(*tensors)] == [(ROWS, 16)] * 2


# ---- checks


@pytest.mark.parametrize("inline", [False, True])
def test_checks_at_run_time(inline):
    """What the graph could not know still raises: other rows, an empty last dimension, another than the module's."""

    def rows(x, stream, a, b):
        return norm(x[: a.item()], stream[: b.item()])

    def last(x, stream, a, b):
        return norm(x[:, : a.item()], stream[:, : b.item()])

    def modules(x, stream, a, b):
        return module(x[:, : a.item()], stream[:, : b.item()])

    tensors = samples.forward(Kind(FLOAT, FLOAT), (ROWS, 16))
    for function, good, bad in ((rows, (3, 3), (3, 1)), (last, (3, 3), (0, 0)), (modules, (16, 16), (15, 15))):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        with srmsnorm.inline_under_compile(inline):
            got = compiled(*tensors, *map(torch.tensor, good))
            torch.testing.assert_close(got, function(*tensors, *map(torch.tensor, good)))
            with pytest.raises((RuntimeError, AssertionError), match=r"u\d+|srmsnorm|SRMSNorm"):
                compiled(*tensors, *map(torch.tensor, bad))


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    class Routed(torch.nn.Module):
        def forward(self, x, stream, routed, kept):
            return module(x[routed], stream[kept])

    tensors = samples.forward(Kind(BFLOAT, FLOAT), (ROWS, 16))
    some = torch.arange(ROWS) < 2
    program = torch.export.export(Routed(), (*tensors, some, some.clone()), strict=strict)
    for exported in (program.module(), program.run_decompositions().module()):
        for mask in (some, ~some, some & False):
            assert_same(exported(*tensors, mask, mask), Routed()(*tensors, mask, mask))
        with pytest.raises((RuntimeError, AssertionError), match=r"u\d+|srmsnorm"):
            exported(*tensors, some, ~some)


def test_no_copy():
    """Rows at strides that are symbols, of a last dimension whose stride is 1, are handed on as they are."""
    x = samples.tensor((ROWS, 16), FLOAT, layout=samples.padded)
    compiled = torch.compile(lambda x, n: srmsnorm.srms_norm(x[: n.item()]), fullgraph=True, dynamic=True)
    compiled(x, torch.tensor(3))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        got = compiled(x, torch.tensor(4))
    assert torch.equal(got, srmsnorm.srms_norm(x[:4]))
    assert not {"aten::copy_", "aten::clone", "aten::contiguous"} & {event.name for event in profile.events()}
