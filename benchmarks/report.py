"""From a CSV alone: Markdown tables and plots. The same CSV gives the same bytes."""

import pathlib
from collections.abc import Callable

import pandas as pd

PUBLISHED = pathlib.Path(__file__).with_name("h100_tables.csv")
ORDER = ["ours", "tr", "to", "toc", "rms", "roof"]
COLUMNS = {
    "tr": "Triton kernel of this benchmark",
    "to": "eager PyTorch",
    "toc": "torch.compile",
    "rms": "F.rms_norm",
}


def read(path: pathlib.Path) -> pd.DataFrame:
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    for column in ("value", "p20", "p80", "n", "dim", "batch"):
        frame[column] = pd.to_numeric(frame[column])
    return frame


def markdown(frame: pd.DataFrame, published: bool = False) -> str:
    """Everything a suite prints."""
    if frame.empty:
        return "Nothing was measured.\n"
    suite = frame["suite"].iloc[0]
    bodies = {
        "tables": lambda f: _tables(f, published),
        "kernels": _kernels,
        "host": _host,
        "fusion": _fusion,
        "features": features,
    }
    body = bodies[suite](frame)
    return "\n\n".join([_head(frame, suite), *body, *_failures(frame)]) + "\n"


def _head(frame: pd.DataFrame, suite: str) -> str:
    first = frame.iloc[0]
    gpu = first["cuda"] != ""
    versions = [f"torch {first['torch']}"]
    if gpu:
        versions += [f"CUDA {first['cuda']}", f"driver {first['driver']}", f"Triton {first['triton']}"]
    else:
        versions += [f"{first['threads']} threads"]
    made = f"srmsnorm {first['srmsnorm']} ({first['commit']}), {first['date']}"
    lines = [f"# {suite}: {first['device']}", f"{', '.join(versions)}; {made}."]
    if not gpu:
        lines.append(
            "**CPU edition**: no GPU was used. Sizes are small, times are by the wall clock, and nothing here says "
            "anything about a GPU."
        )
    return "\n\n".join(lines)


def _failures(frame: pd.DataFrame) -> list[str]:
    failed = frame[frame["status"] != "ok"].drop_duplicates(["provider", "status"])
    if failed.empty or frame["suite"].iloc[0] == "features":  # says so itself
        return []
    return ["Without a figure:\n\n" + "\n".join(f"- {row.provider}: {row.status}" for row in failed.itertuples())]


def _ordered(names: pd.Series) -> list[str]:
    there = list(dict.fromkeys(names))
    return [name for name in ORDER if name in there] + [name for name in there if name not in ORDER]


def _grid(cells: dict[str, list[str]]) -> str:
    return pd.DataFrame(cells).to_markdown(index=False, disable_numparse=True, colalign=["right"] * len(cells))


def _figure(rows: pd.DataFrame, form: Callable[[float], str]) -> str:
    """One result's figure, or a word for why there is none."""
    if rows.empty:
        return ""
    row = rows.iloc[-1]
    return form(row["value"]) if row["status"] == "ok" else row["status"].split(":")[0]


def _tables(frame: pd.DataFrame, published: bool) -> list[str]:
    parts = []
    names = _ordered(frame["provider"])
    kinds = [(m, o, r) for m in ("speed", "memory") for o in ("forward", "backward") for r in ("False", "True")]
    for (dtype, dim, batch), group in frame.groupby(["dtype", "dim", "batch"], sort=False):
        for metric, op, residual in kinds:
            rows = group[(group["metric"] == metric) & (group["op"] == op) & (group["residual"] == residual)]
            if rows.empty:
                continue
            unit, protocol = rows["unit"].iloc[0], rows["protocol"].iloc[0]
            with_residual = "with residual" if residual == "True" else "without residual"
            title = f"## {metric.capitalize()} ({unit}), {op}, {with_residual}"
            note = f"batch {batch}, dim {dim}, {dtype}; {protocol}"
            lengths = sorted(set(rows["n"]))
            form = (lambda v: f"{v:.4f}") if metric == "speed" else (lambda v: f"{v:.1f}")
            cells = {"n": [str(n) for n in lengths]}
            for name in names:
                of_name = rows[rows["provider"] == name]
                cells[name] = [_figure(of_name[of_name["n"] == n], form) for n in lengths]
            if published and (batch, dim, dtype) == (4, 2048, "bf16"):
                cells |= _published(metric, op, residual, lengths, form)
            parts += [title, note, _grid(cells)]
    legend = "; ".join(f"`{name}` {COLUMNS[name]}" for name in names if name in COLUMNS)
    return [legend, *parts] if legend else parts


def _published(
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


def _kernels(frame: pd.DataFrame) -> list[str]:
    parts = [
        "Microseconds of one call, median; in parentheses the fraction of the roof, which is the time of a plain "
        "PyTorch operation that moves the same bytes, measured in the same rounds. Last: the time of ours over that of "
        "the best of the others, and the widest p20 to p80 of the row."
    ]
    names = _ordered(frame["provider"])
    peers = [name for name in names if name not in ("ours", "roof")]
    for dtype, group in frame.groupby("dtype", sort=False):
        cells: dict[str, list[str]] = {
            key: [] for key in ["op", "rows x dim", "roof", *(n for n in names if n != "roof"), "ours / best", "spread"]
        }
        for (op, rows, dim), cell in group.groupby(["op", "n", "dim"], sort=False):
            good = cell[cell["status"] == "ok"].set_index("provider")
            value = good["value"]
            cells["op"].append(op)
            cells["rows x dim"].append(f"{rows} x {dim}")
            for name in dict.fromkeys(["roof", *names]):
                fraction = f" ({value['roof'] / value[name]:.3f})" if {"roof", name} <= {*value.index} else ""
                own = cell[cell["provider"] == name]
                cells[name].append(_figure(own, lambda v: f"{v:.2f}") + ("" if name == "roof" else fraction))
            best = min((value[name] for name in peers if name in value.index), default=None)
            cells["ours / best"].append(f"{value['ours'] / best:.3f}" if best and "ours" in value.index else "")
            spread = ((good["p80"] - good["p20"]) / value).max() if len(good) else float("nan")
            cells["spread"].append(f"{spread:.1%}" if spread == spread else "")
        parts += [f"## Kernels, {dtype}", _grid(cells)]
    return parts


def _host(frame: pd.DataFrame) -> list[str]:
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
        parts += [f"## Host time, {dtype}, {rows} x {dim}", _grid(cells)]
    return parts


def _host_figure(rows: pd.DataFrame) -> str:
    if rows.empty or rows["status"].iloc[-1] != "ok":
        return _figure(rows, str)
    row = rows.iloc[-1]
    return f"{row['value']:.2f} ({row['p20']:.2f}–{row['p80']:.2f})"


def _fusion(frame: pd.DataFrame) -> list[str]:
    parts = [
        "Microseconds of one call of the compiled model, median; in parentheses the ratio to the plain formula. "
        "`inlined` is the operator under `srmsnorm.inline_under_compile()`."
    ]
    names = list(dict.fromkeys(frame["provider"]))
    for (dtype, batch, n, dim), group in frame.groupby(["dtype", "batch", "n", "dim"], sort=False):
        cells: dict[str, list[str]] = {"model": list(dict.fromkeys(group["op"]))}
        for name in names:
            cells[name] = []
            for op in cells["model"]:
                rows = group[group["op"] == op]
                value = rows[rows["status"] == "ok"].set_index("provider")["value"]
                ratio = f" ({value[name] / value['formula']:.3f})" if {name, "formula"} <= {*value.index} else ""
                cells[name].append(_figure(rows[rows["provider"] == name], lambda v: f"{v:.1f}") + ratio)
        parts += [f"## Compiled models, {dtype}, {batch} x {n} x {dim}", _grid(cells)]
    return parts


def page(frame: pd.DataFrame) -> str:
    """What docs/pytorch.md says of the features."""
    first = frame.iloc[0]
    versions = ["torch", *(["cuda", "triton"] if first["cuda"] else [])]
    where = ", ".join([first["device"], *(f"{name} {first[name]}" for name in versions)])
    commit = f"{first['srmsnorm']} ({first['commit'][:12]})"
    return "\n\n".join([*features(frame), f"{where}; srmsnorm {commit}, {first['date'][:10]}."]) + "\n"


def features(frame: pd.DataFrame) -> list[str]:
    """A table of yes and no, and every no with what happened."""
    candidates = list(dict.fromkeys(frame["provider"]))
    cells: dict[str, list[str]] = {"": [], **{name: [] for name in candidates}}
    reasons = []
    for group, features in frame.groupby("metric", sort=False):
        cells[""].append(f"**{group}**")
        for name in candidates:
            cells[name].append("")
        for feature, rows in features.groupby("op", sort=False):
            cells[""].append(feature)
            status = rows.set_index("provider")["status"]
            for name in candidates:
                cells[name].append("" if name not in status.index else "yes" if status[name] == "ok" else "no")
            failed = [name for name in candidates if status.get(name, "ok") != "ok"]
            reasons += [f"- {feature}, {name}: `{status[name][:160].replace('`', '')}`" for name in failed]
    table = pd.DataFrame(cells).to_markdown(index=False, disable_numparse=True)
    return [table, "What happened where it says no:\n\n" + "\n".join(reasons)] if reasons else [table]
