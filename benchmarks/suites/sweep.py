"""The kernels alone over dims, operations and dtypes at a fixed number of bytes, each beside its roof."""

from benchmarks.protocol import measuring
from benchmarks.record.plan import Plan

NAME = "sweep"
QUESTION = "time of each operation over dims and dtypes, as a fraction of the roof: what moving its bytes costs"
DIMS = [
    64, 128, 256, 512, 768, 1024, 1536, 2048, 3584, 4096, 5120, 7168, 8192, 12288, 16384, 28672, 32768, 65536, 131072,
    262144, 3001, 3000, 127, 50257,
]  # fmt: skip
BYTES, BYTES_CPU = 1 << 29, 1 << 23  # of the input


def run(plan: Plan) -> None:
    size = BYTES if plan.gpu else BYTES_CPU
    dims = DIMS if plan.gpu and not plan.quick else [64, 2048, 3001, 65536]
    wanted = measuring.cells_of_size(plan, size, dims, ["bf16"])
    default = ("ours", "tr", "toc", "rms") if plan.gpu else ("ours", "toc", "rms")
    measuring.run(plan, NAME, wanted, default, plan.rounds or (3 if plan.quick else 10))
