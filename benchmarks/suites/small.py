"""Few rows, as in decoding: GPU time alone, by graph replay, and the time of an eager call, apart."""

from benchmarks.protocol import measuring
from benchmarks.record.plan import Plan

NAME = "small"
QUESTION = "few rows: GPU time by graph replay, and the time of an eager call, apart"
SHAPES = [
    (1, 4096), (64, 4096), (2048, 4096), (64, 16384), (16, 65536), (16, 131072), (4, 262144), (4096, 128),
]  # fmt: skip
OPS = ["forward", "forward+residual"]


def run(plan: Plan) -> None:
    shapes = [(rows, dim) for dim in plan.dims or [] for rows in plan.rows or [1]] or SHAPES[
        : 2 if plan.quick else None
    ]
    wanted = measuring.cells(plan, shapes, plan.ops or OPS)
    default = ("ours", "tr", "toc", "rms") if plan.gpu else ("ours", "toc", "rms")
    measuring.run(plan, NAME, wanted, default, plan.rounds or (3 if plan.quick else 20), eager=plan.gpu)
