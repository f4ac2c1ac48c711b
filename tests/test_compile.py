"""torch.compile, compiled autograd, torch.export, AOTInductor, opcheck, and whoever looks at the dispatcher."""

import copy

import fresh
import pytest
import samples
import torch
import torch._dynamo.compiled_autograd as compiled_autograd
import torch._dynamo.testing
import torch.utils.cpp_extension
from samples import BFLOAT, FLOAT, HALF, Kind
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import srmsnorm

ops = torch.ops.srmsnorm
SHAPE = (3, 16)
EPS = 1e-3


@pytest.fixture(autouse=True)
def fresh_dynamo(plain_memory):
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def block(x, stream, shortcut):
    """A pre-norm block with every public operator that has a gradient."""
    y, stream = srmsnorm.add_srms_norm(x, stream, eps=EPS)
    y = srmsnorm.srms_norm(y * 2, shortcut, eps=EPS)
    return srmsnorm.srms_norm(y.sin(), eps=EPS), stream


def operands(kind, device, shape=SHAPE):
    x, stream = samples.forward(kind, shape, device)
    return [x, stream, samples.tensor(shape, kind.dtype, device, name="shortcut")]


def run(function, tensors):
    """Outputs and gradients."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    outputs = function(*leaves)
    loss = sum((i + 1) * o.float().pow(2).sum() for i, o in enumerate(outputs))
    return [*outputs, *torch.autograd.grad(loss, leaves)]


def assert_same(got, want):
    """A compiler may keep or skip roundings between our operators: a few units of the narrowest dtype."""
    tolerance = 8 * max(torch.finfo(b.dtype).eps for b in want)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype and a.stride() == b.stride()
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.detach().abs().max()))


@pytest.mark.parametrize("kind", [Kind(FLOAT, FLOAT), Kind(BFLOAT, FLOAT), Kind(HALF, HALF)], ids=str)
def test_aot_eager(device, kind):
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    assert_same(run(compiled, operands(kind, device)), run(block, operands(kind, device)))


@pytest.mark.parametrize("kind", [Kind(FLOAT, FLOAT), Kind(BFLOAT, FLOAT)], ids=str)
def test_inductor(device, kind):
    compiled = torch.compile(block, fullgraph=True)
    assert_same(run(compiled, operands(kind, device)), run(block, operands(kind, device)))
    with torch.no_grad():
        tensors = operands(kind, device)
        assert_same(compiled(*tensors), block(*tensors))


def test_graph_holds_the_operators(device):
    """Neither broken up nor broken off: the compiled graph calls what eager calls, and keeps y and rstd alone."""
    seen = []

    def backend(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch.compile(srmsnorm.srms_norm, fullgraph=True, backend=backend)(torch.ones(SHAPE, device=device))
    assert seen == ["srmsnorm.srms_norm.default"]


def test_dynamic_shapes(device):
    """One graph for all sizes."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for shape in ((3, 16), (5, 24), (7, 48), (2, 33)):
        tensors = operands(Kind(FLOAT, FLOAT), device, shape)
        assert_same(run(compiled, tensors), run(block, tensors))
        counts.append(counter.frame_count)
    assert len(set(counts)) == 1, counts


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_in_place(device, backend):
    def function(x, stream):
        x, stream = x * 1, stream * 1
        srmsnorm.add_srms_norm_(x, stream, eps=EPS)
        return x + 1, stream

    tensors = operands(Kind(BFLOAT, FLOAT), device)[:2]
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    assert_same(compiled(*tensors), function(*tensors))


def test_in_place_on_graph_inputs(device):
    def function(x, stream):
        srmsnorm.add_srms_norm_(x[1:], stream[1:], eps=EPS)

    tensors = operands(Kind(FLOAT, FLOAT), device)[:2]
    twins = copy.deepcopy(tensors)
    torch.compile(function, fullgraph=True, backend="aot_eager")(*tensors)
    function(*twins)
    assert_same(tensors, twins)


def test_module(device):
    module = srmsnorm.SRMSNorm(16, eps=EPS)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x, stream, _ = operands(Kind(FLOAT, FLOAT), device)
    assert_same(compiled(x, stream, return_sum=True), module(x, stream, return_sum=True))


def test_vmap_inside_compile(device):
    x = samples.values((2, *SHAPE), FLOAT, device)
    function = torch.func.vmap(torch.func.grad(lambda t: srmsnorm.srms_norm(t, eps=EPS).pow(3).sum()))
    assert_same([torch.compile(function, fullgraph=True, backend="aot_eager")(x)], [function(x)])


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
    assert_same(got, want)


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
    assert_same(*results)


def test_selective_checkpoint(device):
    """A policy sees the internal operators by name."""
    from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

    seen = set()

    def policy(context, op, *args, **kwargs):
        seen.add(op)
        return CheckpointPolicy.MUST_SAVE if op is ops._add_srms_norm.default else CheckpointPolicy.PREFER_RECOMPUTE

    def checkpointed(*tensors):
        contexts = lambda: create_selective_checkpoint_contexts(policy)  # noqa: E731
        return checkpoint(block, *tensors, use_reentrant=False, context_fn=contexts)

    tensors = operands(Kind(FLOAT, FLOAT), device)
    assert_same(run(checkpointed, tensors), run(block, tensors))
    assert {ops._add_srms_norm.default, ops._srms_norm.default} <= seen


# ---- opcheck


def opcheck_samples(kind, device):
    """Every operator, public and internal, by name."""
    grad = lambda t: t.clone().requires_grad_()  # noqa: E731
    x, stream, _ = operands(kind, device)
    y, rstd = ops._srms_norm(x, stream, EPS)
    g, gh = samples.grad_output(kind, SHAPE, device), samples.grad_sum(kind, SHAPE, device)
    strided = lambda t: samples.tensor(SHAPE, t.dtype, device, layout=samples.padded)  # noqa: E731
    swapped = lambda t: torch.ones(4, 3, 16, dtype=t.dtype, device=device).transpose(0, 1)  # noqa: E731
    found = {
        "srms_norm": [(x,), (grad(x), grad(stream)), (x, grad(stream)), (strided(x),), (x[:0],)],
        "add_srms_norm": [(x, stream), (grad(x), grad(stream)), (grad(x), stream), (swapped(x), swapped(stream))],
        "add_srms_norm_": [(x.clone(), stream.clone()), (strided(x), strided(stream))],
        "_srms_norm": [(grad(x), None, EPS), (x, stream, None), (grad(x), grad(stream), EPS), (strided(x), None, EPS)],
        "_add_srms_norm": [(grad(x), grad(stream), EPS), (x, stream, None)],
        "_srms_norm_backward": [(g, y, rstd), (grad(g), grad(y), grad(rstd), grad(gh)), (g, strided(y), rstd)],
    }
    if kind in samples.MIXED:
        found["_srms_norm_backward_pair"] = [(g, y, rstd), (grad(g), grad(y), grad(rstd), grad(gh))]
    return found


@pytest.mark.parametrize("kind", [Kind(FLOAT, FLOAT), Kind(BFLOAT, FLOAT)], ids=str)
@pytest.mark.parametrize("name", opcheck_samples(Kind(BFLOAT, FLOAT), "cpu"))
def test_opcheck(device, kind, name):
    for args in opcheck_samples(kind, device).get(name, []):
        torch.library.opcheck(getattr(ops, name).default, args)


def test_opcheck_of_the_wide_gradient(device):
    _, y, rstd = (t for t in (None, *ops._srms_norm(*operands(Kind(BFLOAT, FLOAT), device)[:2], EPS)))
    g = samples.grad_output(Kind(BFLOAT), SHAPE, device).requires_grad_()
    torch.library.opcheck(ops._srms_norm_backward.default, (g, y, rstd), {"dtype": FLOAT})


def test_schemas():
    """Documented and relied upon: policies, exported programs and C++ name them."""
    schemas = {
        "srms_norm": "(Tensor input, Tensor? residual=None, *, float? eps=None) -> Tensor",
        "add_srms_norm": "(Tensor input, Tensor residual, *, float? eps=None) -> (Tensor, Tensor)",
        "add_srms_norm_": "(Tensor(a!) input, Tensor(b!) residual, *, float? eps=None) -> ()",
        "_srms_norm": "(Tensor input, Tensor? residual, float? eps) -> (Tensor output, Tensor rstd)",
        "_add_srms_norm": "(Tensor input, Tensor residual, float? eps) -> (Tensor output, Tensor sum, Tensor rstd)",
        "_srms_norm_backward": "(Tensor grad_output, Tensor output, Tensor rstd, Tensor? grad_sum=None, *, "
        "ScalarType? dtype=None) -> Tensor",
        "_srms_norm_backward_pair": "(Tensor grad_output, Tensor output, Tensor rstd, Tensor? grad_sum=None) -> "
        "(Tensor grad_input, Tensor grad_residual)",
    }
    for name, schema in schemas.items():
        assert str(getattr(ops, name).default._schema) == f"srmsnorm::{name}{schema}"


# ---- export


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = srmsnorm.SRMSNorm(16, eps=EPS)

    def forward(self, x, stream, shortcut):
        y, stream = self.norm(x, stream, return_sum=True)
        return self.norm(y, shortcut), stream, srmsnorm.srms_norm(y * 2)


@pytest.mark.parametrize("strict", [False, True])
def test_export(device, strict):
    tensors = operands(Kind(BFLOAT, FLOAT), device)
    rows = torch.export.Dim("rows", min=1, max=1024)
    program = torch.export.export(Model(), tuple(tensors), dynamic_shapes=({0: rows},) * 3, strict=strict)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {"srmsnorm.srms_norm.default", "srmsnorm.add_srms_norm.default"} <= called
    for exported in (program, program.run_decompositions()):
        for shape in (SHAPE, (5, 16)):
            tensors = operands(Kind(BFLOAT, FLOAT), device, shape)
            assert_same(exported.module()(*tensors), Model()(*tensors))


def test_saved_export(device, tmp_path):
    tensors = operands(Kind(FLOAT, FLOAT), device)
    torch.export.save(torch.export.export(Model(), tuple(tensors)), tmp_path / "model.pt2")
    assert_same(torch.export.load(tmp_path / "model.pt2").module()(*tensors), Model()(*tensors))


PACKAGE_OF_TORCH_ALONE = """
import torch
program = torch.export.export(torch.nn.Tanh(), (torch.randn(4, 16, device="cuda"),))
torch._inductor.aoti_load_package(torch._inductor.aoti_compile_and_package(program, package_path="{path}"))
"""


def test_aot_inductor(device, tmp_path):
    if device == "cuda":
        if torch.utils.cpp_extension.CUDA_HOME is None:
            pytest.skip("needs a CUDA toolkit")
        # Where torch and the toolkit do not go together, loading a package kills the process.
        alone = fresh.run(PACKAGE_OF_TORCH_ALONE.format(path=tmp_path / "alone.pt2"))
        if alone.returncode != 0:
            pytest.skip(f"a package of torch.nn.Tanh does not load here either (exit code {alone.returncode})")
    tensors = operands(Kind(FLOAT, FLOAT), device)
    program = torch.export.export(Model(), tuple(tensors))
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    package = torch._inductor.aoti_load_package(path)
    assert_same(package(*tensors), Model()(*tensors))


# ---- whoever looks at calls


class Seen(torch.Tensor):
    """A subclass that only exists: __torch_function__ keeps the type."""


class FunctionLog(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.calls.append(function)
        return function(*args, **(kwargs or {}))


class DispatchLog(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls.append(function)
        return function(*args, **(kwargs or {}))


def test_torch_function_of_subclasses(device):
    x, stream, _ = operands(Kind(FLOAT, FLOAT), device)
    assert isinstance(srmsnorm.srms_norm(x.as_subclass(Seen)), Seen)
    for pair in ((x.as_subclass(Seen), stream), (x, stream.as_subclass(Seen))):
        assert isinstance(srmsnorm.srms_norm(*pair), Seen)
        assert all(isinstance(t, Seen) for t in srmsnorm.add_srms_norm(*pair))
        assert isinstance(srmsnorm.SRMSNorm(16)(*pair), Seen)
    assert type(srmsnorm.srms_norm(x)) is torch.Tensor
    parameter = torch.nn.Parameter(x.clone())
    assert type(srmsnorm.srms_norm(parameter)) is torch.Tensor


def test_torch_function_modes(device):
    x, stream, _ = operands(Kind(FLOAT, FLOAT), device)
    with FunctionLog() as log:
        srmsnorm.srms_norm(x)
        srmsnorm.add_srms_norm(x, stream)
        srmsnorm.add_srms_norm_(x, stream)
    assert {ops.srms_norm.default, ops.add_srms_norm.default, ops.add_srms_norm_.default} <= set(log.calls)


def test_dispatch_modes(device):
    """Without gradients the public operator runs as it is; with them, the internal ones."""
    x, stream, _ = operands(Kind(FLOAT, FLOAT), device)
    with DispatchLog() as log:
        srmsnorm.srms_norm(x)
        srmsnorm.add_srms_norm(x, stream)
    assert log.calls == [ops.srms_norm.default, ops.add_srms_norm.default]
    leaf = x.clone().requires_grad_()
    with DispatchLog() as log:
        y, sum = srmsnorm.add_srms_norm(leaf, stream)
        srmsnorm.srms_norm(leaf)
        torch.autograd.grad(y, leaf, torch.ones_like(x))
    ours = [call for call in log.calls if "srmsnorm" in str(call)]
    assert ours == [ops._add_srms_norm.default, ops._srms_norm.default, ops._srms_norm_backward.default]


@pytest.mark.parametrize("kind", samples.WITH_RESIDUAL, ids=str)
def test_fake_and_meta_tensors(device, kind):
    """Shapes, strides, dtypes and devices are those of a real call."""
    for layout in (samples.contiguous, samples.transposed, samples.padded, samples.every_other):
        x, stream = samples.forward(kind, (3, 4, 16), device, layout=layout)
        g = samples.grad_output(kind, (3, 4, 16), device, layout=layout)

        def everything(x, stream, g):
            y, sum, rstd = ops._add_srms_norm(x, stream, None)
            found = [y, sum, rstd, srmsnorm.srms_norm(x), *srmsnorm.add_srms_norm(x, stream)]
            found.append(ops._srms_norm_backward(g, y, rstd, sum))
            if sum.dtype != x.dtype:
                found += [
                    ops._srms_norm_backward(g, y, rstd, dtype=FLOAT),
                    *ops._srms_norm_backward_pair(g, y, rstd, sum),
                ]
            return found

        want = everything(x, stream, g)
        with FakeTensorMode() as mode:
            fake = everything(*(mode.from_tensor(t) for t in (x, stream, g)))
        for a, b in zip(fake, want, strict=True):
            assert (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)
        meta = everything(
            *(torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta") for t in (x, stream, g))
        )
        for a, b in zip(meta, want, strict=True):
            assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
