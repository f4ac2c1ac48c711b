"""The tuner: the row of hints that it makes of times, on any machine, and that its programs say what it reads."""

import dataclasses
import itertools

import pandas as pd
import pytest
import torch
from benchmark_samples import BENCHMARKS

from benchmarks import hint_rows
from benchmarks.hint_rows import Apart, Gpu, Row

DIMS = (96, 4096, 28_672, 65_536)
CARD = Gpu(90, 25_396)
VALUES = {"streamed": (True,), "balanced": (0, 4), "reading": (0, 4), "mostly": (0, 2), "bytes": (0, 4),
          "blocks": (True,), "short_forward": (2, 4), "short_backward": (2,)}  # fmt: skip


def rows_of_trials(op, dim):
    """The neutral row, and those of every choice that the operation at that dim is for."""
    yield Row()
    for hints, trial in hint_rows.TRIALS.items():
        if not trial.cells(pd.DataFrame({"op": [op], "dim": [dim]})).item():
            continue
        if hints == hint_rows.PAIR:
            yield from (Row(kept, apart) for kept, apart in itertools.product((False, True), Apart) if kept or apart)
        else:
            yield from (Row(**{hints[0]: value}) for value in VALUES[hints[0]])


def measured(gains=None, cells=None):
    """Times of all rows: what each hint's value gains, as a fraction of 100 us; ``cells``: those of (row, op, dim)
    instead."""
    lines = []
    for op, dim in itertools.product(hint_rows.OPS, DIMS):
        for row in rows_of_trials(op, dim):
            gain = sum((gains or {}).get((hint, getattr(row, hint)), 0.0) for hint in hint_rows.HINTS)
            gain = (cells or {}).get((row, op, dim), gain)
            lines.append((op, dim, *dataclasses.astuple(row), 100 * (1 - gain)))
    frame = pd.DataFrame(lines, columns=["op", "dim", *hint_rows.HINTS, "us"])
    return frame.sample(frac=1, random_state=0)  # no order is relied on


KEPT, APART, STREAMED = ("kept", True), ("apart", Apart.ByWidth), ("streamed", True)


@pytest.mark.parametrize(
    ("gains", "row"),
    [
        ({KEPT: 0.01, APART: 0.005, STREAMED: 0.1}, Row(True, Apart.ByWidth, True)),
        ({KEPT: 0.01, APART: -0.04, STREAMED: -0.02}, Row(kept=True)),
        ({KEPT: -0.06, APART: -0.04}, Row()),
        ({KEPT: -0.01, APART: 0.02, STREAMED: 0.03}, Row(False, Apart.ByWidth, True)),
        ({KEPT: 0.01, APART: 0.005, ("apart", Apart.BySpeed): 0.01}, Row(True, Apart.BySpeed)),
        ({("bytes", 4): 0.03, ("bytes", 0): 0.04, ("balanced", 4): -0.03}, Row(bytes=0)),
        ({("reading", 0): 0.02, ("mostly", 0): 0.01, ("mostly", 2): 0.02}, Row(reading=0, mostly=2)),
        ({("blocks", True): 0.02, ("balanced", 4): 0.01}, Row(balanced=4, blocks=True)),
        ({("short_forward", 2): 0.05, ("short_forward", 4): 0.06, ("short_backward", 2): -0.02}, Row(short_forward=4)),
        ({KEPT: 0.001, STREAMED: 0.001, ("bytes", 4): 0.001}, Row()),  # noise
        ({}, Row()),
    ],
)
def test_the_row_is_chosen(gains, row):
    assert hint_rows.choose(measured(gains)) == row


def test_a_row_that_loses_anywhere_is_none():
    """A mean that wins does not excuse a dim that loses more than a cell varies; a little it may."""
    lost = {(Row(True, apart), "backward", 96): -0.03 for apart in Apart}
    assert hint_rows.choose(measured({KEPT: 0.02, APART: 0.01}, cells=lost)) == Row(apart=Apart.ByWidth)
    noise = dict.fromkeys(lost, -0.005)
    assert hint_rows.choose(measured({KEPT: 0.02, APART: 0.01}, cells=noise)) == Row(True, Apart.ByWidth)


def test_what_was_not_measured_is_not_gained():
    times = measured({KEPT: 0.01, STREAMED: 0.05})
    assert hint_rows.choose(times[times["op"] != "forward,wide"]) == Row(kept=True)
    assert hint_rows.choose(times[times["op"] == "forward,wide"]) == Row(streamed=True)


def test_a_hint_is_chosen_where_it_matters():
    """A prefetch of clusters at dims that have them, one of blocks at those that have not."""
    times = measured({("blocks", True): 0.02, ("balanced", 4): 0.02})
    elsewhere = [("forward,wide", 65_536, Row(blocks=True)), ("forward", 4096, Row(balanced=4))]
    lines = [(op, dim, *dataclasses.astuple(row), 150.0) for op, dim, row in elsewhere]
    noise = pd.DataFrame(lines, columns=times.columns)
    assert hint_rows.choose(pd.concat([times, noise])) == Row(balanced=4, blocks=True)


def test_what_launches_the_same_is_not_timed():
    """Cells that lack a row have no say in it, nor does one that was not tried at all."""
    times = measured({KEPT: 0.02})
    same = times["kept"] & (times["dim"] > 16_384)
    assert hint_rows.choose(times[~same]) == Row(kept=True)
    report = hint_rows.report(times[~same], CARD, Row(kept=True, balanced=8))
    assert "nan" not in report and "which takes +0.0 % of time" in report


def test_the_row_as_code():
    """What is printed stands in the table as it is."""
    h100 = "{90, 25400, true, Apart::ByWidth, true, {2, 2, 4, 4, false, 0, 0}}"
    assert hint_rows.as_code(Gpu(90, 25_396), Row(True, Apart.ByWidth, True, bytes=4)) == h100
    neutral = "false, Apart::Not, false, {2, 2, 4, 2, false, 0, 0}}"
    assert hint_rows.as_code(Gpu(120, 9_870), Row()) == "{120, 9870, " + neutral
    table = (BENCHMARKS.parent / "csrc/cuda/hints.h").read_text()
    assert h100 in table and "kUnmeasured{0, 0, " + neutral in table


def test_the_report():
    times = measured({KEPT: 0.02, APART: -0.01, STREAMED: 0.1})
    there = hint_rows.report(times, CARD, Row(True, Apart.Not, True))
    assert "{90, 25400, true, Apart::Not, true, {2, 2, 4, 2, false, 0, 0}}" in there
    assert there.endswith("The table has it already.")
    gain = [line for line in there.splitlines() if "| backward " in line][0]
    assert gain.count("+2.0 %") == 2 and "+10.0 %" in there
    other = hint_rows.report(times, CARD, Row(False, Apart.ByWidth))
    assert (
        "another for this GPU, {90, 25400, false, Apart::ByWidth, false, {2, 2, 4, 2, false, 0, 0}}, which takes +"
        in other
    )
    assert "-1.0 %" in other.split("another for this GPU")[1]
    assert "needs no row" in hint_rows.report(measured(), CARD, Row())


def test_what_the_program_prints_is_read():
    from benchmarks import tune

    times = measured({KEPT: 0.02})
    text = "90,25396,1,0,1,2,0,4,2,1,0,0\n" + ",".join(times.columns) + "\n"
    for line in times.itertuples(index=False):
        text += f'"{line.op}",' + ",".join(str(int(value)) for value in line[1:-1]) + f",{line.us:.2f}\n"
    gpu, present, read = tune.read_hints(text)
    assert (gpu, present) == (CARD, Row(kept=True, streamed=True, reading=0, blocks=True))
    assert hint_rows.choose(read) == Row(kept=True) and len(read) == len(times)


def test_it_needs_a_gpu(capsys):
    from typer.testing import CliRunner

    from benchmarks import tune

    if torch.cuda.is_available():
        pytest.skip("there is one")
    for command in ([], ["plan"]):
        done = CliRunner().invoke(tune.app, command)
        assert done.exit_code == 2 and "tuning needs a GPU" in done.output
