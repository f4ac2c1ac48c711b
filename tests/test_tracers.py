"""Whoever looks at calls: modes, symbolic traces, the flop counter, the profiler, TorchScript."""

import pickle

import pytest
import samples
import torch
from modes import DispatchLog, FunctionLog
from samples import FLOAT, HALF, Kind
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import srmsnorm

ops = torch.ops.srmsnorm
SHAPE = (3, 16)
EPS = 1e-3


@pytest.fixture
def operands(device):
    return samples.forward(Kind(FLOAT, FLOAT), SHAPE, device)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = srmsnorm.SRMSNorm(16, EPS)

    def forward(self, x, stream):
        y, stream = self.norm(x, stream, return_sum=True)
        return self.norm(srmsnorm.srms_norm(y * 2, stream)), stream


def assert_equal(got, want):
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_torch_function_modes(operands):
    with FunctionLog() as log:
        srmsnorm.srms_norm(operands[0])
        srmsnorm.add_srms_norm(*operands)
        srmsnorm.add_srms_norm_(*operands)
    assert {ops.srms_norm.default, ops.add_srms_norm.default, ops.add_srms_norm_.default} <= set(log.calls)


def test_dispatch_modes(operands):
    """Without gradients the public operator runs as it is; with them, the internal ones."""
    x, stream = operands
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
    assert ours == [ops._add_srms_norm.default, ops._srms_norm.default, ops._srms_norm_backward_input.default]


def test_symbolic_trace(operands):
    """Of functions and of modules; the module's check goes with it, and the graph can be saved."""
    traced = torch.fx.symbolic_trace(Model())
    traced.graph.eliminate_dead_code()
    traced.recompile()
    targets = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert targets.count(ops.srms_norm.default) == 2 and targets.count(ops.add_srms_norm.default) == 1
    for graph in (traced, pickle.loads(pickle.dumps(traced))):
        assert_equal(graph(*operands), Model()(*operands))
        with pytest.raises(RuntimeError, match=r"SRMSNorm\(16\): the last dimension must be 16, got \[3, 8\]"):
            graph(*(t[..., :8] for t in operands))


def test_make_fx(operands):
    """Forward and backward in one graph."""

    def function(x, stream):
        leaves = [t.detach().requires_grad_() for t in (x, stream)]
        return torch.autograd.grad(sum(t.pow(3).sum() for t in Model()(*leaves)), leaves)

    traced = make_fx(function)(*operands)
    assert_equal(traced(*operands), function(*operands))
    targets = [str(node.target) for node in traced.graph.nodes if node.op == "call_function"]
    assert sum("srmsnorm" in target for target in targets) == 6


def test_symbolic_make_fx(device):
    """One graph of forward and backward for every shape, made from one of them."""

    def function(x, stream):
        leaves = [t.detach().requires_grad_() for t in (x, stream)]
        return torch.autograd.grad(sum(t.pow(3).sum() for t in norms(*leaves)), leaves)

    def norms(x, stream):
        y, stream = srmsnorm.add_srms_norm(x, stream, eps=EPS)
        return srmsnorm.srms_norm(y * 2, stream), stream

    for kind in (Kind(FLOAT, FLOAT), Kind(HALF, FLOAT)):
        traced = make_fx(function, tracing_mode="symbolic")(*samples.forward(kind, (4, 16), device))
        assert sum("srmsnorm" in str(node.target) for node in traced.graph.nodes) == 4
        for shape in ((4, 16), (7, 33), (2, 5)):
            operands = samples.forward(kind, shape, device)
            got, want = traced(*operands), function(*operands)
            assert_equal(got, want)
            assert [t.stride() for t in got] == [t.stride() for t in want]


def test_flop_counter(operands):
    """Counts matrix products, as for PyTorch's own norms: a norm beside one changes nothing."""
    weight = torch.ones(16, 16, device=operands[0].device, requires_grad=True)

    def flops(function):
        with FlopCounterMode(display=False) as counter:
            function(operands[0] @ weight).sum().backward()
        return counter.get_total_flops()

    assert flops(srmsnorm.srms_norm) == flops(lambda x: x) > 0


def test_profiler(device, operands):
    """Forward and backward have names, and the backward node is tied to its forward call."""
    x = operands[0].clone().requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        srmsnorm.srms_norm(x).sum().backward()
    numbers = {event.name: event.sequence_nr for event in profile.events()}
    assert {"srmsnorm::srms_norm", "srmsnorm::_srms_norm_backward_input"} <= set(numbers)
    assert numbers["SRMSNormBackward"] == numbers["srmsnorm::srms_norm"] >= 0


def test_anomaly_mode(operands):
    """Names the forward call of a gradient that is NaN."""
    x = operands[0].clone().requires_grad_()
    with pytest.warns(UserWarning, match="SRMSNormBackward"), torch.autograd.detect_anomaly(check_nan=True):
        y = srmsnorm.srms_norm(x)
        with pytest.raises(RuntimeError, match="SRMSNormBackward.*nan values"):
            y.backward(torch.full_like(y, torch.nan))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jit_trace(operands):
    """Values and gradients on other inputs than the traced ones, and other sizes of batch."""
    traced = torch.jit.trace(Model(), operands)
    for scale in (1, 2):
        results = []
        for model in (Model(), traced):
            leaves = [t.repeat(scale, 1).mul(scale).requires_grad_() for t in operands]
            outputs = model(*leaves)
            results.append([*outputs, *torch.autograd.grad(sum(t.pow(3).sum() for t in outputs), leaves)])
        assert_equal(*results)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jit_script(operands):
    """The operators are known to TorchScript by name."""

    @torch.jit.script
    def function(x: torch.Tensor, stream: torch.Tensor):
        y, stream = torch.ops.srmsnorm.add_srms_norm(x, stream, eps=1e-3)
        return torch.ops.srmsnorm.srms_norm(y), stream

    y, sum = srmsnorm.add_srms_norm(*operands, eps=EPS)
    assert_equal(function(*operands), (srmsnorm.srms_norm(y), sum))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jit_script_of_the_module(operands, tmp_path):
    """The norm, with a residual or without, inside a model, saved and loaded; the check goes with it."""

    class Norms(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.default, self.norm = srmsnorm.SRMSNorm(16, eps=None), srmsnorm.SRMSNorm(16, EPS)

        def forward(self, x: torch.Tensor, stream: torch.Tensor):
            return self.norm(self.default(x), stream)

    torch.jit.save(torch.jit.script(Norms()), tmp_path / "norms.pt")
    loaded = torch.jit.load(tmp_path / "norms.pt")
    assert torch.equal(loaded(*operands), Norms()(*operands))
    with pytest.raises(Exception, match=r"SRMSNorm\(16\): the last dimension must be 16, got \[3, 8\]"):
        loaded(*(t[:, :8] for t in operands))
