"""inline_under_compile("auto"): each call of a compiled graph becomes the operator or the formula, by a table of
reasons; what backward keeps, derivatives and the default's bits stay."""

import logging
import re
from functools import partial

import pytest
import samples
import torch
import torch._dynamo.compiled_autograd as compiled_autograd
from decided import FORMULA, OPERATOR, backend, decided, ours
from graphs import run
from samples import BFLOAT, FLOAT, HALF, Kind
from tolerances import assert_compiled
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import srmsnorm
from srmsnorm import choosing, reference, replacing

EPS = 1e-3
LONG, SHORT = (6, 512), (6, 64)  # of which training makes the formula, and the operator
MIXED = Kind(BFLOAT, FLOAT)

auto = partial(srmsnorm.inline_under_compile, "auto")
pytestmark = pytest.mark.usefixtures("fresh_dynamo", "table")


def block(x, stream):
    y, stream = srmsnorm.add_srms_norm(x, stream, eps=EPS)
    return srmsnorm.srms_norm(y * 2, eps=EPS).sin(), stream


def operands(kind=MIXED, shape=LONG, device="cpu"):
    return list(samples.forward(kind, shape, device))


def run_auto(function, tensors, **options):
    """Outputs, gradients and graphs."""
    compiled, before, after = decided(function, **options)
    with auto():
        return run(compiled, tensors), before, after


def in_code(code):
    """The calls of our operators that Inductor has written."""
    return re.findall(r"= (torch\.ops\.srmsnorm\S*)\(", code)


# ---- what becomes of a call


@pytest.mark.parametrize("kind", [Kind(FLOAT, FLOAT), Kind(BFLOAT, FLOAT), Kind(HALF, HALF)], ids=str)
@pytest.mark.parametrize("shape", [LONG, SHORT], ids=["formula", "operator"])
def test_values(kind, shape, device):
    tensors = operands(kind, shape, device)
    got, before, after = run_auto(block, tensors)
    assert_compiled(got, run(block, tensors))
    assert [graph.count("srmsnorm_undecided") for graph in before] == [2, 2]
    assert [len(ours(graph)) for graph in after] == ([0, 0] if shape == LONG else [2, 2])
    assert not any("undecided" in name for graph in after for name in ours(graph))


@pytest.mark.parametrize("answer", [FORMULA, OPERATOR], ids=["formula", "operator"])
@pytest.mark.parametrize("dtype", [None, torch.float32, BFLOAT])
@pytest.mark.parametrize("residual", [None, BFLOAT, FLOAT])
def test_every_gradient(table, answer, dtype, residual):
    """Each backward operator, with and without a gradient of the sum; kept, bit for bit."""
    table([answer])
    tensors = operands(Kind(BFLOAT, residual or BFLOAT))[: 2 if residual else 1]

    def function(*operands):
        y = srmsnorm.srms_norm(*operands, eps=EPS, dtype=dtype)
        return (y.sin(), *(srmsnorm.add_srms_norm(*operands, eps=EPS, dtype=dtype) if residual else ()))

    got, _, after = run_auto(function, tensors)
    want = run(function, tensors)
    assert_compiled(got, want)
    assert all(bool(ours(graph)) == (answer is OPERATOR) for graph in after) and len(after) == 2
    if answer is OPERATOR:
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("dead", [0, 1])
def test_dead_gradients(table, dead):
    """A pair that is kept shrinks to the gradient that is used, as it does by default."""
    table([OPERATOR])
    tensors = operands()

    def function(x, stream):
        y, vjp = torch.func.vjp(lambda x, stream: srmsnorm.srms_norm(x, stream, eps=EPS), x, stream)
        return vjp(y.cos())[1 - dead]

    compiled, _, after = decided(function)
    with auto():
        compiled(*tensors)
    assert ours(after[0])[-1] == f"srmsnorm._srms_norm_backward_{('residual', 'input')[dead]}.default"


@pytest.mark.parametrize("choice", ["auto", True])
def test_what_is_saved(choice):
    """y and rstd, of a call that becomes the formula too."""
    function = lambda x, stream: (srmsnorm.srms_norm(x, stream, eps=EPS),)  # noqa: E731
    compiled, _, after = decided(function)
    with srmsnorm.inline_under_compile(choice):
        run(compiled, operands())
    assert not ours(after[0])
    (outputs,) = after[0].output_node().args
    assert [(tuple(node.meta["val"].shape), node.meta["val"].dtype) for node in outputs] == [
        (LONG, BFLOAT),
        (LONG, BFLOAT),
        (LONG[:1], FLOAT),
    ]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inference(mode):
    """Short rows: beside an elementwise operation the formula, else the operator; of few of them the formula."""

    def function(x, w):
        return srmsnorm.srms_norm(srmsnorm.srms_norm(x @ w, eps=EPS).cos() @ w, eps=EPS)

    compiled, _, after = decided(function, dynamic=False)
    x, w = samples.values((2048, 64), FLOAT, "cpu"), samples.values((64, 64), FLOAT, "cpu", name="w")
    with auto(), mode():
        compiled(x, w)
        assert ours(after[0]) == ["srmsnorm.srms_norm.default"]
        assert counters["srmsnorm"] == {"srms_norm: formula": 1, "srms_norm: operator": 1}
        compiled(x[:1024], w)
    assert not ours(after[1])


def test_generated_code(device):
    """Inductor's. In training the operator of the short rows, and the other one's formula; no name of an open call."""

    def function(x, w):
        return srmsnorm.srms_norm(srmsnorm.srms_norm(x, eps=EPS) @ w, eps=EPS).sin()

    x, w = samples.values(LONG, FLOAT, device), samples.values((512, 64), FLOAT, device, name="w")
    with auto(), torch.no_grad():
        got, (code,) = run_and_get_code(torch.compile(function, fullgraph=True), x, w)
    assert not in_code(code)  # the second is beside an elementwise operation
    assert_compiled([got], [function(x, w)])

    leaves = [t.requires_grad_() for t in (x, w)]
    with auto():
        _, (code, *_) = run_and_get_code(torch.compile(function, fullgraph=True), *leaves)
    assert in_code(code) == ["torch.ops.srmsnorm._srms_norm.default"]


@pytest.mark.parametrize("answer", [FORMULA, OPERATOR], ids=["formula", "operator"])
def test_generated_backward(table, answer):
    """Inductor's own code, and no call that nobody has decided."""
    table([answer])
    compiled, tensors = torch.compile(block, fullgraph=True), operands()
    with auto():
        got, codes = run_and_get_code(run, compiled, tensors)
    assert_compiled(got, run(block, tensors))
    assert len(codes) == 2 and [len(in_code(code)) for code in codes] == [0 if answer is FORMULA else 2] * 2


@pytest.mark.parametrize("choice", ["auto", True])
def test_results_keep_their_strides(table, choice):
    """The operator's y of such rows is contiguous, the formula's is not, and the graph was made for the first."""
    table([FORMULA])
    x = samples.values((512, 6), FLOAT, "cpu").t()

    def function(x):
        y = srmsnorm.srms_norm(x, eps=EPS)
        return y, y.view(-1), y.as_strided((8,), (1,)), y.as_strided(y.size(), y.stride())  # the last by Dynamo

    compiled, _, after = decided(function)
    with srmsnorm.inline_under_compile(choice):
        got = run(compiled, [x])
        alone = torch.compile(function, fullgraph=True, backend="aot_eager")(x)
    want = function(x)
    for results in (got[:4], alone):
        assert [t.stride() for t in results] == [t.stride() for t in want]
        assert_compiled(results, want)
    assert ours(after[0]) == ["srmsnorm._srms_norm.default"]


def test_bits_by_default(device):
    tensors = [t.requires_grad_() for t in operands(device=device)]
    norm = lambda x, stream: srmsnorm.srms_norm(x, stream, eps=EPS)  # noqa: E731
    got, (code,) = run_and_get_code(torch.compile(norm, fullgraph=True), *tensors)
    assert torch.equal(got, norm(*tensors)) and in_code(code) == ["torch.ops.srmsnorm._srms_norm.default"]


# ---- how it is said


def test_counted_and_logged(caplog):
    with caplog.at_level(logging.INFO, logger="srmsnorm"):
        run_auto(block, operands())
    assert counters["srmsnorm"] == {
        "_add_srms_norm: formula": 1,
        "_srms_norm: formula": 1,
        "_srms_norm_backward_input: formula": 1,
        "_srms_norm_backward_pair: formula": 1,
    }
    assert "_add_srms_norm of 6 rows of 512: formula (long rows)" in caplog.messages


@pytest.mark.parametrize("training", [False, True])
def test_sums_of_a_stream(training):
    """Two in a row are the formula, which may add them up again; those behind it are written by the operator."""

    def stream_of_sums(x, stream):
        for _ in range(4):
            y, stream = srmsnorm.add_srms_norm(x, stream, eps=EPS)
            x = y.sin()
        return x, stream

    compiled, _, after = decided(stream_of_sums)
    tensors = operands(Kind(FLOAT, FLOAT))
    with auto(), torch.set_grad_enabled(training):
        got = run(compiled, tensors) if training else compiled(*tensors)
    assert_compiled(got, run(stream_of_sums, tensors) if training else stream_of_sums(*tensors))
    name = "_add_srms_norm" if training else "add_srms_norm"
    assert ours(after[0]) == [f"srmsnorm.{name}.default"] * 2
    assert counters["srmsnorm"][f"{name}: formula"] == 2


def test_what_is_no_sum_is_no_stream():
    """y of the call before, which is written."""

    def post_norms(y):
        for _ in range(4):
            y, _ = srmsnorm.add_srms_norm(y.sin(), y, eps=EPS)
        return y

    compiled, _, after = decided(post_norms)
    with auto(), torch.no_grad():
        compiled(operands(Kind(FLOAT, FLOAT))[0])
    assert not ours(after[0])


def test_what_the_table_is_told(table):
    calls = []
    table([choosing.Row("seen", lambda call: calls.append(call), "formula", "")])

    def function(x, stream):
        a = srmsnorm.srms_norm(x.t(), eps=EPS)
        b, stream = srmsnorm.add_srms_norm(x.unsqueeze(0).float().to(x.dtype), stream.unsqueeze(0), eps=EPS)
        return a, b @ b.mT, stream

    run_auto(function, operands())
    seen = {(call.operator, call.dim): call for call in calls}
    first, second = seen["_srms_norm", 6], seen["_add_srms_norm", 512]
    assert (first.rows, first.unit_stride, first.mixed, first.fuses) == (512, False, False, False)
    assert (second.rows, second.unit_stride, second.mixed, second.training) == (6, True, True, True)
    pair = seen["_srms_norm_backward_pair", 512]
    assert pair.backward and pair.grad_sum and not seen["_srms_norm_backward_input", 6].grad_sum


# ---- one choice, one code


def test_guards(table):
    """Code of another choice, or of another table, is not called; that of this one is."""
    compiled, _, after = decided(block)
    tensors = operands()
    counts = []
    for choice in (False, "auto", True, "auto", False, True):
        with srmsnorm.inline_under_compile(choice):
            run(compiled, tensors)
        counts.append(len(after) // 2)
    table([OPERATOR])
    with auto():
        run(compiled, tensors)
    assert [*counts, len(after) // 2] == [1, 2, 3, 3, 3, 3, 4]
    assert [len(ours(graph)) for graph in after[::2]] == [2, 0, 0, 2]


def test_scopes():
    """A backward is compiled as its forward was, wherever that is; a choice in compiled code holds there."""
    compiled, _, after = decided(block)
    with auto():
        outputs = compiled(*(t.requires_grad_() for t in operands()))
    outputs[0].sum().backward()
    assert [ours(graph) for graph in after] == [[], []]

    def inside(x, stream):
        with srmsnorm.inline_under_compile("auto"):
            y = srmsnorm.srms_norm(x, stream, eps=EPS)
        return y.sin(), srmsnorm.srms_norm(x, eps=EPS).cos()

    compiled, _, after = decided(inside)
    assert_compiled(run(compiled, operands()), run(inside, operands()))
    assert [len(ours(graph)) for graph in after] == [1, 1]
    assert srmsnorm.inlining.enabled is False
    for wrong in ("always", None, 2):
        with pytest.raises(ValueError, match="srmsnorm: enable must be"):
            srmsnorm.inline_under_compile(wrong)


# ---- where else it holds


def test_dynamic_shapes(table):
    """One graph for all numbers of rows; for all lengths the operator, or, where a table says so, the formula."""
    compiled, _, after = decided(block)

    def marked(*tensors):
        for tensor in tensors:
            torch._dynamo.mark_dynamic(tensor, 0)
        return compiled(*tensors)

    with auto():
        for shape in ((6, 512), (3, 512), (9, 512)):
            assert_compiled(run(marked, operands(shape=shape)), run(block, operands(shape=shape)))
    assert [ours(graph) for graph in after] == [[], []]
    for rows, kept in (([FORMULA], [0, 0]), (choosing.TABLE, [2, 2])):
        table(rows)
        compiled, _, after = decided(block, dynamic=True)
        with auto():
            for shape in ((6, 512), (3, 320), (9, 130)):
                assert_compiled(run(compiled, operands(shape=shape)), run(block, operands(shape=shape)))
        assert [len(ours(graph)) for graph in after] == kept


def policy(context, op, *args, **kwargs):
    norm = op in (torch.ops.srmsnorm._srms_norm.default, torch.ops.srmsnorm._add_srms_norm.default)
    return CheckpointPolicy.MUST_SAVE if norm else CheckpointPolicy.PREFER_RECOMPUTE


@pytest.mark.parametrize(("selective", "calls"), [(False, 4), (True, 2)])
def test_checkpoint(selective, calls):
    """Recomputed norms are decided too; a policy sees the operators and saves them."""
    contexts = {"context_fn": partial(create_selective_checkpoint_contexts, policy)} if selective else {}
    function = lambda *tensors: checkpoint(block, *tensors, use_reentrant=False, **contexts)  # noqa: E731
    got, before, after = run_auto(function, operands())
    assert_compiled(got, run(block, operands()))
    assert before[1].count("srmsnorm_undecided") == calls
    assert [ours(graph) for graph in after] == [[], []]


@pytest.mark.parametrize("shape", [LONG, SHORT], ids=["formula", "operator"])
def test_compiled_autograd(shape):
    """The backward that it traces is that of a forward whose calls were left open."""
    compiled, _, _ = decided(block)
    after = []
    tensors = operands(shape=shape)
    with auto(), compiled_autograd._enable(torch.compile(backend=backend([], after), fullgraph=True)):
        got = run(compiled, tensors)
    assert_compiled(got, run(block, tensors))
    assert [len(ours(graph)) for graph in after] == [0 if shape == LONG else 2]


def test_transforms():
    x, tangent = samples.values((2, *LONG), FLOAT, "cpu"), samples.values((2, *LONG), FLOAT, "cpu", name="t")
    norm = lambda t: srmsnorm.srms_norm(t, eps=EPS)  # noqa: E731
    functions = [
        lambda x, t: (torch.func.vmap(torch.func.grad(lambda x: norm(x).pow(3).sum()))(x),),
        lambda x, t: torch.func.jvp(norm, (x,), (t,)),
        lambda x, t: (torch.func.grad(lambda x: torch.func.grad(lambda x: norm(x).sin().sum())(x).cos().sum())(x),),
    ]
    for function in functions:
        compiled, before, after = decided(function)
        with auto():
            assert_compiled(compiled(x, tangent), function(x, tangent))
        assert "srmsnorm_undecided" in before[0] and not ours(after[0])


def test_formula_everywhere():
    """True under Inductor: of short rows too, where "auto" keeps the operator, in both directions."""
    tensors = operands(shape=SHORT)
    with srmsnorm.inline_under_compile():
        got, codes = run_and_get_code(run, torch.compile(block, fullgraph=True), tensors)
    assert len(codes) == 2 and not any(in_code(code) for code in codes)
    assert counters["srmsnorm"]["_add_srms_norm: formula"] == 1
    assert_compiled(got, run(block, tensors))


@pytest.mark.parametrize("setting", ["pattern_matcher", "use_post_grad_passes"])
@pytest.mark.parametrize("choice", ["auto", True])
def test_inductor_without_its_passes(setting, choice):
    """Nobody would decide: the operator, or the formula at once."""
    x = samples.values(LONG, FLOAT, "cpu")
    function = lambda x: srmsnorm.srms_norm(x, eps=EPS).sin()  # noqa: E731
    options = {"force_disable_caches": True, setting: False}
    with srmsnorm.inline_under_compile(choice), torch._inductor.config.patch(options), torch.no_grad():
        got, (code,) = run_and_get_code(torch.compile(function, fullgraph=True), x)
    assert in_code(code) == (["torch.ops.srmsnorm.srms_norm.default"] if choice == "auto" else [])
    assert_compiled([got], [function(x)])


@pytest.mark.parametrize("choice", ["auto", True])
def test_vmap_is_one_call(choice):
    x = samples.values((5, *LONG), FLOAT, "cpu")
    function = lambda x: (torch.func.vmap(lambda t: srmsnorm.srms_norm(t, eps=EPS).sin(), 1)(x),)  # noqa: E731
    compiled, before, _ = decided(function)
    with srmsnorm.inline_under_compile(choice):
        assert_compiled(compiled(x), function(x))
    assert before[0].count("srmsnorm_undecided") == 1


@pytest.mark.parametrize("name", ["eager", "aot_eager"])
def test_formula_under_other_backends(name):
    """True: the definition in PyTorch's operators, bit for bit, with what autograd makes of it."""

    def written_out(x, stream):
        y, stream = reference.add_srms_norm(x, stream, eps=EPS)
        return reference.srms_norm(y * 2, eps=EPS).sin(), stream

    with srmsnorm.inline_under_compile():
        got = run(torch.compile(block, fullgraph=True, backend=name), operands())
    assert all(torch.equal(a, b) for a, b in zip(got, run(written_out, operands()), strict=True))
    assert not counters["srmsnorm"]


@pytest.mark.parametrize("name", ["eager", "aot_eager"])
def test_other_backends(name):
    """Nobody decides: the operator, bit for bit."""
    with auto():
        got = run(torch.compile(block, fullgraph=True, backend=name), operands())
    assert all(torch.equal(a, b) for a, b in zip(got, run(block, operands()), strict=True))


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    with auto():
        program = torch.export.export(srmsnorm.SRMSNorm(512, EPS), (operands()[0],), strict=strict)
        assert ours(program.graph) == ours(program.run_decompositions().graph) == ["srmsnorm.srms_norm.default"]


def test_cuda_graphs(cuda):
    compiled = torch.compile(block, fullgraph=True, mode="reduce-overhead")
    with auto():
        for repeat in range(3):
            tensors = [t * (repeat + 1) for t in operands(shape=(64, 512), device=cuda)]
            torch.compiler.cudagraph_mark_step_begin()
            assert_compiled([t.clone() for t in run(compiled, tensors)], run(block, tensors))


# ---- where PyTorch has moved


def test_moved_inductor(monkeypatch):
    """Without its pattern matcher the operator stays, and one warning says so."""
    assert replacing.is_registered()
    monkeypatch.delattr(torch._inductor.pattern_matcher.Match, "replace_by_example")
    with pytest.warns(UserWarning, match="keeps the operator"):
        assert not replacing.is_registered.__wrapped__()
    monkeypatch.setattr(replacing, "is_registered", lambda: False)
    got, before, after = run_auto(block, operands())
    assert not any("undecided" in graph for graph in before) and [len(ours(graph)) for graph in after] == [2, 2]
    assert_compiled(got, run(block, operands()))
    with srmsnorm.inline_under_compile():
        got, codes = run_and_get_code(run, torch.compile(block, fullgraph=True), operands())
    assert not any(in_code(code) for code in codes) and not counters["srmsnorm"]
    assert_compiled(got, run(block, operands()))
