"""srmsnorm.fold: the weight goes into the linears, within a rounding; whoever else reads the norm is found."""

from collections import UserDict

import pytest
import samples
import torch
from foldable import DIM, Block, GemmaNorm, LlamaNorm, block, refused, unchanged
from torch import nn
from torch.nn import functional as F

import srmsnorm

X = samples.tensor((3, 5, DIM), torch.float32)
NORMS = [(lambda: nn.RMSNorm(DIM), 0.0, None), (lambda: LlamaNorm(DIM), 0.0, 1e-5), (lambda: GemmaNorm(DIM), 1.0, 1e-6)]


INPUTS = {
    "traced": None,
    "tensor": lambda x: x[0],
    "tuple": lambda x: (x,),
    "dict": lambda x: {"x": x},
    "user dict": lambda x: UserDict(x=x),
}


CASES = [(name, samples.FLOAT) for name in INPUTS] + list(zip(INPUTS, samples.DTYPES, strict=False))


@pytest.mark.parametrize("inputs, dtype", dict.fromkeys(CASES))
@pytest.mark.parametrize("make, offset, eps", NORMS, ids=["torch", "llama", "gemma"])
def test_folded(make, offset, eps, dtype, inputs):
    """Of each term |n w W|: one rounding of n and one of w W here; there of n, w + offset, their product, and for n in
    float32 those of float32; and what both linears' own sums take."""
    model = block(make(), dtype=dtype)
    x, linears = X.to(dtype), {"q": model.q, "k": model.k}
    before = {name: linear(model.norm(x)).double() for name, linear in linears.items()}
    scale = model.norm.weight.detach().double() + offset
    products = {name: linear.weight.detach().double() * scale for name, linear in linears.items()}
    given = INPUTS[inputs] and INPUTS[inputs](x)
    assert srmsnorm.fold(model, "norm", list(linears), weight_offset=offset, example_inputs=given) is None
    assert repr(model.norm) == f"SRMSNorm({DIM}, eps={eps})" and "norm.weight" not in model.state_dict()

    info, n = torch.finfo(dtype), srmsnorm.reference.srms_norm(x.double(), eps=eps).abs()
    u, single = info.eps / 2, torch.finfo(torch.float32).eps
    added = single / 2 if offset and dtype != torch.float64 else 0
    for name, linear in linears.items():
        product = products[name].abs()
        lost = 0.5 * info.tiny * info.eps  # of a subnormal
        assert ((linear.weight.double() - products[name]).abs() <= (u + added) * 1.001 * product + lost).all()
        bias = 0 if linear.bias is None else linear.bias.detach().double().abs()
        sums = 2 * DIM * (info.eps if dtype == torch.float64 else single)
        bound = (5 * u + 8 * single + sums) * (F.linear(n, product) + bias) + 2 * u * before[name].abs()
        assert ((linear(model.norm(x)).double() - before[name]).abs() <= bound).all()


def test_product_is_rounded_once():
    """In float32, then to bfloat16: not what bfloat16's own product of a rounded sum gives."""
    model = block(GemmaNorm(DIM), dtype=torch.bfloat16)
    weight, old = model.norm.weight.detach(), model.q.weight.detach().clone()
    srmsnorm.fold(model, "norm", ["q", "k"], weight_offset=1.0)
    assert torch.equal(model.q.weight, (old.float() * (weight.float() + 1.0)).to(torch.bfloat16))
    assert not torch.equal(model.q.weight, old * (weight + 1.0))


def test_parameters_keep_their_identity():
    model = block()
    q, bias, mode = model.q.weight, model.q.bias.detach().clone(), model.train().norm.training
    srmsnorm.fold(model, "norm", ["k", "q"])
    assert model.q.weight is q and q.requires_grad and torch.equal(model.q.bias, bias) and model.norm.training == mode


# ---- readers

OTHER_READERS = {
    "added": (lambda self, x: self.q(x) * self.k(x) + x[..., :32], "the norm is also read by "),
    "scaled first": (lambda self, x: self.q(x * 1.0) * self.k(x), "also read"),
    "written": (lambda self, x: self.q(x.mul_(1.0)) * self.k(x), "also read"),
    "not called": (lambda self, x: self.q(x), "the model does not call 'k'"),
    "another input": (lambda self, x: self.q(x) * self.k(self.out(self.q(x))), "'k' also reads something else"),
    "the weight": (lambda self, x: self.q(x) * self.k(x) * self.q.weight.sum(), "also read"),
    "without its module": (lambda self, x: self.q(x) * F.linear(x, self.k.weight), "also read"),
    "the norm's weight": (lambda self, x: self.q(x) * self.k(x) * self.norm.weight.sum(), "also read"),
}


def trace_or_run(given):
    return pytest.mark.parametrize("inputs", [None, (given,)], ids=["traced", "run"])


@trace_or_run(X)
@pytest.mark.parametrize("name", OTHER_READERS)
def test_other_readers(name, inputs):
    """Found ones are refused, ``unchecked`` too."""
    read, message = OTHER_READERS[name]
    for unchecked in (False, True):
        refused(block(read=read), message, "norm", ["q", "k"], example_inputs=inputs, unchecked=unchecked)


@trace_or_run(X)
def test_a_linear_that_is_not_named(inputs):
    refused(block(), "the norm is also read by", "norm", ["q"], example_inputs=inputs)


@trace_or_run(X)
def test_shapes_may_be_read(inputs):
    model = block(read=lambda self, x: (self.q(x) * self.k(x)).view(x.shape[0], x.shape[1], 32))
    srmsnorm.fold(model, "norm", ["q", "k"], example_inputs=inputs)


VIEWS = {
    "rows": (lambda self, x: self.q(x.view(-1, DIM)).view(3, 5, 32) * self.k(x.transpose(0, 1)).transpose(0, 1), True),
    "one row": (lambda self, x: self.q(x[:, -1:]) * self.k(x), True),
    "columns": (
        lambda self, x: self.q(x[0].new_zeros(64, DIM)) if x.ndim == 1 else self.q(x[..., :]) * self.k(x),
        True,
    ),
    "square": (lambda self, x: self.q(x.mT).sum() * self.k(x), False),
    "shifted": (lambda self, x: self.q(x.view(-1)[1 : 1 + DIM]) * self.k(x), False),
    "sliding": (lambda self, x: self.q(x.view(-1).unfold(0, DIM, 1)).sum() * self.k(x), False),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views(name):
    """Linears may read some rows of the norm, and only whole ones."""
    read, taken = VIEWS[name]
    x = torch.randn(1, DIM, DIM) if name == "square" else X
    if taken:
        model = block(read=read)
        before = model(x)
        srmsnorm.fold(model, "norm", ["q", "k"], example_inputs=x)
        torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
    else:
        refused(block(read=read), "'q' also reads something else than rows", "norm", ["q", "k"], example_inputs=x)


class Cache:
    def __init__(self, **held):
        self.held = held


def test_returned():
    """In containers, and in objects of any class."""
    model = block()
    for give in (lambda n: {"y": [n[0]]}, lambda n: (Cache(keys=Cache(n=n)),)):
        model.forward = lambda x, give=give: (model.q(model.norm(x)) * model.k(model.norm(x)), give(model.norm(x)))
        refused(model, "the norm is also returned by the model", "norm", ["q", "k"], example_inputs=X)


class Keeping(Block):
    def __init__(self, keep):
        super().__init__()
        self.keep = keep
        self.memory = Cache()

    def forward(self, x):
        n = self.norm(x)
        self.keep(self, n)
        return self.q(n) * self.k(n)


def in_a_cycle(self, n):
    held = [n]
    held.append(held)


KEPT = {
    "an attribute": lambda self, n: setattr(self.q, "kept", n),
    "a view in an object": lambda self, n: self.memory.held.update(n=n[0]),
    "a closure": lambda self, n: setattr(self.memory, "give", lambda: n),
}


@pytest.mark.parametrize("name", KEPT)
def test_kept(name):
    refused(Keeping(KEPT[name]).eval(), "the norm's output is kept", "norm", ["q", "k"], example_inputs=X)


def test_garbage_is_not_kept():
    srmsnorm.fold(Keeping(in_a_cycle).eval(), "norm", ["q", "k"], example_inputs=X)


class Returning(Block):
    def forward(self, x):
        n = self.norm(x)
        return self.q(n) * self.k(n), {"n": n}


def test_returned_by_a_trace():
    refused(Returning().eval(), "the norm is also read by output", "norm", ["q", "k"])


def trying(self, x):
    try:
        aside = x.sum()
    except Exception:
        aside = 0
    return self.q(x) * self.k(x) + aside


def test_a_model_that_catches():
    refused(block(read=trying), "the norm is also read by aten.sum", "norm", ["q", "k"], example_inputs=X)


def branching(self, x):
    return self.q(x) * self.k(x) if x.sum() > 0 else self.q(x) + self.k(x)


def test_untraceable():
    """Refused, unless told; with inputs a branch reads the norm."""
    model = block(read=lambda self, x: self.q(x) * self.k(x) if len(x) else x)
    refused(model, "torch.fx cannot trace it", "norm", ["q", "k"])
    refused(model, "unchecked=True folds without", "norm", ["q", "k"])
    for unchecked in (False, True):
        message = "it raises for the example_inputs: TypeError"
        refused(model, message, "norm", ["q", "k"], example_inputs=(X, X), unchecked=unchecked)
    refused(block(read=branching), "the norm is also read by aten.sum", "norm", ["q", "k"], example_inputs=X)
    before = model(X)
    srmsnorm.fold(model, "norm", ["q", "k"], unchecked=True)
    torch.testing.assert_close(model(X), before, rtol=1e-5, atol=1e-5)


class Stateful(Block):
    """Draws, and counts in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        self.calls += 1
        return super().forward(self.dropout(x) + torch.rand(()))


def test_a_run_leaves_no_trace():
    model = Stateful().train()
    state = torch.get_rng_state()
    unchanged(model, lambda: refused(model, "", "norm", ["q"], example_inputs=X))
    srmsnorm.fold(model, "norm", ["q", "k"], example_inputs=X)
    assert torch.equal(torch.get_rng_state(), state) and model.calls == 0 and model.training and model.norm.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Merging(nn.Linear):
    """Adds a part to its weight in eval mode, as LoRA's layers do."""

    def __init__(self, *args):
        super().__init__(*args)
        self.merged, self.part = False, nn.Parameter(torch.ones(DIM, 32))

    def train(self, mode=True):
        super().train(mode)
        if self.merged == mode:
            self.weight.data += self.part if not mode else -self.part
            self.merged = not mode
        return self


def test_a_run_merges_nothing():
    model = block().train()
    model.out = Merging(32, DIM)
    unchanged(model, lambda: refused(model, "", "norm", ["q"], example_inputs=X))
    assert not model.out.merged and model.training


def test_a_shared_block_may_be_folded():
    """Its norm and its linears go together."""
    inner = block()
    model = nn.Sequential(inner, inner)
    before = model(X)
    srmsnorm.fold(model, "1.norm", ["0.q", "1.k"])
    torch.testing.assert_close(model(X), before, rtol=1e-5, atol=1e-5)


def test_compiled_afterwards(plain_memory):
    torch._dynamo.reset()
    model = block()
    srmsnorm.fold(model, "norm", ["q", "k"])
    assert torch.equal(torch.compile(model, backend="aot_eager", fullgraph=True)(X), model(X))
