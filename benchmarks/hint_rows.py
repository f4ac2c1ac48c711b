"""The row that the table of hints (csrc/cuda/hints.h) should have for a GPU, chosen from times.

A row has four columns: which calls keep what they read in the L2 (``keep``), whether blocks are kept ``apart``,
whether a wider y is ``streamed``, and whether rows that become bytes are prefetched ``far`` ahead. The neutral row has
none of them. A hint must earn its place: the mean over the cells is better by more than noise, and nowhere slower than
the neutral row by more than a cell may vary.
"""

import math
from dataclasses import dataclass

import pandas as pd

NOISE = 1.002  # of a mean over cells
WORST = 1.01  # of a cell
CELL = ["op", "dim"]
OWN = {"forward,wide": "streamed", "forward,bytes": "far"}  # operations with a hint of their own, and no other


@dataclass(frozen=True)
class Row:
    keep: str = "Nothing"  #: Nothing, Balanced or All, as in hints.h
    apart: bool = False
    streamed: bool = False
    far: bool = False


@dataclass(frozen=True)
class Gpu:
    """What finds a row: the compute capability, and the memory's bandwidth of a multiprocessor in MB/s."""

    capability: int
    bandwidth: int


NEUTRAL = Row()
KEEPS = ["Nothing", "Balanced", "All"]


def hints_of(op: str) -> tuple[str, ...]:
    """Those that make a difference to it."""
    return (OWN[op],) if op in OWN else ("keep", "apart")


def ratios(times: pd.DataFrame, row: Row) -> pd.Series:
    """The times of a row, as fractions of the neutral one's, by cell."""

    def of(row: Row) -> pd.Series:
        taken = [
            all(line[hint] == getattr(row, hint) for hint in hints_of(line["op"])) for line in times.to_dict("records")
        ]
        return times.loc[pd.Series(taken, times.index, bool)].set_index(CELL)["us"]

    return of(row) / of(NEUTRAL)


def mean(ratios: pd.Series) -> float:
    return math.exp(ratios.map(math.log).mean()) if len(ratios) else 1.0


def choose(times: pd.DataFrame) -> Row:
    """times: the columns op, dim, keep, apart, streamed, far and us, a line a measurement.

    Of rows that are as fast but for noise, the one with fewer hints. An operation's own hint is a choice of its own."""
    others = times[~times["op"].isin(OWN)]
    pairs = others[["keep", "apart"]].drop_duplicates().itertuples(index=False)
    means = {NEUTRAL: 1.0}
    for row in (Row(keep, bool(apart)) for keep, apart in pairs):
        found = ratios(others, row)
        if found.max() <= WORST:
            means[row] = mean(found)
    fast = [row for row in means if means[row] <= min(means.values()) * NOISE]
    best = min(fast, key=lambda row: (KEEPS.index(row.keep) + row.apart, means[row]))
    own = {hint: is_gain(ratios(times[times["op"] == op], Row(**{hint: True}))) for op, hint in OWN.items()}  # type: ignore[arg-type]
    return Row(best.keep, best.apart, **own)


def is_gain(found: pd.Series) -> bool:
    return bool(found.max() <= WORST and mean(found) * NOISE < 1)


def as_code(gpu: Gpu, row: Row) -> str:
    """As it stands in kMeasured, the bandwidth to three digits: a row is for what is within 5 % of it."""
    digits = len(str(gpu.bandwidth)) - 3
    bandwidth = round(gpu.bandwidth, -digits) if digits > 0 else gpu.bandwidth
    flags = ", ".join(str(flag).lower() for flag in (row.apart, row.streamed, row.far))
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
