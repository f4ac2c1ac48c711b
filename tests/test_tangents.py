"""Forward mode: whose storage a tangent has, and what the operator in place says to tangents."""

from itertools import chain, combinations

import pytest
import samples
import torch
import torch.autograd.forward_ad as forward_ad
from samples import BFLOAT, DOUBLE, FLOAT, Kind
from torch import Tensor
from torch.func import jacfwd, jvp, vmap
from torch.utils._pytree import tree_leaves

import srmsnorm

ops = torch.ops.srmsnorm
SHAPE = (2, 3, 16)
KINDS = [Kind(FLOAT, FLOAT), Kind(DOUBLE, DOUBLE), Kind(BFLOAT, BFLOAT), Kind(BFLOAT, FLOAT)]


def cases():
    """Every operator with every choice of operands that carry a tangent."""
    for kind in KINDS:
        for index, (name, args, kwargs) in enumerate(samples.calls(kind, SHAPE)):
            tensors = [i for i, arg in enumerate(args) if isinstance(arg, Tensor)]
            for carry in chain.from_iterable(combinations(tensors, n) for n in range(1, len(tensors) + 1)):
                if name != "add_srms_norm_":
                    yield pytest.param(kind, index, carry, id=f"{name}-{kind}-{len(args)}-{kwargs}-{carry}")


CASES = pytest.mark.parametrize(("kind", "index", "carry"), list(cases()))


def call(kind, index, carry):
    """(function of the operands that carry tangents, these, their tangents)"""
    name, args, kwargs = samples.calls(kind, SHAPE)[index]
    tangents = [samples.values(args[i].shape, args[i].dtype, name=f"tangent {i}") for i in carry]

    def function(*carrying):
        given = list(args)
        for i, tensor in zip(carry, carrying, strict=True):
            given[i] = tensor
        return tree_leaves(getattr(ops, name)(*given, **kwargs))

    return function, [args[i] for i in carry], tangents


def second_is_constant(name, args, kwargs, carry):
    """rstd under a change of the gate behind the norm, and that gate's gradient where nothing is between them."""
    norm_first = kwargs.get("norm_before_gate", False)
    if name == "_gated_srms_norm":
        return norm_first and carry == (1,)
    return name == "_gated_srms_norm_backward" and norm_first and kwargs["activation"] is None and carry == (2,)


def storages(tensors):
    return [t.untyped_storage().data_ptr() for t in tensors]


@CASES
def test_storage(kind, index, carry):
    """No output's tangent shares storage with an operand, its tangent, or another output's tangent."""
    function, operands, tangents = call(kind, index, carry)
    kept = [t.clone() for t in tangents]
    with forward_ad.dual_level():
        outputs = function(*map(forward_ad.make_dual, operands, tangents))
        parts = [forward_ad.unpack_dual(output) for output in outputs]
        parts = parts[:1] if second_is_constant(*samples.calls(kind, SHAPE)[index], carry) else parts
        assert all(part.tangent is not None and part.tangent.shape == part.primal.shape for part in parts)
        taken = storages([*operands, *tangents, *(part.primal for part in parts)])
        own = storages(part.tangent for part in parts)
        assert len({*own}) == len(own) and not {*own} & {*taken}
        for output in outputs:
            output.mul_(2)
    assert all(torch.equal(t, k) for t, k in zip(tangents, kept, strict=True))


def doubled(function):
    """The function, its results changed in place, beside its arguments as they are then."""

    def changed(*operands):
        for output in function(*operands):
            output.mul_(2)
        return [operand * 1 for operand in operands]

    return changed


@CASES
def test_changed_in_place_under_transforms(kind, index, carry):
    """What happens to outputs does not happen to the operands: at one level, at two, and for each of a batch."""
    function, operands, tangents = call(kind, index, carry)
    kept = [t.clone() for t in tangents]

    def push(*tangents):
        return jvp(doubled(function), tuple(operands), tangents)[1]

    def push_twice(*tangents):
        return jvp(lambda *inner: push(*inner), tangents, tuple(operands))

    batch = [torch.stack([t, t / 2]) for t in tangents]
    for got, want in (
        (push(*tangents), kept),
        (push_twice(*tangents)[0], kept),
        (push_twice(*tangents)[1], operands),
        (vmap(push)(*batch), [torch.stack([t, t / 2]) for t in kept]),
    ):
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(tangents, kept, strict=True))


@pytest.mark.parametrize("position", [0, 1])
def test_jacobian_of_a_sum_changed_in_place(position):
    operands = samples.forward(Kind(DOUBLE, DOUBLE), (5,))

    def function(moving):
        pair = [moving if i == position else operands[i] for i in (0, 1)]
        srmsnorm.add_srms_norm(*pair)[1].mul_(2)
        return moving * 1

    assert torch.equal(jacfwd(function)(operands[position]), torch.eye(5, dtype=DOUBLE))


@pytest.mark.parametrize("carry", [(0,), (1,), (0, 1)])
def test_the_operator_in_place_refuses_tangents(device, carry):
    """On either operand, before anything is written."""
    operands = samples.forward(Kind(FLOAT, FLOAT), SHAPE, device)
    kept = [t.clone() for t in operands]
    with forward_ad.dual_level():
        given = [forward_ad.make_dual(t, t / 2) if i in carry else t for i, t in enumerate(operands)]
        with pytest.raises(RuntimeError, match="forward gradient"):
            srmsnorm.add_srms_norm_(*given)
    assert all(torch.equal(a, b) for a, b in zip(operands, kept, strict=True))
