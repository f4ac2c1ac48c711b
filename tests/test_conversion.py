"""srmsnorm.convert: what is swapped, what stays and why, and that nothing else happens to the model."""

import contextlib
import copy
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import samples
import tolerances
import torch
import truth
import weightless
from torch import nn
from torch.nn import functional as F
from weightless import in_a_model, only, plain_norm

import srmsnorm
import srmsnorm.conversion
from srmsnorm.any_dim import SRMSNormAnyDim


@pytest.mark.parametrize("dtype", samples.DTYPES, ids=str)
@pytest.mark.parametrize("eps", [None, 1e-5, 0.0])
def test_torch_norm(device, eps, dtype):
    model = in_a_model(nn.RMSNorm(64, eps=eps, elementwise_affine=False)).to(device, dtype)
    x = samples.tensor((5, 64), dtype, device)
    before = model[0](x)
    entry = only(srmsnorm.convert(model))
    assert entry == srmsnorm.conversion.Converted("0", "torch.nn.modules.normalization.RMSNorm", True, "", eps)
    assert repr(model[0]) == f"SRMSNorm(64, eps={eps})"
    wanted, _, _ = truth.forward(x, eps=eps)
    for output in (before, model[0](x)):
        tolerances.assert_output(output, wanted)


@pytest.mark.parametrize("name", weightless.TAKEN)
def test_taken(name):
    module, eps, dim, reason = weightless.TAKEN[name]
    model = in_a_model(module)
    entry = only(srmsnorm.convert(model))
    assert entry.replaced and entry.reason == reason and entry.eps == eps
    assert repr(model[0]) == (f"SRMSNormAnyDim(eps={eps})" if dim is None else f"SRMSNorm({dim}, eps={eps})")


@pytest.mark.parametrize("name", weightless.STAYING)
def test_staying(name):
    module, reason = weightless.STAYING[name]
    model = in_a_model(module)
    for allow_rounding in (False, True):
        entry = only(srmsnorm.convert(model, allow_rounding=allow_rounding))
        assert not entry.replaced and reason in entry.reason and model[0] is module


def test_rounding():
    """Stays with its reason; taken on request, and then still said to differ."""
    model = in_a_model(weightless.RstdFirstNorm(1e-5))
    entry = only(srmsnorm.convert(model))
    assert not entry.replaced and type(model[0]) is weightless.RstdFirstNorm
    rounds = "rounds rstd to bfloat16 and float16 first; "
    assert entry.reason == rounds + "allow_rounding=True takes it"
    entry = only(srmsnorm.convert(model, allow_rounding=True))
    assert entry.replaced and entry.eps == 1e-5 and entry.reason.startswith(rounds)


def test_rounded_twice():
    """Through bfloat16 into bfloat16 and a product: other bits, and neither is rstd's."""
    module = weightless.module(lambda self, x: (F.rms_norm(x.float(), x.shape[-1:]) * 3).to(x.dtype) / 3)
    assert "rounds otherwise in " in only(srmsnorm.convert(in_a_model(module))).reason
    assert only(srmsnorm.convert(in_a_model(module), allow_rounding=True)).replaced


# ---- what happens to the model


class Drawing(nn.Module):
    """Draws from every random state when it is called."""

    def forward(self, x):
        torch.rand(3), random.random(), np.random.rand()
        return F.rms_norm(x, x.shape[-1:])


def test_random_states_are_put_back():
    model = in_a_model(Drawing())
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    assert srmsnorm.convert(model).replaced
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
    assert np.array_equal(states[2][1], np.random.get_state()[1]) and states[2][2] == np.random.get_state()[2]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
def test_under_modes(mode):
    """Autocast would take the product of the last one in bfloat16."""
    product = weightless.module(weightless.by_a_product)
    with mode():
        assert srmsnorm.convert(in_a_model(weightless.InFloatNorm(), plain_norm(), product)).replaced == ["0", "1", "2"]


@pytest.mark.parametrize("kept", [True, False])
def test_under_another_default_device(kept):
    """The probe rows are made on the CPU, whatever the default is."""
    model = in_a_model(weightless.InFloatNorm())
    weighted = nn.Sequential(nn.RMSNorm(64), nn.Linear(64, 8))
    default = torch.get_default_device()
    try:
        if kept:
            torch.set_default_device("meta")
        with contextlib.nullcontext() if kept else torch.device("meta"):
            assert srmsnorm.convert(model).replaced == ["0"]
            srmsnorm.fold(weighted, "0", "1")
    finally:
        torch.set_default_device(None if default == torch.device("cpu") else default)


def test_only_the_norms_change():
    model = in_a_model(plain_norm(), nn.GELU(), weightless.InFloatNorm()).train()
    model[2].eval()
    others, state = [model[1], model[3]], {name: t.clone() for name, t in model.state_dict().items()}
    theirs = [model[0], model[2]]
    report = srmsnorm.convert(model)
    assert [model[1], model[3]] == others
    assert model[0].training and not model[2].training
    assert list(state) == list(model.state_dict()) and all(
        torch.equal(state[k], v) for k, v in model.state_dict().items()
    )
    model.eval()
    report.revert()
    assert [model[0], model[2]] == theirs and not theirs[0].training
    report.revert()  # once more: nothing to do


def test_dry_run():
    model = in_a_model(plain_norm(), weightless.InFloatNorm(), nn.RMSNorm(64))
    modules = list(model)
    dry = srmsnorm.convert(model, dry_run=True)
    assert list(model) == modules and dry.dry_run and "2 of 3 would be replaced" in str(dry)
    dry.revert()
    assert list(model) == modules
    assert srmsnorm.convert(model).entries == dry.entries


def test_shared_modules_stay_shared():
    norm = weightless.InFloatNorm()
    model = nn.ModuleDict({"a": nn.Sequential(norm, norm), "b": nn.Sequential(norm)})
    model["c"] = model["a"]
    report = srmsnorm.convert(model)
    assert report.replaced == ["a.0", "a.1", "b.0"]
    assert model["a"][0] is model["a"][1] is model["b"][0] is model["c"][0] and type(model["a"][0]) is SRMSNormAnyDim
    report.revert()
    assert model["a"][0] is model["a"][1] is model["b"][0] is norm


def test_revert_refuses_where_others_stand():
    model = in_a_model(plain_norm(), plain_norm())
    report = srmsnorm.convert(model)
    model[1] = nn.Identity()
    with pytest.raises(RuntimeError, match="srmsnorm: cannot revert.*at '1': Identity"):
        report.revert()
    assert isinstance(model[0], srmsnorm.SRMSNorm)


def test_filters():
    def model():
        return nn.ModuleDict({name: nn.ModuleDict({"norm": plain_norm()}) for name in ("a", "b", "c")})

    assert srmsnorm.convert(model(), include="a.*").replaced == ["a.norm"]
    assert srmsnorm.convert(model(), include=["a.*", "c.norm"]).replaced == ["a.norm", "c.norm"]
    assert srmsnorm.convert(model(), include="[ab].norm", exclude="a.*").replaced == ["b.norm"]
    assert srmsnorm.convert(model(), exclude=lambda path, module: path < "c").replaced == ["c.norm"]
    report = srmsnorm.convert(model(), include=lambda path, module: False)
    assert [entry.reason for entry in report.entries] == ["left out by the filters"] * 3


def test_errors_leave_the_model_alone():
    model = in_a_model(plain_norm(), plain_norm())
    modules = list(model)

    def failing(path, module):
        if path == "1":
            raise KeyError(path)
        return True

    for options, error, message in (
        ({"include": failing}, KeyError, "1"),
        ({"include": "norm*"}, ValueError, "srmsnorm: include='norm*' fits no module"),
        ({"exclude": ["0", "norm"]}, ValueError, "srmsnorm: exclude='norm' fits no module"),
        ({"include": 3}, TypeError, "srmsnorm: include takes patterns or a function of name and module, got 3"),
        ({"include": [3]}, TypeError, "srmsnorm: include takes patterns or a function"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            srmsnorm.convert(model, **options)
        assert list(model) == modules
    with pytest.raises(TypeError, match="srmsnorm: convert takes an nn.Module, got function"):
        srmsnorm.convert(failing)


def test_table():
    """Names that differ in numbers alone are one line; of activations there is none."""
    blocks = [nn.ModuleDict({"norm": plain_norm(eps=1e-5), "act": weightless.Activation()}) for _ in range(2)]
    report = srmsnorm.convert(nn.Sequential(*blocks, nn.RMSNorm(64)))
    assert str(report).splitlines() == [
        "module       class",
        "*.norm  x 2  RMSNorm  replaced  eps=1e-05",
        "2            RMSNorm  stays                has the parameter weight; srmsnorm.fold may move it",
        "2 of 3 replaced",
    ]


def test_equal_modules_are_asked_once(monkeypatch):
    asked = []
    monkeypatch.setattr(
        srmsnorm.conversion, "probe", lambda *args, of=srmsnorm.conversion.probe: asked.append(args) or of(*args)
    )
    norms = [weightless.InFloatNorm(), weightless.InFloatNorm(), weightless.InFloatNorm(1e-5), weightless.InFloatNorm()]
    srmsnorm.convert(in_a_model(*norms))
    assert len(asked) == 2


class TupleNorm(nn.Module):
    """Its eps is the mean of a tensor in a tuple, and neither is plain."""

    def __init__(self, eps):
        super().__init__()
        self.held = (torch.cat([torch.ones(1000), torch.full((1,), eps), torch.ones(1000)]), ("a", 1))

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], eps=float(self.held[0][1000]))


def test_tensors_in_tuples_are_told_apart():
    """Both have the same repr, which shows six of the numbers."""
    norms = TupleNorm(0.5), TupleNorm(0.25)
    assert repr(norms[0].held) == repr(norms[1].held)
    assert [entry.eps for entry in srmsnorm.convert(in_a_model(*norms)).entries] == [0.5, 0.25]


def test_imported_when_asked_for():
    """`import srmsnorm` alone does not load what converts and folds."""
    program = """
import sys, srmsnorm
assert not {"srmsnorm.conversion", "srmsnorm.folding", "srmsnorm.probing"} & set(sys.modules)
assert {"convert", "fold"} <= set(dir(srmsnorm)) and not hasattr(srmsnorm, "converts")
from srmsnorm import *
assert convert is srmsnorm.convert and fold is srmsnorm.fold and callable(fold)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


# ---- afterwards


def test_any_dim():
    module = SRMSNormAnyDim(1e-5)
    for x in (torch.ones(2, 8), torch.randn(2, 3, 33)):
        for twin in (module, copy.deepcopy(module), torch.jit.script(module), torch.fx.symbolic_trace(module)):
            assert torch.equal(twin(x), srmsnorm.srms_norm(x, eps=1e-5))


def test_compiled_before_and_after(plain_memory):
    """Code compiled for the old modules is not taken for the new ones."""
    torch._dynamo.reset()
    model = in_a_model(weightless.InFloatNorm(0.5), plain_norm())
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = samples.tensor((5, 64), torch.float32)
    before = compiled(x)
    report = srmsnorm.convert(compiled)
    assert report.replaced == ["_orig_mod.0", "_orig_mod.1"]
    calls = []
    graph = torch.compile(model, backend=lambda gm, _: calls.append(str(gm.graph)) or gm, fullgraph=True)(x)
    assert calls[0].count("srms_norm") >= 2
    assert torch.equal(compiled(x), model(x)) and torch.equal(graph, model(x))
    torch.testing.assert_close(before, model(x))
    alone = torch.compile(plain_norm(), backend="eager")
    assert "is compiled on its own" in only(srmsnorm.convert(alone)).reason


def test_training_step():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 64), plain_norm(), nn.Linear(64, 64), weightless.InFloatNorm(), nn.Linear(64, 8)
    ).double()
    ours, x = copy.deepcopy(model), torch.randn(16, 64, dtype=torch.float64)
    srmsnorm.convert(ours)
    for one in (model, ours):
        optimizer = torch.optim.SGD(one.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            one(x).square().mean().backward()
            optimizer.step()
    for a, b in zip(model.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # theirs is in float32


def test_wrapped_in_fsdp_and_ddp():
    """Norms inside of wrappers are swapped; one that FSDP manages on its own has hooks."""
    dist = torch.distributed
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        from torch.distributed.fsdp import fully_shard

        x = torch.randn(4, 64)
        model = in_a_model(plain_norm(), plain_norm())
        wanted = model(x)
        fully_shard(model[1])
        fully_shard(model)
        report = srmsnorm.convert(model)
        assert report.replaced == ["0"] and report.entries[1].reason == "has hooks"
        output = model(x)
        output.sum().backward()
        torch.testing.assert_close(output, wanted)
        wrapped = nn.parallel.DistributedDataParallel(in_a_model(plain_norm()))
        assert srmsnorm.convert(wrapped).replaced == ["module.0"]
        wrapped(x).sum().backward()
    finally:
        dist.destroy_process_group()
