"""Trains a small TransNormer-style language model on text that comes with Python: its own library.

    python examples/train.py                     # the GPU if there is one, else the CPU: two minutes there
    python examples/train.py --compile           # torch.compile
    torchrun --nproc-per-node 8 examples/train.py --fsdp   # FSDP2; on the CPU too, with --device cpu

Every norm of the model is weightless. A block is linear attention with decay, whose output is normed and gated (one
operator), and a gated linear unit; the norm before each also adds the residual (one operator).
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sysconfig
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import srmsnorm


class Attention(nn.Module):
    """Linear attention: what came before counts less the longer ago it was, at a rate of each head's own."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inward, self.out = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.norm = srmsnorm.SRMSNormGated(dim // heads, activation="silu")

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, gate = (part.unflatten(-1, (self.heads, -1)) for part in self.inward(x).chunk(4, dim=-1))
        steps = torch.arange(x.size(1), device=x.device)
        ago = (steps[:, None] - steps).clamp(min=0)
        rates = torch.logspace(-1, -9, self.heads, base=2, device=x.device)[:, None, None]
        decay = torch.exp(-rates * ago).tril().to(x.dtype)  # head, from, to
        scores = torch.einsum("bihd,bjhd->bhij", F.silu(q), F.silu(k)) * decay
        y = torch.einsum("bhij,bjhd->bihd", scores, v)
        return self.out(self.norm(y, gate).flatten(-2))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm = srmsnorm.SRMSNorm(dim)
        self.attention = Attention(dim, heads)
        self.up, self.down = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
        y, stream = self.norm(x, stream, return_sum=True)
        y, stream = self.norm(self.attention(y), stream, return_sum=True)
        left, right = self.up(y).chunk(2, dim=-1)
        return self.down(left * right), stream


class Model(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int, vocabulary: int = 256) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = srmsnorm.SRMSNorm(dim)
        self.head = nn.Linear(dim, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        stream = torch.zeros_like(x)
        for block in self.blocks:
            x, stream = block(x, stream)
        return self.head(self.norm(x, stream))


def library_text() -> Tensor:
    """Python's standard library as bytes: some 10 MB."""
    folder = pathlib.Path(sysconfig.get_path("stdlib"))
    text = b"\n".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def batch_of(text: Tensor, batch: int, length: int, generator: torch.Generator) -> Tensor:
    begins = torch.randint(len(text) - length, (batch,), generator=generator)
    return torch.stack([text[i : i + length] for i in begins]).long()


def shard(model: Model, device: torch.device) -> None:
    from torch.distributed.fsdp import fully_shard

    mesh = dist.device_mesh.init_device_mesh(device.type, (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def train(options: argparse.Namespace) -> list[float]:
    device = torch.device(options.device)
    rank = 0
    if options.fsdp:
        rank = int(os.environ["LOCAL_RANK"])
        if device.type == "cuda":
            torch.cuda.set_device(rank)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    torch.manual_seed(0)  # one model on every rank, and batches of its own
    model = Model(options.dim, options.depth, options.heads).to(device)
    if options.fsdp:
        shard(model, device)
    if options.compile:
        model.compile(backend=options.compile)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=options.steps, pct_start=0.1)
    text, generator = library_text(), torch.Generator().manual_seed(rank)

    losses, begun = [], time.time()
    for _ in progress(range(options.steps), losses, quiet=rank != 0):
        tokens = batch_of(text, options.batch, options.length + 1, generator).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1).float(), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    if rank == 0:
        last = sum(losses[-10:]) / len(losses[-10:])
        print(f"loss {losses[0]:.3f} -> {last:.3f} nats a byte in {options.steps} steps, {time.time() - begun:.0f} s")
    if options.fsdp:
        dist.destroy_process_group()
    return losses if rank == 0 else []


def progress(steps: range, losses: list[float], quiet: bool):
    """The steps behind a progress bar with the loss, where tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield from steps
        return
    bar = tqdm(steps, disable=quiet, unit="step")
    for step in bar:
        yield step
        bar.set_postfix_str(f"loss {losses[-1]:.3f}")


def draw(losses: list[float], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(losses, linewidth=1)
    axes.set(xlabel="step", ylabel="loss, nats a byte", title="A small TransNormer on Python's library")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--fsdp", action="store_true", help="FSDP2 over the processes of torchrun")
    parser.add_argument("--compile", nargs="?", const="inductor", metavar="BACKEND")
    parser.add_argument("--steps", type=int, default=1000 if gpu else 200)
    parser.add_argument("--batch", type=int, default=64 if gpu else 8, help="of each process")
    parser.add_argument("--length", type=int, default=512 if gpu else 128)
    parser.add_argument("--dim", type=int, default=512 if gpu else 192)
    parser.add_argument("--depth", type=int, default=8 if gpu else 4)
    parser.add_argument("--heads", type=int, default=8 if gpu else 4)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--plot", metavar="PNG", help="draw the loss (needs matplotlib)")
    options = parser.parse_args()
    losses = train(options)
    if options.plot and losses:
        draw(losses, options.plot)


if __name__ == "__main__":
    main()
