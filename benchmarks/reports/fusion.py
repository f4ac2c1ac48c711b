"""Compiled models, as ratios to the plain formula."""

import pandas as pd

from .common import figure, grid, noisy


def markdown(frame: pd.DataFrame, published: bool) -> list[str]:
    parts = [
        "Microseconds of one call of the compiled model, median; in parentheses the ratio to the plain formula. "
        '`inlined` is the operator under `srmsnorm.inline_under_compile()`, `auto` under "auto".'
    ]
    names = list(dict.fromkeys(frame["provider"]))
    for (dtype, batch, n, dim), group in frame.groupby(["dtype", "batch", "n", "dim"], sort=False):
        cells: dict[str, list[str]] = {"model": list(dict.fromkeys(group["op"]))}
        for name in names:
            cells[name] = []
            for op in cells["model"]:
                rows = group[group["op"] == op]
                value = rows[[row["status"] == "ok" and not noisy(row) for _, row in rows.iterrows()]]
                value = value.set_index("provider")["value"]
                ratio = f" ({value[name] / value['formula']:.3f})" if {name, "formula"} <= {*value.index} else ""
                cells[name].append(figure(rows[rows["provider"] == name], lambda v: f"{v:.1f}") + ratio)
        parts += [f"## Compiled models, {dtype}, {batch} x {n} x {dim}", grid(cells)]
    return parts
