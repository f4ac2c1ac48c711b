"""Work that nobody asked for is not done: backward, double backward, compiled autograd and torch.compile."""

import contextlib
import re
import sys

import fresh
import pytest
import samples
import torch
import torch._dynamo.compiled_autograd as compiled_autograd
from modes import DispatchLog
from samples import BFLOAT, FLOAT, Kind
from torch._inductor.utils import run_and_get_code

import srmsnorm

ops = torch.ops.srmsnorm
INPUT, RESIDUAL = ops._srms_norm_backward_input.default, ops._srms_norm_backward_residual.default
PAIR = ops._srms_norm_backward_pair.default
SHAPE = (4, 16)

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def leaves(kind):
    return [t.requires_grad_() for t in samples.forward(kind, SHAPE)]


NORMS = {
    "srms_norm": lambda x, r: (srmsnorm.srms_norm(x, r),),
    "add_srms_norm": srmsnorm.add_srms_norm,
    "_srms_norm": lambda x, r: ops._srms_norm(x, r, None),
    "_add_srms_norm": lambda x, r: ops._add_srms_norm(x, r, None),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", samples.WITH_RESIDUAL, ids=str)
def test_one_gradient_of_two(kind, norm):
    """autograd.grad of one operand of two: its operator alone, and the bits of the call that wants both."""
    operands = leaves(kind)
    outputs = NORMS[norm](*operands)
    cotangents = [samples.values(t.shape, t.dtype, name=f"cotangent {i}") for i, t in enumerate(outputs)]

    def asked(*which):
        with DispatchLog() as log:
            got = torch.autograd.grad(outputs, [operands[i] for i in which], cotangents, retain_graph=True)
        return got, [call for call in log.calls if "srmsnorm" in str(call)]

    both, called = asked(0, 1)
    mixed = kind in samples.MIXED
    assert called == [PAIR if mixed else INPUT]
    for i, single in enumerate((INPUT, RESIDUAL if mixed else INPUT)):
        (got,), called = asked(i)
        assert called == [single] and torch.equal(got, both[i])


# What each derivative of the backward operators takes: of grad_output one of them, of grad_sum nothing but a cast.
SECOND = {
    (0,): ({INPUT}, 0),
    (1,): (set(), 2),
    (2,): (set(), 3),
    (3,): (set(), 0),
    (1, 2): (set(), 3),
    (0, 1, 2, 3): ({INPUT}, 3),
}


@pytest.mark.parametrize("asked", SECOND, ids=str)
@pytest.mark.parametrize("kind", [Kind(FLOAT, FLOAT), Kind(BFLOAT, BFLOAT)], ids=str)
def test_double_backward(kind, asked):
    x, r = samples.forward(kind, SHAPE)
    y, rstd = ops._srms_norm(x, r, None)
    operands = [samples.grad_output(kind, SHAPE), y, rstd, samples.grad_sum(kind, SHAPE)]
    operands = [t.requires_grad_() for t in operands]
    dh = ops._srms_norm_backward_input(*operands)
    v = samples.values(SHAPE, kind.dtype, name="v")
    every = torch.autograd.grad(dh, operands, v, retain_graph=True)
    with DispatchLog() as log:
        got = torch.autograd.grad(dh, [operands[i] for i in asked], v)
    assert all(torch.equal(a, every[i]) for i, a in zip(asked, got, strict=True))
    operators, means = SECOND[asked]
    assert {call for call in log.calls if "srmsnorm" in str(call)} == operators
    assert log.calls.count(torch.ops.aten.mean.dim) == means


def test_compiled_autograd():
    """One cache: what is asked for, and the gradients' dtypes, tell entries apart, and each runs what eager runs."""
    compiled = []

    def compiler(graph):
        compiled.append(graph)
        return graph

    def run(kind, needs, asked):
        operands = [t.requires_grad_(need) for t, need in zip(samples.forward(kind, SHAPE), needs, strict=True)]
        results = []
        for context in (contextlib.nullcontext(), compiled_autograd._enable(compiler)):
            y = srmsnorm.srms_norm(*operands)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile, context:
                got = torch.autograd.grad(y, [operands[i] for i in asked], torch.ones_like(y))
            names = {event.name for event in profile.events() if event.name.startswith("srmsnorm::_srms_norm_backward")}
            results.append((got, names))
        (want, names), (got, compiled_names) = results
        assert compiled_names == names != set()
        assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(got, want, strict=True))

    torch._dynamo.compiled_autograd.reset()
    kinds = Kind(BFLOAT, FLOAT), Kind(BFLOAT, BFLOAT)
    calls = [(kind, needs, asked) for needs, asks in NEEDS.items() for asked in asks for kind in kinds]
    for call in calls:
        run(*call)
    first = len(compiled)
    assert first >= len(calls) - len(kinds)
    for call in reversed(calls):
        run(*call)
    assert len(compiled) == first


NEEDS = {(True, True): [(0, 1), (0,), (1,)], (False, True): [(1,)], (True, False): [(0,)]}


# ---- torch.compile: a pair of which one half is dead


class Ignored(torch.autograd.Function):
    @staticmethod
    def forward(context, tensor):
        return tensor.clone()

    @staticmethod
    def backward(context, grad):
        return torch.zeros_like(grad)


def first_of_vjp(x, r):
    y, pull = torch.func.vjp(srmsnorm.srms_norm, x, r)
    return pull(y)[0]


def second_of_vjp(x, r):
    y, pull = torch.func.vjp(srmsnorm.srms_norm, x, r)
    return pull(y)[1]


def both_of_vjp(x, r):
    y, pull = torch.func.vjp(srmsnorm.srms_norm, x, r)
    return sum(pull(y))


HALVES = {first_of_vjp: {INPUT}, second_of_vjp: {RESIDUAL}, both_of_vjp: {PAIR}}


def backward_calls(codes):
    return {
        getattr(ops, name).default
        for code in codes
        for name in re.findall(r"(_srms_norm_backward\w*)\.default\(", code)
    }


@pytest.mark.parametrize("function", HALVES, ids=lambda f: f.__name__)
@torch._inductor.config.patch(force_disable_caches=True)
def test_dead_half_of_a_pair(function):
    operands = samples.forward(Kind(BFLOAT, FLOAT), SHAPE)
    got, codes = run_and_get_code(torch.compile(function, fullgraph=True), *operands)
    assert backward_calls(codes) == HALVES[function]
    assert torch.equal(got, function(*operands))


@torch._inductor.config.patch(force_disable_caches=True)
def test_dead_half_in_a_backward_graph():
    """A backward of the user's own ignores what it gets."""
    operands = leaves(Kind(BFLOAT, FLOAT))
    g = samples.grad_output(Kind(BFLOAT, FLOAT), SHAPE)
    function = lambda x, r: srmsnorm.srms_norm(x, Ignored.apply(r))  # noqa: E731
    compiled = torch.compile(function, fullgraph=True)
    got, codes = run_and_get_code(lambda: torch.autograd.grad(compiled(*operands), operands, g))
    assert backward_calls(codes) == {INPUT}
    assert all(
        torch.equal(a, b) for a, b in zip(got, torch.autograd.grad(function(*operands), operands, g), strict=True)
    )


def test_inductor_is_not_imported():
    """Nor are its names needed: where they have moved, a pair stays."""
    done = fresh.run("import sys, srmsnorm; print('torch._inductor' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr
    assert "torch._inductor" in sys.modules  # by the imports above
    done = fresh.run(
        "import torch, torch._inductor.compile_fx, torch._inductor.fx_passes.post_grad as moved\n"
        "del moved.pass_patterns\n"
        "import srmsnorm\n"
        "from srmsnorm._dead_gradients import _register_pass\n"
        "_register_pass(); print('stays')\n"
    )
    assert done.stdout.strip() == "stays", done.stderr
