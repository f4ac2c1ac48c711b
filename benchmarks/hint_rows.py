"""The row that the table of hints (csrc/cuda/hints.h) should have for a GPU, chosen from times.

A row says whether what is read is ``kept`` in the L2, how blocks are kept ``apart``, whether a wider y is ``streamed``,
how many MB ahead rows are prefetched (``balanced``, ``reading``, ``mostly`` and ``bytes``, by what a call moves), and
whether those of one ``blocks`` are too, and the same of short rows that are no whole vectors (``short_forward``,
``short_backward``). ``kept`` and ``apart`` are chosen together; every other hint by operations of its own, all others
as the neutral row has them. A hint must earn its place: the mean over the cells is better by more than noise, and
nowhere slower than the neutral row by more than a cell may vary.
"""

import dataclasses
import enum
import math
from dataclasses import dataclass

import pandas as pd

NOISE = 1.002  # of a mean over cells
WORST = 1.01  # of a cell
CELL = ["op", "dim"]
WIDEST_OF_A_BLOCK = 16_384  # elements of 16 bits; wider rows take a cluster


class Apart(enum.IntEnum):
    """As in hints.h."""

    Not = 0
    ByWidth = 1
    BySpeed = 2


@dataclass(frozen=True)
class Row:
    """As GpuClass in hints.h; the neutral row has the defaults."""

    kept: bool = False
    apart: Apart = Apart.Not
    streamed: bool = False
    balanced: int = 2
    reading: int = 2
    mostly: int = 4
    bytes: int = 2
    blocks: bool = False
    short_forward: int = 0
    short_backward: int = 0


@dataclass(frozen=True)
class Gpu:
    """What finds a row: the compute capability, and the memory's bandwidth of a multiprocessor in MB/s."""

    capability: int
    bandwidth: int


@dataclass(frozen=True)
class Trial:
    """The operations that a choice is made by, and whether at rows of a cluster, of one block, or (None) of any."""

    ops: tuple[str, ...]
    wide: bool | None = None

    def cells(self, times: pd.DataFrame) -> "pd.Series[bool]":
        cells = times["op"].isin(self.ops)
        return cells if self.wide is None else cells & ((times["dim"] > WIDEST_OF_A_BLOCK) == self.wide)


NEUTRAL = Row()
HINTS = [field.name for field in dataclasses.fields(Row)]
TYPES = {hint: type(getattr(NEUTRAL, hint)) for hint in HINTS}
PAIR = ("kept", "apart")
TRIALS = {
    PAIR: Trial(("forward", "forward,residual", "forward,sum", "backward")),
    ("streamed",): Trial(("forward,wide",)),
    ("balanced",): Trial(("forward",), wide=True),
    ("reading",): Trial(("forward,residual",), wide=True),
    ("mostly",): Trial(("backward,sum",), wide=True),
    ("bytes",): Trial(("forward,bytes",), wide=True),
    ("blocks",): Trial(("forward,bytes", "forward,wide"), wide=False),
    ("short_forward",): Trial(("forward",), wide=False),
    ("short_backward",): Trial(("backward",), wide=False),
}
OPS = list(dict.fromkeys(op for trial in TRIALS.values() for op in trial.ops))


def ratios(times: pd.DataFrame, row: Row, hints: tuple[str, ...]) -> pd.Series:
    """The times with these hints as a row has them, as fractions of the neutral row's, by cell of their trial. Those
    where it launches what the neutral row launches are not timed, and not among them."""
    times = times[TRIALS[hints].cells(times)]

    def of(row: Row) -> pd.Series:
        taken = pd.Series(True, times.index)
        for hint in HINTS:
            taken &= times[hint] == getattr(row, hint)
        return times[taken].set_index(CELL)["us"]

    return (of(dataclasses.replace(NEUTRAL, **{hint: getattr(row, hint) for hint in hints})) / of(NEUTRAL)).dropna()


def mean(ratios: pd.Series) -> float:
    return math.exp(ratios.map(math.log).mean()) if len(ratios) else 1.0


def best_of(times: pd.DataFrame, hints: tuple[str, ...]) -> dict[str, bool | int | Apart]:
    """Of values that are as fast but for noise, those with fewer changes to the neutral row."""
    tried = times.loc[TRIALS[hints].cells(times), list(hints)].drop_duplicates().to_dict("records")
    means = {NEUTRAL: 1.0}
    for values in tried:
        row = dataclasses.replace(NEUTRAL, **values)
        found = ratios(times, row, hints)
        if len(found) and found.max() <= WORST:
            means[row] = mean(found)
    fast = [row for row in means if means[row] <= min(means.values()) * NOISE]
    changes = {row: sum(getattr(row, hint) != getattr(NEUTRAL, hint) for hint in hints) for row in fast}
    best = min(fast, key=lambda row: (changes[row], means[row]))
    return {hint: TYPES[hint](getattr(best, hint)) for hint in hints}


def choose(times: pd.DataFrame) -> Row:
    """times: the columns op, dim, those of a row, and us, a line a measurement."""
    return Row(**{hint: value for hints in TRIALS for hint, value in best_of(times, hints).items()})  # type: ignore[arg-type]


def code_of(value: bool | int | Apart) -> str:
    return f"Apart::{value.name}" if isinstance(value, Apart) else str(value).lower()


def as_code(gpu: Gpu, row: Row) -> str:
    """As it stands in kMeasured, the bandwidth to three digits: a row is for what is within 5 % of it."""
    digits = len(str(gpu.bandwidth)) - 3
    bandwidth = round(gpu.bandwidth, -digits) if digits > 0 else gpu.bandwidth
    values = [code_of(getattr(row, hint)) for hint in HINTS]
    return f"{{{gpu.capability}, {bandwidth}, {', '.join(values[:3])}, {{{', '.join(values[3:])}}}}}"


def gains(times: pd.DataFrame, row: Row) -> str:
    """What the row wins over the neutral one by hint and operation, the mean and the least of its dims."""
    lines = []
    for hints in TRIALS:
        for op, found in ratios(times, row, hints).groupby(level="op", sort=False):
            values = ", ".join(f"{hint} {code_of(getattr(row, hint))}" for hint in hints)
            lines.append([values, op, f"{100 * (1 - mean(found)):+.1f} %", f"{100 * (1 - found.max()):+.1f} %"])
    return pd.DataFrame(lines, columns=["hints", "op", "gain", "least, of a dim"]).to_markdown(index=False)


def report(times: pd.DataFrame, gpu: Gpu, present: Row) -> str:
    """The row to paste, its gains, and where it differs from what is there."""
    chosen = choose(times)
    text = f"The row of kMeasured in csrc/cuda/hints.h:\n\n    {as_code(gpu, chosen)}\n\n"
    if chosen == NEUTRAL:
        text = "Nothing is gained on this GPU: it needs no row of kMeasured in csrc/cuda/hints.h.\n\n"
    text += "Gains over the row of a GPU that nobody has measured:\n\n" + gains(times, chosen)
    if chosen == present:
        return text + "\n\nThe table has it already."
    rows = (present, chosen)
    names = [", ".join(hints) for hints in TRIALS]
    there, here = (pd.concat([ratios(times, row, hints) for hints in TRIALS], keys=names) for row in rows)
    both = pd.concat([there, here], axis=1, keys=["there", "here"]).fillna(1.0)  # not timed: as the neutral row
    slower = f"which takes {100 * (mean(both['there']) / mean(both['here']) - 1):+.1f} % of time:"
    return f"{text}\n\nThe table has another for this GPU, {as_code(gpu, present)}, {slower}\n\n{gains(times, present)}"
