"""Few rows: microseconds on the GPU beside the roof, and of an eager call."""

import pathlib

import pandas as pd

from .cells import Cell, cells_of
from .common import figure, grid, legend, ordered, without_gpu

BEFORE = pathlib.Path(__file__).resolve().parent / "published/h200_small.csv"
NOTE = (
    "Microseconds, medians of rounds. On the GPU: one call in a CUDA graph of many, which leaves out what the host "
    "does. The roof is `copy_` or `torch.add` of the same tensors, launched likewise. `over roof`: ours less the roof."
)
NOTE_BEFORE = (
    "`before`: the best of torch.compile, quack, Liger, FLA, xopes and F.rms_norm, measured on an H200 with torch 2.11 "
    "for bf16 before this benchmark was written (`h200_small.csv`)."
)
CALL = (
    "The host's time for one eager call while the GPU keeps up; what `roof` does, into an existing output, beside it."
)


def markdown(frame: pd.DataFrame, published: bool) -> list[str]:
    gpu, calls = frame[frame["metric"] == "speed"], frame[frame["metric"] == "call"]
    where = "wall clock" if without_gpu(frame) else "GPU time"
    names = [name for name in ordered(frame["provider"]) if name not in ("ours", "roof")]
    parts = [NOTE, *([NOTE_BEFORE] if published else []), *legend(names)]
    for (dtype, op), group in gpu.groupby(["dtype", "op"], sort=False):
        lines = cells_of(group)
        parts += [f"## {dtype}, {op}: {where} (us)", _times(lines, names, published and dtype == "bf16")]
    for (dtype, op), group in calls.groupby(["dtype", "op"], sort=False):
        table = {"rows x dim": [_shape(cell) for cell in cells_of(group)]}
        table |= {name: [cell.time(name) for cell in cells_of(group)] for name in ["roof", "ours", *names]}
        parts += [f"## {dtype}, {op}: eager call (us)", CALL, grid(table)]
    return parts


def _times(lines: list[Cell], names: list[str], before: bool) -> str:
    return grid(
        {
            "rows x dim": [_shape(cell) for cell in lines],
            **{name: [cell.time(name) for cell in lines] for name in ["roof", "ours", *names]},
            "over roof": [_over(cell) for cell in lines],
            **({"before": [_before(cell) for cell in lines]} if before else {}),
            "best other": [cell.best for cell in lines],
            "ours / best": [f"{cell.ratio:.3f}" if cell.best else "" for cell in lines],
        }
    )


def _shape(cell: Cell) -> str:
    return f"{cell.rows} x {cell.dim}"


def _over(cell: Cell) -> str:
    """Of one run: ours less the roof."""
    if not cell.sure or cell.fraction["ours"] == 0:
        return ""
    own = cell.frame[cell.frame["provider"] == "ours"]
    return figure(own, lambda time: f"{time * (1 - cell.fraction['ours']):+.2f}")


def _before(cell: Cell) -> str:
    rows = pd.read_csv(BEFORE)
    rows = rows[(rows["rows"] == cell.rows) & (rows["dim"] == cell.dim) & (rows["op"] == cell.op)]
    return "" if rows.empty else f"{rows['best'].iloc[0]:.1f}"
