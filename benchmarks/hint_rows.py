"""The row that the table of hints (csrc/cuda/hints.h) should have for a GPU, chosen from times.

A row has three columns: which calls keep what they read in the L2 (``keep``), whether blocks are kept ``apart``, and
whether a wider y is ``streamed``. The neutral row has none of them. A hint must earn its place: the mean over the cells
is better by more than noise, and nowhere slower than the neutral row by more than a cell may vary.
"""

import math
from dataclasses import dataclass

import pandas as pd

NOISE = 1.002  # of a mean over cells
WORST = 1.01  # of a cell
CELL = ["op", "dim"]
WIDE = "forward,wide"  # the operation whose y is streamed or not, and nothing else


@dataclass(frozen=True)
class Row:
    keep: str = "Nothing"  #: Nothing, Balanced or All, as in hints.h
    apart: bool = False
    streamed: bool = False


@dataclass(frozen=True)
class Gpu:
    """What finds a row: the compute capability, and the memory's bandwidth of a multiprocessor in MB/s."""

    capability: int
    bandwidth: int


NEUTRAL = Row()
KEEPS = ["Nothing", "Balanced", "All"]


def ratios(times: pd.DataFrame, row: Row) -> pd.Series:
    """The times of a row, as fractions of the neutral one's, by cell."""
    by_cell = times.set_index(CELL)

    def of(row: Row) -> pd.Series:
        wide = by_cell.index.get_level_values("op") == WIDE
        taken = (by_cell["keep"] == row.keep) & (by_cell["apart"] == row.apart)
        return by_cell["us"][(wide & (by_cell["streamed"] == row.streamed)) | (~wide & taken)]

    return of(row) / of(NEUTRAL)


def mean(ratios: pd.Series) -> float:
    return math.exp(ratios.map(math.log).mean()) if len(ratios) else 1.0


def choose(times: pd.DataFrame) -> Row:
    """times: the columns op, dim, keep, apart, streamed and us, a line a measurement.

    Of rows that are as fast but for noise, the one with fewer hints. A y that is streamed is neither kept nor apart, so
    that column is a choice of its own."""
    wide, others = times[times["op"] == WIDE], times[times["op"] != WIDE]
    pairs = others[["keep", "apart"]].drop_duplicates().itertuples(index=False)
    means = {NEUTRAL: 1.0}
    for row in (Row(keep, bool(apart)) for keep, apart in pairs):
        found = ratios(others, row)
        if found.max() <= WORST:
            means[row] = mean(found)
    fast = [row for row in means if means[row] <= min(means.values()) * NOISE]
    best = min(fast, key=lambda row: (KEEPS.index(row.keep) + row.apart, means[row]))
    streamed = ratios(wide, Row(streamed=True))
    return Row(best.keep, best.apart, bool(streamed.max() <= WORST and mean(streamed) * NOISE < 1))


def as_code(gpu: Gpu, row: Row) -> str:
    """As it stands in kMeasured, the bandwidth to three digits: a row is for what is within 5 % of it."""
    digits = len(str(gpu.bandwidth)) - 3
    bandwidth = round(gpu.bandwidth, -digits) if digits > 0 else gpu.bandwidth
    flags = ", ".join(str(flag).lower() for flag in (row.apart, row.streamed))
    return f"{{{gpu.capability}, {bandwidth}, Keep::{row.keep}, {flags}}}"


def gains(times: pd.DataFrame, row: Row) -> str:
    """What the row wins by operation over the neutral one, the least and the mean of its dims."""
    lines = []
    for op, found in ratios(times, row).groupby(level="op", sort=False):
        lines.append([op, f"{100 * (1 - mean(found)):+.1f} %", f"{100 * (1 - found.max()):+.1f} %"])
    return pd.DataFrame(lines, columns=["op", "gain", "least, of a dim"]).to_markdown(index=False)


def report(times: pd.DataFrame, gpu: Gpu, present: Row) -> str:
    """The row to paste, its gains, and where it differs from what is there."""
    chosen = choose(times)
    text = f"The row of kMeasured in csrc/cuda/hints.h:\n\n    {as_code(gpu, chosen)}\n\n"
    if chosen == NEUTRAL:
        text = "Nothing is gained on this GPU: it needs no row of kMeasured in csrc/cuda/hints.h.\n\n"
    text += "Gains over a row that has none of the hints:\n\n" + gains(times, chosen)
    if chosen == present:
        return text + "\n\nThe table has it already."
    slower = mean(ratios(times, present)) / mean(ratios(times, chosen)) - 1
    there = f"The table has another for this GPU, {as_code(gpu, present)}, which takes {100 * slower:+.1f} % of time:"
    return f"{text}\n\n{there}\n\n{gains(times, present)}"
