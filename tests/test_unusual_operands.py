"""Operands that are no dense tensors, and tensors under vmap: errors name the operand and what the user sees of it."""

from functools import partial

import pytest
import samples
import torch
from samples import BFLOAT, FLOAT, HALF, Kind

import srmsnorm

ops = torch.ops.srmsnorm
KIND = Kind(FLOAT, FLOAT)
SHAPE = (4, 8)
OPERANDS = {
    "srms_norm": ["input", "residual"],
    "add_srms_norm": ["input", "residual"],
    "add_srms_norm_": ["input", "residual"],
    "_srms_norm": ["input", "residual"],
    "_add_srms_norm": ["input", "residual"],
    "_srms_norm_backward": ["grad_output", "output", "rstd", "grad_sum"],
    "_srms_norm_backward_input": ["grad_output", "output", "rstd", "grad_sum"],
    "_srms_norm_backward_residual": ["grad_output", "output", "rstd", "grad_sum"],
    "_srms_norm_backward_pair": ["grad_output", "output", "rstd", "grad_sum"],
    "gated_srms_norm": ["input", "gate"],
    "_gated_srms_norm": ["input", "gate"],
    "_gated_srms_norm_backward": ["grad_output", "input", "gate", "rstd"],
    "_gated_srms_norm_backward_input": ["grad_output", "input", "gate", "rstd"],
    "_gated_srms_norm_backward_gate": ["grad_output", "input", "gate", "rstd"],
}
NOT_DENSE = {
    "Sparse": torch.Tensor.to_sparse,
    "SparseCsr": torch.Tensor.to_sparse_csr,
    "SparseCsc": torch.Tensor.to_sparse_csc,
    "SparseBsr": lambda t: t.to_sparse_bsr((2, 2)),
    "SparseBsc": lambda t: t.to_sparse_bsc((2, 2)),
    "Mkldnn": torch.Tensor.to_mkldnn,
}
OTHER_DTYPES = {
    "QInt8": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "QUInt8": lambda t: torch.quantize_per_channel(t.float(), torch.ones(len(t)), torch.zeros(len(t)), 0, torch.quint8),
    "ComplexFloat": lambda t: t.to(torch.complex64),
    "Long": torch.Tensor.long,
    "Bool": torch.Tensor.bool,
    "Float8_e4m3fn": lambda t: t.to(torch.float8_e4m3fn),
}


def every_operand(device="cpu"):
    """(call, operands, position, its name) for every operator and operand that it has."""
    kind = Kind(BFLOAT, FLOAT)
    x, stream = samples.forward(kind, SHAPE, device)
    y, rstd = ops._srms_norm(x, stream, None)
    g, grad_sum = samples.grad_output(kind, SHAPE, device), samples.grad_sum(kind, SHAPE, device)
    for name, names in OPERANDS.items():
        operands = (
            [x, stream] if len(names) == 2 else [g, x, stream, rstd] if "gate" in names else [g, y, rstd, grad_sum]
        )
        more = [None] if name in ("_srms_norm", "_add_srms_norm") else []
        for position, operand in enumerate(names):
            yield _call(getattr(ops, name), more), operands, position, operand


def _call(op, more):
    return lambda *operands: op(*operands, *more)


@pytest.mark.parametrize("layout", NOT_DENSE)
def test_not_dense(layout):
    """Each operand alone, and all."""
    make = NOT_DENSE[layout]
    for call, operands, position, name in every_operand():
        if name != "rstd":  # of one dimension; as the others, and of a shape that is checked first where it has two
            changed = [make(t) if i == position else t for i, t in enumerate(operands)]
            with pytest.raises(RuntimeError, match=f"srmsnorm: {name} must be a dense tensor, got layout {layout}"):
                call(*changed)
            with pytest.raises(RuntimeError, match=f"srmsnorm: .* must be a dense tensor, got layout {layout}"):
                call(*(make(t) if t.ndim == 2 else t for t in operands))
    x = make(samples.tensor(SHAPE, FLOAT)).requires_grad_()
    for function in (srmsnorm.srms_norm, srmsnorm.SRMSNorm(8)):
        with pytest.raises(RuntimeError, match=f"srmsnorm: input must be a dense tensor, got layout {layout}"):
            function(x)


def test_sparse_rstd():
    y = samples.tensor(SHAPE, FLOAT)
    with pytest.raises(RuntimeError, match="srmsnorm: rstd must be a dense tensor, got layout Sparse"):
        ops._srms_norm_backward(y, y, torch.ones(4).to_sparse())


@pytest.mark.parametrize("dtype", OTHER_DTYPES)
def test_other_dtypes(dtype):
    make = OTHER_DTYPES[dtype]
    for call, operands, position, _ in every_operand():
        before = [t.clone() for t in operands]
        with pytest.raises(RuntimeError, match=f"srmsnorm: .* got {dtype}"):
            call(*(make(t) if i == position else t for i, t in enumerate(operands)))
        assert all(torch.equal(a, b) for a, b in zip(operands, before, strict=True))


def test_none():
    """By schema None passes for a tensor."""
    x, rstd = samples.tensor(SHAPE, FLOAT), torch.ones(4)
    calls = {
        "input": [(ops.srms_norm, None), (ops.add_srms_norm, None, x), (ops.add_srms_norm_, None, x)],
        "residual": [(ops.add_srms_norm, x, None), (ops.add_srms_norm_, x, None), (ops._add_srms_norm, x, None, None)],
        "grad_output": [(ops._srms_norm_backward, None, x, rstd), (ops._srms_norm_backward_pair, None, x, rstd)],
        "output": [(ops._srms_norm_backward, x, None, rstd), (ops._srms_norm_backward_pair, x, None, rstd)],
        "rstd": [(ops._srms_norm_backward, x, x, None), (ops._srms_norm_backward_pair, x.half(), x.half(), None)],
        "gate": [(ops.gated_srms_norm, x, None), (ops._gated_srms_norm_backward, x, x, None, rstd)],
    }
    gated = ops._gated_srms_norm_backward_input
    calls["input"] += [(ops._gated_srms_norm, None, x), (gated, x, None, x, rstd)]
    calls["grad_output"].append((gated, None, x, x, rstd))
    calls["rstd"].append((gated, x, x, x, None))
    for name, each in calls.items():
        for op, *args in each:
            with pytest.raises(RuntimeError, match=f"srmsnorm: {name} must be a tensor, got None"):
                op(*args)


@pytest.mark.parametrize("dtype", [HALF, BFLOAT], ids=str)
def test_float32_beside_a_16_bit_stream(device, dtype):
    """What to do: one of two casts."""
    input, stream = samples.tensor(SHAPE, FLOAT, device), samples.tensor(SHAPE, dtype, device)
    name = {HALF: "Half", BFLOAT: "BFloat16"}[dtype]
    for call in (srmsnorm.srms_norm, srmsnorm.add_srms_norm, srmsnorm.add_srms_norm_):
        with pytest.raises(RuntimeError, match=f"srmsnorm: residual .*: cast input to {name}, or residual to Float"):
            call(input, stream)
    srmsnorm.add_srms_norm(input.to(dtype), stream)
    srmsnorm.add_srms_norm(input, stream.float())


# ---- under vmap


def in_vmaps(function, operands):
    """In one, at any dimension, and in nested ones."""
    operands = [torch.stack([t, t]) for t in operands]
    yield lambda: torch.vmap(function)(*operands)
    yield lambda: torch.vmap(function, in_dims=-1)(*(t.movedim(0, -1).contiguous() for t in operands))
    yield lambda: torch.vmap(torch.vmap(function))(*(torch.stack([t] * 3) for t in operands))
    yield lambda: torch.vmap(torch.func.grad(lambda *a: torch.utils._pytree.tree_leaves(function(*a))[0].sum()))(
        *operands
    )


def test_vmap_shapes(device):
    """Without the dimensions that vmap has taken away."""
    x, wide, rstd = (samples.values(s, FLOAT, device) for s in (SHAPE, (4, 9), (4,)))
    empty, scalar = torch.empty(4, 0, device=device), torch.tensor(1.0, device=device)
    backward = ops._srms_norm_backward
    cases = [
        (ops.srms_norm, (x, wide), r"residual .*got \[4, 9\] beside \[4, 8\]"),
        (ops.add_srms_norm, (x, wide), r"residual .*got \[4, 9\] beside \[4, 8\]"),
        (ops.add_srms_norm, (x, x[0]), r"residual .*got \[8\] beside \[4, 8\]"),
        (partial(ops._srms_norm, eps=None), (x, wide), r"residual .*got \[4, 9\] beside \[4, 8\]"),
        (partial(ops._add_srms_norm, eps=None), (x, wide), r"residual .*got \[4, 9\] beside \[4, 8\]"),
        (ops.srms_norm, (empty,), r"must not be empty, got shape \[4, 0\]"),
        (ops.srms_norm, (scalar,), "input must have at least one dimension, got a scalar"),
        (ops.add_srms_norm, (scalar, scalar), "input must have at least one dimension, got a scalar"),
        (backward, (wide, x, rstd), r"grad_output .*got \[4, 9\] beside \[4, 8\]"),
        (backward, (x, x, x), r"rstd .*got \[4, 8\] beside an output of \[4, 8\]"),
        (backward, (x, x, rstd, wide), r"grad_sum .*got \[4, 9\] beside \[4, 8\]"),
        (ops._srms_norm_backward_pair, (wide, x, rstd), r"grad_output .*got \[4, 9\] beside \[4, 8\]"),
        (ops.gated_srms_norm, (x, wide), r"gate .*got \[4, 9\] beside \[4, 8\]"),
        (ops.gated_srms_norm, (x, x[0]), r"gate .*got \[8\] beside \[4, 8\]"),
        (ops.gated_srms_norm, (scalar, scalar), "input must have at least one dimension, got a scalar"),
        (partial(ops.gated_srms_norm, activation="relu"), (x, x), "activation must be .*got 'relu'"),
        (ops._gated_srms_norm, (x, wide), r"gate .*got \[4, 9\] beside \[4, 8\]"),
        (ops._gated_srms_norm_backward, (wide, x, x, rstd), r"grad_output .*got \[4, 9\] beside \[4, 8\]"),
        (ops._gated_srms_norm_backward_gate, (x, x, x, x), r"rstd .*got \[4, 8\] beside an input of \[4, 8\]"),
    ]
    for function, operands, message in cases:
        for call in in_vmaps(function, operands):
            with pytest.raises(RuntimeError, match="srmsnorm: .*" + message):
                call()


def test_vmap_shapes_in_place(device):
    def function(x, r):
        srmsnorm.add_srms_norm_(x, r)
        return x

    x, wide = samples.values((2, *SHAPE), FLOAT, device), samples.values((2, 4, 9), FLOAT, device)
    with pytest.raises(RuntimeError, match=r"srmsnorm: residual .*got \[4, 9\] beside \[4, 8\]"):
        torch.vmap(function)(x, wide)
    every_other = samples.values((2, 4, 16), FLOAT, device)[..., ::2]
    with pytest.raises(RuntimeError, match=r"srmsnorm: .*stride 1, got strides \[8, 1\] and \[16, 2\]"):
        torch.vmap(function)(x, every_other)
