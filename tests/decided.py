"""What Inductor decides, without the code that it would make of it."""

from functools import partial

import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import detect_fake_mode
from torch._inductor import compile_fx  # noqa: F401  (where it is here, calls are left open)
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.joint_graph import joint_graph_passes
from torch._inductor.fx_passes.post_grad import post_grad_passes
from torch._inductor.virtualized import V

from srmsnorm import choosing

FORMULA = choosing.Row("all", lambda call: True, "formula", "")
OPERATOR = choosing.Row("all", lambda call: True, "operator", "")


def backend(before, after):
    """Keeps each graph as autograd leaves it and as Inductor's last passes do, and runs the latter. Autograd runs where
    Inductor would run it."""

    def keep(graph, inputs, is_inference=False):
        before.append(str(graph.graph))
        with V.set_fake_mode(detect_fake_mode(inputs)):
            if is_inference:
                joint_graph_passes(graph)
            post_grad_passes(graph, is_inference)
        graph.recompile()
        after.append(graph.graph)
        return make_boxed_func(graph)

    def part(graph, inputs, **options):
        """As Inductor does."""
        joint_graph_passes(graph)
        return min_cut_rematerialization_partition(graph, inputs, **options)

    parted = aot_autograd(
        fw_compiler=keep,
        bw_compiler=keep,
        inference_compiler=partial(keep, is_inference=True),
        partition_fn=part,
        decompositions=select_decomp_table(),
    )

    def compiled(graph, inputs):
        with V.set_fake_mode(detect_fake_mode(inputs)):
            return parted(graph, inputs)

    return compiled


def decided(function, **options):
    """The function compiled so, its graphs before and after: of forward, then of backward."""
    before, after = [], []
    return torch.compile(function, backend=backend(before, after), fullgraph=True, **options), before, after


def ours(graph):
    """The names of our operators in it."""
    targets = [node.target for node in graph.nodes if node.op == "call_function"]
    return [str(target) for target in targets if getattr(target, "namespace", "").startswith("srmsnorm")]
