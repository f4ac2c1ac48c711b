"""`python benchmarks/counters.py`: what the GPU's counters say of the kernel in some cells of the sweep.

Why a cell is off the roof: whether it moves more than it must, and what its warps wait for. Runs Nsight Compute (`ncu`)
on itself, which must be allowed to read the counters; clocks are left alone, caches are cold before each launch.
"""

import io
import pathlib
import shutil
import subprocess
import sys
from typing import Annotated

import pandas as pd
import torch
import typer

if not __package__:  # run as a script: this folder is `benchmarks`, and its srmsnorm counts where none is installed
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    import benchmarks  # noqa: F401

    sys.path.append(sys.path.pop(0))

from benchmarks.protocol.cell import Cell
from benchmarks.protocol.operations import DTYPES
from benchmarks.providers.own import Ours
from benchmarks.record.provenance import provenance
from benchmarks.suites import sweep

STALLS = ["long_scoreboard", "lg_throttle", "barrier", "short_scoreboard", "wait", "drain", "membar"]
STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
METRICS = {
    "us": "gpu__time_duration.sum",
    "DRAM (% of peak)": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "read": "dram__bytes_read.sum",
    "written": "dram__bytes_write.sum",
    "L2 sectors read": "lts__t_sectors_op_read.sum",
    "L2 sectors written": "lts__t_sectors_op_write.sum",
    "warps (% of most)": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "registers": "launch__registers_per_thread",
    "threads": "launch__block_size",
} | {name: STALL.format(name) for name in STALLS}
SECTOR = 32  # bytes


def parse(text: str) -> Cell:
    """DTYPE,OP,DIM of the sweep, at its size."""
    dtype, op, dim = text.split(",")
    elements = sweep.BYTES // DTYPES[dtype].itemsize
    return Cell("cuda", dtype, op, max(1, elements // int(dim)), int(dim))


def below(csv: pathlib.Path, least: float) -> list[str]:
    """The cells of a sweep's CSV in which ours reaches less of the roof."""
    frame = pd.read_csv(csv).query("status == 'ok'")
    times = frame.pivot_table(index=["dtype", "op", "dim"], columns="provider", values="value", sort=False)
    return [",".join(map(str, cell)) for cell in times.index[times["roof"] / times["ours"] < least]]


def launch(cells: list[Cell]) -> None:
    """In the process that is watched: the one call of each cell."""
    ours = Ours()
    for cell in cells:
        call = cell.operation.call(ours, cell.operands())
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        call()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def watched(cells: list[str]) -> pd.DataFrame:
    """A row a cell, by METRICS."""
    ncu = shutil.which("ncu")
    if ncu is None:
        raise typer.BadParameter("no ncu on the path; it comes with CUDA's toolkit")
    options = [
        "--profile-from-start",
        "off",
        "--clock-control",
        "none",
        "--csv",
        "--page",
        "raw",
        "--print-units",
        "base",
    ]
    command = [ncu, *options, "--metrics", ",".join(METRICS.values()), sys.executable, __file__, "--launch", *cells]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = [line for line in done.stdout.splitlines(keepends=True) if line.startswith('"')]
    if done.returncode != 0 or len(lines) != 2 + len(cells):
        raise RuntimeError(f"ncu ended with {done.returncode}: {done.stdout[-2000:]}")
    frame = pd.read_csv(io.StringIO("".join(lines)), skiprows=[1], thousands=",")
    return frame[list(METRICS.values())].set_axis(list(METRICS), axis=1)


def table(frame: pd.DataFrame, cells: list[Cell]) -> pd.DataFrame:
    """Bytes and sectors as multiples of what the call must move; the two of STALLS that warps wait for longest."""
    needed = pd.Series([cell.moved for cell in cells])
    stalls = frame[STALLS].apply(
        lambda row: ", ".join(f"{name} {value:.1f}" for name, value in row.nlargest(2).items()), axis=1
    )
    return pd.DataFrame({
        "cell": [str(cell) for cell in cells],
        "us": (frame["us"] / 1e3).round(1),
        "DRAM (% of peak)": frame["DRAM (% of peak)"].round(1),
        "DRAM bytes / needed": ((frame["read"] + frame["written"]) / needed).round(3),
        "L2 sectors / needed": ((frame["L2 sectors read"] + frame["L2 sectors written"]) * SECTOR / needed).round(3),
        "warps (% of most)": frame["warps (% of most)"].round(1),
        "registers": frame["registers"].astype(int),
        "threads": frame["threads"].astype(int),
        "warps stalled per issue": stalls,
    })  # fmt: skip


def main(
    cells: Annotated[list[str] | None, typer.Argument(help="DTYPE,OP,DIM as in the sweep.")] = None,
    csv: Annotated[
        pathlib.Path | None, typer.Option("--sweep", help="Its CSV: cells below --least.", exists=True)
    ] = None,
    least: Annotated[float, typer.Option(help="Of the roof.")] = 0.97,
    out: Annotated[pathlib.Path | None, typer.Option(help="The Markdown; default: it is printed.")] = None,
    launches: Annotated[bool, typer.Option("--launch", hidden=True)] = False,
) -> None:
    if not torch.cuda.is_available():
        raise typer.BadParameter("counters are a GPU's")
    names = [*(cells or []), *(below(csv, least) if csv else [])]
    if not names:
        raise typer.BadParameter("no cells: name some, or a sweep's CSV with --sweep")
    parsed = [parse(name) for name in names]
    if launches:
        launch(parsed)
        return
    of = provenance("cuda")
    head = f"{of['device']}, driver {of['driver']}, torch {of['torch']}, CUDA {of['cuda']}, commit {of['commit']}"
    text = f"# counters: {head}\n\n{table(watched(names), parsed).to_markdown(index=False)}\n"
    if out:
        out.write_text(text)
    print(text)


if __name__ == "__main__":
    typer.run(main)
