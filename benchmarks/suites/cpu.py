"""The sweep on the CPU, on one thread and on all."""

import dataclasses

import torch

from benchmarks.protocol import measuring
from benchmarks.protocol.operations import DTYPES, OPS
from benchmarks.record.plan import Plan

NAME = "cpu"
QUESTION = "each operation on the CPU over dims and dtypes, on one thread and on all, beside torch.compile's code"
DIMS = [64, 128, 768, 2048, 4096, 16384, 65536, 3001]
BYTES = 1 << 24  # of the input: past the second-level cache of a core


def run(plan: Plan) -> None:
    plan = dataclasses.replace(plan, device="cpu")
    threads = sorted({1, torch.get_num_threads()})
    wanted = []
    for dtype in plan.dtypes or ["bf16", "fp32"]:
        elements = plan.elements or BYTES // DTYPES[dtype].itemsize
        dims = plan.dims or ([2048] if plan.quick else DIMS)
        shapes = [(rows, dim) for dim in dims for rows in plan.rows or [max(1, elements // dim)]]
        for cell in measuring.cells(plan, shapes, plan.ops or list(OPS), [dtype]):
            wanted += [dataclasses.replace(cell, threads=count) for count in threads]
    try:
        measuring.run(plan, NAME, wanted, ("ours", "toc", "rms"), plan.rounds or (3 if plan.quick else 10))
    finally:
        torch.set_num_threads(threads[-1])
