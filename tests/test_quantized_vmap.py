"""Quantised results under vmap, and of lazily negated scales."""

from functools import partial

import pytest
import samples
import torch
from test_quantized import assert_same, bits, options_for
from test_quantized_modes import BOTH, SHAPE, calls, operands, ops
from torch.func import vmap

import srmsnorm


@pytest.mark.parametrize("kind", BOTH, ids=str)
def test_vmap(device, kind):
    """Batched as a loop would, bit for bit, whatever is batched."""
    for name, (input, residual, scale), given in calls(device, kind):
        if name.endswith("_") or residual is None:
            continue
        for in_dims in ((0, 0, None), (1, 1, None), (0, None, None)):
            alone = residual if in_dims[1] is not None else residual[0]
            got = vmap(partial(getattr(ops, name), **given), in_dims)(input, alone, scale)
            for k in range(SHAPE[in_dims[0]]):
                one = input.select(in_dims[0], k), alone if in_dims[1] is None else residual.select(in_dims[0], k)
                assert_same([t[k] for t in got], getattr(ops, name)(*one, scale, **given))


def test_vmap_in_place(device):
    for options in options_for(SHAPE[-1], device):
        input, residual = operands(device=device)
        stream = residual.clone()
        got = vmap(lambda x, r, options=options: srmsnorm.add_srms_norm_quantized_(x, r, **options)[0])(input, stream)
        want = srmsnorm.add_srms_norm_quantized(input, residual, **options)
        assert_same([got, stream], [want[0], want[2]])
    with pytest.raises(RuntimeError, match="srmsnorm: add_srms_norm_quantized_ under vmap overwrites its residual"):
        vmap(srmsnorm.add_srms_norm_quantized_, in_dims=(0, None))(input, residual[0])


def test_vmap_over_scales(device):
    """Each of a batch by a scale of its own: experts."""
    input = operands(device=device)[0]
    scales = torch.tensor([0.01, 0.02, 0.03], device=device)
    for of_one in (scales, scales.view(3, 1)):
        for x, in_dims in ((input, (0, 0)), (input[0], (None, 0))):
            got, used = vmap(lambda x, s: srmsnorm.srms_norm_quantized(x, scale=s), in_dims)(x, of_one)
            assert torch.equal(used, of_one)
            for k in range(3):
                one = x[k] if in_dims[0] == 0 else x
                assert_same([got[k]], [srmsnorm.srms_norm_quantized(one, scale=scales[k])[0]])


def test_vmap_of_a_scale_for_each_row(device):
    """The same for every one of the batch."""
    x = samples.values((3, 5, 64), torch.float32, device)
    scale = torch.rand(5, 1, device=device) + 0.1
    q = torch.func.vmap(lambda x: srmsnorm.srms_norm_quantized(x, scale=scale)[0])(x)
    for one, row in zip(q, x, strict=True):
        assert torch.equal(bits(one), bits(srmsnorm.srms_norm_quantized(row, scale=scale)[0]))


@pytest.mark.parametrize("name", ["srms_norm_quantized", "add_srms_norm_quantized_"])
def test_lazily_negated_scale(device, name):
    x, residual = (samples.values((4, 64), torch.float32, device, name=name) for name in ("x", "residual"))
    scale = torch.complex(torch.zeros(1), -torch.ones(1)).to(device).conj().imag
    assert scale.is_neg()
    results = []
    for given in (scale, scale.resolve_neg()):
        operands = [x] if name == "srms_norm_quantized" else [x, residual.clone()]
        results.append(getattr(srmsnorm, name)(*operands, scale=given)[0])
    assert torch.equal(*map(bits, results))


def test_vmap_of_vmap(device):
    input, residual = operands(device=device)
    for options in options_for(SHAPE[-1], device):
        function = lambda x, r, options=options: srmsnorm.srms_norm_quantized(x, r, **options)[0]  # noqa: E731
        got = vmap(vmap(function, in_dims=0), in_dims=0)(input, residual)
        assert_same([got], [srmsnorm.srms_norm_quantized(input, residual, **options)[0]])
