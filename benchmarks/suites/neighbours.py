"""What stands beside a norm and is fused with it, over dims and dtypes at a fixed number of bytes."""

from benchmarks.protocol import measuring
from benchmarks.protocol.neighbours import NEIGHBOURS
from benchmarks.record.plan import Plan

NAME = "neighbours"
QUESTION = "the gated norm, y in float32, rstd and bytes, over dims and dtypes, as a fraction of copying as many bytes"
DIMS = [64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 3001, 127]
BYTES, BYTES_CPU = 1 << 29, 1 << 23  # of the input


def run(plan: Plan) -> None:
    size = BYTES if plan.gpu else BYTES_CPU
    dims = DIMS if plan.gpu and not plan.quick else [64, 2048, 3001]
    dtypes = ["bf16", "fp32", "mixed"] if plan.gpu else ["fp32"]
    wanted = measuring.cells_of_size(plan, size, dims, dtypes, NEIGHBOURS)
    default = ("ours", "to", "toc", "rms", "quack", "fla", "mamba") if plan.gpu else ("ours", "to", "toc", "rms")
    measuring.run(plan, NAME, wanted, default, plan.rounds or (3 if plan.quick else 10))
