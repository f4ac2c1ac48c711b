"""The tables of the project's README, from the CSVs of one machine, and the tables and sweeps of others."""

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
        if (other / "tables.csv").exists():
            parts += _tables_of_another(other / "tables.csv", _link(other, root))
        parts += _sweep_of_another(other / "sweep.csv", _link(other, root))
    return "\n\n".join(parts) + "\n"


def _link(folder: pathlib.Path, root: pathlib.Path) -> str:
    return pathlib.PurePath(os.path.relpath(folder, root)).as_posix()


def _published_sizes(path: pathlib.Path) -> tuple[pd.DataFrame, list[str], int]:
    """What was measured at the published batch, dim and dtype, the providers and the longest sequence."""
    frame = read(path)
    frame = frame[(frame["batch"] == 4) & (frame["dim"] == 2048) & (frame["dtype"] == "bf16")]
    if frame.empty:
        raise ValueError(f"{path} has no results at batch 4, dim 2048, bf16")
    return frame, ordered(frame["provider"]), int(frame["n"].max())


def _tables(path: pathlib.Path, link: str) -> list[str]:
    frame, names, longest = _published_sizes(path)
    first = frame.iloc[0]
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


def _tables_of_another(path: pathlib.Path, link: str) -> list[str]:
    frame, names, longest = _published_sizes(path)
    return [
        f"The same on one {frame.iloc[0]['device']}, n = {longest}, of commit {', '.join(frame['commit'].unique())} "
        f"([every n]({link}/tables.md), [drawn]({link}/tables.png)):",
        grid(lines(frame, names, longest, published=False)),
        *failures(frame[frame["n"] == longest]),
    ]


def lines(frame: pd.DataFrame, names: list[str], n: int, published: bool = True) -> dict[str, list[str]]:
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
            **(tables.published_columns(metric, op, residual, [n], tables.form(metric)) if published else {}),
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


def _company(frame: pd.DataFrame) -> str:
    """Which dtypes were timed beside whom, at how many dims, and which alone."""
    dtypes: dict[str, list[str]] = {}
    for dtype, rows in frame.groupby("dtype", sort=False):
        dims = rows.groupby("provider")["dim"].nunique()
        others = [
            COLUMNS[name] + (f" (at {dims[name]} of {dims['ours']} dims)" if dims[name] < dims["ours"] else "")
            for name in ordered(rows["provider"])
            if name in COLUMNS and name != "ours"
        ]
        dtypes.setdefault(f"beside {', '.join(others)}" if others else "alone", []).append(str(dtype))
    return "; ".join(f"{', '.join(names)} {company}" for company, names in dtypes.items())


def _sweep_of_another(path: pathlib.Path, link: str) -> list[str]:
    frame = read(path)
    return [
        f"The sweep on one {frame.iloc[0]['device']}, as fractions of its own roof, {_company(frame)} "
        f"([every cell]({link}/sweep.md), [drawn]({link}/sweep.png)):",
        *cells.summary(cells.cells_of(frame)),
    ]
