"""Under torch.compile."""

import torch

from .candidates import Candidate
from .feature import Group, data, formula, need, no_slow_vmap, same, total, training

FEATURES = Group("torch.compile")


@FEATURES.feature("one graph, forward and backward (Inductor)")
def one_graph(c: Candidate, device: str) -> None:
    compiled = torch.compile(c.norm, fullgraph=True)
    same(training(compiled, data(device)), training(formula, data(device)))


@FEATURES.feature("one graph for changing shapes")
def one_graph_for_changing_shapes(c: Candidate, device: str) -> None:
    import torch._dynamo.testing

    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(c.norm, fullgraph=True, dynamic=True, backend=counter)
    for shape in ((3, 16), (5, 16), (2, 48)):
        same(training(compiled, data(device, *shape)), training(formula, data(device, *shape)))
    graphs = [g for g in counter.graphs if any(node.op == "call_function" for node in g.graph.nodes)]
    need(len(graphs) == 1, f"{len(graphs)} graphs for three shapes")


@FEATURES.feature("CUDA graphs: mode reduce-overhead", gpu=True)
def cuda_graphs(c: Candidate, device: str) -> None:
    compiled = torch.compile(c.norm, fullgraph=True, mode="reduce-overhead")
    for seed in range(4):
        x = data(device, 64, 128, seed=seed)
        torch.compiler.cudagraph_mark_step_begin()
        same([t.clone() for t in training(compiled, x)], list(training(formula, x)))


@FEATURES.feature("the bits of eager calls")
def bits_of_eager_calls(c: Candidate, device: str) -> None:
    compiled = torch.compile(c.norm, fullgraph=True)
    x = data(device, 64, 1000).bfloat16()
    need(all(map(torch.equal, training(compiled, x), training(c.norm, x))), "other bits than eager")


@FEATURES.feature("compiled autograd")
def compiled_autograd(c: Candidate, device: str) -> None:
    import torch._dynamo.compiled_autograd as compiled_autograd

    with compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
        got = training(c.norm, data(device))
    same(got, training(formula, data(device)))


@FEATURES.feature("per-sample gradients in one graph")
def per_sample_gradients(c: Candidate, device: str) -> None:
    per_sample = lambda norm: torch.func.vmap(torch.func.grad(total(norm)))  # noqa: E731
    with no_slow_vmap():
        got = torch.compile(per_sample(c.norm), fullgraph=True, backend="aot_eager")(data(device))
    same(got, per_sample(formula)(data(device)))
