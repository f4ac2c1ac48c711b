"""Whole models: each provider beside F.rms_norm, and ours beside the best of the others."""

import pandas as pd

from .common import figure, grid, legend, noisy, ordered

NOTE = (
    "Training is forward and backward without an optimizer's step; decode is of one token of each sequence, in a CUDA "
    "graph where there is a GPU, behind as many tokens as the heading says. In parentheses: relative to F.rms_norm. "
    "`/ best` compares with the best, `/ least` with the least of all other columns, `ours` and `auto` apart."
)
# Heading, how a figure is printed, what it is compared by, and which of the others' is the best.
METRICS = {
    "speed": ("Tokens a second", "{:.0f}", "best", max),
    "memory": ("Peak memory beyond weights, inputs and caches (MiB)", "{:.2f}", "least", min),
    "compile": ("Seconds to compile", "{:.2f}", "least", min),
}
OURS = ("ours", "auto")
BASE = "rms"


def markdown(frame: pd.DataFrame, published: bool) -> list[str]:
    names = ordered(frame["provider"])
    parts = [NOTE, *legend(names)]
    for metric, (title, *_) in METRICS.items():
        for (dtype, batch, n, dim), rows in frame[frame["metric"] == metric].groupby(
            ["dtype", "batch", "n", "dim"], sort=False
        ):
            where = f"{dtype}, {batch:.0f} x {n:.0f} tokens of {dim:.0f} features"
            parts += [f"## {title}, {where}", _grid(rows, names, metric), *_worst(rows, metric)]
    return parts


def _grid(frame: pd.DataFrame, names: list[str], metric: str) -> str:
    _, form, word, _ = METRICS[metric]
    table: dict[str, list[str]] = {"": []}
    for op, rows in frame.groupby("op", sort=False):
        line = {"": str(op)}
        good = _good(rows)
        for name in names:
            ratio = f" ({good[name] / good[BASE]:.3f})" if {name, BASE} <= {*good} and good[BASE] else ""
            line[name] = figure(rows[rows["provider"] == name], form.format) + ratio
        found = ratios(rows, metric)
        line |= {f"{name} / {word}": f"{found[name]:.3f}" if name in found else "" for name in OURS if name in names}
        for key, text in line.items():
            table.setdefault(key, []).append(text)
    return grid(table)


def ratios(rows: pd.DataFrame, metric: str) -> dict[str, float]:
    """Of one model and mode: ours, relative to the best that another has; "auto" also to the operator."""
    good, best = _good(rows), METRICS[metric][3]
    found = {}
    for name in OURS:
        others = [value for other, value in good.items() if other != name and not (name == "ours" and other == "auto")]
        if name in good and others and best(others):
            found[name] = good[name] / best(others)
    return found


def _good(rows: pd.DataFrame) -> dict[str, float]:
    """The last figure of each provider that has one."""
    kept = rows[[row["status"] == "ok" and not noisy(row) for _, row in rows.iterrows()]]
    return dict(zip(kept["provider"], kept["value"], strict=True))


def _worst(frame: pd.DataFrame, metric: str) -> list[str]:
    """Where ours is farthest behind, or least ahead."""
    _, _, word, best = METRICS[metric]
    of_ops = {str(op): ratios(rows, metric) for op, rows in frame.groupby("op", sort=False)}
    lines = []
    for name in OURS:
        found = [(of_op[name], op) for op, of_op in of_ops.items() if name in of_op]
        if found:
            ratio, op = min(found) if best is max else max(found)
            lines.append(f"`{name}` {ratio:.3f} ({op})")
    return [f"Farthest from the {word}, or least ahead: {'; '.join(lines)}."] if lines else []
