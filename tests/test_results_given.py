"""srmsnorm_out.*: an operator's results, written into tensors that are given: the same bits, and no other memory."""

import pytest
import samples
import torch
from samples import BFLOAT, FLOAT, HALF, Kind
from torch.utils._pytree import tree_leaves

from srmsnorm import tracing
from srmsnorm._library import _C

SHAPE = (3, 5, 16)
KINDS = [Kind(FLOAT, FLOAT), Kind(BFLOAT, FLOAT), Kind(HALF, HALF)]


def out(name):
    return getattr(torch.ops.srmsnorm_out, name).default


def results_of(name, args, kwargs):
    return tree_leaves(getattr(torch.ops.srmsnorm, name)(*args, **kwargs))


def names_of(name):
    return [argument.name for argument in out(name)._schema.arguments if argument.is_write]


def calls(kind, device, shape=SHAPE):
    found = [call for call in samples.calls(kind, shape, device) if call[0] in tracing.OPERATORS]
    x, _ = samples.forward(kind, shape, device)
    return [*found, ("rstd", (x,), {}), ("_scale_rows", (x, None, torch.ones(shape[:-1], device=device)), {})]


def padded(result):
    """Of the same values' shape, its rows further apart."""
    wider = torch.full((*result.shape[:-1], result.shape[-1] + 3), torch.nan, dtype=result.dtype, device=result.device)
    return wider[..., : result.shape[-1]]


def positional(name, args, kwargs, results):
    """Every argument, in the schema's order."""
    given = {argument.name: argument.default_value for argument in out(name)._schema.arguments}
    given |= dict(zip(given, args, strict=False)) | kwargs | dict(zip(names_of(name), results, strict=True))
    return given.values()


def test_no_operator_is_forgotten():
    names = torch._C._dispatch_get_all_op_names()
    assert {name.removeprefix("srmsnorm_out::") for name in names if "srmsnorm_out::" in name} == {*tracing.OPERATORS}
    assert {name for kind in KINDS for name, *_ in calls(kind, "cpu")} == {*tracing.OPERATORS}


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("make", [torch.empty_like, padded], ids=["alike", "padded"])
def test_bits(kind, make, device):
    """By the dispatcher and by the Python face; versions say that it was written."""
    for name, args, kwargs in calls(kind, device):
        want = results_of(name, args, kwargs)
        for through_face in (False, True):
            got = [make(each) if each.ndim == len(SHAPE) else torch.empty_like(each) for each in want]
            before = [each._version for each in got]
            if through_face:
                getattr(_C, f"_out_{name}")(*positional(name, args, kwargs, got))
            else:
                assert out(name)(*args, **kwargs, **dict(zip(names_of(name), got, strict=True))) is None
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True)), name
            assert [each._version - was for each, was in zip(got, before, strict=True)] == [1] * len(got), name


def test_strided_operands(device):
    """What the operator copies first, and lazily negated."""
    x = samples.values((16, 6), FLOAT, device).t()
    for operand in (x, torch.complex(x, x).conj().imag):
        want, got = torch.ops.srmsnorm.srms_norm(operand), torch.empty(x.shape, device=device)
        torch.ops.srmsnorm_out.srms_norm(operand, out=got)
        assert torch.equal(got, want)


def test_shapes_alone():
    """Meta and fake tensors; no rows; one row without leading dimensions."""
    for shape in ((0, 8), (8,)):
        x = torch.ones(shape)
        y, rstd = torch.ops.srmsnorm._srms_norm(x, None, None)
        torch.ops.srmsnorm_out._srms_norm(x, None, None, output=y.zero_(), rstd=rstd.zero_())
        assert torch.equal(y, torch.ops.srmsnorm.srms_norm(x))
    x = torch.ones(2, 8, device="meta")
    torch.ops.srmsnorm_out.srms_norm(x, out=torch.empty_like(x))
    with pytest.raises(RuntimeError, match="srmsnorm: result 1 must have the shape"):
        torch.ops.srmsnorm_out.srms_norm(x, out=torch.empty(3, 8, device="meta"))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_opcheck(kind):
    for name, args, kwargs in calls(kind, "cpu"):
        results = [torch.empty_like(each) for each in results_of(name, args, kwargs)]
        given = dict(zip(names_of(name), results, strict=True))
        torch.library.opcheck(out(name), args, kwargs | given, test_utils=("test_schema", "test_faketensor"))


# ---- what is refused: nothing is written then


def refused(message, x, y, rstd):
    before = [each.detach().clone() for each in (x, y, rstd)]
    with pytest.raises((RuntimeError, ValueError), match=message):
        torch.ops.srmsnorm_out._srms_norm(x, None, None, output=y, rstd=rstd)
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip((x, y, rstd), before, strict=True))


def test_other_tensors():
    x, y, rstd = torch.ones(4, 8), torch.zeros(4, 8), torch.zeros(4)
    refused(r"result 1 must have the shape \[4, 8\], got \[4, 9\]", x, torch.zeros(4, 9), rstd)
    refused(r"result 2 must have the shape \[4\], got \[4, 1\]", x, y, torch.zeros(4, 1))
    refused("result 1 must be float, got c10::Half", x, y.half(), rstd)
    refused("result 2 must be float, got double", x, y, rstd.double())
    refused(r"result 1 must have a last dimension of stride 1, got strides \[1, 4\]", x, torch.zeros(8, 4).t(), rstd)


def test_shared_memory():
    x, y, rstd = torch.ones(4, 8), torch.zeros(4, 8), torch.zeros(4)
    both = torch.zeros(36)
    refused("overwrites its results, but they overlap", x, both[:32].view(4, 8), both[31:35])
    refused("overwrites its results, but elements of one overlap", x, torch.zeros(8).expand(4, 8), rstd)
    refused("overwrites a result while it reads an operand, but they overlap", x, x, rstd)
    refused("overwrites a result while it reads an operand, but they overlap", x, y, x[:, 0])
    wide = torch.zeros(4, 16)
    torch.ops.srmsnorm_out._srms_norm(wide[:, :8] + x, None, None, output=wide[:, 8:], rstd=rstd)


def test_tensors_that_cannot_be_written():
    x, y, rstd = torch.ones(4, 8), torch.zeros(4, 8), torch.zeros(4)
    refused("is not differentiable, and a tensor requires grad", x.clone().requires_grad_(), y, rstd)
    refused("is not differentiable, and a tensor requires grad", x, y.clone().requires_grad_(), rstd)
    with torch.no_grad():
        torch.ops.srmsnorm_out._srms_norm(x.clone().requires_grad_(), None, None, output=y, rstd=rstd)
    with torch.inference_mode():
        inference = torch.zeros(4, 8)
        torch.ops.srmsnorm_out._srms_norm(x, None, None, output=inference.clone(), rstd=torch.zeros(4))
    refused("got an inference tensor to write to outside InferenceMode", x, inference, torch.zeros(4))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        with pytest.raises(RuntimeError, match="carries a forward gradient"):
            torch.ops.srmsnorm_out._srms_norm(dual, None, None, output=y, rstd=rstd)
