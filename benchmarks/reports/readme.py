"""The tables of the project's README, from the CSVs of one machine, and the sweeps of others."""

import os
import pathlib
from collections.abc import Sequence

import pandas as pd

from . import cells, tables
from .common import COLUMNS, failures, grid, ordered, read


def section(folder: pathlib.Path, root: pathlib.Path, others: Sequence[pathlib.Path] = ()) -> str:
    """What stands between the markers; links are relative to `root`."""
    parts = _tables(folder / "tables.csv", _link(folder, root))
    if (folder / "sweep.csv").exists():
        parts += _sweep(folder / "sweep.csv", _link(folder, root))
    for other in others:
        parts += _sweep_of_another(other / "sweep.csv", _link(other, root))
    return "\n\n".join(parts) + "\n"


def _link(folder: pathlib.Path, root: pathlib.Path) -> str:
    return pathlib.PurePath(os.path.relpath(folder, root)).as_posix()


def _tables(path: pathlib.Path, link: str) -> list[str]:
    frame = read(path)
    frame = frame[(frame["batch"] == 4) & (frame["dim"] == 2048) & (frame["dtype"] == "bf16")]
    if frame.empty:
        raise ValueError(f"{path} has no results at batch 4, dim 2048, bf16")
    first, names = frame.iloc[0], ordered(frame["provider"])
    longest = int(frame["n"].max())
    legend = ", ".join(f"`{name}` {COLUMNS[name]}" for name in names if name in COLUMNS)
    return [
        f"One {first['device']}, torch {first['torch']}, CUDA {first['cuda']}: x of 4 × n × 2048 in bfloat16; speed in "
        f"milliseconds, memory in MiB. `ours` is srmsnorm, {legend}. `H100` are the figures published for an H100 with "
        "another Triton kernel. How each figure is measured, and what it does not mean: "
        "[benchmarks/README.md](benchmarks/README.md).",
        f"n = {longest} ([every n]({link}/tables.md), [drawn]({link}/tables.png)):",
        grid(lines(frame, names, longest)),
        *failures(frame[frame["n"] == longest]),
    ]


def lines(frame: pd.DataFrame, names: list[str], n: int) -> dict[str, list[str]]:
    """A line for each of the eight tables."""
    table: dict[str, list[str]] = {}
    for kind in tables.KINDS:
        metric, op, residual = kind
        rows = tables.of_kind(frame, kind)
        if rows.empty:
            continue
        line = {
            "": [f"{metric}, {op}{', residual' if residual == 'True' else ''}"],
            **tables.columns(rows, names, [n], metric),
            **tables.published_columns(metric, op, residual, [n], tables.form(metric)),
        }
        for key, column in line.items():
            table.setdefault(key, []).extend(column)
    return table


def _sweep(path: pathlib.Path, link: str) -> list[str]:
    frame = read(path)
    return [
        "Over dims and dtypes, as fractions of the roof, the time of a plain PyTorch operation that moves the same "
        f"bytes ([every cell]({link}/sweep.md)):",
        *cells.summary(cells.cells_of(frame)),
        f"![fraction of the roof by dim]({link}/sweep.png)",
    ]


def _sweep_of_another(path: pathlib.Path, link: str) -> list[str]:
    frame = read(path)
    beside = ", ".join(COLUMNS[name] for name in ordered(frame["provider"]) if name in COLUMNS and name != "ours")
    return [
        f"The sweep on one {frame.iloc[0]['device']}, {' and '.join(frame['dtype'].unique())} beside {beside}, as "
        f"fractions of its own roof ([every cell]({link}/sweep.md), [drawn]({link}/sweep.png)):",
        *cells.summary(cells.cells_of(frame)),
    ]
