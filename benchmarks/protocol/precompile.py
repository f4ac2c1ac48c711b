"""Compiles ahead, in several processes, what torch.compile and Triton would compile one by one between timings.

The compilers' own caches on disk carry the results over. No measurement is: choices between variants that are made by
timing them are left to the process that measures, which has the GPU to itself.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context
from typing import Protocol

import torch

from benchmarks.providers import REGISTRY, Provider


class Compilable(Protocol):
    """What can be compiled ahead; it goes to another process, and its name into the progress."""

    @property
    def room(self) -> int:
        """Bytes of the GPU that it takes meanwhile."""

    def compile(self, provider: Provider) -> None:
        """A call of it, whose result nobody wants."""


ROOM = 3 << 29  # bytes of a process beside that: context, libraries, outputs


def jobs_for(cells: Sequence[Compilable]) -> int:
    """As many processes as cores and the GPU's free memory take."""
    free, _ = torch.cuda.mem_get_info()
    largest = max((cell.room for cell in cells), default=0)
    return max(1, min((os.cpu_count() or 1) - 1, free // (largest + ROOM), len(cells)))


def ahead(work: Sequence[tuple[Compilable, str]], jobs: int, tick: Callable[[str], None]) -> None:
    """Each (cell, provider) once; what fails here fails again, with a message, where it is measured."""
    environment = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    pool = ProcessPoolExecutor(jobs, get_context("spawn"))
    try:
        waiting = {pool.submit(_compile, cell, name): f"{name} {cell}" for cell, name in work}
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                tick(waiting.pop(future))
    finally:
        pool.shutdown(cancel_futures=True)
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


_providers: dict[str, Provider] = {}  # of a worker process


def _compile(cell: Compilable, name: str) -> None:
    import torch._inductor.config  # here and not above: seconds that most commands need not spend

    torch._inductor.config.autotune_local_cache = False
    if name not in _providers:
        _providers[name] = REGISTRY[name]()
    cell.compile(_providers[name])
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
