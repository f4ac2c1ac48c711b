"""The kernels alone over dims, operations and dtypes at a fixed number of bytes, each beside its roof."""

from benchmarks.protocol import measuring
from benchmarks.protocol.operations import DTYPES, OPS
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
    wanted = []
    for dtype in plan.dtypes or ["bf16"]:
        elements = plan.elements or size // DTYPES[dtype].itemsize
        shapes = [(rows, dim) for dim in plan.dims or dims for rows in plan.rows or [max(1, elements // dim)]]
        wanted += measuring.cells(plan, shapes, plan.ops or list(OPS), [dtype])
    default = ("ours", "tr", "toc", "rms") if plan.gpu else ("ours", "toc", "rms")
    measuring.run(plan, NAME, wanted, default, plan.rounds or (3 if plan.quick else 10))
