"""PNG and SVG of a suite's CSV."""

import pathlib
from typing import Any

import matplotlib
import pandas as pd

from benchmarks.reports.cells import Cell, cells_of
from benchmarks.reports.common import COLUMNS, ordered

matplotlib.use("Agg")
matplotlib.rcParams.update({"svg.hashsalt": "srmsnorm", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3})

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator  # noqa: E402

OURS = ("ours", "operator", "inlined", "auto")
COLORS = {
    "ours": "tab:blue",
    "auto": "tab:cyan",
    "tr": "tab:red",
    "to": "tab:orange",
    "toc": "tab:green",
    "rms": "tab:purple",
    "tocm": "tab:olive",
    "roof": "black",
}


def plot(frame: pd.DataFrame, stem: pathlib.Path) -> list[pathlib.Path]:
    """Writes the suite's figures beside its CSV."""
    good = frame[frame["status"] == "ok"]
    if good.empty or frame["suite"].iloc[0] == "features":  # yes and no
        return []
    draw = {
        "tables": _tables,
        "sweep": _sweep,
        "cpu": _sweep,
        "neighbours": _sweep,
        "layouts": _layouts,
        "small": _small,
        "host": _host,
        "memory": _bars,
        "model": _models,
        "fusion": _fusion,
    }
    figures = draw[frame["suite"].iloc[0]](good)
    written = []
    for suffix, figure in figures.items():
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            path = stem.with_name(f"{stem.name}{suffix}.{kind}")
            figure.savefig(path, dpi=150, metadata=metadata)
            written.append(path)
        plt.close(figure)
    return written


def _tables(frame: pd.DataFrame) -> dict[str, Any]:
    """Time and memory by n, of the best of the others'."""
    groups = list(frame.groupby(["dtype", "dim"], sort=False))
    return {"" if len(groups) == 1 else f"-{t}-{d}": _by_n(group, f"dim {d}, {t}") for (t, d), group in groups}


def _by_n(frame: pd.DataFrame, what: str) -> Any:
    figure, axes = plt.subplots(2, 4, figsize=(14, 6.5), layout="constrained", sharey="row")
    kinds = [(op, residual) for op in ("forward", "backward") for residual in ("False", "True")]
    for line, metric in zip(axes, ("speed", "memory"), strict=True):
        for axis, (op, residual) in zip(line, kinds, strict=True):
            rows = frame[(frame["metric"] == metric) & (frame["op"] == op) & (frame["residual"] == residual)]
            _against_the_best(axis, rows)
            axis.set_title(f"{op}{', residual' if residual == 'True' else ''}")
        line[0].set_ylabel(f"{'time' if metric == 'speed' else 'peak memory'}, of the best other's")
    axes[0][0].legend()
    first = frame.iloc[0]
    figure.suptitle(f"{first['device']}, batch {first['batch']}, {what}")
    return figure


def _against_the_best(axis: Any, rows: pd.DataFrame) -> None:
    """Below 1 is better than all others."""
    best = rows[rows["provider"] != "ours"].groupby("n")["value"].min()
    for name in ordered(rows["provider"]):
        own = rows[(rows["provider"] == name) & rows["n"].isin(best.index)].sort_values("n")
        axis.plot(own["n"], own["value"].to_numpy() / best[own["n"]].to_numpy(), label=name, **_style(name))
    axis.axhline(1, color="black", lw=0.5)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}"))
    lengths = sorted(set(rows["n"]))
    axis.set_xticks(lengths, [str(n) for n in lengths], rotation=45)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("n")


def _style(name: str) -> dict[str, Any]:
    """Ours on top, and thicker: other lines coincide with it."""
    top = {"zorder": 4, "lw": 2} if name == "ours" else {"zorder": 2, "lw": 1.2}
    return {"color": COLORS.get(name), "marker": "o", "ms": 3, **top}


def _sweep(frame: pd.DataFrame) -> dict[str, Any]:
    """Fraction of the roof by dim: a row of panels for each dtype, a column for each operation."""
    kinds = list(dict.fromkeys(zip(frame["dtype"], frame["threads"], strict=True)))
    ops = list(dict.fromkeys(frame["op"]))
    size = (3.4 * len(ops), 2.7 * len(kinds) + 0.8)
    figure, axes = plt.subplots(len(kinds), len(ops), figsize=size, layout="constrained", squeeze=False, sharex=True)
    for line, (dtype, threads) in zip(axes, kinds, strict=True):
        for axis, op in zip(line, ops, strict=True):
            rows = frame[(frame["dtype"] == dtype) & (frame["threads"] == threads) & (frame["op"] == op)]
            _fractions(axis, cells_of(rows), [name for name in ordered(rows["provider"]) if name != "roof"])
            axis.set_title(f"{op}, {dtype}" + (f", {threads} threads" if len(set(frame["threads"])) > 1 else ""))
        line[0].set_ylabel("fraction of the roof")
    for axis in axes[-1]:
        axis.set_xlabel("dim (+: not a multiple of 16)")
    handles = {line.get_label(): line for axis in axes.flat for line in axis.get_lines() if line.get_label()[0] != "_"}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=max(1, len(handles)))
    figure.suptitle(frame["device"].iloc[0])
    return {"": figure}


def _fractions(axis: Any, cells: list[Cell], names: list[str]) -> None:
    """Odd dims are marks of their own: a line through them would be a zigzag."""
    cells = sorted((cell for cell in cells if cell.roof), key=lambda cell: (cell.dim, cell.rows))
    axis.axhline(1, color="black", lw=0.5)
    for name in names:
        for odd in (False, True):
            own = [cell for cell in cells if name in cell.fraction and (cell.dim % 16 != 0) == odd]
            style = _style(name) | ({"lw": 0, "marker": "+", "ms": 6} if odd else {})
            label = None if odd else COLUMNS.get(name, name)
            axis.plot([cell.dim for cell in own], [cell.fraction[name] for cell in own], label=label, **style)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda dim, _: f"{dim:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.tick_params("x", rotation=45)
    axis.set_ylim(bottom=0)
    axis.set_visible(bool(cells))


def _by_case(rows: pd.DataFrame, names: list[str], case: list[str]) -> dict[str, dict[Any, float]]:
    """By provider: its figures by what is in those columns."""
    return {name: rows[rows["provider"] == name].set_index(case)["value"].to_dict() for name in names}


def _grouped(draw: Any, values: dict[str, dict[Any, float]], cases: list[Any], downwards: bool = False) -> float:
    """A bar of each provider side by side for each case, where there is one; how broad a bar is."""
    breadth, way = 0.8 / len(values), -1 if downwards else 1
    for i, (name, own) in enumerate(values.items()):
        places = [way * (k + i * breadth) for k, case in enumerate(cases) if case in own]
        heights = [own[case] for case in cases if case in own]
        draw(places, heights, breadth, label=COLUMNS.get(name, name), color=COLORS.get(name))
    return breadth


def _layouts(frame: pd.DataFrame) -> dict[str, Any]:
    """Fraction of the roof, bars for each layout and dim."""
    cells, names = cells_of(frame), [name for name in ordered(frame["provider"]) if name != "roof"]
    if not names:
        return {}
    figure, axis = plt.subplots(figsize=(8, 0.3 * len(cells) + 1.5), layout="constrained")
    fractions = {
        name: {k: cell.fraction[name] for k, cell in enumerate(cells) if name in cell.fraction} for name in names
    }
    height = _grouped(axis.barh, fractions, list(range(len(cells))), downwards=True)
    axis.axvline(1, color="black", lw=1)
    axis.set_yticks([height / 2 - 0.4 - k for k in range(len(cells))], [f"{cell.op}, {cell.dim}" for cell in cells])
    axis.set_xlabel("fraction of the roof")
    axis.legend()
    figure.suptitle(frame["device"].iloc[0])
    return {"": figure}


def _small(frame: pd.DataFrame) -> dict[str, Any]:
    """GPU time of a call, bars for each shape."""
    frame = frame[(frame["metric"] == "speed") & (frame["dtype"] == frame["dtype"].iloc[0])]
    ops, names = list(dict.fromkeys(frame["op"])), ordered(frame["provider"])
    figure, axes = plt.subplots(
        1, len(ops), figsize=(6 * len(ops), 4.5), layout="constrained", squeeze=False, sharey=True
    )
    for axis, op in zip(axes[0], ops, strict=True):
        rows = frame[frame["op"] == op]
        shapes = list(dict.fromkeys(zip(rows["n"], rows["dim"], strict=True)))
        width = _grouped(axis.bar, _by_case(rows, names, ["n", "dim"]), shapes)
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda time, _: f"{time:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_xticks(
            [k + 0.4 - width / 2 for k in range(len(shapes))], [f"{n} x {dim}" for n, dim in shapes], rotation=45
        )
        axis.set_title(f"{op}, {frame['dtype'].iloc[0]}")
    axes[0][0].set_ylabel("time (us)")
    axes[0][0].legend()
    figure.suptitle(frame["device"].iloc[0])
    return {"": figure}


def _fusion(frame: pd.DataFrame) -> dict[str, Any]:
    return _host(frame, "time of a call (us)")


def _host(frame: pd.DataFrame, what: str = "host time (us)") -> dict[str, Any]:
    """Median microseconds of a call, p20 to p80 as a line."""
    ops = list(dict.fromkeys(frame["op"]))
    figure, axes = plt.subplots(1, len(ops), figsize=(6 * len(ops), 4), layout="constrained", squeeze=False)
    for axis, op in zip(axes[0], ops, strict=True):
        rows = frame[frame["op"] == op].drop_duplicates("provider").iloc[::-1]
        spread = [rows["value"] - rows["p20"], rows["p80"] - rows["value"]]
        color = ["tab:blue" if "srms" in name.lower() or name in OURS else "tab:gray" for name in rows["provider"]]
        axis.barh(rows["provider"], rows["value"], xerr=spread, color=color)
        axis.set_title(op)
        axis.set_xlabel(what)
    figure.suptitle(frame["device"].iloc[0])
    return {"": figure}


def _bars(frame: pd.DataFrame) -> dict[str, Any]:
    """A panel for each metric, a group of bars for each case."""
    metrics, names = list(dict.fromkeys(frame["metric"])), ordered(frame["provider"])
    figure, axes = plt.subplots(1, len(metrics), figsize=(7 * len(metrics), 5), layout="constrained", squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        rows = frame[frame["metric"] == metric]
        cases = list(dict.fromkeys(zip(rows["op"], rows["dtype"], strict=True)))
        _grouped(axis.barh, _by_case(rows, names, ["op", "dtype"]), cases, downwards=True)
        axis.set_yticks([-(k + 0.4) for k in range(len(cases))], [f"{op}, {dtype}" for op, dtype in cases])
        axis.set_xlabel(f"{metric} ({rows['unit'].iloc[0]})")
    axes[0][-1].legend()
    figure.suptitle(frame["device"].iloc[0])
    return {"": figure}


def _models(frame: pd.DataFrame) -> dict[str, Any]:
    """Tokens a second of F.rms_norm's, a panel for each size; ours are the larger marks, and on top."""
    speed = frame[frame["metric"] == "speed"]
    sizes = [rows for _, rows in speed.groupby(["dtype", "batch", "n", "dim"], sort=False)]
    height = 0.22 * max(rows["op"].nunique() for rows in sizes) + 1.5
    figure, axes = plt.subplots(1, len(sizes), figsize=(8 * len(sizes), height), layout="constrained", squeeze=False)
    for axis, rows in zip(axes[0], sizes, strict=True):
        places = {op: -k for k, op in enumerate(dict.fromkeys(rows["op"]))}
        base = rows[rows["provider"] == "rms"].set_index("op")["value"]
        for name in [name for name in ordered(rows["provider"]) if name != "rms"]:
            own = rows[(rows["provider"] == name) & rows["op"].isin(base.index)]
            of_base = own["value"].to_numpy() / base[own["op"]].to_numpy()
            mark = {"s": 36, "zorder": 4} if name in OURS else {"s": 16, "zorder": 2}
            axis.scatter(of_base, own["op"].map(places), label=COLUMNS.get(name, name), color=COLORS.get(name), **mark)
        axis.axvline(1, color="black", lw=0.5)
        axis.set_yticks(list(places.values()), list(places))
        first = rows.iloc[0]
        axis.set_title(f"{first['dtype']}, {first['batch']:.0f} x {first['n']:.0f} x {first['dim']:.0f}")
        axis.set_xlabel("tokens a second, of F.rms_norm's")
    axes[0][-1].legend()
    figure.suptitle(frame["device"].iloc[0])
    return {"": figure}
