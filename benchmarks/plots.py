"""PNG and SVG of a suite's CSV."""

import pathlib
from typing import Any

import matplotlib
import pandas as pd
from report import COLUMNS, _ordered

matplotlib.use("Agg")
matplotlib.rcParams.update({"svg.hashsalt": "srmsnorm", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3})

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.ticker import NullLocator  # noqa: E402

OURS = ("operator", "inlined")
COLORS = {"ours": "tab:blue", "tr": "tab:red", "to": "tab:orange", "toc": "tab:green", "rms": "tab:purple"}


def plot(frame: pd.DataFrame, stem: pathlib.Path) -> list[pathlib.Path]:
    """Writes the suite's figures beside its CSV."""
    good = frame[frame["status"] == "ok"]
    if good.empty or frame["suite"].iloc[0] == "features":  # yes and no
        return []
    figures = {"tables": _tables, "kernels": _kernels, "host": _host, "fusion": _fusion}[frame["suite"].iloc[0]](good)
    written = []
    for suffix, figure in figures.items():
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            path = stem.with_name(f"{stem.name}{suffix}.{kind}")
            figure.savefig(path, dpi=150, metadata=metadata)
            written.append(path)
        plt.close(figure)
    return written


def _tables(frame: pd.DataFrame) -> dict[str, Any]:
    """Time and memory by n, as in the published figures."""
    groups = list(frame.groupby(["dtype", "dim"], sort=False))
    return {"" if len(groups) == 1 else f"-{t}-{d}": _by_n(group, f"dim {d}, {t}") for (t, d), group in groups}


def _by_n(frame: pd.DataFrame, what: str) -> Any:
    figure, axes = plt.subplots(2, 4, figsize=(14, 6.5), layout="constrained")
    kinds = [(op, residual) for op in ("forward", "backward") for residual in ("False", "True")]
    for line, metric in zip(axes, ("speed", "memory"), strict=True):
        for axis, (op, residual) in zip(line, kinds, strict=True):
            rows = frame[(frame["metric"] == metric) & (frame["op"] == op) & (frame["residual"] == residual)]
            for name in _ordered(rows["provider"]):
                own = rows[rows["provider"] == name].sort_values("n")
                axis.plot(own["n"], own["value"], marker="o", ms=3, label=name, color=COLORS.get(name))
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            lengths = sorted(set(rows["n"]))
            axis.set_xticks(lengths, [str(n) for n in lengths], rotation=45)
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set_title(f"{op}{', residual' if residual == 'True' else ''}")
            axis.set_xlabel("n")
        line[0].set_ylabel("time (ms)" if metric == "speed" else "peak memory (MiB)")
    axes[0][0].legend()
    first = frame.iloc[0]
    figure.suptitle(f"{first['device']}, batch {first['batch']}, {what}")
    return figure


def _kernels(frame: pd.DataFrame) -> dict[str, Any]:
    """Fraction of the roof, a group of bars for each operation."""
    cells = ["dtype", "op", "n", "dim"]
    roof = frame[frame["provider"] == "roof"].set_index(cells)["value"]
    bars = frame[frame["provider"] != "roof"]
    labels = list(dict.fromkeys(zip(*(bars[c] for c in cells), strict=True)))
    names = _ordered(bars["provider"])
    figure, axis = plt.subplots(figsize=(max(7, 1.2 * len(labels)), 4), layout="constrained")
    width = 0.8 / max(1, len(names))
    for i, name in enumerate(names):
        value = bars[bars["provider"] == name].set_index(cells)["value"]
        heights = [roof[c] / value[c] if c in value.index and c in roof.index else 0 for c in labels]
        axis.bar(
            [k + i * width for k in range(len(labels))],
            heights,
            width,
            label=COLUMNS.get(name, name),
            color=COLORS.get(name),
        )
    axis.axhline(1, color="black", lw=0.8)
    axis.set_xticks(
        [k + 0.4 - width / 2 for k in range(len(labels))], [f"{op}\n{t}\n{n} x {d}" for t, op, n, d in labels]
    )
    axis.set_ylabel("fraction of the roof")
    axis.set_title(frame["device"].iloc[0])
    axis.legend(ncols=len(names), loc="lower right")
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
