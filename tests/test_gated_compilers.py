"""The norm beside a gate under torch.compile, compiled autograd, torch.export, AOTInductor, ONNX and TorchScript; and
of tensors that are not plain ones."""

import re

import fresh
import pytest
import samples
import torch
import torch._dynamo.compiled_autograd as compiled_autograd
import torch._dynamo.testing
import truth
from graphs import called, graphs, run
from modes import DispatchLog, FunctionLog
from samples import BFLOAT, FLOAT, HALF, Kind
from test_gated import EVERY, GATES
from test_subclasses import ELSEWHERE, Seen, jagged
from tolerances import assert_compiled, assert_gated, assert_gated_gradients
from torch._inductor.utils import run_and_get_code
from torch._subclasses import CrossRefFakeMode
from torch.testing._internal.two_tensor import TwoTensor

import srmsnorm

ops = torch.ops.srmsnorm
SHAPE = (3, 16)
EPS = 1e-3
PAIR, INPUT, GATE = (
    ops._gated_srms_norm_backward.default,
    ops._gated_srms_norm_backward_input.default,
    ops._gated_srms_norm_backward_gate.default,
)
silu_gate_first = srmsnorm.SRMSNormGated(16, EPS, "silu", norm_before_gate=False)


@pytest.fixture(autouse=True)
def fresh_dynamo(plain_memory):
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def block(x, gate):
    """Every activation, and both orders."""
    y = srmsnorm.gated_srms_norm(x, gate, activation="silu", eps=EPS)
    y = silu_gate_first(y * 2, gate)
    return srmsnorm.gated_srms_norm(y.sin(), gate, activation="sigmoid"), srmsnorm.gated_srms_norm(y, gate, eps=EPS)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = srmsnorm.SRMSNormGated(16, EPS, "silu")
        self.first = srmsnorm.SRMSNormGated(16, None, "sigmoid", norm_before_gate=False)

    def forward(self, x, gate):
        y = self.norm(x, gate)
        return self.first(y, gate), srmsnorm.gated_srms_norm(y * 2, gate)


# ---- torch.compile


@pytest.mark.parametrize("kind", [Kind(FLOAT), Kind(BFLOAT), Kind(HALF, FLOAT)], ids=str)
def test_aot_eager(device, kind):
    tensors = samples.gated(kind, SHAPE, device)
    assert_compiled(run(torch.compile(block, fullgraph=True, backend="aot_eager"), tensors), run(block, tensors))


def test_inductor(device):
    tensors = samples.gated(Kind(BFLOAT, FLOAT), SHAPE, device)
    assert_compiled(run(torch.compile(block, fullgraph=True), tensors), run(block, tensors))


@GATES
def test_graphs(device, options):
    """One operator each; input, gate and rstd alone pass between them; the options are constants of the graph."""
    function = lambda x, gate: (srmsnorm.gated_srms_norm(x, gate, **options, eps=EPS),)  # noqa: E731
    forward, backward = graphs(function, samples.gated(Kind(BFLOAT, FLOAT), SHAPE, device))
    assert called(forward) == [ops._gated_srms_norm.default] and called(backward) == [PAIR]
    (outputs,) = forward.output_node().args
    assert sorted(tuple(node.meta["val"].shape) for node in outputs) == [SHAPE[:1], SHAPE, SHAPE, SHAPE]
    (call,) = [node for node in backward.nodes if node.target is PAIR]
    given = {"activation": None, "norm_before_gate": True, **call.kwargs}
    assert given == options


def test_one_gradient_in_a_graph(device):
    for position, single in enumerate((INPUT, GATE)):
        tensors = samples.gated(Kind(BFLOAT, FLOAT), SHAPE, device)
        rest = tensors[1 - position]

        def function(moving, rest=rest, position=position):
            pair = (moving, rest) if position == 0 else (rest, moving)
            return (srmsnorm.gated_srms_norm(*pair, activation="silu"),)

        assert called(graphs(function, [tensors[position]])[1]) == [single]


def first_of_vjp(x, gate):
    z, pull = torch.func.vjp(srmsnorm.gated_srms_norm, x, gate)
    return pull(z)[0]


def second_of_vjp(x, gate):
    z, pull = torch.func.vjp(srmsnorm.gated_srms_norm, x, gate)
    return pull(z)[1]


@pytest.mark.parametrize("function,single", [(first_of_vjp, INPUT), (second_of_vjp, GATE)], ids=["input", "gate"])
@torch._inductor.config.patch(force_disable_caches=True)
def test_dead_half_of_a_pair(function, single):
    """Inductor gets the operator for the other half."""
    operands = samples.gated(Kind(BFLOAT, FLOAT), SHAPE)
    got, codes = run_and_get_code(torch.compile(function, fullgraph=True), *operands)
    names = {name for code in codes for name in re.findall(r"(_gated_srms_norm_backward\w*)\.default\(", code)}
    assert names == {single.name().removeprefix("srmsnorm::")}
    assert torch.equal(got, function(*operands))


@GATES
def test_bits(device, options):
    """Compiled calls, forward and backward, give the bits of eager ones."""
    kind = Kind(BFLOAT, FLOAT)
    g = samples.grad_output(kind, (7, 100), device)

    def results(function):
        leaves = [t.requires_grad_() for t in samples.gated(kind, (7, 100), device)]
        z = function(*leaves, **options)
        return z, *torch.autograd.grad(z, leaves, g)

    compiled = torch.compile(srmsnorm.gated_srms_norm, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(results(compiled), results(srmsnorm.gated_srms_norm), strict=True))


def test_dynamic_shapes():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    function = lambda x, gate: (srmsnorm.gated_srms_norm(x, gate, activation="silu"),)  # noqa: E731
    compiled = torch.compile(function, fullgraph=True, backend=counter, dynamic=True)
    for shape in ((2, 5, 16), (3, 8, 16), (5, 3, 33)):
        tensors = samples.gated(Kind(BFLOAT, FLOAT), shape)
        assert_compiled(run(compiled, tensors), run(function, tensors))
    assert counter.frame_count == 1


@pytest.mark.parametrize("requires_grad", [False, True])
def test_sizes_that_only_the_data_tells(requires_grad):
    """One graph for every number of rows, none among them; what does not fit raises there."""

    def function(x, gate, count, other):
        pair = x[torch.arange(6) < count], gate[: other.item()]
        return block(*pair)

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        for count in (4, 1, 0):
            found = []
            for call in (compiled, function):
                leaves = [t.requires_grad_(requires_grad) for t in samples.gated(Kind(FLOAT), (6, 16))]
                outputs = call(*leaves, torch.tensor(count), torch.tensor(count))
                grads = torch.autograd.grad(sum(o.square().sum() for o in outputs), leaves) if requires_grad else ()
                found.append([*outputs, *grads])
            assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        with pytest.raises((RuntimeError, AssertionError), match=r"u\d+|srmsnorm"):
            compiled(*samples.gated(Kind(FLOAT), (6, 16)), torch.tensor(3), torch.tensor(2))


@pytest.mark.parametrize("kind", [Kind(FLOAT), Kind(BFLOAT, FLOAT)], ids=str)
def test_compiled_autograd(device, kind):
    """One cache for every activation, order and choice of gradients."""
    for options in samples.GATES:
        for position in (None, 0, 1):
            found = []
            for compiled in (False, True):
                leaves = [t.requires_grad_(position in (None, i)) for i, t in enumerate(samples.gated(kind, SHAPE))]
                z = srmsnorm.gated_srms_norm(*leaves, **options)
                if compiled:
                    with compiled_autograd._enable(torch.compile(backend="eager")):
                        z.float().pow(2).sum().backward()
                else:
                    z.float().pow(2).sum().backward()
                found.append([t.grad for t in leaves if t.requires_grad])
            assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_compiled_autograd_of_double_backward(device):
    found = []
    for compiled in (False, True):
        leaves = [t.requires_grad_() for t in samples.gated(Kind(FLOAT), SHAPE, device)]
        first = torch.autograd.grad(silu_gate_first(*leaves).pow(3).sum(), leaves, create_graph=True)
        loss = sum(t.pow(2).sum() for t in first)
        if compiled:
            with compiled_autograd._enable(torch.compile(backend="aot_eager")):
                loss.backward()
        else:
            loss.backward()
        found.append([t.grad for t in leaves])
    assert_compiled(*found)


def test_inlined(device):
    """The formula on request, of functions and modules; wrong arguments are errors all the same."""
    tensors = samples.gated(Kind(BFLOAT, FLOAT), SHAPE, device)
    with srmsnorm.inline_under_compile():
        assert not [op for graph in graphs(block, tensors) for op in called(graph) if op.namespace == "srmsnorm"]
        got = run(torch.compile(block, fullgraph=True, backend="aot_eager"), tensors)
        compiled = torch.compile(srmsnorm.gated_srms_norm, fullgraph=True, backend="aot_eager")
        with pytest.raises(Exception, match="srmsnorm: activation must be"):
            compiled(*tensors, activation="relu")
        with pytest.raises(Exception, match="srmsnorm: gate must have"):
            compiled(tensors[0], tensors[1][:1])
    assert_compiled(got, run(block, tensors))


# ---- exported


@pytest.mark.parametrize("strict", [False, True])
def test_export(device, strict, tmp_path):
    tensors = samples.gated(Kind(BFLOAT, FLOAT), SHAPE, device)
    rows = torch.export.Dim("rows", min=1, max=1024)
    program = torch.export.export(Model(), tensors, dynamic_shapes=({0: rows},) * 2, strict=strict)
    calls = [node for node in program.graph.nodes if node.target is ops.gated_srms_norm.default]
    assert [node.kwargs.get("activation") for node in calls] == ["silu", "sigmoid", None]
    torch.export.save(program, tmp_path / "model.pt2")
    for exported in (program, program.run_decompositions(), torch.export.load(tmp_path / "model.pt2")):
        for shape in (SHAPE, (5, 16)):
            tensors = samples.gated(Kind(BFLOAT, FLOAT), shape, device)
            assert_compiled(exported.module()(*tensors), Model()(*tensors))


class Every(torch.nn.Module):
    """Every operator with a gate, every activation and order: a name that arrived as another would show."""

    def forward(self, x, gate, g):
        found = []
        for options in samples.GATES:
            z, rstd = ops._gated_srms_norm(x, gate, **options, eps=EPS)
            found += [z, rstd, ops.gated_srms_norm(x, gate, **options)]
            found += ops._gated_srms_norm_backward(g, x, gate, rstd, **options)
            found.append(ops._gated_srms_norm_backward_input(g, x, gate, rstd, **options))
            found.append(ops._gated_srms_norm_backward_gate(g, x, gate, rstd, **options))
        return tuple(found)


def test_package(device, tmp_path):
    fresh.skip_without_packages(device, tmp_path)
    kind = Kind(BFLOAT, FLOAT)
    tensors = *samples.gated(kind, SHAPE, device), samples.grad_output(kind, SHAPE, device)
    program = torch.export.export(Every(), tensors)
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "every.pt2"))
    got = torch._inductor.aoti_load_package(path)(*tensors)
    assert all(torch.equal(a, b) for a, b in zip(got, Every()(*tensors), strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnx(tmp_path):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    tensors, path = samples.gated(Kind(FLOAT), SHAPE), str(tmp_path / "model.onnx")
    torch.onnx.export(Model(), tensors, path, dynamo=True, verbose=False)
    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} == {""}
    inputs = {value.name: t.numpy() for value, t in zip(model.graph.input, tensors, strict=True)}
    got = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, inputs)
    for a, b in zip(got, Model()(*tensors), strict=True):
        torch.testing.assert_close(torch.from_numpy(a), b, rtol=1e-5, atol=1e-6)


# ---- TorchScript, symbolic traces, modes


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript(device, tmp_path):
    tensors = samples.gated(Kind(FLOAT), SHAPE, device)

    class Norms(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.first = Model().norm, Model().first

        def forward(self, x: torch.Tensor, gate: torch.Tensor):
            return self.first(self.norm(x, gate), gate)

    torch.jit.save(torch.jit.script(Norms()), tmp_path / "norms.pt")
    loaded = torch.jit.load(tmp_path / "norms.pt")
    assert torch.equal(loaded(*tensors), Norms()(*tensors))
    with pytest.raises(Exception, match=r"SRMSNormGated\(16\): the last dimension must be 16, got \[3, 8\]"):
        loaded(*(t[:, :8] for t in tensors))
    traced = torch.jit.trace(Model(), tensors)
    twice = [t.repeat(2, 1) for t in tensors]
    assert all(torch.equal(a, b) for a, b in zip(traced(*twice), Model()(*twice), strict=True))


def test_symbolic_trace(device):
    traced = torch.fx.symbolic_trace(Model())
    targets = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert targets.count(ops.gated_srms_norm.default) == 3
    tensors = samples.gated(Kind(FLOAT), SHAPE, device)
    assert all(torch.equal(a, b) for a, b in zip(traced(*tensors), Model()(*tensors), strict=True))
    with pytest.raises(RuntimeError, match=r"SRMSNormGated\(16\): the last dimension must be 16, got \[3, 8\]"):
        traced(*(t[..., :8] for t in tensors))


def test_modes(device):
    x, gate = samples.gated(Kind(FLOAT), SHAPE, device)
    with FunctionLog() as functions:
        srmsnorm.gated_srms_norm(x, gate, activation="silu")
    assert ops.gated_srms_norm.default in functions.calls
    leaf = x.clone().requires_grad_()
    with DispatchLog() as log:
        srmsnorm.gated_srms_norm(x, gate)
        z = srmsnorm.gated_srms_norm(leaf, gate)
        torch.autograd.grad(z, leaf, torch.ones_like(z))
    ours = [call for call in log.calls if "srmsnorm" in str(call)]
    assert ours == [ops.gated_srms_norm.default, ops._gated_srms_norm.default, INPUT]


# ---- other tensors


def test_subclasses(device):
    x, gate = samples.gated(Kind(FLOAT), SHAPE, device)
    for pair in ((x.as_subclass(Seen), gate), (x, gate.as_subclass(Seen))):
        assert isinstance(srmsnorm.gated_srms_norm(*pair), Seen) and isinstance(silu_gate_first(*pair), Seen)
    wrapped = [TwoTensor(t.clone(), t / 2).requires_grad_() for t in (x, gate)]
    outputs = block(*wrapped)
    grads = torch.autograd.grad([t.pow(2).sum() for t in outputs], wrapped)
    for part in "ab":
        leaves = [getattr(t, part).detach().clone().requires_grad_() for t in wrapped]
        plain = block(*leaves)
        want = [*plain, *torch.autograd.grad([t.pow(2).sum() for t in plain], leaves)]
        assert all(torch.equal(getattr(a, part), b) for a, b in zip([*outputs, *grads], want, strict=True))


@EVERY
def test_cross_reference(device, kind):
    """Every operator that runs, forward and backward, gives what fake tensors say, strides and aliasing included."""
    for layout in (samples.contiguous, samples.transposed, samples.padded, samples.every_other):
        leaves = [t.requires_grad_() for t in samples.gated(kind, (3, 4, 16), device, layout=layout)]
        for options in samples.GATES[1:5:3]:
            with CrossRefFakeMode(check_strides=True), DispatchLog() as log:
                z = srmsnorm.gated_srms_norm(*leaves, **options)
                first = torch.autograd.grad(z.float().pow(3).sum(), leaves, create_graph=True)
                torch.autograd.grad(sum(t.float().pow(2).sum() for t in first), leaves)
            assert {ops._gated_srms_norm.default, PAIR} <= set(log.calls)


@pytest.mark.parametrize("heads", [None, 2])
@pytest.mark.parametrize("compiled", [False, True])
def test_nested(device, compiled, heads):
    """Jagged tensors: every row as if alone, gradients too."""
    call = torch.compile(block, fullgraph=True, backend="aot_eager") if compiled else block
    x = jagged(device, heads=heads)
    leaves = [x.requires_grad_(), (x.detach() * 3).requires_grad_()]
    outputs = call(*leaves)
    assert all(t.shape == x.shape for t in outputs)
    grads = torch.autograd.grad(sum(t.values().pow(3).sum() for t in outputs), leaves)
    plain = [t.detach().values().clone().requires_grad_() for t in leaves]
    results = block(*plain)
    want = [*results, *torch.autograd.grad(sum(t.pow(3).sum() for t in results), plain)]
    assert all(torch.equal(a.values(), b) for a, b in zip([*outputs, *grads], want, strict=True))


def test_nested_errors(device):
    x = jagged(device)
    with pytest.raises(RuntimeError, match="srmsnorm: gate must have the shape of input.*nested by the same offsets"):
        srmsnorm.gated_srms_norm(x, jagged(device))
    for pair in ((x, x.values()), (x.values(), x)):
        with pytest.raises(RuntimeError, match="all tensors of a call or none"):
            srmsnorm.gated_srms_norm(*pair)
    with pytest.raises(RuntimeError, match="activation must be None"):
        srmsnorm.gated_srms_norm(x, x, activation="relu")
    with torch.inference_mode():
        z = srmsnorm.gated_srms_norm(x, x, activation="silu")
    assert torch.equal(z.values(), srmsnorm.gated_srms_norm(x.values(), x.values(), activation="silu"))


@GATES
@EVERY
def test_formula(device, kind, options):
    """What the dispatcher has for a device that we do not know: as accurate as the kernels are."""

    def call(name, *args, **kwargs):
        return getattr(ops, name).default.redispatch(ELSEWHERE, *args, **kwargs)

    for layout in (samples.contiguous, samples.padded, samples.every_other):
        input, gate = samples.gated(kind, (4, 33), device, layout=layout)
        g = samples.grad_output(kind, (4, 33), device, layout=layout)
        z, _ = call("_gated_srms_norm", input, gate, **options, eps=EPS)
        assert_gated(z, None, input, gate, **options, eps=EPS)
        assert torch.equal(call("gated_srms_norm", input, gate, **options, eps=EPS), z)
        rstd = truth.gated(input, gate, **options, eps=EPS)[1].to(srmsnorm.reference.accumulation_dtype(kind.dtype))
        pair = call("_gated_srms_norm_backward", g, input, gate, rstd, **options)
        assert_gated_gradients(pair, g, input, gate, rstd, **options)
        for i, name in enumerate(("input", "gate")):
            assert torch.equal(call(f"_gated_srms_norm_backward_{name}", g, input, gate, rstd, **options), pair[i])
