"""SRMSNorm, and what the package says about itself."""

import copy
import io
import pathlib
import pickle
import re

import numpy as np
import pytest
import samples
import torch
from samples import BFLOAT, FLOAT, Kind
from torch import nn

import srmsnorm


@pytest.mark.parametrize("kind", samples.KINDS, ids=str)
def test_calls(device, kind):
    module = srmsnorm.SRMSNorm(33, eps=1e-5)
    input, residual = samples.forward(kind, (4, 33), device)
    assert torch.equal(module(input), srmsnorm.srms_norm(input, eps=1e-5))
    assert torch.equal(module(input, residual), srmsnorm.srms_norm(input, residual, eps=1e-5))
    if residual is not None:
        got, want = module(input, residual, return_sum=True), srmsnorm.add_srms_norm(input, residual, eps=1e-5)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("kind", samples.GATED, ids=str)
def test_gated_calls(device, kind):
    input, gate = samples.gated(kind, (4, 33), device)
    for options in samples.GATES:
        module = srmsnorm.SRMSNormGated(33, 1e-5, **options)
        assert torch.equal(module(input, gate), srmsnorm.gated_srms_norm(input, gate, **options, eps=1e-5))
    assert torch.equal(srmsnorm.SRMSNormGated(33)(input, gate), srmsnorm.gated_srms_norm(input, gate, eps=1e-6))


def test_repr():
    assert repr(srmsnorm.SRMSNorm(64)) == "SRMSNorm(64, eps=1e-06)"
    assert repr(srmsnorm.SRMSNorm(64, eps=None)) == "SRMSNorm(64, eps=None)"
    assert repr(srmsnorm.SRMSNormGated(64)) == "SRMSNormGated(64, eps=1e-06, activation=None)"
    gate_first = srmsnorm.SRMSNormGated(64, None, "silu", False)
    assert repr(gate_first) == "SRMSNormGated(64, eps=None, activation='silu', norm_before_gate=False)"


@pytest.mark.parametrize(
    "activation",
    ["relu", "SiLU", "", 1, True, ["silu"], torch.nn.functional.silu],
    ids=lambda value: getattr(value, "__name__", repr(value)),
)
def test_bad_activation(activation):
    match = "srmsnorm: SRMSNormGated takes an activation of None, 'silu', 'swish' or 'sigmoid', got "
    with pytest.raises(ValueError, match=match + re.escape(repr(activation))):
        srmsnorm.SRMSNormGated(16, activation=activation)


@pytest.mark.parametrize("first", [None, 1, "silu"], ids=repr)
def test_bad_order(first):
    with pytest.raises(ValueError, match="srmsnorm: SRMSNormGated takes a bool as norm_before_gate, got "):
        srmsnorm.SRMSNormGated(16, norm_before_gate=first)


def test_activations_of_module_operator_and_reference():
    """One set of names."""
    x = torch.ones(1, 16)
    for name in (*srmsnorm.reference.ACTIVATIONS, "silu ", "relu"):
        known = name in srmsnorm.reference.ACTIVATIONS
        for call, error in (
            (lambda: srmsnorm.gated_srms_norm(x, x, activation=name), RuntimeError),  # noqa: B023
            (lambda: srmsnorm.SRMSNormGated(16, activation=name), ValueError),  # noqa: B023
        ):
            try:
                call()
                assert known, name
            except error:
                assert not known, name


INTS = [16, np.int64(16), np.uint8(16), (16,), [16], torch.Size([16]), (np.int32(16),)]


@pytest.mark.parametrize("dim", INTS, ids=repr)
def test_dims_of_other_types(dim):
    """An int afterwards, whatever it came as."""
    module = srmsnorm.SRMSNorm(dim)
    assert type(module.dim) is int and module.dim == 16
    assert repr(module) == "SRMSNorm(16, eps=1e-06)" == repr(pickle.loads(pickle.dumps(module)))
    assert torch.equal(module(torch.ones(2, 16)), torch.jit.script(module)(torch.ones(2, 16)))


BAD_DIMS = [0, -1, True, False, 16.0, "1", "16", None, (), [], (16, 16), (0,), (True,), (16.0,), ((16,),), {16}]


@pytest.mark.parametrize("dim", [*BAD_DIMS, torch.tensor(16), np.float32(16)], ids=repr)
def test_bad_dims(dim):
    with pytest.raises(ValueError, match="srmsnorm: SRMSNorm takes a dim of at least 1.*got " + re.escape(repr(dim))):
        srmsnorm.SRMSNorm(dim)
    with pytest.raises(
        ValueError, match="srmsnorm: SRMSNormGated takes a dim of at least 1.*got " + re.escape(repr(dim))
    ):
        srmsnorm.SRMSNormGated(dim)


@pytest.mark.parametrize("eps", [-1e-6, float("nan"), float("-inf"), "1e-6", True, 1j, (1e-6,)], ids=repr)
def test_bad_eps(eps):
    with pytest.raises(ValueError, match="srmsnorm: SRMSNorm takes an eps of at least 0.*got " + re.escape(repr(eps))):
        srmsnorm.SRMSNorm(16, eps)
    with pytest.raises(ValueError, match="srmsnorm: SRMSNormGated takes an eps of at least 0"):
        srmsnorm.SRMSNormGated(16, eps)


def test_eps_of_other_types():
    for eps in (1, np.float32(1), np.float64(1), np.int64(1)):
        assert type(srmsnorm.SRMSNorm(16, eps).eps) is float and srmsnorm.SRMSNorm(16, eps).eps == 1


def test_symbolic_dim(plain_memory):
    """A module made in a traced function, of a size that is a symbol there."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: srmsnorm.SRMSNorm(x.shape[-1])(x), backend="aot_eager", dynamic=True)
    for size in (16, 24):
        x = torch.ones(2, size)
        assert torch.equal(compiled(x), srmsnorm.SRMSNorm(size)(x))


def test_no_parameters_no_state():
    module = srmsnorm.SRMSNorm(64)
    assert not list(module.parameters()) and not list(module.buffers()) and not module.state_dict()
    module.load_state_dict({}, strict=True)


def test_copies():
    module = srmsnorm.SRMSNorm(64, eps=0.5)
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(saved, weights_only=False)):
        assert repr(twin) == repr(module)
        assert torch.equal(twin(torch.ones(2, 64)), module(torch.ones(2, 64)))


def test_copies_of_the_gated_norm():
    module, x = srmsnorm.SRMSNormGated(64, 0.5, "sigmoid", False), torch.ones(2, 64)
    assert not module.state_dict() and not list(module.parameters())
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert repr(twin) == repr(module) and torch.equal(twin(x, x), module(x, x))
    elsewhere = srmsnorm.SRMSNormGated(8, device="cuda:3", dtype=BFLOAT).to("meta").half()
    assert elsewhere(torch.ones(2, 8), torch.ones(2, 8)).dtype == FLOAT


def test_factories_device_and_dtype():
    """Taken and ignored: nothing has a device or a dtype."""
    module = srmsnorm.SRMSNorm(8, device="cuda:3", dtype=BFLOAT).to("meta").half()
    assert module(torch.ones(2, 8)).dtype == FLOAT


def test_in_a_model(device):
    model = nn.Sequential(nn.Linear(8, 16), srmsnorm.SRMSNorm(16), nn.Linear(16, 1)).to(device)
    model(torch.randn(4, 8, device=device)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_pre_norm_blocks(device):
    """The residual stream of a few blocks: values and gradients as with plain PyTorch."""
    module = srmsnorm.SRMSNorm(16)
    results = []
    for norm in (module, lambda x, r, return_sum: srmsnorm.reference.add_srms_norm(x, r, eps=1e-6)):
        x, stream = (t.double().requires_grad_() for t in samples.forward(Kind(FLOAT, FLOAT), (4, 16), device))
        leaves, total = (x, stream), 0
        for _ in range(3):
            x, stream = norm(x, stream, return_sum=True)
            x = x * 1.5
            total = total + x.pow(3).sum()
        results.append(torch.autograd.grad(total + stream.sin().sum(), leaves))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_build_info():
    info = srmsnorm.build_info()
    assert set(info) == {"torch", "cuda", "architectures", "debug"}
    assert torch.__version__.startswith(info["torch"])
    assert info["cuda"] is None or isinstance(info["cuda"], str)


def test_operators_need_no_python():
    """The library that C++ programs load names neither Python nor torch's part for it."""
    needed = pathlib.Path(srmsnorm.library_path).read_bytes()
    assert b"libtorch_cpu.so" in needed
    assert b"libtorch_python.so" not in needed and b"libpython" not in needed


def test_public_names():
    for name in srmsnorm.__all__:
        assert getattr(srmsnorm, name) is not None
    assert all(getattr(srmsnorm, name).__doc__ for name in srmsnorm.__all__)
