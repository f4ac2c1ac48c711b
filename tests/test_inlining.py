"""inline_under_compile: the operator by default, the formula on request, and never the one compiled for the other."""

import pytest
import samples
import torch
import torch._dynamo.testing
from graphs import called, graphs, run
from modes import DispatchLog
from samples import BFLOAT, FLOAT, Kind
from tolerances import assert_compiled

import srmsnorm
from srmsnorm import inlining

EPS = 1e-3

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def block(x, stream):
    y, stream = srmsnorm.SRMSNorm(16, EPS)(x, stream, return_sum=True)
    return srmsnorm.srms_norm(y.sin(), eps=EPS), stream


@pytest.fixture
def operands(device):
    return list(samples.forward(Kind(BFLOAT, FLOAT), (3, 16), device))


def ours(targets):
    return [target for target in targets if target.namespace == "srmsnorm"]


def test_graphs(operands):
    """None of our operators is left, forward and backward."""
    kept = graphs(block, operands)
    assert len(kept) == 2 and all(ours(called(graph)) for graph in kept)
    with srmsnorm.inline_under_compile():
        found = graphs(block, operands)
    assert len(found) == 2 and not any(ours(called(graph)) for graph in found)


def test_values(operands):
    with srmsnorm.inline_under_compile():
        got = run(torch.compile(block, fullgraph=True), operands)
    assert_compiled(got, run(block, operands))


def test_guards(operands):
    """One graph for each choice, and each called under its own."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(block, fullgraph=True, backend=counter)
    counts = []
    for enable in (False, True, False, True):
        with srmsnorm.inline_under_compile(enable):
            compiled(*operands)
        counts.append(counter.frame_count)
    assert counts == [1, 2, 2, 2]


def test_scopes(operands):
    """A statement holds until the next; a context restores, after an error too, and may stand in compiled code."""
    inlined = lambda: not ours(called(graphs(block, operands)[0]))  # noqa: E731
    srmsnorm.inline_under_compile()
    try:
        assert inlined()
        with srmsnorm.inline_under_compile(False):
            assert not inlined()
        assert inlined()
    finally:
        srmsnorm.inline_under_compile(False)
    assert not inlined()
    with pytest.raises(ZeroDivisionError), srmsnorm.inline_under_compile():
        raise ZeroDivisionError
    assert not inlined()

    def inside(x, stream):
        with srmsnorm.inline_under_compile():
            y = srmsnorm.srms_norm(x, stream, eps=EPS)
        return y, srmsnorm.srms_norm(x, eps=EPS)

    assert len(ours(called(graphs(inside, operands)[0]))) == 1
    assert not inlined()


def test_checks_stay(operands):
    x, stream = operands
    for args in ((x, stream[:1]), (x.int(), None), (x, stream.double())):
        with srmsnorm.inline_under_compile(), pytest.raises(Exception, match="srmsnorm: "):
            torch.compile(srmsnorm.srms_norm, fullgraph=True, backend="aot_eager")(*args)


def test_eager_calls_stay(operands):
    want = srmsnorm.add_srms_norm(*operands)
    with srmsnorm.inline_under_compile():
        assert all(torch.equal(a, b) for a, b in zip(srmsnorm.add_srms_norm(*operands), want, strict=True))
        with DispatchLog() as log:
            seen = srmsnorm.srms_norm(operands[0].as_subclass(type("Seen", (torch.Tensor,), {})), operands[1])
    assert ours(log.calls) == [torch.ops.srmsnorm.srms_norm.default]
    assert torch.equal(seen.as_subclass(torch.Tensor), want[0])


def test_a_context_can_be_used_again():
    context = srmsnorm.inline_under_compile()
    for _ in range(2):
        with context:
            assert srmsnorm.inlining.enabled
        assert not srmsnorm.inlining.enabled


def test_one_context_again_and_in_itself():
    """Each exit brings back what was before its entry."""
    context = srmsnorm.inline_under_compile(True)
    with context, context:
        assert inlining.enabled is True
    assert inlining.enabled is False
    with context:
        with context:
            pass
        assert inlining.enabled is True
    assert inlining.enabled is False
    try:
        srmsnorm.inline_under_compile(True)
        with context:
            pass
        assert inlining.enabled is True
    finally:
        srmsnorm.inline_under_compile(False)
