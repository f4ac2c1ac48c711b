"""Host time of a call."""

import pandas as pd

from .common import NOISY, figure, grid, noisy


def markdown(frame: pd.DataFrame, published: bool) -> list[str]:
    parts = ["Microseconds of the host in one eager call, median (p20–p80), and the ratio to `F.rms_norm`."]
    for (dtype, rows, dim), group in frame.groupby(["dtype", "n", "dim"], sort=False):
        names = list(dict.fromkeys(group["provider"]))
        cells: dict[str, list[str]] = {"call": [f"`{name}`" for name in names]}
        for op, column in group.groupby("op", sort=False):
            good = column[column["status"] == "ok"].set_index("provider")
            base = good["value"].get("F.rms_norm")
            cells[op] = [_host_figure(column[column["provider"] == name]) for name in names]
            cells[f"{op}, ratio"] = [
                f"{good['value'][name] / base:.2f}" if base and name in good.index else "" for name in names
            ]
        parts += [f"## Host time, {dtype}, {rows} x {dim}", grid(cells)]
    return parts


def _host_figure(rows: pd.DataFrame) -> str:
    if rows.empty or rows["status"].iloc[-1] != "ok":
        return figure(rows, str)
    row = rows.iloc[-1]
    if noisy(row):
        return NOISY
    return f"{row['value']:.2f} ({row['p20']:.2f}–{row['p80']:.2f})"
