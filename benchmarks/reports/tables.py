"""The eight published tables."""

import pathlib
from collections.abc import Callable

import pandas as pd

from .common import figure, grid, legend, ordered

PUBLISHED = pathlib.Path(__file__).resolve().parent / "published/h100_tables.csv"
KINDS = [(m, o, r) for m in ("speed", "memory") for o in ("forward", "backward") for r in ("False", "True")]


def markdown(frame: pd.DataFrame, published: bool) -> list[str]:
    parts = []
    names = ordered(frame["provider"])
    for (dtype, dim, batch), group in frame.groupby(["dtype", "dim", "batch"], sort=False):
        for metric, op, residual in KINDS:
            rows = of_kind(group, (metric, op, residual))
            if rows.empty:
                continue
            unit, protocol = rows["unit"].iloc[0], rows["protocol"].iloc[0]
            with_residual = "with residual" if residual == "True" else "without residual"
            title = f"## {metric.capitalize()} ({unit}), {op}, {with_residual}"
            note = f"batch {batch}, dim {dim}, {dtype}; {protocol}"
            lengths = sorted(set(rows["n"]))
            cells = {"n": [str(n) for n in lengths], **columns(rows, names, lengths, metric)}
            if published and (batch, dim, dtype) == (4, 2048, "bf16"):
                cells |= published_columns(metric, op, residual, lengths, form(metric))
            parts += [title, note, grid(cells)]
    return [*legend(names), *parts]


def of_kind(frame: pd.DataFrame, kind: tuple[str, str, str]) -> pd.DataFrame:
    metric, op, residual = kind
    return frame[(frame["metric"] == metric) & (frame["op"] == op) & (frame["residual"] == residual)]


def form(metric: str) -> Callable[[float], str]:
    return (lambda v: f"{v:.4f}") if metric == "speed" else (lambda v: f"{v:.1f}")


def columns(rows: pd.DataFrame, names: list[str], lengths: list[int], metric: str) -> dict[str, list[str]]:
    """A column for each provider."""
    return {
        name: [figure(rows[(rows["provider"] == name) & (rows["n"] == n)], form(metric)) for n in lengths]
        for name in names
    }


def published_columns(
    metric: str, op: str, residual: str, lengths: list[int], form: Callable[[float], str]
) -> dict[str, list[str]]:
    """The columns published for an H100."""
    frame = pd.read_csv(PUBLISHED, dtype={"residual": str})
    direction = {"forward": "fwd", "backward": "bwd"}[op]
    rows = frame[(frame["metric"] == metric) & (frame["direction"] == direction) & (frame["residual"] == residual)]
    by_n = rows.set_index("n")
    return {
        f"H100 {name}": [form(by_n.loc[n, name]) if n in by_n.index else "" for n in lengths]
        for name in ("tr", "to", "toc")
    }
