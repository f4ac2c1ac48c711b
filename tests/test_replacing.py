"""What a call becomes that is replaced in Inductor's graphs: the formulas, and the graphs that they are traced into."""

import re

import pytest
import samples
import torch
from decided import FORMULA, decided, ours
from graphs import run
from samples import BFLOAT, FLOAT, HALF, Kind
from tolerances import assert_compiled
from torch._inductor.utils import run_and_get_code

import srmsnorm
from srmsnorm import formulas
from srmsnorm.undecided import TWINS

EPS = 1e-3

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.fixture
def formula_everywhere(table):
    table([FORMULA])


@pytest.mark.parametrize("kind", [Kind(FLOAT, FLOAT), Kind(BFLOAT, FLOAT), Kind(HALF, HALF)], ids=str)
def test_formulas(kind):
    """Of every call that may be left open: the operator's dtypes and shapes, and its values but for roundings."""
    seen = set()
    for name, args, kwargs in samples.calls(kind, (3, 16)):
        twin = getattr(torch.ops.srmsnorm, name).default
        if twin not in TWINS:
            continue
        seen.add(name)
        given = {a.name: a.default_value for a in twin._schema.arguments}
        given |= dict(zip(given, args, strict=False)) | kwargs
        got, want = formulas.FORMULAS[name](**given), twin(*args, **kwargs)
        got, want = ((results,) if isinstance(results, torch.Tensor) else results for results in (got, want))
        assert_compiled(got, want)
    assert seen


@pytest.mark.parametrize("dynamic", [False, True])
def test_calls_alike_share_a_trace(monkeypatch, formula_everywhere, dynamic):
    """But no value and no note: Inductor takes nodes whose values share memory for views of each other."""
    traces = []
    fwd_only = torch._inductor.pattern_matcher.fwd_only
    monkeypatch.setattr(
        torch._inductor.pattern_matcher, "fwd_only", lambda *args: traces.append(args) or fwd_only(*args)
    )

    def function(x, w):
        x = srmsnorm.srms_norm(x @ w, eps=EPS)
        x = srmsnorm.srms_norm(x @ w, eps=EPS)
        x = srmsnorm.srms_norm(x @ w, eps=2 * EPS)
        return srmsnorm.srms_norm(x @ w, eps=EPS, dtype=BFLOAT)

    compiled, _, after = decided(function, dynamic=dynamic)
    tensors = samples.values((6, 512), FLOAT, "cpu"), samples.values((512, 512), FLOAT, "cpu", name="w")
    with srmsnorm.inline_under_compile("auto"), torch.no_grad():
        assert_compiled([compiled(*tensors)], [function(*tensors)])
    assert len(traces) == 3  # of one call and its like, of another eps, of another dtype
    roots = [node for node in after[0].nodes if node.target is torch.ops.aten.rsqrt.default]
    assert len(roots) == 4 == len({node.meta["val"].untyped_storage()._cdata for node in roots})
    assert len({node.meta["stack_trace"] for node in roots}) == 4


def test_operands_that_are_one(formula_everywhere):
    """Forward: input and residual. Backward: the gradients of y and of the sum. Calls with two of the same shapes stand
    before and behind."""

    def norms(x, stream):
        before = srmsnorm.add_srms_norm(x, stream, eps=EPS)
        same = srmsnorm.add_srms_norm(stream.sin(), stream.sin(), eps=EPS)
        y, sum = srmsnorm.add_srms_norm(x.cos(), stream, eps=EPS)
        behind = srmsnorm.add_srms_norm(stream.cos(), x, eps=EPS)
        one = x.sin()
        return (*before, *same, y + sum, *behind, *srmsnorm.add_srms_norm(one, one, eps=EPS))

    tensors = samples.forward(Kind(FLOAT, FLOAT), (6, 512), "cpu")
    compiled, _, after = decided(norms)
    with srmsnorm.inline_under_compile("auto"):
        got = run(compiled, tensors)
    assert not ours(after[0]) and not ours(after[1])
    assert_compiled(got, run(norms, tensors))


def test_what_generated_code_writes(formula_everywhere):
    """Of a sum of many tensors, and of a gradient that is one: nothing in float32."""

    def norms(x, stream, first, scales):
        y, stream = srmsnorm.add_srms_norm(x, scales[0] * stream + scales[1] * first, eps=EPS)
        return y * x, y * first, y.sin(), stream

    shape = (6, 512)
    tensors = [samples.values(shape, BFLOAT, "cpu", name=name) for name in ("x", "stream", "first")]
    tensors.append(samples.values((2,), BFLOAT, "cpu", name="scales"))
    with srmsnorm.inline_under_compile("auto"):
        got, codes = run_and_get_code(run, torch.compile(norms, fullgraph=True), tensors)
    assert_compiled(got, run(norms, tensors))
    written = re.findall(r"empty_strided_cpu\((\(.*?\)), \(.*?\), torch\.(\w+)\)", "".join(codes))
    assert (str(shape), "bfloat16") in written and (str(shape), "float32") not in written
    assert [dtype for _, dtype in written].count("float32") == 2  # rstd, and backward's means: no sum of squares
