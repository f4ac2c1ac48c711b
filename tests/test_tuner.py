"""The tuner: the row of hints that it makes of times, on any machine, and that its programs say what it reads."""

import itertools

import pandas as pd
import pytest
import torch
from benchmark_samples import BENCHMARKS

from benchmarks import hint_rows
from benchmarks.hint_rows import OWN, Gpu, Row

OPS, DIMS = ("forward", "forward,residual", "backward"), (96, 4096, 65_536)
CARD = Gpu(90, 25_396)


def measured(keep=None, apart=0.0, streamed=0.0, far=0.0, cells=None):
    """Times of all rows: what each hint gains, as a fraction of 100 us; ``cells``: gains of (row, op, dim) instead."""
    keep, lines = {"Nothing": 0.0, **(keep or {})}, []
    for op, dim, name, kept_apart in itertools.product(OPS, DIMS, ("Nothing", "Balanced", "All"), (False, True)):
        gain = keep.get(name, 0.0) + apart * kept_apart
        gain = (cells or {}).get((name, kept_apart, op, dim), gain)
        lines.append((op, dim, name, kept_apart, False, False, 100 * (1 - gain)))
    gains = {"streamed": streamed, "far": far}
    for (op, hint), dim, on in itertools.product(OWN.items(), DIMS, (False, True)):
        flags = (on and hint == "streamed", on and hint == "far")
        lines.append((op, dim, "Nothing", False, *flags, 100 * (1 - gains[hint] * on)))
    frame = pd.DataFrame(lines, columns=["op", "dim", "keep", "apart", "streamed", "far", "us"])
    return frame.sample(frac=1, random_state=0)  # no order is relied on


@pytest.mark.parametrize(
    ("times", "row"),
    [
        (measured({"All": 0.01, "Balanced": 0.004}, apart=0.005, streamed=0.1), Row("All", True, True)),
        (measured({"All": -0.06, "Balanced": 0.01}, apart=-0.04, streamed=-0.02), Row("Balanced", False, False)),
        (measured({"All": -0.06, "Balanced": -0.01}, apart=-0.04), Row()),
        (measured({"All": -0.01, "Balanced": -0.01}, apart=0.02, streamed=0.03), Row("Nothing", True, True)),
        (measured(streamed=-0.02, far=0.03), Row(far=True)),
        (measured({"All": 0.001, "Balanced": 0.0015}, streamed=0.001), Row()),  # noise
    ],
)
def test_the_row_is_chosen(times, row):
    assert hint_rows.choose(times) == row


def test_a_row_that_loses_anywhere_is_none():
    """A mean that wins does not excuse a dim that loses more than a cell varies; a little it may."""
    lost = {("All", False, "backward", 96): -0.03, ("All", True, "backward", 96): -0.03}
    assert hint_rows.choose(measured({"All": 0.02, "Balanced": 0.01}, cells=lost)) == Row("Balanced")
    noise = dict.fromkeys(lost, -0.005)
    assert hint_rows.choose(measured({"All": 0.02, "Balanced": 0.01}, cells=noise)).keep == "All"


def test_what_was_not_measured_is_not_gained():
    times = measured({"All": 0.01}, streamed=0.05)
    assert hint_rows.choose(times[~times["op"].isin(OWN)]) == Row("All")
    assert hint_rows.choose(times[times["op"] == "forward,wide"]) == Row(streamed=True)


def test_the_row_as_code():
    """What is printed stands in the table as it is."""
    assert (
        hint_rows.as_code(Gpu(90, 25_396), Row("All", True, True, True)) == "{90, 25400, Keep::All, true, true, true}"
    )
    assert hint_rows.as_code(Gpu(120, 9_870), Row()) == "{120, 9870, Keep::Nothing, false, false, false}"
    assert "{90, 25400, Keep::All, true, true, true}" in (BENCHMARKS.parent / "csrc/cuda/hints.h").read_text()


def test_the_report():
    times = measured({"All": 0.02}, apart=-0.01, streamed=0.1)
    there = hint_rows.report(times, CARD, Row("All", False, True))
    assert "{90, 25400, Keep::All, false, true, false}" in there and there.endswith("The table has it already.")
    gain = [line for line in there.splitlines() if "backward" in line][0]
    assert gain.count("+2.0 %") == 2 and "+10.0 %" in there
    other = hint_rows.report(times, CARD, Row("Nothing", True, False))
    assert "another for this GPU, {90, 25400, Keep::Nothing, true, false, false}, which takes +" in other
    assert "-1.0 %" in other.split("another for this GPU")[1]
    assert "needs no row" in hint_rows.report(measured(), CARD, Row())


def test_what_the_program_prints_is_read():
    from benchmarks import tune

    text = "90,25396,Balanced,0,1,0\nop,dim,keep,apart,streamed,far,us\n"
    text += "".join(f'"{r.op}",{r.dim},{r.keep},{int(r.apart)},{int(r.streamed)},{int(r.far)},{r.us:.2f}\n'
                    for r in measured({"All": 0.02}).itertuples())  # fmt: skip
    gpu, present, times = tune.read_hints(text)
    assert (gpu, present) == (CARD, Row("Balanced", False, True))
    assert hint_rows.choose(times) == Row("All") and len(times) == len(measured())


def test_it_needs_a_gpu(capsys):
    from typer.testing import CliRunner

    from benchmarks import tune

    if torch.cuda.is_available():
        pytest.skip("there is one")
    for command in ([], ["plan"]):
        done = CliRunner().invoke(tune.app, command)
        assert done.exit_code == 2 and "tuning needs a GPU" in done.output
