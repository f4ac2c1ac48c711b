"""A small pre-norm transformer, and how its block is made tensor- and sequence-parallel."""

from torch import Tensor, nn
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, PrepareModuleInput, RowwiseParallel
from torch.nn.functional import scaled_dot_product_attention, silu

import srmsnorm


class Attention(nn.Module):
    """With normed queries and keys; as many heads as the process holds of the projections."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.head_dim = dim // heads
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.q_norm, self.k_norm = srmsnorm.SRMSNorm(self.head_dim), srmsnorm.SRMSNorm(self.head_dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.out(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.up, self.down = nn.Linear(dim, 2 * dim, bias=False), nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(silu(self.up(x)))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.attention_norm, self.attention = srmsnorm.SRMSNorm(dim), Attention(dim, heads)
        self.mlp_norm, self.mlp = srmsnorm.SRMSNorm(dim), MLP(dim)

    def forward(self, x: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
        y, stream = self.attention_norm(x, stream, return_sum=True)
        y, stream = self.mlp_norm(self.attention(y), stream, return_sum=True)
        return self.mlp(y), stream


class Stack(nn.Module):
    def __init__(self, dim: int, heads: int, depth: int):
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = srmsnorm.SRMSNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        stream = x * 0.5
        for block in self.blocks:
            x, stream = block(x, stream)
        return self.norm(x, stream)


# The stream and both norms are sharded along the sequence: they need no entry.
_GATHERED = PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),))
_SCATTERED = RowwiseParallel(output_layouts=Shard(1), use_local_output=False)
PLAN = {
    "attention": _GATHERED,
    "attention.q": ColwiseParallel(),
    "attention.k": ColwiseParallel(),
    "attention.v": ColwiseParallel(),
    "attention.out": _SCATTERED,
    "mlp": _GATHERED,
    "mlp.up": ColwiseParallel(),
    "mlp.down": _SCATTERED,
}
