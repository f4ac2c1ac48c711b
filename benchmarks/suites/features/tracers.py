"""Those who look at calls: tracers, modes, profilers, copies."""

import copy
import io
import pickle

import torch
from torch import Tensor, nn

from .candidates import Candidate
from .feature import Group, Log, data, formula, need, same, training

FEATURES = Group("whoever looks at calls")


@FEATURES.feature("torch.fx.symbolic_trace of a model")
def symbolic_trace(c: Candidate, device: str) -> None:
    model = nn.Sequential(c.module(), nn.Identity())
    same(torch.fx.symbolic_trace(model)(data(device)), formula(data(device)))


@FEATURES.feature("make_fx of forward and backward: one operator each")
def make_fx(c: Candidate, device: str) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    def step(x: Tensor, g: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(c.norm(leaf), leaf, g)[0]

    traced = make_fx(step)(data(device), data(device, seed=1))
    leaf = data(device).requires_grad_()
    want = torch.autograd.grad(formula(leaf), leaf, data(device, seed=1))[0]
    same(traced(data(device), data(device, seed=1)), want)
    passing = ("detach", "alias", "getitem")
    found = [str(n.target) for n in traced.graph.nodes if n.op == "call_function"]
    found = [name for name in found if not any(word in name for word in passing)]
    need(len(found) == 2, f"{len(found)} operators")


@FEATURES.feature("dispatch modes see forward and backward")
def dispatch_modes(c: Candidate, device: str) -> None:
    x, g = data(device).requires_grad_(), data(device, seed=1)
    with Log() as log:
        y = c.norm(x)
        forward = len(log.calls)
        torch.autograd.grad(y, x, g)
    names = [str(op) for op in log.calls]
    for part, calls in (("forward", names[:forward]), ("backward", names[forward:])):
        need(any("norm" in name or "rsqrt" in name or "mul" in name for name in calls), f"{part} is not seen")


@FEATURES.feature("flop counter: no error")
def flop_counter(c: Candidate, device: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False):
        training(c.norm, data(device))


@FEATURES.feature("profiler: forward and backward by name")
def profiler(c: Candidate, device: str) -> None:
    x = data(device).requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        c.norm(x).sum().backward()
    names = [event.name.lower() for event in profile.events() if "norm" in event.name.lower()]
    need(any("backward" not in name for name in names), "no name of forward")
    need(any("backward" in name for name in names), "no name of backward")


@FEATURES.feature("module: deepcopy, pickle, torch.save, empty state_dict")
def copies_of_the_module(c: Candidate, device: str) -> None:
    module, saved = c.module(), io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    twins = (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(saved, weights_only=False))
    for twin in twins:
        same(twin(data(device)), formula(data(device)))
        need(not twin.state_dict(), "a state")
