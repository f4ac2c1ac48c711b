"""More than plain tensors: subclasses, fake and meta tensors, nested tensors, devices without a kernel."""

import fresh
import pytest
import samples
import torch
import truth
from modes import DispatchLog
from samples import BFLOAT, FLOAT, Kind
from tolerances import assert_backward, assert_output, assert_rstd
from torch._subclasses import CrossRefFakeMode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

import srmsnorm

ops = torch.ops.srmsnorm
SHAPE = (3, 16)
EPS = 1e-3


def operands(kind, device, shape=SHAPE):
    return samples.forward(kind, shape, device)


# ---- subclasses


class Seen(torch.Tensor):
    """Only exists: __torch_function__ keeps the type."""


def test_torch_function(device):
    x, stream = operands(Kind(FLOAT, FLOAT), device)
    assert isinstance(srmsnorm.srms_norm(x.as_subclass(Seen)), Seen)
    for pair in ((x.as_subclass(Seen), stream), (x, stream.as_subclass(Seen))):
        assert isinstance(srmsnorm.srms_norm(*pair), Seen)
        assert all(isinstance(t, Seen) for t in srmsnorm.add_srms_norm(*pair))
        assert isinstance(srmsnorm.SRMSNorm(16)(*pair), Seen)
    assert type(srmsnorm.srms_norm(x)) is torch.Tensor
    parameter = torch.nn.Parameter(x.clone())
    assert type(srmsnorm.srms_norm(parameter)) is torch.Tensor


@pytest.mark.parametrize("compiled", [False, True])
def test_torch_dispatch(device, compiled, plain_memory):
    """A wrapper that holds two tensors and runs every operator on both: values and gradients."""

    def function(x, stream):
        y, stream = srmsnorm.add_srms_norm(x, stream, eps=EPS)
        return srmsnorm.srms_norm(y.sin(), eps=EPS), stream

    torch._dynamo.reset()
    call = torch.compile(function, fullgraph=True, backend="aot_eager") if compiled else function
    parts = [[samples.values(SHAPE, FLOAT, device, name=f"{a}{b}") for b in "xs"] for a in "ab"]
    wrapped = [TwoTensor(a.clone(), b.clone()).requires_grad_() for a, b in zip(*parts, strict=True)]
    outputs = call(*wrapped)
    assert all(isinstance(t, TwoTensor) for t in outputs)
    gradients = torch.autograd.grad([t.pow(3).sum() for t in outputs], wrapped)
    assert all(isinstance(t, TwoTensor) for t in gradients)
    for part, tensors in zip("ab", parts, strict=True):
        leaves = [t.clone().requires_grad_() for t in tensors]
        plain = function(*leaves)
        want = torch.autograd.grad([t.pow(3).sum() for t in plain], leaves)
        for a, b in zip([*outputs, *gradients], [*plain, *want], strict=True):
            assert torch.equal(getattr(a, part), b)


@pytest.mark.parametrize("kind", samples.WITH_RESIDUAL, ids=str)
def test_fake_and_meta_tensors(device, kind):
    """Shapes, strides, dtypes and devices are those of a real call."""
    for layout in (samples.contiguous, samples.transposed, samples.padded, samples.every_other):
        x, stream = samples.forward(kind, (3, 4, 16), device, layout=layout)
        g = samples.grad_output(kind, (3, 4, 16), device, layout=layout)

        def everything(x, stream, g):
            y, sum, rstd = ops._add_srms_norm(x, stream, None)
            found = [y, sum, rstd, srmsnorm.srms_norm(x), *srmsnorm.add_srms_norm(x, stream)]
            found.append(ops._srms_norm_backward(g, y, rstd, sum))
            if sum.dtype != x.dtype:
                found += [
                    ops._srms_norm_backward(g, y, rstd, dtype=FLOAT),
                    *ops._srms_norm_backward_pair(g, y, rstd, sum),
                ]
            return found

        want = everything(x, stream, g)
        with FakeTensorMode() as mode:
            fake = everything(*(mode.from_tensor(t) for t in (x, stream, g)))
        for a, b in zip(fake, want, strict=True):
            assert (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)
        meta = everything(
            *(torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta") for t in (x, stream, g))
        )
        for a, b in zip(meta, want, strict=True):
            assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


def test_cross_reference(device):
    """Every operator that runs, forward and backward, gives what fake tensors say, strides and aliasing included."""
    for kind in (Kind(FLOAT, FLOAT), Kind(BFLOAT, FLOAT)):
        for layout in (samples.contiguous, samples.transposed, samples.padded, samples.every_other):
            leaves = [t.requires_grad_() for t in samples.forward(kind, (3, 4, 16), device, layout=layout)]
            with CrossRefFakeMode(check_strides=True), DispatchLog() as log:
                y, sum = srmsnorm.add_srms_norm(*leaves)
                loss = y.float().pow(3).sum() + sum.pow(2).sum()
                first = torch.autograd.grad(loss, leaves, create_graph=True)
                torch.autograd.grad(first[0].float().pow(2).sum(), leaves)
                with torch.no_grad():
                    srmsnorm.add_srms_norm_(*(t.detach().contiguous() for t in leaves))
            assert {ops._add_srms_norm.default, ops.add_srms_norm_.default} <= set(log.calls)


# ---- jagged nested tensors


def jagged(device, *, heads=None, dtype=FLOAT, name="nested"):
    """Components of 3, 0 and 5 rows; with heads, the ragged dimension is behind theirs."""
    middle = () if heads is None else (heads,)
    parts = [samples.values((rows, *middle, 16), dtype, device, name=f"{name}{rows}") for rows in (3, 0, 5)]
    nested = torch.nested.nested_tensor(parts, layout=torch.jagged)
    return nested if heads is None else nested.transpose(1, 2)


def nested_add(x, stream):
    y, stream = srmsnorm.add_srms_norm(x, stream, eps=EPS)
    return srmsnorm.SRMSNorm(16)(y * 2, stream), stream


@pytest.mark.parametrize("heads", [None, 2])
@pytest.mark.parametrize("compiled", [False, True])
def test_nested(device, compiled, heads, plain_memory):
    """Every row as if alone, gradients too; the shapes, ragged size included, stay."""
    torch._dynamo.reset()
    call = torch.compile(nested_add, fullgraph=True, backend="aot_eager") if compiled else nested_add
    x = jagged(device, heads=heads)
    leaves = [x.requires_grad_(), (x.detach() * 3).requires_grad_()]
    outputs = call(*leaves)
    assert all(t.shape == x.shape for t in outputs)
    gradients = torch.autograd.grad(sum(t.values().pow(3).sum() for t in outputs), leaves)
    plain = [t.detach().values().clone().requires_grad_() for t in leaves]
    results = nested_add(*plain)
    want = torch.autograd.grad(sum(t.pow(3).sum() for t in results), plain)
    for a, b in zip([*outputs, *gradients], [*results, *want], strict=True):
        assert torch.equal(a.values(), b)


def test_nested_with_gaps(device):
    """Components narrowed out of a padded tensor: what lies between them is not looked at."""
    padded = samples.values((2, 6, 16), FLOAT, device)
    start, length = torch.tensor([0, 1], device=device), torch.tensor([2, 3], device=device)
    nested = torch.nested.narrow(padded, 1, start, length, layout=torch.jagged)
    for got, part in zip(srmsnorm.srms_norm(nested).unbind(), nested.unbind(), strict=True):
        assert torch.equal(got, srmsnorm.srms_norm(part))


def test_nested_with_holes(device):
    """Offsets and lengths: the rows in use get values and gradients, the shape stays, the holes' gradient is zero."""
    rows = samples.values((9, 16), FLOAT, device)
    offsets, lengths = (torch.tensor(t, device=device) for t in ((0, 4, 6, 9), (2, 0, 3)))
    used = torch.tensor([0, 1, 6, 7, 8], device=device)

    leaf, plain = rows.clone().requires_grad_(), rows[used].requires_grad_()
    nested = torch.nested.nested_tensor_from_jagged(leaf, offsets, lengths)
    y, want = nested_add(nested, nested * 2)[0], nested_add(plain, plain * 2)[0]
    assert y.lengths().tolist() == [2, 0, 3]
    assert torch.equal(torch.cat(list(y.unbind())), want)
    y.values()[used].pow(3).sum().backward()
    want.pow(3).sum().backward()
    assert torch.equal(leaf.grad[used], plain.grad)
    leaf.grad[used] = 0
    assert not leaf.grad.any()


def test_nested_without_gradients(device):
    x, twin = jagged(device), jagged(device).values()
    stream = x * 2
    want = srmsnorm.add_srms_norm(twin, twin * 2, eps=EPS)
    with torch.inference_mode():
        y, sum = srmsnorm.add_srms_norm(x, stream, eps=EPS)
        assert torch.equal(y.values(), want[0]) and torch.equal(sum.values(), want[1])
        assert torch.equal(srmsnorm.srms_norm(x).values(), srmsnorm.srms_norm(twin))
    versions = x._version, stream._version
    srmsnorm.add_srms_norm_(x, stream, eps=EPS)
    assert torch.equal(x.values(), want[0]) and torch.equal(stream.values(), want[1])
    assert (x._version, stream._version) == (versions[0] + 1, versions[1] + 1)
    with pytest.raises(RuntimeError, match="requires grad"):
        srmsnorm.add_srms_norm_(x.requires_grad_(), stream)


def test_nested_errors(device):
    x = jagged(device)
    with pytest.raises(RuntimeError, match="nested by the same offsets"):
        srmsnorm.srms_norm(x, jagged(device))
    for pair in ((x, x.values()), (x.values(), x)):
        with pytest.raises(RuntimeError, match="all tensors of a call or none"):
            srmsnorm.srms_norm(*pair)
    with pytest.raises(RuntimeError, match="must not be the ragged one"):
        srmsnorm.srms_norm(x.transpose(1, 2))
    with pytest.raises(RuntimeError, match="torch.jagged"):
        srmsnorm.srms_norm(torch.nested.nested_tensor([torch.ones(2, 16, device=device)]))


# ---- devices without a kernel of ours get the formula

ELSEWHERE = torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse1)


@pytest.mark.parametrize("kind", samples.KINDS, ids=str)
def test_formula(device, kind):
    """What the dispatcher has for a device that we do not know, on tensors whose results we can check."""

    def call(name, *args, **kwargs):
        return getattr(ops, name).default.redispatch(ELSEWHERE, *args, **kwargs)

    for layout in (samples.contiguous, samples.padded, samples.every_other):
        x, stream = samples.forward(kind, (4, 33), device, layout=layout)
        y, h, rstd = truth.forward(x, stream, EPS)
        assert_output(call("srms_norm", x, stream, eps=EPS), y)
        output, kept = call("_srms_norm", x, stream, EPS)
        assert_output(output, y)
        assert_rstd(kept, rstd)
        g, gh = (f(kind, (4, 33), device, layout=layout) for f in (samples.grad_output, samples.grad_sum))
        for sum in (None, gh):
            dh = truth.backward(g, output, kept, sum)
            assert_backward(call("_srms_norm_backward", g, output, kept, sum), dh, g, output, kept, sum)
            if kind in samples.MIXED:
                for grad in call("_srms_norm_backward_pair", g, output, kept, sum):
                    assert_backward(grad, dh, g, output, kept, sum)
        if stream is not None:
            total = truth.rounded_sum(x, stream)
            for got, sum, *_ in (
                call("add_srms_norm", x, stream, eps=EPS),
                call("_add_srms_norm", x, stream, EPS),
            ):
                assert_output(got, y)
                assert torch.equal(sum, total)
            if layout is not samples.every_other:
                call("add_srms_norm_", x, stream, eps=EPS)
                assert_output(x, y)
                assert torch.equal(stream, total)


def test_own_device():
    """A backend in Python that has never heard of us: same results, same checks, nothing leaves the device."""
    done = fresh.run(
        f"""
import sys; sys.path.insert(0, {str(fresh.ROOT / "tests")!r})
import own_device, torch, srmsnorm
own_device.register()
own = own_device.to_own
x, stream = torch.randn(4, 16), torch.randn(4, 16)
pair = own(x.clone()), own(stream.clone())
want = srmsnorm.add_srms_norm(x, stream)
got = srmsnorm.add_srms_norm(*pair)
assert all(t.device.type == "own" for t in got)
for a, b in zip(got, want):
    torch.testing.assert_close(a.twin, b)
y, rstd = torch.ops.srmsnorm._srms_norm(*pair, None)
grad = torch.ops.srmsnorm._srms_norm_backward(pair[0], y, rstd, pair[1])
torch.testing.assert_close(grad.twin, torch.ops.srmsnorm._srms_norm_backward(x, y.twin, rstd.twin, stream))
srmsnorm.add_srms_norm_(*pair)
for a, b in zip(pair, want):
    torch.testing.assert_close(a.twin, b)
try:
    srmsnorm.srms_norm(own(x), own(torch.ones(3, 16)))
except RuntimeError as error:
    assert "must have the shape of input" in str(error)
else:
    raise AssertionError("no error")
assert own_device.called and not any("srmsnorm" in name for name in own_device.called)
"""
    )
    assert done.returncode == 0, done.stderr
