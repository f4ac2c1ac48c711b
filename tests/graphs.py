"""What a compiler makes of a function: its results with gradients, and its graphs."""

import torch
from functorch.compile import min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd
from torch._ops import OpOverload

aten = torch.ops.aten


def run(function, tensors):
    """Outputs and gradients."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    outputs = function(*leaves)
    loss = sum((i + 1) * o.float().pow(2).sum() for i, o in enumerate(outputs))
    return [*outputs, *torch.autograd.grad(loss, leaves)]


def graphs(function, tensors):
    """The forward and the backward graph that AOTAutograd makes."""
    found = []

    def keep(graph, inputs):
        found.append(graph.graph)
        return graph

    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep, partition_fn=min_cut_rematerialization_partition)
    run(torch.compile(function, fullgraph=True, backend=backend), tensors)
    return found


def called(graph):
    """The operators in it, but for those that only hand a tensor on."""
    targets = [node.target for node in graph.nodes if node.op == "call_function"]
    return [t for t in targets if isinstance(t, OpOverload) and t not in (aten.detach.default, aten.alias.default)]
