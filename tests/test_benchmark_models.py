"""The models of the benchmark: ours beside the formula's, decoding beside forward, what is compiled, a CUDA graph."""

import dataclasses
import os
import sys

import benchmark_samples  # noqa: F401 - where the benchmark is, and whether it can run
import pytest
import torch
from torch._dynamo.utils import counters

from benchmarks.models import Model, Size, build, transnormer
from benchmarks.protocol import precompile
from benchmarks.providers import REGISTRY
from benchmarks.suites import model as suite

SIZE = Size(2, 16, 32, 2, 2)
EPS = torch.finfo(torch.float32).eps
# A byte's last bit where y is between two: of one element in a row or two, 2^-4 of it at most.
BOUND = dict.fromkeys(Model.KINDS, 32 * EPS) | {"fp8 GPT": 2.0**-6}
STEPS = [(kind, op) for kind, block in Model.KINDS.items() for op in suite.OPS if op != "training" or block.trains]

pytestmark = pytest.mark.usefixtures("plain_memory")


def step(kind, op, name, compiled=False, device="cpu", size=SIZE):
    case = suite.Case(device, kind, "compiled" if compiled else "eager", op, "fp32", size)
    return case.call(REGISTRY[name](), compiled)


def distance(got, wanted):
    return suite._distance(list(got), list(wanted))


def decoded(model, inputs, dtype=torch.float32):
    """Token after token, from nothing."""
    caches = model.caches(dtype)
    with torch.no_grad():
        places = torch.arange(inputs[0].shape[1], device=inputs[0].device)
        return torch.cat([model.decode(*(t[:, i : i + 1] for t in inputs), places[i : i + 1], caches)
                          for i in range(len(places))], 1)  # fmt: skip


@pytest.mark.parametrize(("kind", "op"), STEPS)
def test_ours_agrees_with_the_formula(kind, op, device):
    """The output, and in training the gradients of the inputs, in float32."""
    wanted = step(kind, op, "to", device=device)()
    for name in ("ours", "rms"):
        off = distance(step(kind, op, name, device=device)(), wanted)
        print(f"{kind}, {op}, {name}: {off / EPS:.1f} eps")
        assert off <= BOUND[kind]


@pytest.mark.parametrize("kind", Model.KINDS)
def test_decoding_is_forward(kind, device):
    model, inputs = build(kind, SIZE, REGISTRY["ours"](), torch.float32, device)
    with torch.no_grad():
        wanted = model(*inputs)
    off = distance(decoded(model, inputs).unbind(1), wanted.unbind(1))  # token by token
    print(f"{kind}: {off / EPS:.1f} eps")
    assert off <= 4 * BOUND[kind]


@pytest.mark.parametrize("kind", Model.KINDS)
def test_decoding_reads_nothing_back(kind):
    """Tensors without data: a host that wanted some would raise."""
    with torch.device("meta"):
        model = Model(kind, SIZE, REGISTRY["ours"]())
        token, place = torch.empty(2, 1, SIZE.dim), torch.empty(1, dtype=torch.int64)
    for part in model.modules():
        if hasattr(part, "fix"):
            part.fix()
    with torch.no_grad():
        assert model.decode(token, token, place, model.caches(torch.float32)).shape == token.shape
    with pytest.raises(RuntimeError):
        place.item()


@pytest.mark.parametrize("kind", Model.KINDS)
@pytest.mark.parametrize("compiled", [False, True])
def test_decoding_in_a_cuda_graph(kind, compiled, cuda):
    """Replayed token after token: only what its operands hold changes. Capture itself refuses to wait for the host."""
    torch._dynamo.reset()
    case = suite.Case(cuda, kind, "compiled" if compiled else "eager", "decode", "bf16", SIZE)
    call = case.call(REGISTRY["ours"](), compiled)
    replay, model = call.captured(), call.model
    got = [t.clone() for t in replay()]
    call.fill()
    assert distance(got, call()) <= 2.0**-6
    inputs = [torch.randn(SIZE.batch, SIZE.length, SIZE.dim, device=cuda, dtype=torch.bfloat16) for _ in range(2)]
    for kept in call.caches:
        for t in kept:
            t.zero_()
    outputs = []
    for i in range(SIZE.length):
        for static, of_all in zip(call.inputs, inputs, strict=True):
            static.copy_(of_all[:, i : i + 1])
        call.place.fill_(i)
        outputs.append(replay()[0].clone())
    with torch.no_grad():
        assert distance(torch.cat(outputs, 1).unbind(1), model(*inputs).unbind(1)) <= 2.0**-4


@pytest.mark.parametrize(("kind", "op"), STEPS)
def test_compiled(kind, op, monkeypatch, fresh_dynamo):
    """One graph for all layers and one for the last norm, however many layers; values as eager ones. Of one sequence,
    whose strides could be any."""
    size = dataclasses.replace(SIZE, batch=1, layers=3)
    compile = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda part, **options: compile(part, backend="aot_eager", **options)
    )
    counters.clear()
    compiled, eager = (step(kind, op, "ours", compiled, size=size) for compiled in (True, False))
    assert distance(compiled(), eager()) <= BOUND[kind]
    assert counters["stats"]["unique_graphs"] == 2


@pytest.fixture
def no_caches(tmp_path, monkeypatch):
    """None that another test or run has filled."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))


def test_every_provider_compiles_its_own(no_caches, fresh_dynamo):
    """In one process, one after the other and then in turns: no provider runs what another has compiled."""
    providers = {name: REGISTRY[name]() for name in ("to", "ours", "auto", "rms")}
    case = suite.Case("cpu", "QK-norm GPT", "compiled", "forward", "fp32", dataclasses.replace(SIZE, layers=1))
    calls, seen = {}, {}
    wanted = case.call(providers["to"], compiled=False)()
    for name, provider in providers.items():
        counters.clear()
        calls[name] = case.call(provider, compiled=True)
        with provider.compiling():
            assert distance(calls[name](), wanted) <= BOUND[case.kind]
        seen[name] = counters["stats"]["unique_graphs"], sum(counters["srmsnorm"].values())
    assert seen == {"to": (2, 0), "ours": (2, 0), "auto": (2, 5), "rms": (2, 0)}
    counters.clear()
    for name, provider in providers.items():
        with provider.compiling():
            calls[name]()
    assert counters["stats"]["unique_graphs"] == 0


def test_models_that_were_compiled_ahead(no_caches, monkeypatch, fresh_dynamo):
    """In another process, of two layers; here, of three, the caches have all of it."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
    case = suite.Case("cpu", "speedrun GPT", "compiled", "training", "fp32", dataclasses.replace(SIZE, layers=3))
    ticked = []
    precompile.ahead([(case, "auto")], 1, ticked.append)
    assert ticked == [f"auto {case}"]
    counters.clear()
    auto = REGISTRY["auto"]()
    with auto.compiling():
        case.call(auto, compiled=True)()
    found = counters["inductor"]
    assert (
        found["fxgraph_cache_miss"] == 0 < found["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"]
    )


def test_linear_attention_is_causal_and_chunked():
    q, k, v = torch.randn(3, 2, 2, 2 * transnormer.CHUNK, 4, dtype=torch.float64)
    assert torch.allclose(transnormer.linear_attention(q, k, v), (q @ k.transpose(-1, -2)).tril() @ v)


@pytest.mark.parametrize(
    ("device", "op", "size", "rests"),
    [
        ("cuda", "training", "large", True),
        ("cuda", "decode", "large", False),
        ("cuda", "forward", "small", False),
        ("cpu", "forward", "large", False),
    ],
)
def test_large_steps_of_a_gpu_rest(device, op, size, rests):
    """And their rows say so: power holds back no others."""
    case = suite.Case(device, "Llama 4", "compiled", op, "bf16", suite.SIZES[size])
    assert (suite.RESTED in case.row("speed")["protocol"]) == case.rests == rests
