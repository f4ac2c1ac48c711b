"""Live and peak memory."""

import pandas as pd

from .common import figure, grid, legend, ordered

NOTE = (
    "MiB allocated beyond operands and weights: kept after the call while its result is held, and the peak within it. "
    "`least` is what the caller asked for, the outputs and 4 bytes a row. The models' are 12 layers in training, after "
    "forward: the activations that backward waits for."
)


def markdown(frame: pd.DataFrame, published: bool) -> list[str]:
    names = ordered(frame["provider"])
    parts = [NOTE, *legend(names)]
    for dtype, of_dtype in frame.groupby("dtype", sort=False):
        for metric, rows in of_dtype.groupby("metric", sort=False):
            parts += [f"## {str(metric).capitalize()} (MiB), {dtype}", _grid(rows, names, "{:.1f}")]
    return parts


def _grid(frame: pd.DataFrame, names: list[str], form: str) -> str:
    table: dict[str, list[str]] = {"": []}
    for (op, dtype, rows, dim), group in frame.groupby(["op", "dtype", "n", "dim"], sort=False):
        table[""].append(f"{op}, {dtype}, {rows} x {dim}")
        for name in names:
            table.setdefault(name, []).append(figure(group[group["provider"] == name], form.format))
    return grid(table)
