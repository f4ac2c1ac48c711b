"""Quantised results in every mode: dispatcher, transforms, compilers, other tensors; what is refused, and how."""

import itertools

import fresh
import pytest
import samples
import torch
import torch._dynamo.testing
from graphs import called
from modes import DispatchLog, FunctionLog
from samples import BFLOAT, FLOAT, HALF, Kind
from test_quantized import DTYPES, EVERY, FP8, INT8, WIDE, assert_same, options_for
from test_subclasses import ELSEWHERE, Seen, jagged
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses import CrossRefFakeMode
from torch.utils._pytree import tree_leaves

import srmsnorm
from srmsnorm import reference

ops = torch.ops.srmsnorm
NAMES = ["srms_norm_quantized", "add_srms_norm_quantized", "add_srms_norm_quantized_"]
SHAPE = (3, 4, 128)
BOTH = [Kind(BFLOAT, FLOAT), Kind(FLOAT, FLOAT)]


def operands(kind=BOTH[0], device="cpu", shape=SHAPE, **layout):
    return samples.forward(kind, shape, device, **layout)


def as_operator(options, dtype=FP8):
    """The scale tensor, and keyword arguments, of the operators."""
    scale, rest = options.get("scale"), {k: v for k, v in options.items() if k != "scale"}
    rest["dtype"] = str(dtype).removeprefix("torch.")
    if isinstance(scale, torch.Tensor):
        return scale, rest
    key = {str: "scale_name", float: "scale_value"}.get(type(scale))
    return None, rest if key is None else {**rest, key: scale}


def calls(device, kind=BOTH[0], **layout):
    """(name, tensors, keyword arguments) of every operator and way to a scale."""
    input, residual = operands(kind, device, **layout)
    for i, options in enumerate(options_for(SHAPE[-1], device)):
        scale, given = as_operator(options, DTYPES[i % 3])
        for name in NAMES:
            yield name, (input, residual.clone() if name.endswith("_") else residual, scale), given
        yield NAMES[0], (input, None, scale), given


def block(x, stream, dtype=FP8):
    """Every function, in a few ways."""
    q, s = srmsnorm.srms_norm_quantized(x, dtype=dtype, group_size=64)
    p, t, stream = srmsnorm.add_srms_norm_quantized(x * 2, stream, power_of_two=True, dtype=dtype)
    own = stream + 1
    o, u = srmsnorm.add_srms_norm_quantized_(x, own, scale=0.02, dtype=dtype)
    b, v = srmsnorm.srms_norm_quantized(x, own, scale="bound", dtype=INT8)
    r, w = srmsnorm.srms_norm_quantized(x, scale=v * 2, dtype=WIDE)
    return q, s, p, t, stream, own, o, u, b, v, r, w


# ---- modes of eager code


@EVERY
def test_autocast_casts_nothing(device, kind):
    input, residual = samples.forward(kind, SHAPE, device)
    want = srmsnorm.srms_norm_quantized(input, residual)
    with torch.autocast(device, dtype=HALF):
        assert_same(srmsnorm.srms_norm_quantized(input, residual), want)


def test_inference_mode(device):
    input, residual = operands(device=device)
    want = srmsnorm.add_srms_norm_quantized(input, residual, group_size=64)
    with torch.inference_mode():
        assert_same(srmsnorm.add_srms_norm_quantized(input, residual, group_size=64), want)
        stream = residual.clone()
        assert_same(srmsnorm.add_srms_norm_quantized_(input, stream, group_size=64), want[:2])
        assert_same([stream], [want[2]])
    with pytest.raises(RuntimeError, match="srmsnorm: add_srms_norm_quantized_ got an inference tensor as residual"):
        srmsnorm.add_srms_norm_quantized_(input, stream)
    assert_same([stream], [want[2]])


RECIPE = "not differentiable.*straight through"


@pytest.mark.parametrize("name", NAMES)
def test_not_differentiable(device, name):
    input, residual = operands(Kind(FLOAT, FLOAT), device)
    function, scale = getattr(srmsnorm, name), torch.ones(1, device=device)
    tensors = input, residual.clone(), scale
    before = [(t.clone(), t._version) for t in tensors]
    for i in range(3):
        given = [t.requires_grad_(i == k) for k, t in enumerate(tensors)]
        with pytest.raises(RuntimeError, match=f"srmsnorm: {name} is {RECIPE}"):
            function(*given[:2], scale=scale)
        [t.requires_grad_(False) for t in tensors]
        with torch.autograd.forward_ad.dual_level():
            dual = [torch.autograd.forward_ad.make_dual(t, t) if i == k else t for k, t in enumerate(tensors)]
            with pytest.raises(RuntimeError, match=f"srmsnorm: {name} is {RECIPE}"):
                function(*dual[:2], scale=dual[2])
    assert all(torch.equal(t, b) and t._version == v for t, (b, v) in zip(tensors, before, strict=True))
    with pytest.raises(RuntimeError, match=RECIPE):
        torch.func.grad(lambda x: function(x, residual.clone())[1].sum())(input)
    with torch.no_grad():
        function(input.requires_grad_(), residual.clone())


def test_straight_through(device):
    """The recipe of docs/quantized.md: the bytes' values forward, the norm's gradient backward."""
    input = samples.tensor((5, 64), FLOAT, device).requires_grad_()
    y = srmsnorm.srms_norm(input)
    q, scale = srmsnorm.srms_norm_quantized(input.detach())
    estimate = y + (q.float() * scale - y).detach()
    torch.testing.assert_close(estimate, q.float() * scale)
    g = samples.grad_output(Kind(FLOAT), (5, 64), device)
    (grad,) = torch.autograd.grad(estimate, input, g)
    assert torch.equal(grad, torch.autograd.grad(srmsnorm.srms_norm(input), input, g)[0])


def test_no_hidden_operators(device, plain_memory):
    """Nothing but results is made where the last dimension has stride 1."""
    input, residual = operands(device=device, layout=samples.gapped)
    for options in options_for(SHAPE[-1], device):
        with DispatchLog() as log:
            srmsnorm.add_srms_norm_quantized(input, residual, **options)
        assert log.calls == [ops.add_srms_norm_quantized.default]
    with FunctionLog() as functions:
        srmsnorm.srms_norm_quantized(input, residual)
    assert ops.srms_norm_quantized.default in functions.calls


@pytest.mark.parametrize("kind", BOTH, ids=str)
def test_lazily_negated_operands(device, kind):
    input, residual = operands(kind, device)
    for options in options_for(SHAPE[-1], device)[::3]:
        want = srmsnorm.add_srms_norm_quantized(-input, -residual, **options)
        assert_same(srmsnorm.add_srms_norm_quantized(input._neg_view(), residual._neg_view(), **options), want)
        stream = (-residual).clone().neg()._neg_view()
        assert_same(srmsnorm.add_srms_norm_quantized_(input._neg_view(), stream, **options), want[:2])
        assert_same([stream.resolve_neg()], [want[2]])
        lazy = torch._lazy_clone(residual)
        srmsnorm.add_srms_norm_quantized_(torch._lazy_clone(input), lazy, **options)
        assert not torch._C._is_cow_tensor(lazy) and torch.equal(residual, operands(kind, device)[1])


# ---- the dispatcher


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(device, name):
    for kind, layout in itertools.product(BOTH, (samples.contiguous, samples.transposed, samples.padded)):
        for op, args, kwargs in list(calls(device, kind, layout=layout))[:: 1 if kind is BOTH[0] else 5]:
            if op == name:
                torch.library.opcheck(getattr(ops, name).default, args, kwargs)


def test_opcheck_of_few_rows(device):
    for shape in ((64,), (0, 64), (2, 0, 64), (1, 64)):
        input = samples.tensor(shape, BFLOAT, device)
        for options in options_for(64, device):
            scale, given = as_operator(options)
            torch.library.opcheck(ops.srms_norm_quantized.default, (input, None, scale), given)


@pytest.mark.parametrize("kind", BOTH, ids=str)
def test_cross_reference(device, kind):
    """What fake tensors say of every call, strides and aliasing included."""
    for layout in (samples.contiguous, samples.transposed, samples.padded, samples.every_other):
        with CrossRefFakeMode(check_strides=True), DispatchLog() as log:
            for name, args, given in calls(device, kind, layout=layout):
                if layout is not samples.every_other or not name.endswith("_"):
                    getattr(ops, name)(*args, **given)
        assert ops.srms_norm_quantized.default in log.calls


@EVERY
def test_formula(device, kind):
    """What the dispatcher has for a device that we do not know: the same bytes but where its norm rounds otherwise."""
    for layout in (samples.contiguous, samples.padded, samples.every_other):
        input, residual = samples.forward(kind, (4, 128), device, layout=layout)
        for options in options_for(128, device):
            for dtype in DTYPES:
                scale, given = as_operator(options, dtype)
                q, used = ops.srms_norm_quantized.default.redispatch(ELSEWHERE, input, residual, scale, **given)
                want, own = srmsnorm.srms_norm_quantized(input, residual, dtype=dtype, **options)
                assert (q.dtype, used.shape, used.stride()) == (want.dtype, own.shape, own.stride())
                torch.testing.assert_close(used, own, rtol=2**-7, atol=0)
                assert ((q.float() - want.float()).abs() <= want.float().abs() / 4 + 1).all()
                assert (q.float() != want.float()).float().mean() < 0.05


def test_subclasses(device):
    input, residual = operands(device=device)
    assert isinstance(srmsnorm.srms_norm_quantized(input.as_subclass(Seen))[0], Seen)
    assert isinstance(srmsnorm.add_srms_norm_quantized(input, residual.as_subclass(Seen))[2], Seen)


@pytest.mark.parametrize("compiled", [False, True])
def test_nested(device, compiled, fresh_dynamo):
    """Jagged tensors: every row as if alone; a scale of all is no nested one."""
    x = jagged(device, heads=None)
    dim = x.shape[-1]
    for options in [o for o in options_for(dim, device) if not isinstance(o.get("scale"), torch.Tensor)]:
        function = lambda x, r, options=options: srmsnorm.add_srms_norm_quantized(x, r, **options)  # noqa: E731
        call = torch.compile(function, fullgraph=True, backend="aot_eager") if compiled else function
        q, scale, sum = call(x, x * 2)
        want = srmsnorm.add_srms_norm_quantized(x.values(), x.values() * 2, **options)
        parts = [t.values() if t.is_nested else t for t in (q, scale, sum)]
        assert_same(parts, want)
        assert q.is_nested and scale.is_nested == (options.get("scale") is None)
    given = torch.tensor([0.1], device=device)
    q, used = srmsnorm.srms_norm_quantized(x, scale=given)
    assert used is given
    assert_same([q.values()], [srmsnorm.srms_norm_quantized(x.values(), scale=given)[0]])
    stream = x * 2
    srmsnorm.add_srms_norm_quantized_(x, stream)
    assert torch.equal(stream.values(), x.values() + x.values() * 2)


# ---- compilers


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(device, backend, dtype, fresh_dynamo):
    if backend == "inductor" and dtype != FP8:
        pytest.skip("one is enough of it")
    got = torch.compile(block, fullgraph=True, backend=backend)(*operands(device=device), dtype)
    assert_same(got, block(*operands(device=device), dtype))


def test_dynamic_shapes(device, fresh_dynamo):
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(block, fullgraph=True, backend=counter, dynamic=True)
    for shape in ((2, 5, 128), (3, 8, 192), (5, 3, 256)):  # of one group, a size of 1 would be a graph of its own
        assert_same(compiled(*operands(device=device, shape=shape)), block(*operands(device=device, shape=shape)))
    assert counter.frame_count == 1


def test_sizes_that_only_the_data_tells(fresh_dynamo):
    def function(x, stream, count):
        return block(x[torch.arange(6) < count], stream[torch.arange(6) < count])

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        for count in (4, 1, 0):
            given = operands(shape=(6, 64))
            assert_same(compiled(*given, torch.tensor(count)), function(*given, torch.tensor(count)))


def graph_of(function, tensors):
    """Of a call without gradients."""
    found = []

    def keep(graph, inputs):
        found.append(graph.graph)
        return graph

    with torch.no_grad():
        torch.compile(function, fullgraph=True, backend=aot_autograd(fw_compiler=keep, inference_compiler=keep))(
            *tensors
        )
    return found[0]


def test_graphs(device):
    """One operator, and no other; a scale that is a tensor is returned as it came."""
    scale = torch.tensor([0.1], device=device)
    function = lambda x, r: srmsnorm.add_srms_norm_quantized(x, r, scale=scale)[:2]  # noqa: E731
    assert called(graph_of(function, operands(device=device))) == [ops.add_srms_norm_quantized.default]


PARTS = {
    "batch": lambda t: (t[0], t[1]),
    "rows": lambda t: (t[1, :4], t[1, 4:]),
    "packed": lambda t: (t[..., :64], t[..., 64:]),
    "as_strided": lambda t: (t.as_strided((8, 128), (128, 1), 0), t.as_strided((8, 128), (128, 1), 1024)),
}


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_in_place_on_parts_of_a_buffer(parts, backend, fresh_dynamo):
    """Of a graph's input, and of what the graph itself makes; dynamic offsets too."""

    def function(buffer, i):
        found = [srmsnorm.add_srms_norm_quantized_(*PARTS[parts](buffer))]
        copy = buffer * 2
        found.append(srmsnorm.add_srms_norm_quantized_(*PARTS[parts](copy), group_size=64))
        found.append(srmsnorm.add_srms_norm_quantized_(copy[i], copy[i + 1]._neg_view()))
        buffer += copy
        return tree_leaves(found)

    buffer = torch.randn(4, 8, 128)
    twin = buffer.clone()
    want = function(buffer, 2)
    with torch._inductor.config.patch(fx_graph_cache=False):
        got = torch.compile(function, fullgraph=True, backend=backend, dynamic=True)(twin, 2)
    assert_same([*got, twin], [*want, buffer])


def test_in_place_of_overlapping_parts(fresh_dynamo):
    compiled = torch.compile(
        lambda t: srmsnorm.add_srms_norm_quantized_(t[:4], t[2:6]), fullgraph=True, backend="aot_eager"
    )
    with pytest.raises(Exception, match="overlap"):
        compiled(torch.randn(6, 64))


def test_inlined(device, fresh_dynamo):
    """The formula on request; wrong arguments are errors all the same."""
    given = operands(Kind(FLOAT, FLOAT), device)
    function = lambda x, r: srmsnorm.add_srms_norm_quantized(x, r, group_size=64, dtype=INT8)  # noqa: E731
    want = function(*given)
    with srmsnorm.inline_under_compile(), torch.no_grad():
        assert not [op for op in called(graph_of(function, given)) if op.namespace == "srmsnorm"]
        got = torch.compile(function, fullgraph=True, backend="aot_eager")(*given)
        with pytest.raises(Exception, match="srmsnorm: group_size must"):
            torch.compile(lambda x: srmsnorm.srms_norm_quantized(x, group_size=32), fullgraph=True)(given[0])
    torch.testing.assert_close(got[1:], want[1:])
    assert (got[0].int() - want[0].int()).abs().max() <= 1


class Model(torch.nn.Module):
    """Every dtype, and every way to a scale, by name: one that arrived as another would show."""

    def forward(self, x, stream, scale):
        found = []
        for i, options in enumerate(options_for(SHAPE[-1])):
            given = {"dtype": DTYPES[i % 3], **options}
            if isinstance(options.get("scale"), torch.Tensor):
                given["scale"] = scale
            found += srmsnorm.srms_norm_quantized(x, **given)
            found += srmsnorm.add_srms_norm_quantized(x, stream, **given, eps=1e-3)
            own = stream * 2
            found += [*srmsnorm.add_srms_norm_quantized_(x, own, **given), own]
        return tuple(found)


@pytest.mark.parametrize("strict", [False, True])
def test_export(device, strict, tmp_path):
    scale = torch.tensor([0.02], device=device)
    rows = torch.export.Dim("rows", min=1, max=1024)
    given = *operands(device=device), scale
    program = torch.export.export(Model(), given, dynamic_shapes=({0: rows}, {0: rows}, None), strict=strict)
    torch.export.save(program, tmp_path / "model.pt2")
    for exported in (program, program.run_decompositions(), torch.export.load(tmp_path / "model.pt2")):
        for shape in (SHAPE, (5, *SHAPE[1:])):
            given = *operands(device=device, shape=shape), scale
            assert_same(exported.module()(*given), Model()(*given))


def test_package(device, tmp_path):
    fresh.skip_without_packages(device, tmp_path)
    given = *operands(device=device), torch.tensor([0.02], device=device)
    program = torch.export.export(Model(), given)
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    assert_same(torch._inductor.aoti_load_package(path)(*given), Model()(*given))


# ---- without data


@pytest.mark.parametrize("name", NAMES)
def test_meta(name):
    for _, (input, residual, scale), given in calls("cpu"):
        if residual is None:
            continue
        want = getattr(ops, name)(input, residual.clone(), scale, **given)
        meta = [t if t is None else t.to("meta") for t in (input, residual, scale)]
        for a, b in zip(getattr(ops, name)(*meta, **given), want, strict=True):
            assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype) and a.is_meta


def test_reference_is_the_definition():
    """Of the two functions, beside the formula that the other tests use."""
    x, stream = operands(Kind(FLOAT, FLOAT))
    q, scale, sum = reference.add_srms_norm_quantized(x, stream, dtype=INT8)
    assert_same((q, scale), reference.srms_norm_quantized(x, stream, dtype=INT8))
    assert torch.equal(sum, x + stream)
    assert ((q * scale - reference.srms_norm(x, stream)).abs() <= scale * 0.5001).all()
