"""`python benchmarks/run.py`: one command for each question. See benchmarks/README.md."""

import gc
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from typer.core import TyperGroup

ROOT = pathlib.Path(__file__).resolve().parents[1]
if not __package__:  # run as a script: this folder is `benchmarks`, and its srmsnorm counts where none is installed
    sys.path.insert(0, str(ROOT))
    import benchmarks  # noqa: F401

    sys.path.append(sys.path.pop(0))

from benchmarks import reports  # noqa: E402
from benchmarks.models import Model  # noqa: E402
from benchmarks.protocol.neighbours import NEIGHBOURS  # noqa: E402
from benchmarks.protocol.operations import DTYPES, OPS  # noqa: E402
from benchmarks.providers import REGISTRY  # noqa: E402
from benchmarks.record.plan import Plan  # noqa: E402
from benchmarks.record.results import join as join_parts  # noqa: E402
from benchmarks.reports.common import insert  # noqa: E402
from benchmarks.suites import SUITES, model  # noqa: E402

DEFAULT_SUITE = "tables"
README, PAGE = ROOT / "README.md", ROOT / "docs/pytorch.md"


class _DefaultGroup(TyperGroup):
    """Without a command, the tables."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ("--help", "--list")):
            args = [DEFAULT_SUITE, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_DefaultGroup, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


def _list(show: bool) -> None:
    if show:
        for name, suite in SUITES.items():
            typer.echo(f"suite {name:8} {suite.QUESTION}")
        for name, cls in REGISTRY.items():
            typer.echo(f"provider {name:10} {cls.computes}; keeps {cls.keeps}")
        raise typer.Exit


@app.callback()
def main(
    list_all: Annotated[
        bool, typer.Option("--list", callback=_list, is_eager=True, help="Name the suites and the providers.")
    ] = False,
) -> None:
    pass


def _names(text: str | None, known: Any) -> list[str] | None:
    """A comma-separated option."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise typer.BadParameter(f"{', '.join(unknown)}: not among {', '.join(known)}")
    return names


def _models(text: str | None) -> list[str] | None:
    slugs = {name.lower().replace(" ", "-"): name for name in Model.KINDS}
    names = _names(text, slugs)
    return None if names is None else [slugs[name] for name in names]


def _sizes(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(size) for size in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{text}: sizes are whole numbers, separated by commas") from error


Providers = Annotated[str | None, typer.Option(help="Comma-separated names; --list tells them.")]
Dims = Annotated[str | None, typer.Option(help="Comma-separated sizes of the last dimension.")]
Dtypes = Annotated[str | None, typer.Option(help=f"Comma-separated: {', '.join(DTYPES)}.")]
Ops = Annotated[
    str | None,
    typer.Option(
        help=f"Comma-separated: {', '.join(OPS)} (sweep, small, cpu), {', '.join(NEIGHBOURS)} (neighbours, cpu)."
    ),
]
Rows = Annotated[str | None, typer.Option(help="Comma-separated numbers of rows (sweep, small, cpu).")]
Elements = Annotated[int | None, typer.Option(help="Elements of a tensor, where --rows is not given (sweep, cpu).")]
CompiledDims = Annotated[str | None, typer.Option(help="The dims at which torch.compile takes part; default: all.")]
Rounds = Annotated[int | None, typer.Option(min=1, help="In which providers take turns.")]
Jobs = Annotated[
    int | None, typer.Option(min=0, help="Processes that compile ahead of the timings (sweep, small, model).")
]
MODES = (*model.OPS, *model.HOW)
Models = Annotated[
    str | None,
    typer.Option(help=f"Comma-separated: {', '.join(k.lower().replace(' ', '-') for k in Model.KINDS)} (model)."),
]
Modes = Annotated[str | None, typer.Option(help=f"Comma-separated: {', '.join(MODES)} (model).")]
SizeNames = Annotated[str | None, typer.Option("--sizes", help=f"Comma-separated: {', '.join(model.SIZES)} (model).")]
CompileTimes = Annotated[bool, typer.Option("--compile-times", help="Time the compilers as well, cold (model).")]
Append = Annotated[bool, typer.Option("--append", help="Go on with the CSV that is there: what it holds is skipped.")]
Out = Annotated[pathlib.Path | None, typer.Option(help="Folder for CSV, Markdown and plots.")]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer sizes and rounds: does it run, roughly how fast.")]
Published = Annotated[bool | None, typer.Option(help="Earlier figures of an H100 or H200 beside; default: on a GPU.")]
Plots = Annotated[bool, typer.Option(help="Draw the plots as well.")]
Device = Annotated[str | None, typer.Option(help="cuda or cpu; default: cuda where there is one.")]


def _run(suites: list[str], plan: Plan, published: bool | None, plots: bool) -> None:
    try:
        import srmsnorm  # noqa: F401
    except ImportError as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from None
    if plan.device == "cpu":
        typer.echo("CPU edition: no GPU is used; sizes are small and say nothing about a GPU.", err=True)
    gc.collect()
    gc.freeze()  # the collections before measurements of memory look at what came since, not at all of PyTorch
    for name in suites:
        path = plan.out / f"{name}.csv"
        try:
            SUITES[name].run(plan)
        except KeyboardInterrupt:
            typer.echo(f"stopped; what was measured is in {path}; --append goes on from there", err=True)
            write(path, plan.out, published, plots)
            raise typer.Exit(130) from None
        except ValueError as error:
            typer.echo(error, err=True)
            raise typer.Exit(1) from None
        write(path, plan.out, published, plots)


def _default_out(device: str) -> pathlib.Path:
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return pathlib.Path(__file__).resolve().parent / "results" / slug


def write(path: pathlib.Path, out: pathlib.Path, published: bool | None, plots: bool) -> None:
    """Markdown to stdout and beside the CSV, plots beside it."""
    if not path.exists():
        return
    frame = reports.read(path)
    text = reports.markdown(frame, published)
    typer.echo(text, nl=False)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{path.stem}.md").write_text(text, encoding="utf-8", newline="\n")
    if plots and not frame.empty:
        from benchmarks.reports import plots as drawing

        drawing.plot(frame, out / path.stem)


def _suite_command(name: str, suites: list[str], help: str) -> None:
    @app.command(name, help=help)
    def command(
        providers: Providers = None,
        dims: Dims = None,
        dtypes: Dtypes = None,
        ops: Ops = None,
        rows: Rows = None,
        elements: Elements = None,
        compiled_dims: CompiledDims = None,
        rounds: Rounds = None,
        jobs: Jobs = None,
        models: Models = None,
        modes: Modes = None,
        sizes: SizeNames = None,
        compile_times: CompileTimes = False,
        out: Out = None,
        append: Append = False,
        quick: Quick = False,
        published: Published = None,
        plots: Plots = True,
        device: Device = None,
    ) -> None:
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        plan = Plan(
            device,
            out or _default_out(device),
            providers=_names(providers, REGISTRY),
            dims=_sizes(dims),
            dtypes=_names(dtypes, DTYPES),
            ops=_names(ops, [*OPS, *NEIGHBOURS]),
            rows=_sizes(rows),
            elements=elements,
            compiled_dims=_sizes(compiled_dims),
            rounds=rounds,
            jobs=jobs,
            models=_models(models),
            modes=_names(modes, MODES),
            sizes=_names(sizes, model.SIZES),
            compile_times=compile_times,
            append=append,
            quick=quick,
        )
        _run(suites, plan, published, plots)


for _name, _suite in SUITES.items():
    _suite_command(_name, [_name], _suite.QUESTION)
_suite_command("all", list(SUITES), "every suite, one after the other")


@app.command()
def report(
    csv: Annotated[pathlib.Path, typer.Argument(exists=True, dir_okay=False, help="A CSV that a suite wrote.")],
    out: Out = None,
    published: Published = None,
    plots: Plots = True,
) -> None:
    """Markdown and plots again, from a CSV."""
    write(csv, out or csv.parent, published, plots)


@app.command()
def join(
    parts: Annotated[list[pathlib.Path], typer.Argument(exists=True, dir_okay=False, help="CSVs of one suite.")],
    out: Annotated[pathlib.Path, typer.Option(help="The CSV to write; may be one of the parts.")],
) -> None:
    """One CSV out of parts that were measured apart. Ratios are taken within a part."""
    try:
        typer.echo(f"{out}: {join_parts(parts, out)} rows")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


@app.command()
def compare(
    before: Annotated[pathlib.Path, typer.Argument(exists=True, dir_okay=False, help="A CSV that a suite wrote.")],
    after: Annotated[pathlib.Path, typer.Argument(exists=True, dir_okay=False, help="A later one.")],
) -> None:
    """What changed between two CSVs beyond noise."""
    from benchmarks.reports import compare

    typer.echo(compare.markdown(reports.read(before), reports.read(after)), nl=False)


@app.command()
def html(
    folder: Annotated[pathlib.Path, typer.Argument(exists=True, file_okay=False, help="Results of one machine.")],
) -> None:
    """One self-contained HTML page of all suites in a folder, plots included."""
    from benchmarks.reports import page

    try:
        typer.echo(page.write(folder, list(SUITES)))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


@app.command()
def readme(
    folders: Annotated[
        list[pathlib.Path],
        typer.Argument(exists=True, file_okay=False, help="Results of one machine; then others, whose sweep is shown."),
    ],
    path: Annotated[pathlib.Path, typer.Option("--readme", exists=True, help="The file to write to.")] = README,
) -> None:
    """The tables of the project's README, from the CSVs of a folder, and the sweeps of others."""
    from benchmarks.reports import readme

    _insert(path, "tables", lambda: readme.section(folders[0], path.parent, folders[1:]))


@app.command()
def page(
    csvs: Annotated[
        list[pathlib.Path], typer.Argument(exists=True, dir_okay=False, help="CSVs of the suite `features`.")
    ],
    path: Annotated[pathlib.Path, typer.Option("--page", exists=True, help="The file to write to.")] = PAGE,
) -> None:
    """The table of docs/pytorch.md, from a CSV; what that one lacks, from the next."""
    _insert(path, "features", lambda: reports.features.page([reports.read(csv) for csv in csvs]))


def _insert(path: pathlib.Path, markers: str, text: Callable[[], str]) -> None:
    try:
        changed = insert(path, markers, text())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    typer.echo(f"{path}: {'written' if changed else 'no change'}")


if __name__ == "__main__":
    app()
