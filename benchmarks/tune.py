"""`python benchmarks/tune.py`: what a maintainer with a new GPU runs, in two commands.

`tune.py` times the rows that the table of hints could have for this GPU and prints the one to paste into
csrc/cuda/hints.h, with its gains, and where it differs from what is there (a few minutes, most of them the compiler's).
`tune.py plan` times the launches that the plan could choose, beside the one it chooses: where "chosen / best" is above
1 by more than noise, csrc/cuda/plan.h has a threshold to look at. Both compile what they time (hints.cu, tune.cu) with
the nvcc that the build would take.
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
sys.path.insert(0, str(HERE.parent))  # the package of this tree, whatever else is called benchmarks
from benchmarks import hint_rows  # noqa: E402

sys.path.append(sys.path.pop(0))

ELEMENTS = {"bf16": ("bfloat16", "bfloat16"), "fp16": ("half", "half"), "fp32": ("float", "float"),
            "mixed": ("bfloat16", "float")}  # fmt: skip
DTYPES = {"bfloat16": torch.bfloat16, "half": torch.float16, "float": torch.float32}
OPS = ["forward", "forward,residual", "forward,sum", "backward", "backward,sum"]
DIMS = "64,128,256,512,1024,2048,3001,4096,8192,12288,16384,28672,32768,65536,131072,262144"
PLAN = ["threads_per_row", "rows_per_block", "vectors", "cluster"]
HINTED_DIMS = "9,31,33,64,96,1024,2048,4096,6144,8192,12288,16384,32768,65536,131072"
ELEMENTS_HELP = "Of each operand."
PROGRAM_HELP = "The program as it is compiled already."


def build(source: str, dtype: str, program: pathlib.Path) -> None:
    """nvcc as setup.py finds it, for the GPU that is here."""
    setup = runpy.run_path(str(HERE.parent / "setup.py"), run_name="tune")
    home = setup["find_toolkit"]()
    if home is None:
        raise typer.BadParameter("no nvcc suits this torch; setup.py says what to install")
    major, minor = torch.cuda.get_device_capability()
    element, beside = ELEMENTS[dtype]
    command = [str(home / "bin/nvcc"), "-std=c++20", "-O3", "--expt-relaxed-constexpr", f"-arch=sm_{major}{minor}",
               f"-DELEMENT={element}", f"-DBESIDE={beside}", str(HERE / source), "-o", str(program)]  # fmt: skip
    subprocess.run(command, check=True)


def output_of(source: str, dtype: str, program: pathlib.Path | None, *arguments: str) -> str:
    if not torch.cuda.is_available():
        raise typer.BadParameter("tuning needs a GPU")
    with tempfile.TemporaryDirectory() as folder:
        if program is None:
            program = pathlib.Path(folder) / "program"
            build(source, dtype, program)
        return subprocess.run([program, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def chosen(op: str, dim: int, dtype: str) -> tuple[int, ...]:
    """The plan's launch, by PLAN."""
    import srmsnorm

    element, beside = (DTYPES[name] for name in ELEMENTS[dtype])
    operator = "_srms_norm_backward_input" if op.startswith("backward") else "srms_norm"
    residual = None if op == "forward" else beside
    plan = srmsnorm.launch_plan(operator, dim, element, residual, grad_sum=op == "backward,sum")
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


def read_hints(text: str) -> tuple[hint_rows.Gpu, hint_rows.Row, pd.DataFrame]:
    """What hints.cu prints: the GPU and its present row in one line, then a CSV."""
    first, rest = text.split("\n", 1)
    capability, bandwidth, *values = (int(number) for number in first.split(","))
    present = hint_rows.Row(*(of(value) for of, value in zip(hint_rows.TYPES.values(), values, strict=True)))
    flags = {hint: bool for hint, of in hint_rows.TYPES.items() if of is bool}
    return hint_rows.Gpu(capability, bandwidth), present, pd.read_csv(io.StringIO(rest)).astype(flags)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def hints(
    context: typer.Context,
    ops: Annotated[str, typer.Option(help="Semicolon-separated.")] = ";".join(hint_rows.OPS),
    dims: Annotated[str, typer.Option(help="Comma-separated.")] = HINTED_DIMS,
    elements: Annotated[int, typer.Option(help=ELEMENTS_HELP)] = 1 << 28,
    rounds: Annotated[int, typer.Option(help="All rows take turns in each.")] = 15,
    out: Annotated[pathlib.Path | None, typer.Option(help="What was measured.")] = None,
    program: Annotated[pathlib.Path | None, typer.Option(help=PROGRAM_HELP)] = None,
) -> None:
    """The row of the table of hints for this GPU, in bfloat16."""
    if context.invoked_subcommand:
        return
    text = output_of("hints.cu", "bf16", program, str(elements), ops, dims, str(rounds))
    if out:
        out.write_text(text)
    gpu, present, times = read_hints(text)
    print(f"{torch.cuda.get_device_name()}, bfloat16, {elements} elements\n")
    print(hint_rows.report(times, gpu, present))


@app.command()
def plan(
    ops: Annotated[str, typer.Option(help="Semicolon-separated.")] = ";".join(OPS),
    dims: Annotated[str, typer.Option(help="Comma-separated.")] = DIMS,
    dtype: Annotated[str, typer.Option(help=f"One of {', '.join(ELEMENTS)}.")] = "bf16",
    elements: Annotated[int, typer.Option(help=ELEMENTS_HELP)] = 1 << 28,
    top: Annotated[int, typer.Option(help="Launches to print for a row.")] = 3,
    out: Annotated[pathlib.Path | None, typer.Option(help="The CSV.")] = None,
    program: Annotated[pathlib.Path | None, typer.Option(help=PROGRAM_HELP)] = None,
) -> None:
    """The launches that the plan could choose, beside the one it chooses."""
    text = output_of("tune.cu", dtype, program, str(elements), ops, dims)
    if out:
        out.write_text(text)
    print(table(pd.read_csv(io.StringIO(text)), dtype, top))


if __name__ == "__main__":
    app()
