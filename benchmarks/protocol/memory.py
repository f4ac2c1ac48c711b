"""Peak memory by the published protocol: the mean over 20 repeats of the peak within each, the first with .grad None.

Counted are the tensors of the measurement alone: what was allocated before `prepare` is taken off.
"""

import gc
import os
from collections.abc import Callable
from typing import Any

import torch

REPEATS = 20
MIB = 1 << 20

Prepare = Callable[[], Callable[[], Any]]


def peak_mib(prepare: Prepare, device: str, repeats: int = REPEATS) -> list[float]:
    """MiB, repeat by repeat. `prepare` makes the operands and returns the call that is measured."""
    gc.collect()
    return (_cuda if device == "cuda" else _cpu)(prepare, repeats)


def _cuda(prepare: Prepare, repeats: int) -> list[float]:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    call = prepare()
    peaks = []
    for _ in range(repeats):
        torch.cuda.reset_peak_memory_stats()
        call()
        peaks.append((torch.cuda.max_memory_allocated() - before) / MIB)
    return peaks


def _cpu(prepare: Prepare, repeats: int) -> list[float]:
    changes, windows = _recorded(prepare, repeats)
    return [_peak(changes, *window) / MIB for window in windows]


def kept_and_peak_mib(prepare: Prepare, device: str) -> tuple[float, float]:
    """MiB that one call leaves allocated while its result is held, and the most at a time, beyond what was there
    before: prepare's operands are not counted."""
    gc.collect()
    if device == "cuda":
        call = prepare()
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        kept, peak = torch.cuda.memory_allocated() - before, torch.cuda.max_memory_allocated() - before
        del result
        return kept / MIB, peak / MIB
    changes, ((start, end),) = _recorded(prepare, 1)
    before = sum(size for when, size in changes if when < start)
    kept = sum(size for when, size in changes if when <= end) - before
    return kept / MIB, (_peak(changes, start, end) - before) / MIB


Changes = list[tuple[int, int]]  # (nanosecond, bytes)


def _recorded(prepare: Prepare, repeats: int) -> tuple[Changes, Changes]:
    """Every allocation that PyTorch's CPU allocator made, compiled code's too, and the windows of the calls. A result
    is held until its window has ended."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before the first: newer ones write two lines for each profile
    from torch.profiler import ProfilerActivity, profile, record_function

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        call = prepare()
        gc.collect()
        for _ in range(repeats):
            with record_function("repeat"):
                result = call()
            del result
    assert recorded.profiler is not None
    assert recorded.profiler.kineto_results is not None
    events = recorded.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return changes, sorted((e.start_ns(), e.end_ns()) for e in events if e.name() == "repeat")


def _peak(changes: list[tuple[int, int]], start: int, end: int) -> int:
    """The most bytes alive at a time between start and end."""
    alive = sum(size for when, size in changes if when < start)
    peak = alive
    for _, size in (change for change in changes if start <= change[0] <= end):
        alive += size
        peak = max(peak, alive)
    return peak
