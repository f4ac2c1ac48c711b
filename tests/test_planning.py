"""torch.compile with Inductor: which calls write into buffers that Inductor plans, in the generated code; the bits of
eager code all the same."""

import json
import re
from functools import partial

import fresh
import generated
import pytest
import samples
import torch
import torch._dynamo.compiled_autograd as compiled_autograd
from graphs import run
from samples import BFLOAT, FLOAT, HALF, Kind
from torch._inductor.utils import run_and_get_code

import srmsnorm

EPS = 1e-3
SHAPE = (6, 64)
MIXED = Kind(BFLOAT, FLOAT)

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.fixture(autouse=True)
def no_caches():
    with torch._inductor.config.patch(force_disable_caches=True):
        yield


def block(x, stream):
    """Each call's neighbours are views or products of which the bits are not the compiler's."""
    y, stream = srmsnorm.add_srms_norm(x, stream, eps=EPS)
    return srmsnorm.srms_norm(y.flip(0), eps=EPS), stream


def compiled(function, *operands, **options):
    return run_and_get_code(run, torch.compile(function, fullgraph=True, **options), operands)


def assert_equal(got, want):
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b) and a.stride() == b.stride() and a.dtype == b.dtype


# ---- what becomes of a call


@pytest.mark.parametrize("kind", [Kind(FLOAT, FLOAT), MIXED, Kind(HALF, HALF)], ids=str)
def test_training(kind, device):
    """Every call, forward and backward; y and rstd are what is kept."""
    tensors = samples.forward(kind, SHAPE, device)
    norm = partial(srmsnorm.add_srms_norm, eps=EPS)
    got, codes = compiled(norm, *tensors)
    assert_equal(got, run(norm, tensors))
    pair = "_srms_norm_backward_pair" if kind == MIXED else "_srms_norm_backward_input"
    assert [generated.planned(code) for code in codes] == [["_add_srms_norm"], [pair]]
    assert [generated.calls(code) for code in codes] == [["_add_srms_norm"], [pair]]
    got, codes = compiled(block, *tensors)
    assert_equal(got, run(block, tensors))
    assert [len(generated.planned(code)) for code in codes] == [2, 2]


def test_inference(device):
    """The public operators, each dtype; results used twice, and not at all."""
    x, stream = samples.forward(MIXED, SHAPE, device)
    gate, w = samples.values(SHAPE, BFLOAT, device, name="gate"), torch.eye(64, dtype=BFLOAT, device=device)

    def function(x, stream, gate, w):
        wide = srmsnorm.srms_norm(x, eps=EPS, dtype=FLOAT)
        _, total = srmsnorm.add_srms_norm(x @ w, stream, eps=EPS)
        gated = srmsnorm.gated_srms_norm(x, gate, activation="silu", eps=EPS)
        y, rstd = srmsnorm.srms_norm(gated @ w, stream, eps=EPS), srmsnorm.rstd(x, eps=EPS)
        return wide, total, gated, y, y.clone(), rstd

    with torch.no_grad():
        got, (code,) = run_and_get_code(torch.compile(function, fullgraph=True), x, stream, gate, w)
        assert_equal(got, function(x, stream, gate, w))
    want = ["add_srms_norm", "gated_srms_norm", "rstd", "srms_norm", "srms_norm"]
    assert sorted(generated.planned(code)) == sorted(generated.calls(code)) == want


def test_memory_is_used_again():
    """A chain of products and norms takes two buffers in all, and nothing is asked of a result when the code runs."""

    def function(x, w):
        for _ in range(6):
            x = srmsnorm.srms_norm(x @ w, eps=EPS)
        return x

    x, w = samples.values(SHAPE, FLOAT), torch.eye(64)
    with torch.no_grad():
        got, (code,) = run_and_get_code(torch.compile(function, fullgraph=True), x, w)
    assert torch.equal(got, function(x, w))
    body = code[code.index("def call(") :]
    assert len(re.findall(r"buf\d+ = empty_strided", body)) == 2 and body.count("# reuse") == 10
    assert not re.findall(r"assert_\w+\(buf", body)


@pytest.mark.parametrize("dynamic", [True, None])
def test_dynamic_shapes(dynamic):
    torch._dynamo.reset()
    function = torch.compile(block, fullgraph=True, dynamic=dynamic)
    for shape in ((6, 64), (5, 64), (3, 32), (0, 32)):
        tensors = samples.forward(MIXED, shape)
        assert_equal(run(function, tensors), run(block, tensors))
    _, codes = compiled(block, *samples.forward(MIXED, SHAPE), dynamic=True)
    assert [len(generated.planned(code)) for code in codes] == [2, 2]


def test_sizes_of_the_data():
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        function = lambda x, mask: srmsnorm.srms_norm(x[mask], eps=EPS)  # noqa: E731
        x, mask = samples.values(SHAPE, FLOAT), torch.tensor([True, False] * 3)
        with torch.no_grad():
            got, (code,) = run_and_get_code(torch.compile(function, fullgraph=True), x, mask)
    assert torch.equal(got, function(x, mask)) and generated.planned(code) == ["srms_norm"]


def test_strides():
    """Operands as eager code has them, results as it makes them."""
    function = lambda x, s: srmsnorm.add_srms_norm(x.transpose(0, 1), s.transpose(0, 1), eps=EPS)  # noqa: E731
    tensors = samples.forward(MIXED, (3, 5, 16))
    got, codes = compiled(function, *tensors)
    assert_equal(got, run(function, tensors))
    assert [len(generated.planned(code)) for code in codes] == [1, 1]
    assert "cpp_fused" not in codes[0]  # no copy makes them so
    x = samples.values((16, 6), FLOAT).t()
    with torch.no_grad():
        got = torch.compile(srmsnorm.srms_norm, fullgraph=True)(x)
    assert_equal([got], [srmsnorm.srms_norm(x)])


def test_compiled_autograd():
    tensors = samples.forward(MIXED, SHAPE)
    with compiled_autograd._enable(torch.compile(fullgraph=True)):
        got, codes = compiled(block, *tensors)
    assert_equal(got, run(block, tensors))
    assert [len(generated.planned(code)) for code in codes] == [2, 2]


def test_in_a_branch():
    """Whose code is a part of the whole."""

    def function(flag, x):
        return torch.cond(flag, lambda x: srmsnorm.srms_norm(x, eps=EPS), lambda x: x.clone(), (x,))

    x = samples.values(SHAPE, FLOAT)
    with torch.no_grad():
        got, (code,) = run_and_get_code(torch.compile(function, fullgraph=True), torch.tensor(True), x)
    assert torch.equal(got, srmsnorm.srms_norm(x, eps=EPS)) and generated.planned(code) == ["srms_norm"]


# ---- where it is not


CACHED = """
import json, torch, srmsnorm
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code
from srmsnorm import planning

planning.enabled = {enabled}
function = lambda x, w: srmsnorm.srms_norm(x @ w)
x, w = torch.arange(48.).view(6, 8), torch.eye(8)
with torch.no_grad():
    got, (code,) = run_and_get_code(torch.compile(function, fullgraph=True), x, w)
assert torch.equal(got, function(x, w))
print(json.dumps(["_srmsnorm._out_srms_norm(" in code, counters["inductor"]["fxgraph_cache_hit"]]))
"""


@pytest.mark.parametrize("first", [True, False])
def test_caches_on_disk(tmp_path, first):
    """No key knows of it, nor need it: either code has the same results, whichever process made it."""
    found = []
    for enabled in (first, not first):
        done = fresh.run(
            CACHED.format(enabled=enabled),
            TORCHINDUCTOR_CACHE_DIR=str(tmp_path),
            TORCHINDUCTOR_FORCE_DISABLE_CACHES="0",
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert found == [[first, 0], [first, 1]]


MOVED = """
import warnings, torch, srmsnorm
import torch._inductor.lowering as lowering
del lowering.make_fallback
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for factor in (2, 3):
        x = torch.ones(2, 8)
        function = lambda x: srmsnorm.srms_norm(x) * factor
        graph = torch.fx.experimental.proxy_tensor.make_fx(function)(x)
        assert "srmsnorm.srms_norm" in str(graph.graph)
ours = [str(warning.message) for warning in caught if "srmsnorm" in str(warning.message)]
assert len(ours) == 1 and "operators make their results themselves" in ours[0], ours
"""


def test_where_inductor_has_moved():
    """A warning, once."""
    done = fresh.run("import torch._inductor.compile_fx\n" + MOVED)
    assert done.returncode == 0, done.stderr


def test_cpp_wrapper():
    """Inductor's code in C++ makes the results by the operator, as AOTInductor's packages do (test_saved_programs)."""
    x = samples.values(SHAPE, FLOAT)
    with torch._inductor.config.patch(cpp_wrapper=True), torch.no_grad():
        got, (code,) = run_and_get_code(torch.compile(lambda x: srmsnorm.srms_norm(x, eps=EPS), fullgraph=True), x)
    assert torch.equal(got, srmsnorm.srms_norm(x, eps=EPS))
    assert "srmsnorm.srms_norm" in code and not generated.planned(code)
