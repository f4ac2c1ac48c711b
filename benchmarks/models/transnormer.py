"""TransNormer-style: linear attention, normalized and gated, and a gated linear unit."""

import torch
from torch import Tensor

from benchmarks.providers import Gating, Provider

from .block import Block, Past, Size, linear

CHUNK = 256  # tokens of linear attention that meet by a score matrix; beyond it by their sums


class TransNormer(Block):
    """Linear attention whose output is normalized and gated, then a gated linear unit; no decay, no positions."""

    def __init__(self, size: Size, norms: Provider) -> None:
        super().__init__(size, norms)
        self.qkvu, self.out = linear(size.dim, 4 * size.dim), linear(size.dim, size.dim)
        self.gate, self.up = linear(size.dim, 2 * size.dim), linear(size.dim, 2 * size.dim)
        self.down = linear(2 * size.dim, size.dim)

    def attend(self, x: Tensor, past: Past | None) -> Tensor:
        q, k, v, u = self.qkvu(x).chunk(4, -1)
        q, k = torch.nn.functional.silu(q), torch.nn.functional.silu(k)
        q, k, v = (self.split(t).transpose(1, 2) for t in (q, k, v))
        attended = linear_attention(q, k, v) if past is None else decoded(q, k, v, past)
        return self.out(self.gated(attended.transpose(1, 2).flatten(-2), u))

    def gated(self, attended: Tensor, u: Tensor) -> Tensor:
        return self.norms.norm(attended) * torch.sigmoid(u)

    def mix(self, x: Tensor) -> Tensor:
        return self.down(self.gate(x) * self.up(x))

    @staticmethod
    def empty(size: Size, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The sum of k v over the tokens before, in float32."""
        d = size.dim // size.heads
        return (torch.zeros(size.batch, size.heads, d, d, dtype=torch.float32),)


class GatedTransNormer(TransNormer):
    """The same, its norm and gate one call."""

    def gated(self, attended: Tensor, u: Tensor) -> Tensor:
        return self.norms.gated(attended, u, Gating("sigmoid"))


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal, sum over j <= i of (q_i k_j) v_j, in chunks."""
    length = q.shape[-2]
    chunk = min(CHUNK, length)
    q, k, v = (t.unflatten(-2, (length // chunk, chunk)) for t in (q, k, v))
    within = (q @ k.transpose(-1, -2)).tril() @ v
    state = k.transpose(-1, -2) @ v
    before = state.cumsum(-3) - state
    return (within + q @ before).flatten(-3, -2)


def decoded(q: Tensor, k: Tensor, v: Tensor, past: Past) -> Tensor:
    """The same of one token. The state gains k v by a product: of a plain addition in place that is read afterwards,
    Inductor of torch 2.11 makes two on a CPU."""
    state = past.kept[0].flatten(0, 1)
    wide_q, wide_k, wide_v = (t.flatten(0, 1).float() for t in (q, k, v))
    state.baddbmm_(wide_k.transpose(-1, -2), wide_v)
    return (wide_q @ state).to(q.dtype).view_as(q)
