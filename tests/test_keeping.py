"""What backward keeps of a norm under inline_under_compile("auto"): y or the norm's input, one of them where one will
do."""

import inspect
import logging
import operator
from functools import partial

import pytest
import samples
import torch
from decided import FORMULA, OPERATOR, decided, ours
from graphs import run
from samples import FLOAT
from tolerances import assert_compiled
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache, run_and_get_code
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import srmsnorm
from srmsnorm.nodes import is_view

ROWS, HEADS, DIM = 6, 4, 64
KEEPS_INPUT = "_srms_norm_backward_of_input: formula"

auto = partial(srmsnorm.inline_under_compile, "auto")
norm = partial(srmsnorm.srms_norm, eps=1e-3)
pytestmark = pytest.mark.usefixtures("fresh_dynamo", "table")


def operands(device="cpu", function=None, rows=ROWS):
    """Tokens and a packed projection; for functions that take three, another one of what is made of a head."""
    width = HEADS * DIM
    shapes = {"x": (rows, width), "w": (width, 3 * width), "u": (DIM, DIM)}
    taken = inspect.signature(function or attention).parameters
    return [samples.values(shapes[name], FLOAT, device, name=name) * 0.3 for name in taken]


def heads(x, w):
    return [part.unflatten(-1, (HEADS, DIM)) for part in (x @ w).chunk(3, -1)]


def rotated(x):
    """By a constant angle."""
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * 0.8 - b * 0.6, b * 0.8 + a * 0.6], -1).to(x.dtype)


def scaled(y):
    """Each element by a number of its own: the gradient is not along y."""
    return y * torch.linspace(0.5, 1.5, y.shape[-1], device=y.device)


def scores(q, k, v):
    """As attention: backward reads all three."""
    return torch.einsum("thd,shd->hts", q, k) @ v.transpose(0, 1)


def attention(x, w):
    q, k, v = heads(x, w)
    return (scores(rotated(norm(q)), rotated(norm(k)), v),)


def run_auto(function, tensors, **options):
    """Outputs and gradients; the graphs behind Inductor's passes, forward first."""
    compiled, _, after = decided(function, **options)
    with auto():
        got = run(compiled, tensors)
    return got, after


def bytes_kept(graph):
    """Of the memory that forward keeps for backward and has made itself."""
    (outputs,) = graph.output_node().args
    made = {behind_views(node) for node in outputs[1:] if isinstance(node, torch.fx.Node)}
    values = [node.meta["val"] for node in made if node.op != "placeholder"]
    return sum(value.nbytes for results in values for value in tree_leaves(results))


def behind_views(node):
    """Past views alone: a copy has memory of its own, and so has each result of an operation."""
    while is_view(node) and (node.target is not operator.getitem or is_view(node.args[0])):
        node = node.args[0]
    return node


# ---- the input is kept


def test_rotated_queries(device):
    """The second time for any number of rows."""
    compiled, _, after = decided(attention)
    for i, rows in enumerate((ROWS, ROWS + 4, ROWS + 5)):
        tensors = operands(device, rows=rows)
        with auto():
            got = run(compiled, tensors)
        assert_compiled(got, run(attention, tensors))
        assert counters["srmsnorm"][KEEPS_INPUT] == min(2 * (i + 1), 4)
    assert not any(ours(graph) for graph in after)


def test_what_is_kept(table):
    """The projection and what the rotation makes, and no y: of queries and of keys."""
    _, (forward, _) = run_auto(attention, operands())
    table([OPERATOR])
    _, (by_operator, _) = run_auto(attention, operands())
    assert bytes_kept(by_operator) - bytes_kept(forward) == 2 * ROWS * HEADS * DIM * FLOAT.itemsize


def test_of_16_bits():
    """Of queries and of keys: the formula of one, which widens its part of the projection, is not in another's way."""
    run_auto(lambda x, w: attention(x.half(), w.half()), operands())
    assert counters["srmsnorm"][KEEPS_INPUT] == 2


def test_generated_code(device):
    """Inductor's own, and none of our operators."""
    tensors = operands(device)
    with auto(), fresh_cache():  # code that is found there was counted before
        got, codes = run_and_get_code(run, torch.compile(attention, fullgraph=True), tensors)
    assert_compiled(got, run(attention, tensors))
    assert len(codes) == 2 and counters["srmsnorm"][KEEPS_INPUT] == 2
    assert not any("torch.ops.srmsnorm" in code for code in codes)


def whole(x, w):
    """All of a product, which nothing else reads."""
    return (scaled(norm(x @ w[:, :DIM])),)


def behind_a_product(x, w, u):
    """What is made of y is written, as a product reads it; and so backward need not make it again."""
    return (scaled(norm(x @ w[:, :DIM])) @ u,)


def post_norm(x, w):
    """Long rows: y is added to the stream, and read by nothing else."""
    return (scaled(x + norm(x @ w[:, : HEADS * DIM])),)


@pytest.mark.parametrize("function", [whole, behind_a_product, post_norm])
def test_input_is_kept(function):
    tensors = operands(function=function)
    got, _ = run_auto(function, tensors)
    assert_compiled(got, run(function, tensors))
    assert counters["srmsnorm"][KEEPS_INPUT] == 1


# ---- y is kept


def returned(x, w):
    y = norm(x @ w[:, :DIM])
    return y, scaled(y)


def squared(x, w):
    """Backward reads y itself."""
    return (norm(x @ w[:, :DIM]).square(),)


def beside_another(x, w):
    """Backward reads y for the gradient of what it is multiplied with."""
    width = HEADS * DIM
    return (norm(w[:ROWS, :width] @ w[:, :width]) * x,)


def made_again(x, w):
    """Backward reads what is made of y, which forward does not write."""
    return (scaled(norm(x @ w[:, :DIM])).sin(),)


def of_a_product(x, w, u):
    return (norm(x @ w[:, :DIM]) @ u,)


def of_an_elementwise(x, w):
    """Nobody writes the input."""
    return (scaled(norm((x @ w[:, :DIM]) * 3)),)


def of_an_operand(x):
    return (scaled(norm(x)),)


def of_a_part(x, w):
    """What lies beside the input is not kept."""
    return (scaled(norm((x @ w)[:, :DIM])),)


def of_a_product_that_is_returned(x, w):
    product = x @ w[:, :DIM]
    return scaled(norm(product)), product.unsqueeze(0)


def of_a_sum(x, w):
    return (scaled(srmsnorm.srms_norm(x @ w[:, :DIM], x[:, :DIM], eps=1e-3)),)


def in_another_dtype(x, w):
    return (scaled(norm(x @ w[:, :DIM], dtype=torch.float16)),)


def in_a_checkpoint(x, w):
    """A policy may be about the norm, or about the product."""
    return (checkpoint(lambda x: scaled(norm(x)), x @ w[:, :DIM], use_reentrant=False),)


def behind_a_checkpoint(x, w):
    return (scaled(norm(checkpoint(lambda x: x @ w[:, :DIM], x, use_reentrant=False))),)


KEEPING_Y = [
    returned, squared, beside_another, made_again, of_a_product, of_an_elementwise, of_an_operand, of_a_part,
    of_a_product_that_is_returned, of_a_sum, in_another_dtype, in_a_checkpoint, behind_a_checkpoint,
]  # fmt: skip


@pytest.mark.parametrize("function", KEEPING_Y, ids=lambda function: function.__name__)
def test_y_is_kept(function):
    tensors = operands(function=function)
    got, _ = run_auto(function, tensors)
    assert_compiled(got, run(function, tensors))
    assert KEEPS_INPUT not in counters["srmsnorm"]
    assert any("backward" in name for name in counters["srmsnorm"])


def read_by_its_mean(x, w):
    """Forward reads what is made of y in an operation that keeps nothing of it."""
    z = scaled(norm(x @ w[:, :DIM]))
    return (z * z.mean(-1, keepdim=True),)


def beside_a_constant_product(x, w):
    z = scaled(norm(x @ w[:, :DIM]))
    return z @ torch.ones(DIM, 2), (z * w[:ROWS, :DIM]).sin()


def rolled(x, w):
    """Backward reads what another part of generated code makes."""
    return (scaled(norm(x @ w[:, :DIM])).roll(1, 1).sin(),)


def copied_values(x, w):
    """What backward reads beside the input is a copy in other memory."""
    q, _, v = (x @ w).chunk(3, -1)
    q = scaled(norm(q))
    return ((q @ q.t()) @ v.contiguous(),)


def beside_signs(x, w):
    """Backward reads where the other part is positive, and keeps no more of it than that."""
    q, _, v = (x @ w).chunk(3, -1)
    return scaled(norm(q)), torch.nn.functional.leaky_relu(v)


def behind_other_values(x, w):
    q, _, v = (x @ w).chunk(3, -1)
    q = scaled(norm(q))
    return (torch.nn.functional.pad(q @ q.t(), (1, 0)) @ torch.cat([v[:1] * 2, v]),)


def before_a_checkpoint(x, w, u):
    """y is the operand of the region."""
    return (checkpoint(lambda y: scaled(y) @ u, norm(x @ w[:, :DIM]), use_reentrant=False),)


def overlapping(x, w):
    return (scaled(norm((x @ w[:, :DIM]).as_strided((2 * ROWS, DIM // 2), (DIM // 2, 1)))),)


def transposed(x, w):
    """The formula's y would lie otherwise than the operator's, which stays."""
    return (scaled(norm((x @ w[:, :DIM]).t())),)


def twice(x, w):
    """One norm, in the end, whose y one of two backwards reads."""
    product = x @ w[:, :DIM]
    return scaled(norm(product)), norm(product).sin()


def twice_with_its_product(x, w):
    return scaled(norm(x @ w[:, :DIM])), norm(x @ w[:, :DIM]).sin()


def copied_and_read(x, w):
    """A product reads a copy of what is made of y, and that is kept."""
    z = scaled(norm(x @ w[:, :DIM]))
    return z.t().contiguous() @ x, z.sin()


def joined_and_read(x, w):
    z = scaled(norm(x @ w[:, :DIM]))
    return torch.cat([z, z * 2]) @ w[:DIM, :DIM], z.sin()


class CopyingProduct(torch.autograd.Function):
    """The copy is made in backward."""

    @staticmethod
    def forward(ctx, a, u):
        ctx.save_for_backward(a, u)
        return a @ u

    @staticmethod
    def backward(ctx, grad):
        a, u = ctx.saved_tensors
        return grad @ u.t(), a.t().contiguous() @ grad


def copied_in_backward(x, w, u):
    return (CopyingProduct.apply(scaled(norm(x @ w[:, :DIM])), u),)


def read_in_float(x, w):
    """What is made of that in float32 would be kept in float32, and no product."""
    product = x.half() @ w[:, :DIM].half()
    return ((scaled(norm(product)) + product.float()).half(),)


def read_in_parts(x, w):
    """A product keeps a part of what is made of y: of y, backward would make all of it again."""
    z = scaled(norm(x @ w[:, :DIM])).chunk(2, -1)[1]
    return (z.t() @ z, z.sin())


NOT_LESS = [
    read_by_its_mean, beside_a_constant_product, rolled, copied_values, beside_signs, behind_other_values,
    before_a_checkpoint, overlapping, transposed, twice, twice_with_its_product, copied_and_read,
    joined_and_read, copied_in_backward, read_in_float, read_in_parts,
]  # fmt: skip


@pytest.mark.parametrize("function", NOT_LESS, ids=lambda function: function.__name__)
def test_no_more_is_kept(table, function):
    """Where the input would take more memory, or nothing would be gained: as much as by the operator."""
    tensors = operands(function=function)
    got, (forward, _) = run_auto(function, tensors)
    assert_compiled(got, run(function, tensors))
    fired = counters["srmsnorm"][KEEPS_INPUT]
    table([OPERATOR])
    _, (by_operator, _) = run_auto(function, tensors)
    assert not fired and bytes_kept(forward) == bytes_kept(by_operator)


def test_made_again_by_the_same_code():
    """In a checkpoint, a norm of short rows is the operator in forward and where backward makes it again."""

    def function(x, w, u):
        return (checkpoint(lambda x: scaled(norm(x @ w[:, :DIM])) @ u, x, use_reentrant=False),)

    run_auto(function, operands(function=behind_a_product))
    assert counters["srmsnorm"] == {"_srms_norm: operator": 2, "_srms_norm_backward_input: operator": 1}


def test_no_gradient_is_given():
    """A gradient within the graph: nothing is kept for it."""
    function = lambda x, w: torch.func.grad(lambda x: norm(x @ w[:, :DIM]).sin().sum())(x)  # noqa: E731
    compiled, _, _ = decided(function)
    tensors = operands()
    with auto(), torch.no_grad():
        assert_compiled([compiled(*tensors)], [function(*tensors)])
    assert KEEPS_INPUT not in counters["srmsnorm"]


# ---- of a wider y


def wide_product(x, w):
    """A projection in float32, of something elementwise in 16 bits."""
    return (norm((x * 3).half(), dtype=FLOAT) @ w,)


def wide_elementwise(x, w):
    """Backward reads y, but in what it could make of the input as well."""
    return (norm((x * 3).half(), dtype=FLOAT) * w[:ROWS, : HEADS * DIM],)


def input_read_as_well(x, w):
    h = (x * 3).half()
    return norm(h, dtype=FLOAT) @ w, scaled(h.unsqueeze(0).mT @ h.unsqueeze(0))


def copy_read(x, w):
    """The product's backward reads another tensor."""
    y = norm((x * 3).half(), dtype=FLOAT)
    return (torch.cat([y, y * 2]) @ w,)


WIDER = wide_product, wide_elementwise, input_read_as_well, copy_read


@pytest.mark.parametrize("function", WIDER, ids=lambda f: f.__name__)
@pytest.mark.parametrize("answer", [FORMULA, OPERATOR], ids=["formula", "operator"])
def test_wider_y(table, answer, function):
    """It is kept for the matrix, and the input is not. Where nobody chooses, the input is."""
    table([answer])
    tensors = operands(function=function)
    got, (forward, _) = run_auto(function, tensors)
    assert_compiled(got, run(function, tensors))
    keeps_y = function is wide_product
    assert counters["srmsnorm"][f"_srms_norm_backward_input: {answer.answer}"] == keeps_y
    assert counters["srmsnorm"][f"_srms_norm_backward_of_input: {answer.answer}"] == (not keeps_y)
    compiled, _, plain = decided(function)
    run(compiled, tensors)
    assert bytes_kept(plain[0]) - bytes_kept(forward) == (ROWS * HEADS * DIM * torch.half.itemsize if keeps_y else 0)


def test_wider_y_of_an_input_that_lies_otherwise(table):
    """The gradient lies as the input does, whatever it is made of."""
    table([OPERATOR])
    function = lambda x, w: (norm((x.T * 3).half().T, dtype=FLOAT) @ w,)  # noqa: E731
    tensors = operands(function=wide_product)
    assert_compiled(run_auto(function, tensors)[0], run(function, tensors))
    assert counters["srmsnorm"]["_srms_norm_backward_input: operator"] == 1


# ---- who decides, and where it is seen


def test_a_product_may_be_written_into():
    """It is the caller's."""
    tensors = operands()
    compiled, _, _ = decided(of_a_product_that_is_returned)
    gradients = []
    for function in (compiled, of_a_product_that_is_returned):
        leaves = [t.clone().requires_grad_() for t in tensors]
        with auto():
            y, product = function(*leaves)
        with torch.no_grad():
            product.add_(1)
        gradients.append(torch.autograd.grad(y.square().sum(), leaves))
    assert_compiled(*gradients)


def test_table_decides(table):
    """An operator writes y whatever reads it."""
    table([OPERATOR])
    run_auto(attention, operands())
    assert KEEPS_INPUT not in counters["srmsnorm"]


def test_logged(caplog):
    with caplog.at_level(logging.INFO, logger="srmsnorm"):
        run_auto(attention, operands())
    line = f"_srms_norm_backward_of_input of {ROWS * HEADS} rows of {DIM}: formula (y would be kept for it alone)"
    assert caplog.messages.count(line) == 2
