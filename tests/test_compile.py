"""torch.compile and compiled autograd."""

import copy
from functools import partial

import pytest
import samples
import torch
import torch._dynamo.compiled_autograd as compiled_autograd
import torch._dynamo.testing
from graphs import called, graphs, run
from modes import DispatchLog
from samples import BFLOAT, FLOAT, HALF, Kind
from tolerances import assert_compiled
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import srmsnorm

ops = torch.ops.srmsnorm
SHAPE = (3, 16)
EPS = 1e-3

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def block(x, stream, shortcut):
    """A pre-norm block with every public operator that has a gradient."""
    y, stream = srmsnorm.add_srms_norm(x, stream, eps=EPS)
    y = srmsnorm.srms_norm(y * 2, shortcut, eps=EPS)
    return srmsnorm.srms_norm(y.sin(), eps=EPS), stream


def operands(kind, device, shape=SHAPE):
    x, stream = samples.forward(kind, shape, device)
    return [x, stream, samples.tensor(shape, kind.dtype, device, name="shortcut")]


@pytest.mark.parametrize("kind", [Kind(FLOAT, FLOAT), Kind(BFLOAT, FLOAT), Kind(HALF, HALF)], ids=str)
def test_aot_eager(device, kind):
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    assert_compiled(run(compiled, operands(kind, device)), run(block, operands(kind, device)))


@pytest.mark.parametrize("kind", [Kind(FLOAT, FLOAT), Kind(BFLOAT, FLOAT)], ids=str)
def test_inductor(device, kind):
    compiled = torch.compile(block, fullgraph=True)
    assert_compiled(run(compiled, operands(kind, device)), run(block, operands(kind, device)))
    with torch.no_grad():
        tensors = operands(kind, device)
        assert_compiled(compiled(*tensors), block(*tensors))


@pytest.mark.parametrize("mode", ["max-autotune-no-cudagraphs", "max-autotune"])
def test_max_autotune(device, mode):
    if device == "cpu" and mode == "max-autotune":
        pytest.skip("has no CUDA graphs to add")
    compiled = torch.compile(block, fullgraph=True, mode=mode)
    assert_compiled(
        run(compiled, operands(Kind(FLOAT, FLOAT), device)), run(block, operands(Kind(FLOAT, FLOAT), device))
    )


@pytest.mark.parametrize("kind", [Kind(FLOAT, FLOAT), Kind(BFLOAT, FLOAT)], ids=str)
def test_reduce_overhead(cuda, kind):
    """CUDA graphs, replayed on other values: forward, backward, and the operator that overwrites a graph's inputs."""
    compiled = torch.compile(block, fullgraph=True, mode="reduce-overhead")
    for repeat in range(4):
        tensors = [t * (repeat + 1) for t in operands(kind, cuda, (64, 128))]
        torch.compiler.cudagraph_mark_step_begin()
        assert_compiled([t.clone() for t in run(compiled, tensors)], run(block, tensors))

    in_place = torch.compile(
        lambda x, r: srmsnorm.add_srms_norm_(x, r, eps=EPS), fullgraph=True, mode="reduce-overhead"
    )
    for repeat in range(4):
        x, r, _ = (t * (repeat + 1) for t in operands(kind, cuda, (64, 128)))
        want = srmsnorm.add_srms_norm(x, r, eps=EPS)
        torch.compiler.cudagraph_mark_step_begin()
        in_place(x, r)
        assert_compiled([x, r], want)


def test_autocast(device):
    """Norms take what arrives: float32 parameters, 16-bit products, a float32 stream."""
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), srmsnorm.SRMSNorm(16, EPS), torch.nn.Linear(16, 16)).to(device)

    def function(x, stream):
        with torch.autocast(device, dtype=BFLOAT):
            y, stream = srmsnorm.add_srms_norm(model(x), stream, eps=EPS)
        return y, stream

    tensors = [samples.values(SHAPE, FLOAT, device, name=name).clamp(-2, 2) for name in ("x", "stream")]
    want = run(function, tensors)
    assert want[0].dtype == BFLOAT and want[1].dtype == FLOAT
    got = run(torch.compile(function, fullgraph=True, backend="aot_eager"), tensors)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05 * float(b.detach().abs().max()))


@pytest.mark.parametrize("layout", samples.UNIT_STRIDE, ids=lambda layout: layout.__name__)
@torch._inductor.config.patch(force_disable_caches=True)
def test_layouts(device, layout):
    """Compiled code hands strided rows on as they are: no copy, and outputs with the strides of eager ones. Code that
    Inductor has compiled for aligned inputs, and finds in its cache, copies others."""
    kind = Kind(BFLOAT, FLOAT)
    tensors = samples.forward(kind, (2, 3, 16), device, layout=layout)
    compiled = torch.compile(srmsnorm.add_srms_norm, fullgraph=True)
    compiled(*tensors)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        got = compiled(*tensors)
    for a, b in zip(got, srmsnorm.add_srms_norm(*tensors), strict=True):
        assert torch.equal(a, b) and a.stride() == b.stride()
    assert not {"aten::copy_", "aten::clone"} & {event.name for event in profile.events()}


# ---- the graphs


def test_graph_holds_the_operators(device):
    """Neither broken up nor broken off: the compiled graph calls what eager calls."""
    seen = []

    def backend(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch.compile(srmsnorm.srms_norm, fullgraph=True, backend=backend)(torch.ones(SHAPE, device=device))
    assert seen == ["srmsnorm.srms_norm.default"]


def test_graphs_forward_and_backward(device):
    """One operator each, and y and rstd alone between them."""
    function = lambda x, stream: (srmsnorm.srms_norm(x, stream, eps=EPS),)  # noqa: E731
    forward, backward = graphs(function, operands(Kind(FLOAT, FLOAT), device)[:2])
    assert called(forward) == [ops._srms_norm.default]
    assert called(backward) == [ops._srms_norm_backward_input.default]
    (outputs,) = forward.output_node().args
    assert [tuple(node.meta["val"].shape) for node in outputs] == [SHAPE, SHAPE, SHAPE[:1]]


# ---- shapes


def compilations(shapes, **options):
    """How many graphs there are after each shape; values and gradients are right at each."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(block, fullgraph=True, backend=counter, **options)
    counts = []
    for shape in shapes:
        tensors = operands(Kind(BFLOAT, FLOAT), "cpu", shape)
        assert_compiled(run(compiled, tensors), run(block, tensors))
        counts.append(sum(any(node.op == "call_function" for node in graph.graph.nodes) for graph in counter.graphs))
    return counts


BATCHES = [(2, 5, 16), (3, 5, 16), (3, 8, 16), (4, 9, 16), (7, 2, 16)]


def test_dynamic_shapes():
    """One graph for all sizes, the last dimension's too."""
    assert compilations([*BATCHES, (2, 3, 24), (5, 3, 33)], dynamic=True) == [1] * 7


def test_automatic_dynamic_shapes():
    """A graph of fixed sizes, then one more for each dimension that turns out to change."""
    assert compilations(BATCHES) == [1, 2, 3, 3, 3]


def test_static_shapes():
    """One graph a shape; a shape seen before is not compiled again."""
    assert compilations([*BATCHES[:3], *BATCHES[:3]], dynamic=False) == [1, 2, 3, 3, 3, 3]


# ---- in place


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_in_place(device, backend):
    def function(x, stream):
        x, stream = x * 1, stream * 1
        srmsnorm.add_srms_norm_(x, stream, eps=EPS)
        return x + 1, stream

    tensors = operands(Kind(BFLOAT, FLOAT), device)[:2]
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    assert_compiled(compiled(*tensors), function(*tensors))


def test_in_place_on_graph_inputs(device):
    def function(x, stream):
        srmsnorm.add_srms_norm_(x[1:], stream[1:], eps=EPS)

    tensors = operands(Kind(FLOAT, FLOAT), device)[:2]
    twins = copy.deepcopy(tensors)
    torch.compile(function, fullgraph=True, backend="aot_eager")(*tensors)
    function(*twins)
    assert_compiled(tensors, twins)


def test_in_place_bumps_versions(device):
    """A tensor kept for backward and overwritten by the compiled function is noticed."""
    x, stream, _ = operands(Kind(FLOAT, FLOAT), device)
    weight = torch.ones(16, device=device, requires_grad=True)
    loss = (weight * x).sum()
    torch.compile(lambda x, r: srmsnorm.add_srms_norm_(x, r), fullgraph=True, backend="aot_eager")(x, stream)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_in_place_refuses_gradients(device):
    x, stream, _ = operands(Kind(FLOAT, FLOAT), device)
    compiled = torch.compile(lambda x, r: srmsnorm.add_srms_norm_(x * 1, r), fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="requires grad"):
        compiled(x.requires_grad_(), stream)


# ---- inside others


def test_module(device):
    module = srmsnorm.SRMSNorm(16, eps=EPS)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x, stream, _ = operands(Kind(FLOAT, FLOAT), device)
    assert_compiled(compiled(x, stream, return_sum=True), module(x, stream, return_sum=True))


def test_vmap_inside_compile(device):
    x = samples.values((2, *SHAPE), FLOAT, device)
    function = torch.func.vmap(torch.func.grad(lambda t: srmsnorm.srms_norm(t, eps=EPS).pow(3).sum()))
    assert_compiled([torch.compile(function, fullgraph=True, backend="aot_eager")(x)], [function(x)])


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("kind", [Kind(FLOAT, FLOAT), Kind(BFLOAT, FLOAT)], ids=str)
def test_compiled_autograd(device, kind, backend):
    """One and two gradients arriving, and sums alone."""

    def several(x, stream, shortcut):
        outputs = *block(x, stream, shortcut), srmsnorm.add_srms_norm(x, stream, eps=EPS)[1]
        return outputs

    tensors = operands(kind, device)
    want = run(several, tensors)
    with compiled_autograd._enable(torch.compile(backend=backend)):
        got = run(several, tensors)
    assert_compiled(got, want)


def test_compiled_autograd_of_double_backward(device):
    def second(x):
        y = srmsnorm.srms_norm(x, eps=EPS)
        (first,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        return first.pow(2).sum()

    results = []
    for compiled in (False, True):
        x = samples.values(SHAPE, FLOAT, device).requires_grad_()
        loss = second(x)
        if compiled:
            with compiled_autograd._enable(torch.compile(backend="aot_eager")):
                loss.backward()
        else:
            loss.backward()
        results.append([x.grad])
    assert_compiled(*results)


# ---- activation checkpointing


def checkpointed(policy=None):
    """block, recomputed in backward; with a policy, where it says so."""
    contexts = {} if policy is None else {"context_fn": partial(create_selective_checkpoint_contexts, policy)}
    return lambda *tensors: checkpoint(block, *tensors, use_reentrant=False, **contexts)


@pytest.mark.parametrize("compiled", [False, True])
def test_checkpoint(device, compiled):
    function = checkpointed()
    if compiled:
        function = torch.compile(function, fullgraph=True, backend="aot_eager")
    tensors = operands(Kind(BFLOAT, FLOAT), device)
    assert_compiled(run(function, tensors), run(block, tensors))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("saved", [True, False])
def test_selective_checkpoint(device, compiled, saved):
    """A policy sees the internal operators, and what it saves is not computed again."""
    norms = (ops._add_srms_norm.default, ops._srms_norm.default)
    seen = set()

    def policy(context, op, *args, **kwargs):
        seen.add(op)
        keep = saved and op in norms
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.MUST_RECOMPUTE

    tensors = operands(Kind(FLOAT, FLOAT), device)
    want = run(block, tensors)
    if compiled:
        backward = called(graphs(checkpointed(policy), tensors)[1])
    else:
        leaves = [t.detach().requires_grad_() for t in tensors]
        loss = sum(o.sum() for o in checkpointed(policy)(*leaves))
        with DispatchLog() as log:
            loss.backward()
        backward = log.calls
    assert set(norms) <= seen
    assert len([op for op in backward if op in norms]) == (0 if saved else 3)
    assert_compiled(run(checkpointed(policy), tensors), want)
