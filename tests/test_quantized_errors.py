"""What quantised rows refuse, and that nothing is written by it."""

import pytest
import torch
from samples import BFLOAT, FLOAT, HALF
from test_quantized import FP8
from test_quantized_modes import SHAPE, operands
from torch.func import vmap

import srmsnorm

ops = torch.ops.srmsnorm


def refused(message, *args, name="srms_norm_quantized", **options):
    with pytest.raises(RuntimeError, match=f"srmsnorm: .*{message}"):
        getattr(srmsnorm, name)(*args, **options)


def test_errors(device):
    x, stream = operands(device=device)
    for bad in (torch.float8_e4m3fnuz, torch.uint8, BFLOAT, FLOAT):
        refused(
            f"dtype must be float8_e4m3fn, float8_e5m2 or int8, got {str(bad).removeprefix('torch.')}$", x, dtype=bad
        )
    refused("input of float16, bfloat16 or float32, got Double", x.double())
    refused("expected float16.*got Int", x.int())
    refused("residual must have the shape", x, stream[:1])
    refused("eps must not be negative", x, eps=-1.0)
    for bad in (0.0, -1.0, float("nan"), float("inf"), 1e-50, 1e50):
        refused("scale must be a finite float32 above 0, got", x, scale=bad)
        refused("scale_ub must be a finite float32 above 0, got", x, scale_ub=bad)
    refused("scale must be a number, a tensor, 'bound' or None, got 'max'", x, scale="max")
    refused("must be float32, got Half", x, scale=torch.ones(1, dtype=HALF, device=device))
    refused("scale must be on the device of input, got meta", x, scale=torch.ones(1, device="meta"))
    refused("scale must be dense|dense tensor", x, scale=torch.ones(1, device=device).to_sparse())
    for shape in ((2,), (3,), (3, 4), (4, 1), SHAPE, (0,)):
        refused("one element, or one for each row, got shape", x, scale=torch.ones(shape, device=device))
    for given in (0.1, "bound", torch.ones(1, device=device)):
        for more in ({"group_size": 64}, {"power_of_two": True}, {"scale_ub": 1.0}):
            refused(f"no group_size, power_of_two or scale_ub, got {next(iter(more))}", x, scale=given, **more)
    for bad in (0, -64, 1, 32, 100, 256):
        refused(f"group_size must be None, 64 or 128, got {bad}", x, group_size=bad)
    refused(r"group_size 128 must divide the last dimension, got shape \[3, 4, 64\]", x[..., :64], group_size=128)
    with pytest.raises(RuntimeError, match="got more than one"):
        ops.srms_norm_quantized(x, None, torch.ones(1, device=device), scale_value=1.0)
    with pytest.raises(RuntimeError, match="scalar"):
        vmap(lambda t: srmsnorm.srms_norm_quantized(t)[0])(x[0, 0])
    with pytest.raises(TypeError):
        srmsnorm.srms_norm_quantized(x, None, FP8)


def test_nothing_is_written_by_an_error(device):
    name = "add_srms_norm_quantized_"
    x, stream = operands(device=device)
    before, version = stream.clone(), stream._version
    for options in ({"group_size": 48}, {"scale": 0.0}, {"scale": "row"}, {"dtype": FLOAT}, {"eps": -1.0}):
        refused("", x, stream, name=name, **options)
    strided = stream.transpose(1, 2).contiguous().transpose(1, 2)
    refused("needs a residual whose last dimension has stride 1", x, strided, name=name)
    refused("overwrites its residual, but elements of one overlap", x, stream[:1].expand(SHAPE), name=name)
    refused("overwrites its residual, but they overlap", stream, stream, name=name)
    refused("overlap", stream.flatten()[64:-64].view(-1, 64), stream.flatten()[128:].view(-1, 64), name=name)
    refused("overlap", x, stream, name=name, scale=stream[0, 0, :1])
    assert torch.equal(stream, before) and stream._version == version
    srmsnorm.add_srms_norm_quantized_(x[:1].expand(SHAPE), stream)  # which is only read
    zero = torch._efficientzerotensor(SHAPE, dtype=FLOAT, device=device)
    refused("ZeroTensor", x, zero, name=name)
