"""How time and memory are measured: rounds, statistics, accounts of known tensors, compiling ahead."""

import os
import sys
import time

import benchmark_samples  # noqa: F401 - where the benchmark is, and whether it can run
import pytest
import torch

from benchmarks.protocol import memory, precompile, timing
from benchmarks.protocol.cell import Cell
from benchmarks.providers import REGISTRY


def test_a_slower_call_takes_longer():
    means = {ms: timing.of_means([timing.do_bench(lambda ms=ms: time.sleep(ms / 1e3), "cpu")]) for ms in (1, 8)}
    assert means[8].value > means[1].value >= 1
    for mean in means.values():
        assert mean.p20 <= mean.p80


def test_rounds_go_over_all_providers_and_leave_out_what_fails():
    order, statuses = [], {}

    def fails():
        raise ValueError("no")

    samples = timing.in_rounds(2, {"a": lambda: 1.0, "b": fails, "c": lambda: 3.0}, statuses, order.append)
    assert samples == {"a": [1.0, 1.0], "c": [3.0, 3.0]}
    assert statuses == {"b": "ValueError: no"}
    assert order == ["a", "b", "c", "b", "c", "a"]


def test_statistics():
    assert timing.quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert timing.quantile([0.0, 10.0], 0.2) == 2.0
    of_means = timing.of_means([[1.0, 3.0], [5.0], [9.0, 9.0]])
    assert (of_means.value, of_means.rounds, of_means.repeats) == (5.0, 3, 5)
    assert timing.of_medians([1.0, 9.0, 2.0], 10) == timing.Statistic(
        2.0, pytest.approx(1.4), pytest.approx(6.2), 3, 30
    )


def test_the_memory_account_agrees_with_known_tensors(device, plain_memory):
    """A MiB is 2^18 float32; the CPU also counts a few bytes for scalars."""

    def temporary():
        x = torch.ones(1 << 18, device=device)
        return lambda: (x * 2) + 1

    def accumulated():
        x = torch.ones(1 << 18, device=device, requires_grad=True)
        y, g = x.sin(), torch.ones(1 << 18, device=device)
        return lambda: y.backward(g, retain_graph=True)

    assert memory.peak_mib(temporary, device, 3) == pytest.approx([3, 3, 3], abs=1e-3)
    # x, y, g, and in backward cos(x) and the gradient, from the second repeat on beside .grad.
    assert memory.peak_mib(accumulated, device, 3) == pytest.approx([5, 6, 6], abs=1e-3)


def test_what_a_call_keeps_agrees_with_known_tensors(device, plain_memory):
    """exp keeps its output, which is the result; sin of exp keeps exp's output beside its own."""

    def prepare(call):
        x = torch.ones(1 << 18, device=device, requires_grad=True)
        return lambda: call(x)

    def temporary(x):
        return (x.detach() * 2).sum()

    assert memory.kept_and_peak_mib(lambda: prepare(torch.exp), device) == pytest.approx((1, 1), abs=1e-3)
    assert memory.kept_and_peak_mib(lambda: prepare(lambda x: x.exp().sin()), device) == pytest.approx((2, 2), abs=1e-3)
    assert memory.kept_and_peak_mib(lambda: prepare(temporary), device) == pytest.approx((0, 1), abs=2e-3)  # and a sum


def test_what_was_compiled_ahead_is_found_in_the_cache(monkeypatch):
    """Another process compiles; here the compiler's cache answers. A dim that no earlier run has left there."""
    from torch._dynamo.utils import counters

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
    ticked = []
    cell = Cell("cpu", "fp32", "forward", 3, 100 + time.time_ns() % 1_000_000)
    torch.use_deterministic_algorithms(False)  # part of the cache's key
    precompile.ahead([(cell, "toc")], 1, ticked.append)
    assert ticked == [f"toc {cell}"]
    counters.clear()
    toc = REGISTRY["toc"]()
    toc.new_shape()
    with torch.no_grad():
        cell.operation.call(toc, cell.operands())()
    assert counters["inductor"]["fxgraph_cache_hit"] == 1, counters["inductor"]
