"""What each of four norms can do in PyTorch: every cell is a program that ran and was right, or did not.

`check(candidate, device)` of a feature returns where the candidate has it and raises where it has not.
"""

import copy
import dataclasses
import importlib.util
import io
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from plan import Plan, Recorder
from providers import EPS
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "features"
QUESTION = "what works in PyTorch: ours, F.rms_norm, a wrapped Triton norm, a Python custom_op"
PROTOCOL = "run in this process, or in one of its own"

ROWS, DIM = 6, 16
TIMEOUT_S = 120  # of a program in a process of its own
HERE = pathlib.Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Candidate:
    norm: Callable[[Tensor], Tensor]
    module: Callable[[], nn.Module]
    operator: Any = None  # as torch.library knows it, and its arguments after x
    arguments: tuple[Any, ...] = ()
    library: str | None = ""  # to load for a saved model; "": torch alone; None: there is none


# ---- the candidates


class _Module(nn.Module):
    def __init__(self, norm: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


def _ours() -> Candidate:
    import srmsnorm

    def norm(x: Tensor) -> Tensor:
        return srmsnorm.srms_norm(x, eps=EPS)

    (library,) = pathlib.Path(srmsnorm.__file__).parent.glob("_ops.*")
    op = torch.ops.srmsnorm.srms_norm.default
    return Candidate(norm, lambda: srmsnorm.SRMSNorm(DIM, EPS), op, (), str(library))


def _rms_norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=EPS)


def _torch() -> Candidate:
    module = partial(nn.RMSNorm, DIM, EPS, elementwise_affine=False)
    return Candidate(_rms_norm, module, torch.ops.aten.rms_norm.default, ([DIM], None, EPS))


def _triton_srms_norm(x: Tensor) -> Tensor:
    import triton_norm

    return triton_norm.srms_norm(x, eps=EPS)


def _triton() -> Candidate:
    """An autograd.Function whose two methods launch kernels."""
    return Candidate(_triton_srms_norm, partial(_Module, _triton_srms_norm), library=None)


def _custom_srms_norm(x: Tensor) -> Tensor:
    return torch.ops.srmsnorm_features.norm(x)[0]


def _custom_op() -> Candidate:
    """As the documentation of torch.library shows it: two operators with fakes, one with a backward."""
    _define_custom_op()
    op = torch.ops.srmsnorm_features.norm.default
    return Candidate(_custom_srms_norm, partial(_Module, _custom_srms_norm), op, library=None)


def _define_custom_op() -> None:
    if hasattr(torch.ops.srmsnorm_features, "norm"):
        return

    @torch.library.custom_op("srmsnorm_features::norm", mutates_args=())
    def norm(x: Tensor) -> tuple[Tensor, Tensor]:
        if x.is_cuda:
            import triton_norm

            y, _, rstd = triton_norm.forward(x, eps=EPS, write_rstd=True)
            assert rstd is not None
            return y, rstd.view(x.shape[:-1])
        h = x.float()
        r = torch.rsqrt(h.square().mean(-1) + EPS)
        return (h * r[..., None]).to(x.dtype), r

    @torch.library.custom_op("srmsnorm_features::norm_backward", mutates_args=())
    def norm_backward(g: Tensor, y: Tensor, rstd: Tensor) -> Tensor:
        if g.is_cuda:
            import triton_norm

            return triton_norm.backward(g.contiguous(), y, rstd)
        wide = y.float()
        return (rstd[..., None] * (g - wide * (wide * g).mean(-1, keepdim=True))).to(y.dtype)

    @norm.register_fake
    def _(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)

    @norm_backward.register_fake
    def _(g: Tensor, y: Tensor, rstd: Tensor) -> Tensor:
        return torch.empty_like(y)

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*output)

    def backward(ctx: Any, g: Tensor, _: Any) -> Tensor:
        return torch.ops.srmsnorm_features.norm_backward(g, *ctx.saved_tensors)

    norm.register_autograd(backward, setup_context=setup_context)


CANDIDATES: dict[str, Callable[[], Candidate]] = {
    "srmsnorm": _ours,
    "F.rms_norm": _torch,
    "Triton in autograd.Function": _triton,
    "Python custom_op": _custom_op,
}
ON_CUDA_ONLY = ("Triton in autograd.Function",)

# ---- the features

Check = Callable[[Candidate, str], None]


@dataclasses.dataclass(frozen=True)
class Feature:
    group: str
    check: Check
    gpu: bool = False  # means something on a GPU only
    alone: bool = False  # in a process of its own: it changes the one it runs in, or may be the end of its CUDA context


FEATURES: dict[str, Feature] = {}


def feature(group: str, name: str, **options: bool) -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        FEATURES[name] = Feature(group, check, **options)
        return check

    return add


def data(device: str, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape or (ROWS, DIM), generator=generator).to(device)


def formula(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)


def same(got: Any, want: Any) -> None:
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


def need(condition: bool, why: str) -> None:
    if not condition:
        raise AssertionError(why)


def training(norm: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """y, and the gradient of a function of it."""
    leaf = x.detach().requires_grad_()
    y = norm(leaf)
    return y.detach(), torch.autograd.grad(y.pow(3).sum(), leaf)[0]


def total(norm: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: norm(x).pow(3).sum()


class Log(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(function)
        return function(*args, **(kwargs or {}))


COMPILE = "torch.compile"


@feature(COMPILE, "one graph, forward and backward (Inductor)")
def _(c: Candidate, device: str) -> None:
    compiled = torch.compile(c.norm, fullgraph=True)
    same(training(compiled, data(device)), training(formula, data(device)))


@feature(COMPILE, "one graph for changing shapes")
def _(c: Candidate, device: str) -> None:
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(c.norm, fullgraph=True, dynamic=True, backend=counter)
    for shape in ((3, 16), (5, 16), (2, 48)):
        same(training(compiled, data(device, *shape)), training(formula, data(device, *shape)))
    graphs = [g for g in counter.graphs if any(node.op == "call_function" for node in g.graph.nodes)]
    need(len(graphs) == 1, f"{len(graphs)} graphs for three shapes")


@feature(COMPILE, "CUDA graphs: mode reduce-overhead", gpu=True)
def _(c: Candidate, device: str) -> None:
    compiled = torch.compile(c.norm, fullgraph=True, mode="reduce-overhead")
    for seed in range(4):
        x = data(device, 64, 128, seed=seed)
        torch.compiler.cudagraph_mark_step_begin()
        same([t.clone() for t in training(compiled, x)], list(training(formula, x)))


@feature(COMPILE, "the bits of eager calls")
def _(c: Candidate, device: str) -> None:
    compiled = torch.compile(c.norm, fullgraph=True)
    x = data(device, 64, 1000).bfloat16()
    need(all(map(torch.equal, training(compiled, x), training(c.norm, x))), "other bits than eager")


@feature(COMPILE, "compiled autograd")
def _(c: Candidate, device: str) -> None:
    import torch._dynamo.compiled_autograd as compiled_autograd

    with compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
        got = training(c.norm, data(device))
    same(got, training(formula, data(device)))


@feature(COMPILE, "per-sample gradients in one graph")
def _(c: Candidate, device: str) -> None:
    per_sample = lambda norm: torch.func.vmap(torch.func.grad(total(norm)))  # noqa: E731
    with no_slow_vmap():
        got = torch.compile(per_sample(c.norm), fullgraph=True, backend="aot_eager")(data(device))
    same(got, per_sample(formula)(data(device)))


TRAINING = "training"


@feature(TRAINING, "autocast leaves dtypes alone")
def _(c: Candidate, device: str) -> None:
    with torch.autocast(device, dtype=torch.bfloat16):
        for dtype in (torch.bfloat16, torch.float32):
            y = c.norm(data(device).to(dtype))
            need(y.dtype == dtype, f"{dtype} became {y.dtype}")


@feature(TRAINING, "activation checkpoint")
def _(c: Candidate, device: str) -> None:
    from torch.utils.checkpoint import checkpoint

    checkpointed = lambda x: checkpoint(c.norm, x, use_reentrant=False)  # noqa: E731
    same(training(checkpointed, data(device)), training(formula, data(device)))


@feature(TRAINING, "selective checkpoint: one operator to name")
def _(c: Candidate, device: str) -> None:
    from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

    seen = []

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        seen.append(op)
        return CheckpointPolicy.MUST_SAVE

    x = data(device).requires_grad_()
    y = checkpoint(c.norm, x, use_reentrant=False, context_fn=partial(create_selective_checkpoint_contexts, policy))
    forward = list(seen)
    with Log() as log:
        same(torch.autograd.grad(y.pow(3).sum(), x)[0], training(formula, data(device))[1])
    need(len(forward) == 1, f"a policy sees {len(forward)} operators")
    need(forward[0] not in log.calls, "computed again although saved")


@feature(TRAINING, "backward keeps y and 4 bytes a row")
def _(c: Candidate, device: str) -> None:
    kept: list[Tensor] = []
    pack = lambda t: kept.append(t) or t  # type: ignore[func-returns-value]  # noqa: E731
    x = data(device, 64, 256).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = c.norm(x)
    more = {t.data_ptr(): t.numel() * t.itemsize for t in kept if t.data_ptr() != y.data_ptr()}
    need(sum(more.values()) <= 4 * 64, f"keeps {sum(more.values()) // 64} bytes a row beside y")


@feature(TRAINING, "same row, same bits, whatever the number of rows")
def _(c: Candidate, device: str) -> None:
    for dim in (100, 1000, 4096, 16384):
        x = data(device, 512, dim).bfloat16()
        whole = training(c.norm, x)
        for part in (slice(0, 1), slice(16, 33), slice(256, 512)):
            for got, want in zip(training(c.norm, x[part]), whole, strict=True):
                need(torch.equal(got, want[part]), f"not at dim {dim}")


@feature(TRAINING, "strided rows without a copy")
def _(c: Candidate, device: str) -> None:
    x = data(device, 64, 3 * 256)[:, 256:512]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        y = c.norm(x)
    same(y, formula(x))
    copies = {e.name for e in profile.events()} & {"aten::copy_", "aten::contiguous", "aten::clone"}
    need(not copies, f"calls {', '.join(sorted(copies))}")


@feature(TRAINING, "deterministic mode")
def _(c: Candidate, device: str) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (training(c.norm, data(device)) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    need(all(map(torch.equal, first, second)), "two runs differ")


@feature(TRAINING, "inference mode")
def _(c: Candidate, device: str) -> None:
    with torch.inference_mode():
        same(c.norm(data(device)), formula(data(device)))


EXPORT = "deployment"


@feature(EXPORT, "torch.export with a dynamic dimension, saved and loaded")
def _(c: Candidate, device: str) -> None:
    rows = torch.export.Dim("rows", min=2, max=1024)
    program = torch.export.export(c.module(), (data(device),), dynamic_shapes=({0: rows},), strict=True)
    with tempfile.TemporaryDirectory() as folder:
        torch.export.save(program, f"{folder}/norm.pt2")
        loaded = torch.export.load(f"{folder}/norm.pt2").module()
    same(loaded(data(device, 9, DIM)), formula(data(device, 9, DIM)))


@feature(EXPORT, "AOTInductor package", alone=True)
def _(c: Candidate, device: str) -> None:
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        program = torch.export.export(c.module(), (data(device),))
        path = torch._inductor.aoti_compile_and_package(program, package_path=f"{folder}/norm.pt2")
        same(torch._inductor.aoti_load_package(path)(data(device)), formula(data(device)))


@feature(EXPORT, "torch.jit.trace")
def _(c: Candidate, device: str) -> None:
    traced = torch.jit.trace(c.module(), data(device))
    same(training(traced, data(device, 9, DIM)), training(formula, data(device, 9, DIM)))


@feature(EXPORT, "torch.jit.script of the module")
def _(c: Candidate, device: str) -> None:
    same(torch.jit.script(c.module())(data(device)), formula(data(device)))


LOADED = """
import sys, torch
if sys.argv[1]: torch.ops.load_library(sys.argv[1])
x = torch.ones(2, {dim}, device="{device}")
assert torch.allclose(torch.jit.load(sys.argv[2])(x), x, atol=1e-3)
"""


@feature(EXPORT, "a saved model runs where only libraries are loaded, no Python package")
def _(c: Candidate, device: str) -> None:
    need(c.library is not None, "no library to load: its kernels are in Python")
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/norm.pt"
        torch.jit.save(torch.jit.trace(c.module(), data(device)), path)
        program = [sys.executable, "-c", LOADED.format(dim=DIM, device=device), c.library or "", path]
        done = subprocess.run(program, capture_output=True, text=True, cwd=folder)
    need(done.returncode == 0, done.stderr.strip().splitlines()[-1] if done.stderr else "ended")


FUNC = "torch.func and derivatives"


@contextmanager
def no_slow_vmap() -> Iterator[None]:
    """A loop over the batch, with no more than a warning, is not vmap."""
    torch._C._functorch._set_vmap_fallback_enabled(False)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._functorch._set_vmap_fallback_enabled(True)  # type: ignore[attr-defined]


def transform(name: str, make: Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Any]]) -> None:
    """A feature: `make(norm)` of the candidate and of the formula agree."""

    @feature(FUNC, name)
    def _(c: Candidate, device: str) -> None:
        with no_slow_vmap():
            same(make(c.norm)(data(device)), make(formula)(data(device)))


def _double_backward(norm: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def second(x: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        (first,) = torch.autograd.grad(total(norm)(leaf), leaf, create_graph=True)
        return torch.autograd.grad(first.square().sum(), leaf)[0]

    return second


def _forward_ad(norm: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def tangent(x: Tensor) -> Tensor:
        with forward_ad.dual_level():
            found = forward_ad.unpack_dual(norm(forward_ad.make_dual(x, x.roll(1)))).tangent
        need(found is not None, "the tangent is lost")
        return found

    return tangent


transform("double backward", _double_backward)
transform("forward-mode AD", _forward_ad)
transform("grad", lambda norm: torch.func.grad(total(norm)))
transform("jvp", lambda norm: lambda x: torch.func.jvp(norm, (x,), (x.roll(1),)))
transform("vmap of vmap", lambda norm: lambda x: torch.func.vmap(torch.func.vmap(norm), in_dims=1)(x.view(2, -1, DIM)))
transform("vmap of grad", lambda norm: torch.func.vmap(torch.func.grad(total(norm))))
transform("hessian (forward over reverse)", lambda norm: lambda x: torch.func.hessian(total(norm))(x[:2]))
transform("third order", lambda norm: lambda x: torch.func.jacrev(torch.func.hessian(total(norm)))(x[:1]))


@feature(FUNC, "torch.library.opcheck")
def _(c: Candidate, device: str) -> None:
    need(c.operator is not None, "not an operator")
    torch.library.opcheck(c.operator, (data(device).requires_grad_(), *c.arguments))


SUBCLASSES = "tensors and devices"


class Tagged(Tensor):
    pass


@feature(SUBCLASSES, "__torch_function__ subclasses")
def _(c: Candidate, device: str) -> None:
    y = c.norm(data(device).as_subclass(Tagged))
    need(isinstance(y, Tagged), f"returned a {type(y).__name__}")
    same(y.as_subclass(Tensor), formula(data(device)))


@feature(SUBCLASSES, "__torch_dispatch__ subclasses, forward and backward", alone=True)
def _(c: Candidate, device: str) -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    x = TwoTensor(data(device), data(device, seed=1)).requires_grad_()
    y = c.norm(x)
    (gradient,) = torch.autograd.grad(y.pow(3).sum(), x)
    for i, part in enumerate("ab"):
        same((getattr(y, part), getattr(gradient, part)), training(formula, data(device, seed=i)))


@feature(SUBCLASSES, "FakeTensor and meta tensors", alone=True)
def _(c: Candidate, device: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        y = c.norm(mode.from_tensor(data(device)))
    need((y.shape, y.device.type) == ((ROWS, DIM), device), "another shape or device")
    need(c.norm(torch.empty(ROWS, DIM, device="meta")).shape == (ROWS, DIM), "another shape")


@feature(SUBCLASSES, "nested jagged tensors, forward and backward", alone=True)
def _(c: Candidate, device: str) -> None:
    parts = [data(device, n, DIM, seed=n) for n in (3, 5)]
    nested = torch.nested.nested_tensor(parts, layout=torch.jagged, requires_grad=True)
    y = c.norm(nested)
    need(y.shape == nested.shape, "another shape")
    (gradient,) = torch.autograd.grad(y.values().pow(3).sum(), nested)
    same((y.values().detach(), gradient.values()), training(formula, torch.cat(parts)))


@feature(SUBCLASSES, "a kernel for devices nobody wrote one for")
def _(c: Candidate, device: str) -> None:
    need(c.operator is not None, "not an operator")
    other = torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse1)
    found = c.operator.redispatch(other, data("cpu"), *c.arguments)
    same(found[0] if isinstance(found, tuple) else found, formula(data("cpu")))


TRACERS = "whoever looks at calls"


@feature(TRACERS, "torch.fx.symbolic_trace of a model")
def _(c: Candidate, device: str) -> None:
    model = nn.Sequential(c.module(), nn.Identity())
    same(torch.fx.symbolic_trace(model)(data(device)), formula(data(device)))


@feature(TRACERS, "make_fx of forward and backward: one operator each")
def _(c: Candidate, device: str) -> None:
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


@feature(TRACERS, "dispatch modes see forward and backward")
def _(c: Candidate, device: str) -> None:
    x, g = data(device).requires_grad_(), data(device, seed=1)
    with Log() as log:
        y = c.norm(x)
        forward = len(log.calls)
        torch.autograd.grad(y, x, g)
    names = [str(op) for op in log.calls]
    for part, calls in (("forward", names[:forward]), ("backward", names[forward:])):
        need(any("norm" in name or "rsqrt" in name or "mul" in name for name in calls), f"{part} is not seen")


@feature(TRACERS, "flop counter: no error")
def _(c: Candidate, device: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False):
        training(c.norm, data(device))


@feature(TRACERS, "profiler: forward and backward by name")
def _(c: Candidate, device: str) -> None:
    x = data(device).requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        c.norm(x).sum().backward()
    names = [event.name.lower() for event in profile.events() if "norm" in event.name.lower()]
    need(any("backward" not in name for name in names), "no name of forward")
    need(any("backward" in name for name in names), "no name of backward")


@feature(TRACERS, "module: deepcopy, pickle, torch.save, empty state_dict")
def _(c: Candidate, device: str) -> None:
    module, saved = c.module(), io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    twins = (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(saved, weights_only=False))
    for twin in twins:
        same(twin(data(device)), formula(data(device)))
        need(not twin.state_dict(), "a state")


DISTRIBUTED = "DTensor"


@contextmanager
def two_ranks(device: str) -> Iterator[Any]:
    """The first of two ranks; collectives are counted and do nothing."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if importlib.util.find_spec("srmsnorm.distributed"):
            importlib.import_module("srmsnorm.distributed")  # registers its rules
        dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
        try:
            yield init_device_mesh(device, (2,))
        finally:
            dist.destroy_process_group()


def sharded(c: Candidate, device: str, dim: int | None) -> int:
    """How many collectives a norm and its gradient take; where none is needed, the results of this rank are right."""
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.distributed.tensor.debug import CommDebugMode

    with two_ranks(device) as mesh:
        placement = Replicate() if dim is None else Shard(dim)
        x = DTensor.from_local(data(device), mesh, [placement], run_check=False).requires_grad_()
        with CommDebugMode() as count:
            y = c.norm(x)
            (gradient,) = torch.autograd.grad(y, x, DTensor.from_local(data(device, seed=1), mesh, [placement]))
        assert isinstance(y, DTensor) and isinstance(gradient, DTensor), f"returned a {type(y).__name__}"
        if dim is None or dim == 0:
            need(y.placements == gradient.placements == (placement,), f"placed {y.placements}, {gradient.placements}")
            leaf = data(device).requires_grad_()
            want = formula(leaf)
            same(y.to_local(), want)
            same(gradient.to_local(), torch.autograd.grad(want, leaf, data(device, seed=1))[0])
        return int(count.get_total_counts())


@feature(DISTRIBUTED, "sharded by rows: no communication", alone=True)
def _(c: Candidate, device: str) -> None:
    count = sharded(c, device, 0)
    need(count == 0, f"{count} collectives")


@feature(DISTRIBUTED, "replicated stays replicated", alone=True)
def _(c: Candidate, device: str) -> None:
    count = sharded(c, device, None)
    need(count == 0, f"{count} collectives")


# ---- running them


def examine(name: str, candidate: str, device: str) -> None:
    torch.compiler.reset()
    FEATURES[name].check(CANDIDATES[candidate](), device)


def examine_alone(name: str, candidate: str, device: str) -> None:
    """The same, in a process of its own."""
    run_alone(
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from suites import features\n"
        f"try: features.examine({name!r}, {candidate!r}, {device!r})\n"
        "except Exception as error: print(features.why(error)); sys.exit(1)"
    )


def run_alone(program: str, timeout: float = TIMEOUT_S) -> None:
    """Raises what its last line says where it fails. Its Inductor has a cache of its own: where a program ends amid
    writing, its locks stay behind, and the next one would wait for them. Its output goes to a file, and its whole group
    is ended: compilers' workers outlive a program that crashes, and would hold a pipe open."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache, tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=output, stderr=subprocess.DEVNULL, cwd=HERE.parent,
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end in {timeout} s") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        last = (output.read().strip().splitlines() or [f"ended with {code}"])[-1]
    need(code == 0, last)


def why(error: Exception) -> str:
    """One line."""
    line = (str(error).strip().splitlines() or ["wrong"])[0]
    return line if isinstance(error, AssertionError) else f"{type(error).__name__}: {line}"


def outcome(name: str, candidate: str, device: str) -> str:
    """ "ok", or why not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            (examine_alone if FEATURES[name].alone else examine)(name, candidate, device)
        except Exception as error:
            return why(error)
    return "ok"


def run(plan: Plan) -> None:
    names = [name for name, found in FEATURES.items() if plan.gpu or not found.gpu]
    candidates = [name for name in CANDIDATES if plan.gpu or name not in ON_CUDA_ONLY]
    with Recorder(plan, NAME, len(names) * len(candidates)) as recorder:
        for name in names:
            recorder.reporter.new_case(name)
            cell = {"metric": FEATURES[name].group, "op": name}
            for candidate in candidates:
                recorder.reporter.tick(candidate)
                if recorder.has(cell, [candidate]):
                    continue
                status = outcome(name, candidate, plan.device)
                value = 1 if status == "ok" else ""
                recorder.results.add(**cell, provider=candidate, protocol=PROTOCOL, status=status, value=value)
