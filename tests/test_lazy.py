"""Operands whose values are not what lies in their memory: lazily negated or conjugate views, zero tensors without
memory, and copies that share their source's until one is written."""

from functools import partial

import pytest
import samples
import torch
from modes import DispatchLog
from samples import BFLOAT, DOUBLE, FLOAT, HALF, Kind
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

import srmsnorm

ops = torch.ops.srmsnorm
KINDS = [Kind(FLOAT, FLOAT), Kind(BFLOAT, FLOAT), Kind(HALF, HALF), Kind(DOUBLE, DOUBLE)]
SHAPE = (2, 3, 16)
IN_PLACE = "add_srms_norm_"
CHOICES = pytest.mark.parametrize("chosen", [(0,), (1,), (0, 1)], ids=str)


def negated(tensor):
    """The tensor's value, with the negative in memory."""
    view = torch._neg_view(-tensor)
    assert view.is_neg()
    return view


def imaginary(tensor):
    """How one comes by such a tensor: half of a conjugate, interleaved with the other half."""
    view = torch.complex(tensor, -tensor).conj().imag
    assert view.is_neg()
    return view


def in_place_operands(kind, device, make, chosen):
    plain = samples.forward(kind, SHAPE, device)
    return [make(t) if i in chosen else t.clone() for i, t in enumerate(plain)], srmsnorm.add_srms_norm(*plain)


def assert_values(operands, want):
    for got, value in zip(operands, want, strict=True):
        assert torch.equal(got.resolve_neg(), value)


# ---- negated


@CHOICES
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_negated_in_place(device, kind, chosen):
    operands, want = in_place_operands(kind, device, negated, chosen)
    versions = [t._version for t in operands]
    srmsnorm.add_srms_norm_(*operands)
    assert_values(operands, want)
    assert [t.is_neg() for t in operands] == [i in chosen for i in range(2)]
    assert [t._version for t in operands] == [version + 1 for version in versions]


@CHOICES
def test_negated_in_place_in_every_mode(device, chosen):
    make = partial(in_place_operands, Kind(FLOAT, FLOAT), device, negated, chosen)
    with torch.inference_mode():
        operands, want = make()
        srmsnorm.add_srms_norm_(*operands)
        assert_values(operands, want)
    operands, want = make()
    torch.vmap(lambda x, r: srmsnorm.add_srms_norm_(x, r) or x)(*operands)
    assert_values(operands, want)
    operands, want = make()
    with DispatchLog() as log:
        srmsnorm.add_srms_norm_(*operands)
    assert ops.add_srms_norm_.default in log.calls
    assert_values(operands, want)
    operands, want = make()
    ops.add_srms_norm_.default.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse1), *operands)
    torch.testing.assert_close([t.resolve_neg() for t in operands], list(want))  # the formula
    leaf = make()[0][0].requires_grad_()
    with torch.no_grad():
        srmsnorm.add_srms_norm_(leaf, make()[0][1])
    assert_values([leaf], want[:1])
    with FakeTensorMode() as mode:
        srmsnorm.add_srms_norm_(*(mode.from_tensor(t) for t in make()[0]))


@CHOICES
def test_negated_in_place_compiled(device, chosen, plain_memory):
    """Negated outside of the graph, where PyTorch may have no rule to make it functional, and says so."""
    torch._dynamo.reset()
    compiled = torch.compile(srmsnorm.add_srms_norm_, fullgraph=True, backend="aot_eager")
    operands, want = in_place_operands(Kind(FLOAT, FLOAT), device, negated, chosen)
    try:
        compiled(*operands)
    except NotImplementedError as error:
        assert "auto_functionalized" in str(error)
        want = samples.forward(Kind(FLOAT, FLOAT), SHAPE, device)
    assert_values(operands, want)


@pytest.mark.parametrize("chosen", [(0,), (1,)], ids=str)  # both: the norm is odd, and nothing would be noticed
def test_negated_in_place_within_a_graph(device, chosen, plain_memory):
    def inside(*tensors):
        tensors = [torch._neg_view(t) if i in chosen else t for i, t in enumerate(tensors)]
        srmsnorm.add_srms_norm_(*tensors)

    plain = samples.forward(Kind(FLOAT, FLOAT), SHAPE, device)
    memory = [-t if i in chosen else t.clone() for i, t in enumerate(plain)]
    torch._dynamo.reset()
    torch.compile(inside, fullgraph=True, backend="aot_eager")(*memory)
    want = srmsnorm.add_srms_norm(*plain)
    assert_values([-t if i in chosen else t for i, t in enumerate(memory)], want)


def test_negated_functionalized(device):
    def function(x, r):
        x, r = torch._neg_view(x), torch._neg_view(r)
        return srmsnorm.add_srms_norm(x, r), srmsnorm.srms_norm(x)

    operands = samples.forward(Kind(FLOAT, FLOAT), SHAPE, device)
    got = tree_leaves(torch.func.functionalize(function)(*operands))
    assert all(torch.equal(a, b) for a, b in zip(got, tree_leaves(function(*operands)), strict=True))


def test_overlap_of_negated_operands(device):
    """Of what lies in memory, though the copies that hold the values share none."""
    base = samples.values((40,), FLOAT, device)
    before = base.clone()
    for x, r in ((base[:24], base[8:32]), (base[:24], base[:24])):
        for x, r in ((x, r._neg_view()), (x._neg_view(), r), (x._neg_view(), r._neg_view())):  # noqa: B020
            with pytest.raises(RuntimeError, match="srmsnorm: .*overlap"):
                srmsnorm.add_srms_norm_(x.view(3, 8), r.view(3, 8))
    with pytest.raises(RuntimeError, match="srmsnorm: .*overlap"):
        srmsnorm.add_srms_norm_(base[:8].expand(3, 8)._neg_view(), samples.values((3, 8), FLOAT, device))
    assert torch.equal(base, before)
    srmsnorm.add_srms_norm_(base[:8].view(1, 8)._neg_view(), base[8:16].view(1, 8))
    want = srmsnorm.add_srms_norm(-before[:8].view(1, 8), before[8:16].view(1, 8))
    assert torch.equal(-base[:8], want[0][0]) and torch.equal(base[8:16], want[1][0])
    assert torch.equal(base[16:], before[16:])


@pytest.mark.parametrize("make", [negated, imaginary])
@pytest.mark.parametrize("kind", [Kind(FLOAT, FLOAT), Kind(DOUBLE, DOUBLE), Kind(BFLOAT, FLOAT)], ids=str)
def test_negated_operands_of_every_operator(device, kind, make):
    """Each tensor alone, and all: the bits of the resolved ones."""
    for name, args, kwargs in samples.calls(kind, SHAPE, device):
        op = getattr(ops, name)
        tensors = [i for i, arg in enumerate(args) if isinstance(arg, torch.Tensor)]
        for chosen in [*((i,) for i in tensors), tensors]:
            lazy = [
                arg if i not in chosen else negated(arg) if make is negated or arg.dtype == BFLOAT else make(arg)
                for i, arg in enumerate(args)
            ]
            if name == IN_PLACE:
                lazy = [t if t.is_neg() and t.stride(-1) == 1 else negated(t) for t in lazy]
                resolved = [t.resolve_neg().clone() for t in lazy]
                op(*resolved, **kwargs)
                op(*lazy, **kwargs)
                assert_values(lazy, resolved)
                continue
            call, in_dims = partial(op, **kwargs), tuple(0 if i in tensors else None for i in range(len(args)))
            resolved = [t.resolve_neg() if isinstance(t, torch.Tensor) else t for t in lazy]
            for function in (call, torch.vmap(call, in_dims=in_dims)):
                for got, want in zip(tree_leaves(function(*lazy)), tree_leaves(function(*resolved)), strict=True):
                    assert torch.equal(got, want) and not got.is_neg()


def test_gradients_of_negated_operands(device):
    x, r = samples.forward(Kind(FLOAT, FLOAT), SHAPE, device)
    results = []
    for make in (torch._neg_view, torch.neg):
        leaves = x.clone().requires_grad_(), r.clone().requires_grad_()
        y, total = srmsnorm.add_srms_norm(*(make(t) for t in leaves))
        grads = torch.autograd.grad([y, total], leaves, [make(-x), make(-r)], create_graph=True)
        results.append([*grads, *torch.autograd.grad(sum(g.pow(2).sum() for g in grads), leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# ---- conjugate, zero


@CHOICES
def test_conjugate(device, chosen):
    """Complex is an error, conjugate or not, and nothing is written."""
    plain = torch.ones(3, 8, device=device, dtype=torch.complex64)
    operands = [plain.clone().conj() if i in chosen else plain.clone() for i in range(2)]
    for call in (srmsnorm.add_srms_norm_, srmsnorm.add_srms_norm):
        with pytest.raises(RuntimeError, match="srmsnorm: expected float16.*ComplexFloat"):
            call(*operands)
    assert all(torch.equal(t, plain) for t in operands)
    real = torch.ones(3, 8, device=device)
    with pytest.raises(RuntimeError, match="srmsnorm: residual .*ComplexFloat"):
        srmsnorm.add_srms_norm_(real, operands[chosen[0]])
    assert (real == 1).all()


def zero(tensor):
    return torch._efficientzerotensor(tensor.shape, dtype=tensor.dtype, device=tensor.device)


@CHOICES
def test_zero_tensors_in_place(device, chosen):
    """They have no memory to write to; the other operand stays as it is."""
    plain = samples.forward(Kind(FLOAT, FLOAT), SHAPE, device)
    for make in (zero, lambda t: zero(t)._neg_view()):
        operands = [make(t) if i in chosen else t.clone() for i, t in enumerate(plain)]
        with pytest.raises(RuntimeError, match="srmsnorm: .*ZeroTensor"):
            srmsnorm.add_srms_norm_(*operands)
        assert all(torch.equal(t, plain[i]) and t._version == 0 for i, t in enumerate(operands) if i not in chosen)
        with torch.inference_mode(), pytest.raises(RuntimeError, match="srmsnorm: .*ZeroTensor"):
            srmsnorm.add_srms_norm_(*operands)
        with pytest.raises(RuntimeError, match="srmsnorm: .*ZeroTensor"):
            torch.vmap(lambda x, r: srmsnorm.add_srms_norm_(x, r) or x)(*operands)


@pytest.mark.parametrize("kind", [Kind(FLOAT, FLOAT), Kind(BFLOAT, FLOAT)], ids=str)
def test_zero_tensors_of_every_operator(device, kind):
    """Where they are only read they are zeros."""
    for name, args, kwargs in samples.calls(kind, SHAPE, device):
        for position, arg in enumerate(args):
            if name != IN_PLACE and isinstance(arg, torch.Tensor):
                lazy, plain = ([*args[:position], t, *args[position + 1 :]] for t in (zero(arg), torch.zeros_like(arg)))
                got, want = (tree_leaves(getattr(ops, name)(*each, **kwargs)) for each in (lazy, plain))
                assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


# ---- copy-on-write


@pytest.mark.parametrize("kind", [Kind(FLOAT, FLOAT), Kind(BFLOAT, FLOAT), Kind(FLOAT)], ids=str)
def test_operands_that_are_read_stay_lazy_copies(device, kind):
    """Of every operator, by autograd too; in place they are given memory of their own."""
    for name, args, kwargs in samples.calls(kind, SHAPE, device):
        op = getattr(ops, name)
        for tracked in (False, True):
            sources = [arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in args]
            lazy = [torch._lazy_clone(arg) if isinstance(arg, torch.Tensor) else arg for arg in sources]
            tensors = [t for t in lazy if isinstance(t, torch.Tensor)]
            if tracked and name != IN_PLACE:
                for t in tensors:
                    t.requires_grad_()
            results = [t for t in tree_leaves(op(*lazy, **kwargs)) if t is not None]
            if tracked and results:
                torch.autograd.grad(results, tensors, [torch.ones_like(t) for t in results])
            assert [torch._C._is_cow_tensor(t) for t in tensors] == [name != IN_PLACE] * len(tensors), name
            assert all(torch.equal(a, b) for a, b in zip(sources, args, strict=True) if isinstance(a, torch.Tensor))
            assert not any(torch._C._is_cow_tensor(t) for t in results)


@pytest.mark.parametrize("make", [torch._lazy_clone, lambda t: torch._lazy_clone(t).view(SHAPE)])
def test_lazy_copies_of_one_another_in_place(device, make):
    """One memory until they are written, so they are given their own before overlap is looked for."""
    x = samples.values(SHAPE, FLOAT, device)
    want = srmsnorm.add_srms_norm(x, x)
    for swapped in (False, True):
        source = x.clone()
        twin = make(source)
        other = torch._lazy_clone(source)
        srmsnorm.add_srms_norm_(*((twin, source) if swapped else (source, twin)))
        assert_values((twin, source) if swapped else (source, twin), want)
        assert torch.equal(other, x)
    source = x.clone()
    negative = torch._lazy_clone(source)._neg_view()
    srmsnorm.add_srms_norm_(source, negative)
    assert_values((source, negative), srmsnorm.add_srms_norm(x, -x))


def test_overlap_within_a_lazy_copy(device):
    copy = torch._lazy_clone(samples.values((40,), FLOAT, device))
    with pytest.raises(RuntimeError, match="srmsnorm: .*overlap"):
        srmsnorm.add_srms_norm_(copy[:24].view(3, 8), copy[8:32].view(3, 8))
