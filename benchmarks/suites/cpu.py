"""The sweep and the neighbours on the CPU, on one thread and on all."""

import dataclasses

import torch

from benchmarks.protocol import measuring
from benchmarks.protocol.neighbours import NEIGHBOURS
from benchmarks.protocol.operations import OPS
from benchmarks.record.plan import Plan

NAME = "cpu"
QUESTION = "each operation on the CPU over dims and dtypes, on one thread and on all, beside torch.compile's code"
DIMS = [64, 128, 768, 2048, 4096, 16384, 65536, 3001]
BYTES = 1 << 24  # of the input: past the second-level cache of a core


def run(plan: Plan) -> None:
    plan = dataclasses.replace(plan, device="cpu")
    threads = sorted({1, torch.get_num_threads()})
    plan = dataclasses.replace(plan, ops=plan.ops or [*OPS])
    cells = measuring.cells_of_size(plan, BYTES, [2048] if plan.quick else DIMS, ["bf16", "fp32"], OPS | NEIGHBOURS)
    wanted = [dataclasses.replace(cell, threads=count) for cell in cells for count in threads]
    try:
        measuring.run(plan, NAME, wanted, ("ours", "toc", "rms"), plan.rounds or (3 if plan.quick else 10))
    finally:
        torch.set_num_threads(threads[-1])
