"""How time is measured. A sample is what one provider gets in one round; rounds go over all providers in turn."""

import dataclasses
import gc
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.record.recorder import Recorder

from .check import attempt

WARMUP_MS = 25
REPEAT_MS = 100

Call = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Statistic:
    value: float
    p20: float
    p80: float
    rounds: int
    repeats: int

    def row(self) -> dict[str, Any]:
        return {
            "value": f"{self.value:.6g}",
            "p20": f"{self.p20:.6g}",
            "p80": f"{self.p80:.6g}",
            "rounds": self.rounds,
            "repeats": self.repeats,
        }


def quantile(values: list[float], q: float) -> float:
    """Linear between neighbours."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def of_means(samples: list[list[float]]) -> Statistic:
    """The tables' statistic: the median over rounds of a round's mean; p20 and p80 likewise."""
    mean, p20, p80 = (
        statistics.median(of_round)
        for of_round in zip(*((statistics.mean(s), quantile(s, 0.2), quantile(s, 0.8)) for s in samples), strict=True)
    )
    return Statistic(mean, p20, p80, len(samples), sum(map(len, samples)))


def of_medians(samples: list[float], repeats: int) -> Statistic:
    """The median over rounds, each of `repeats` calls."""
    return Statistic(
        statistics.median(samples), quantile(samples, 0.2), quantile(samples, 0.8), len(samples), len(samples) * repeats
    )


def in_rounds(
    rounds: int,
    sample: Mapping[str, Callable[[], Any]],
    statuses: dict[str, str],
    tick: Callable[[str], None],
    each_round: Callable[[], None] = lambda: None,
) -> dict[str, list[Any]]:
    """Each provider's samples. Every round starts with another provider; one that fails is noted and left out."""
    samples: dict[str, list[Any]] = {name: [] for name in sample}
    names = list(sample)
    for turn in range(rounds):
        for place in range(len(names)):
            name = names[(turn + place) % len(names)]
            tick(name)
            attempt(statuses, name, lambda name=name: samples[name].append(sample[name]()))  # type: ignore[misc]
        each_round()
    return {name: values for name, values in samples.items() if values and name not in statuses}


def record_rounds(
    recorder: Recorder, rounds: int, sample: Mapping[str, Callable[[], Any]], statuses: dict[str, str],
    row: dict[str, Any], statistic: Callable[[list[Any]], Statistic], what: str = "",
) -> None:  # fmt: skip
    """A row for each provider: its figure, or why it has none. The clocks are read in every round."""
    tick = lambda name: recorder.reporter.tick(f"{name} {what}".rstrip())  # noqa: E731
    for name, values in in_rounds(rounds, sample, statuses, tick, recorder.clocks.sample).items():
        recorder.add(provider=name, **row, **statistic(values).row())
    recorder.failed(statuses, **row)


def do_bench(call: Call, device: str) -> list[float]:
    """Milliseconds of each repeat: 25 ms of warm-up, 100 ms of repeats. On a GPU this is triton.testing.do_bench, which
    clears the L2 before each; on a CPU the same without clearing."""
    if device == "cuda":
        import triton.testing

        return triton.testing.do_bench(call, warmup=WARMUP_MS, rep=REPEAT_MS, return_mode="all")
    _repeated(call, WARMUP_MS)
    return _repeated(call, REPEAT_MS)


def _repeated(call: Call, milliseconds: float) -> list[float]:
    """Each repeat's time, until that time is spent: a number of repeats taken from a few would go on for long where
    others take the processor away."""
    end = time.perf_counter() + milliseconds / 1e3
    times = [_wall_ms(call, 1)]
    while time.perf_counter() < end:
        times.append(_wall_ms(call, 1))
    return times


def _wall_ms(call: Call, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) * 1e3 / calls


class GraphReplay:
    """GPU time of one call: a CUDA graph of many, each on the next of `calls`, outputs rotated likewise."""

    def __init__(self, calls: list[Call], repeats: int) -> None:
        self.calls = calls  # the graph holds addresses: their tensors must outlive it
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for call in calls[:1] * 3:
                call()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        outputs: deque[Any] = deque(maxlen=len(calls))
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for i in range(repeats):
                outputs.append(calls[i % len(calls)]())
        self.repeats = repeats
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def sample(self) -> float:
        """Microseconds. A replay before the timed one hides the launch and warms the clocks."""
        self.graph.replay()
        self.start.record()
        self.graph.replay()
        self.end.record()
        self.end.synchronize()
        return self.start.elapsed_time(self.end) * 1e3 / self.repeats


class EventReplay:
    """GPU time of one eager call between two events, the L2 cleared before each: for calls that run far longer than
    they take to issue. A graph would turn ``copy_`` into a memcpy node, which takes 1.5 times as long as the kernel
    that users get; and without the clearing, loads that ask to be kept find some of the last call's operands in the
    L2."""

    def __init__(self, calls: list[Call], repeats: int) -> None:
        self.calls = calls
        self.repeats = repeats
        self.events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        self.cache = torch.empty(256 << 20, dtype=torch.int8, device="cuda")

    def sample(self) -> float:
        """Microseconds. The GPU first sleeps for about a millisecond, so that the host is ahead of it from then on."""
        torch.cuda._sleep(2_000_000)
        for i, (start, end) in enumerate(self.events):
            self.cache.zero_()
            start.record()
            self.calls[i % len(self.calls)]()
            end.record()
        torch.cuda.synchronize()
        return statistics.mean(start.elapsed_time(end) * 1e3 for start, end in self.events)


class WallReplay:
    """The same on a CPU, by the wall clock."""

    def __init__(self, calls: list[Call], repeats: int) -> None:
        self.calls = calls
        self.repeats = repeats
        for call in calls:
            call()

    def sample(self) -> float:
        outputs: deque[Any] = deque(maxlen=len(self.calls))
        start = time.perf_counter()
        for i in range(self.repeats):
            outputs.append(self.calls[i % len(self.calls)]())
        return (time.perf_counter() - start) * 1e6 / self.repeats


def host_sample(call: Call, calls: int, device: str) -> float:
    """Microseconds of the host in one eager call, while the GPU keeps up."""
    if device == "cuda":
        torch.cuda.synchronize()
    with no_collection():
        elapsed = _wall_ms(call, calls) * 1e3
    if device == "cuda":
        torch.cuda.synchronize()
    return elapsed


@contextmanager
def no_collection() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def l2_bytes(device: str) -> int:
    """The cache that buffers are rotated past."""
    return int(torch.cuda.get_device_properties("cuda").L2_cache_size) if device == "cuda" else 32 << 20
