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


def models(frame: pd.DataFrame, published: bool) -> list[str]:
    """Tokens a second and peak memory of whole models."""
    first, names = frame.iloc[0], ordered(frame["provider"])
    note = (
        f"{first['dim']} features, {first['batch']} x {first['n']} tokens; training is forward and backward "
        "without an optimizer's step. `ours / best` compares the tokens a second."
    )
    speed, memory = (frame[frame["metric"] == metric] for metric in ("speed", "memory"))
    return [
        note, *legend(names),
        "## Tokens a second", _grid(speed, names, "{:.0f}", ratio=True),
        "## Peak memory beyond weights and inputs (MiB)", _grid(memory, names, "{:.1f}"),
    ]  # fmt: skip


def _grid(frame: pd.DataFrame, names: list[str], form: str, ratio: bool = False) -> str:
    table: dict[str, list[str]] = {"": []}
    for (op, dtype, rows, dim), group in frame.groupby(["op", "dtype", "n", "dim"], sort=False):
        line = {"": f"{op}, {dtype}, {rows} x {dim}"}
        line |= {name: figure(group[group["provider"] == name], form.format) for name in names}
        if ratio:
            good = (
                group[group["status"] == "ok"].drop_duplicates("provider", keep="last").set_index("provider")["value"]
            )
            others = good.drop("ours", errors="ignore")
            line["ours / best"] = f"{good['ours'] / others.max():.3f}" if "ours" in good and len(others) else ""
        for key, text in line.items():
            table.setdefault(key, []).append(text)
    return grid(table)
