"""A step of a model: forward, forward and backward, or the decode of one token."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.models import Caches, Model

Step = Callable[[], list[Tensor]]


def forward(model: Model, inputs: list[Tensor]) -> Step:
    """The output."""
    inputs = [t.detach() for t in inputs]  # as those of later blocks: another compilation otherwise
    return torch.no_grad()(lambda: [model(*inputs)])


def training(model: Model, inputs: list[Tensor]) -> Step:
    """The gradients of the inputs; those of the weights are made and dropped, and there is no optimizer."""
    leaves = [*inputs, *model.parameters()]

    def step() -> list[Tensor]:
        y = model(*inputs)
        return [grad.detach() for grad in torch.autograd.grad(y, leaves, torch.ones_like(y))[: len(inputs)]]

    return step


class Decode:
    """The output of one token, the last that the caches have room for, behind tokens of random keys and values. Every
    step is of the same token: it overwrites what the last one kept."""

    def __init__(self, model: Model, inputs: list[Tensor], dtype: torch.dtype) -> None:
        self.model, length = model, inputs[0].shape[1]
        self.inputs = [t.detach()[:, -1:].clone(memory_format=torch.contiguous_format) for t in inputs]
        self.place = torch.tensor([length - 1], device=inputs[0].device)
        self.caches: Caches = model.caches(dtype)
        self.fill()

    @torch.no_grad()
    def fill(self) -> None:
        """The same values for every provider and dtype."""
        generator = torch.Generator(self.place.device).manual_seed(1)
        for kept in self.caches:
            for t in kept:
                t.copy_(torch.randn(t.shape, generator=generator, device=t.device))

    @torch.no_grad()
    def __call__(self) -> list[Tensor]:
        tokens, positions = self.inputs
        return [self.model.decode(tokens, positions, self.place, self.caches)]

    def captured(self) -> Step:
        """In a CUDA graph. Tokens, place and caches are its static operands, and the host reads none of them: it would
        be an error in the capture."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self()
        torch.cuda.current_stream().wait_stream(side)
        self.fill()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self()

        def step() -> list[Tensor]:
            graph.replay()
            return output

        return step
