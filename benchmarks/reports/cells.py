"""Cells of operation, dtype and shape: time, bandwidth, fraction of the roof, and the best of the others."""

import dataclasses
import pathlib

import pandas as pd

from .common import NOISY, UNLIKE, figure, grid, legend, noisy, ordered

PEERS = pathlib.Path(__file__).resolve().parent / "published/h200_peers.csv"
NOTE = (
    "Time of one call, median of rounds. The roof is a plain PyTorch operation that moves the same bytes, measured in "
    "the same rounds; a provider's figure is the fraction of it that it reaches, roof / time. GB/s counts the bytes "
    "that the operation must move. Last: the time of ours over that of the best other, measured in the same run."
)
NOTE_PEERS = (
    "`before`: the best of torch.compile, quack, Liger, FLA, xopes and F.rms_norm (of torch.compile alone with a sum), "
    "measured on an H200 with torch 2.11 for bf16 before this benchmark was written (`h200_peers.csv`)."
)


@dataclasses.dataclass
class Cell:
    """One line. Ratios are taken within a run: a provider that was measured in a later part has its own roof there."""

    dtype: str
    op: str
    rows: int
    dim: int
    frame: pd.DataFrame
    fraction: dict[str, float]  # of the roof, by provider
    noisy: set[str]
    best: str  # the fastest other
    ratio: float  # ours over it

    @classmethod
    def of(cls, frame: pd.DataFrame) -> "Cell":
        first = frame.iloc[0]
        fraction: dict[str, float] = {}
        unsure: set[str] = set()
        ratios: dict[str, float] = {}
        for _, run in frame[frame["status"] == "ok"].groupby("date"):
            rows = run.drop_duplicates("provider", keep="last").set_index("provider")
            value = rows["value"]
            bad = {name for name, row in rows.iterrows() if noisy(row)}
            for name in value.index:
                unsure = (unsure - {name}) | ({name} if {name, "roof"} & bad else set())
                if "roof" in value.index:
                    fraction[name] = value["roof"] / value[name]
                if name not in ("ours", "roof", *UNLIKE) and "ours" in value.index and not {name, "ours"} & bad:
                    ratios[name] = value["ours"] / value[name]
        best = max(ratios, key=lambda name: ratios[name], default="")
        return cls(
            first["dtype"], first["op"], int(first["n"]), int(first["dim"]), frame, fraction, unsure, best,
            ratios.get(best, float("nan")),
        )  # fmt: skip

    def time(self, name: str) -> str:
        return figure(self.frame[self.frame["provider"] == name], lambda v: f"{v:.2f}")

    def of_roof(self, name: str) -> str:
        if name in self.noisy:
            return NOISY
        if name in self.fraction:
            return f"{self.fraction[name]:.3f}"
        return figure(self.frame[self.frame["provider"] == name], lambda v: "")

    def bandwidth(self, name: str) -> str:
        own = self.frame[(self.frame["provider"] == name) & (self.frame["status"] == "ok")]
        return figure(own, lambda v: f"{own['bytes'].iloc[-1] / v / 1e3:.0f}")

    @property
    def roof(self) -> float:
        """GB/s of the roof, as measured last; 0 where it was not."""
        own = self.frame[(self.frame["provider"] == "roof") & (self.frame["status"] == "ok")]
        return 0.0 if own.empty else float(own["bytes"].iloc[-1] / own["value"].iloc[-1] / 1e3)

    @property
    def sure(self) -> bool:
        return "ours" in self.fraction and "ours" not in self.noisy


def cells_of(frame: pd.DataFrame) -> list[Cell]:
    return [Cell.of(rows) for _, rows in frame.groupby(["dtype", "op", "threads", "n", "dim"], sort=False)]


def markdown(frame: pd.DataFrame, published: bool) -> list[str]:
    names = [name for name in ordered(frame["provider"]) if name not in ("ours", "roof")]
    parts = [NOTE, *([NOTE_PEERS] if published else []), *legend(names), *summary(cells_of(frame))]
    threads = list(dict.fromkeys(frame["threads"]))
    for (dtype, op, count), group in frame.groupby(["dtype", "op", "threads"], sort=False):
        lines = sorted(cells_of(group), key=lambda cell: (cell.dim, cell.rows))
        several = f", {count} thread{'' if count == '1' else 's'}" if len(threads) > 1 else ""
        parts += [f"## {dtype}, {op}{several}", _grid(lines, names, published and dtype == "bf16")]
    return parts


def _grid(lines: list[Cell], names: list[str], before: bool) -> str:
    table = {
        "rows x dim": [f"{cell.rows} x {cell.dim}" for cell in lines],
        "roof (us)": [cell.time("roof") for cell in lines],
        "ours (us)": [cell.time("ours") for cell in lines],
        "GB/s": [cell.bandwidth("ours") for cell in lines],
        "ours": [cell.of_roof("ours") for cell in lines],
        **{name: [cell.of_roof(name) for cell in lines] for name in names},
        **({"before": [_before(cell) for cell in lines]} if before else {}),
        "best other": [cell.best for cell in lines],
        "ours / best": [f"{cell.ratio:.3f}" if cell.best else "" for cell in lines],
    }
    return grid(table)


def _before(cell: Cell) -> str:
    """Of the rows that hold a dim, the narrowest."""
    rows = pd.read_csv(PEERS)
    rows = rows[(rows["op"] == cell.op) & (rows["first"] <= cell.dim) & (cell.dim <= rows["last"])]
    if rows.empty:
        return ""
    row = rows.loc[(rows["last"] - rows["first"]).idxmin()]
    return f"{row['low']:.2f}" if row["low"] == row["high"] else f"{row['low']:.2f}–{row['high']:.2f}"


def summary(cells: list[Cell]) -> list[str]:
    """The worst cells, by name, and a line for each dtype and operation."""
    sure = [cell for cell in cells if cell.sure]
    compared = [cell for cell in sure if cell.best]
    if not sure:
        return []
    low = min(sure, key=lambda cell: cell.fraction["ours"])
    text = f"Worst cell: {_name(low)}, {low.fraction['ours']:.3f} of the roof."
    if compared:
        behind = max(compared, key=lambda cell: cell.ratio)
        text += (
            f" Farthest behind another, or least ahead: {_name(behind)}, {behind.ratio:.3f} of {behind.best}'s time."
        )
    return [text, grid(_summary_lines(cells))]


def _summary_lines(cells: list[Cell]) -> dict[str, list[str]]:
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.dtype, cell.op), []).append(cell)
    keys = ["dtype", "op", "cells", "least of the roof", "at dim", "cells >= 0.97", "most ours / best", "at its dim"]
    table: dict[str, list[str]] = {key: [] for key in keys}
    for (dtype, op), group in groups.items():
        sure = [cell for cell in group if cell.sure]
        compared = [cell for cell in sure if cell.best]
        low = min(sure, key=lambda cell: cell.fraction["ours"], default=None)
        behind = max(compared, key=lambda cell: cell.ratio, default=None)
        line = [
            dtype, op, str(len(group)),
            f"{low.fraction['ours']:.3f}" if low else "", str(low.dim) if low else "",
            str(sum(cell.fraction["ours"] >= 0.97 for cell in sure)),
            f"{behind.ratio:.3f}" if behind else "", f"{behind.dim} ({behind.best})" if behind else "",
        ]  # fmt: skip
        for key, text in zip(keys, line, strict=True):
            table[key].append(text)
    return table


def _name(cell: Cell) -> str:
    return f"{cell.dtype}, {cell.op}, {cell.rows} x {cell.dim}"
