"""`python benchmarks/tune.py`: the launches that the plan could choose, timed on this GPU, beside the one it chooses.

For a maintainer with a new GPU: where "chosen / best" is above 1 by more than noise, csrc/cuda/plan.h has a threshold
or csrc/cuda/hints.h a row to look at. Compiles tune.cu with the nvcc that the build would take.
"""

import io
import pathlib
import runpy
import subprocess
import sys
import tempfile
from typing import Annotated

import pandas as pd
import torch
import typer

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

ELEMENTS = {"bf16": ("bfloat16", "bfloat16"), "fp16": ("half", "half"), "fp32": ("float", "float"),
            "mixed": ("bfloat16", "float")}  # fmt: skip
DTYPES = {"bfloat16": torch.bfloat16, "half": torch.float16, "float": torch.float32}
OPS = ["forward", "forward,residual", "forward,sum", "backward", "backward,sum"]
DIMS = "64,128,256,512,1024,2048,3001,4096,8192,12288,16384,28672,32768,65536,131072,262144"
PLAN = ["threads_per_row", "rows_per_block", "vectors", "cluster"]


def build(dtype: str, program: pathlib.Path) -> None:
    """nvcc as setup.py finds it, for the GPU that is here."""
    setup = runpy.run_path(str(HERE.parent / "setup.py"), run_name="tune")
    home = setup["find_toolkit"]()
    if home is None:
        raise typer.BadParameter("no nvcc suits this torch; setup.py says what to install")
    major, minor = torch.cuda.get_device_capability()
    element, beside = ELEMENTS[dtype]
    command = [str(home / "bin/nvcc"), "-std=c++20", "-O3", f"-arch=sm_{major}{minor}", f"-DELEMENT={element}",
               f"-DBESIDE={beside}", str(HERE / "tune.cu"), "-o", str(program)]  # fmt: skip
    subprocess.run(command, check=True)


def chosen(op: str, dim: int, dtype: str) -> tuple[int, ...]:
    """The plan's launch, by PLAN."""
    import srmsnorm

    element, beside = (DTYPES[name] for name in ELEMENTS[dtype])
    major = torch.cuda.get_device_capability()[0]
    plan = srmsnorm.launch_plan(
        dim, element, None if op == "forward" else beside, backward=op.startswith("backward"),
        grad_sum=op == "backward,sum", max_cluster=1 if major < 9 else 16 if major <= 10 else 8,
    )  # fmt: skip
    return tuple(int(plan[key]) for key in PLAN)


def table(frame: pd.DataFrame, dtype: str, top: int) -> str:
    """The fastest launches of each op and dim, and how far behind the plan's is."""
    lines = []
    for (op, dim), cell in frame.groupby(["op", "dim"], sort=False):
        ordered = cell.sort_values("us")
        best = ordered["us"].iloc[0]
        own = ordered[(ordered[PLAN] == chosen(op, dim, dtype)).all(axis=1) & (ordered["launched"] == 1)]
        names = [
            f"{row.threads_per_row}x{row.vectors}" + (f" rows {row.rows_per_block}" if row.rows_per_block > 1 else "")
            + (f" cluster {row.cluster}" if row.cluster > 1 else "") + (" kept" if row.kept else "")
            + (f" at most {row.resident}" if row.resident > 0 else " all that fit" if row.resident == 0 else "")
            for row in ordered.head(top).itertuples()
        ]  # fmt: skip
        ratio = f"{own['us'].min() / best:.3f}" if len(own) else "not timed"
        lines.append([op, dim, f"{best:.1f}", ratio, "; ".join(names)])
    header = ["op", "dim", "best (us)", "chosen / best", "best launches: threads x vectors"]
    return pd.DataFrame(lines, columns=header).to_markdown(index=False)


def main(
    ops: Annotated[str, typer.Option(help="Semicolon-separated.")] = ";".join(OPS),
    dims: Annotated[str, typer.Option(help="Comma-separated.")] = DIMS,
    dtype: Annotated[str, typer.Option(help=f"One of {', '.join(ELEMENTS)}.")] = "bf16",
    elements: Annotated[int, typer.Option(help="Of each operand.")] = 1 << 28,
    top: Annotated[int, typer.Option(help="Launches to print for a row.")] = 3,
    out: Annotated[pathlib.Path | None, typer.Option(help="The CSV.")] = None,
    program: Annotated[pathlib.Path | None, typer.Option(help="tune.cu as it is compiled already.")] = None,
) -> None:
    if not torch.cuda.is_available():
        raise typer.BadParameter("tuning needs a GPU")
    with tempfile.TemporaryDirectory() as folder:
        if program is None:
            program = pathlib.Path(folder) / "tune"
            build(dtype, program)
        done = subprocess.run([program, str(elements), ops, dims], check=True, stdout=subprocess.PIPE, text=True)
    if out:
        out.write_text(done.stdout)
    print(table(pd.read_csv(io.StringIO(done.stdout)), dtype, top))


if __name__ == "__main__":
    typer.run(main)
