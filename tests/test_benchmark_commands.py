"""run.py and counters.py as they are called."""

import os
import subprocess
import sys

import pandas as pd
import pytest
from benchmark_samples import BENCHMARKS, EXAMPLES


def test_command_line(tmp_path):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, str(BENCHMARKS / "run.py"), *arguments], capture_output=True, text=True, timeout=300
        )

    listed = run("--list")
    assert listed.returncode == 0
    for name in ("suite tables", "suite sweep", "suite host", "provider ours", "provider toc"):
        assert name in listed.stdout
    again = run("report", str(EXAMPLES / "tables.csv"), "--no-plots", "--out", str(tmp_path))
    assert (tmp_path / "tables.md").read_bytes() == (EXAMPLES / "tables.md").read_bytes()
    assert again.stdout == (EXAMPLES / "tables.md").read_text()
    assert run("--providers", "nobody").returncode != 0


def test_a_part_of_the_models_is_named(monkeypatch, tmp_path):
    from typer.testing import CliRunner

    from benchmarks import run
    from benchmarks.suites import SUITES

    plans = []
    monkeypatch.setattr(SUITES["model"], "run", plans.append)
    options = ["--device", "cpu", "--out", str(tmp_path)]

    def code(*more):
        return CliRunner().invoke(run.app, ["model", *options, *more]).exit_code

    assert code("--models", "speedrun-gpt,llama-4", "--modes", "decode,compiled", "--sizes", "small") == 0
    (plan,) = plans
    assert (plan.models, plan.modes, plan.sizes) == (["speedrun GPT", "Llama 4"], ["decode", "compiled"], ["small"])
    assert not plan.compile_times and code("--compile-times") == 0 and plans[-1].compile_times
    for option in ("--models", "--modes", "--sizes"):
        assert code(option, "nobody") == 2


def test_another_package_of_that_name_is_not_taken(tmp_path):
    """Some libraries install a `benchmarks` of their own."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/__init__.py").write_text("raise ImportError('another')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(BENCHMARKS.parent)])}
    for command, option in (("run.py", "--list"), ("counters.py", "--help")):
        done = subprocess.run(
            [sys.executable, str(BENCHMARKS / command), option], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr


def test_page(tmp_path):
    """The table goes between the markers, and nowhere else. What one machine lacks is another's, and says so."""
    from benchmarks import run

    page = tmp_path / "page.md"
    page.write_text("before\n<!-- features:begin -->\nold\n<!-- features:end -->\nafter\n")
    run.page([EXAMPLES / "features.csv"], page)
    text = page.read_text()
    assert text.startswith("before\n<!-- features:begin -->\n|") and text.endswith("<!-- features:end -->\nafter\n")
    assert "old" not in text and "| srmsnorm" in text and "¹" not in text

    whole = pd.read_csv(EXAMPLES / "features.csv", keep_default_na=False, dtype=str)
    whole[:-1].assign(device="First").to_csv(tmp_path / "first.csv", index=False)
    run.page([tmp_path / "first.csv", EXAMPLES / "features.csv"], page)
    text, last = page.read_text(), whole.iloc[-1]
    (row,) = (line for line in text.splitlines() if line.startswith(f"| {last['op']} "))
    assert row.rstrip(" |").endswith("¹") and text.count("¹") == 2
    assert "\nFirst, " in text and f"\n¹ {last['device']}, " in text


def test_counters_of_the_cells_below_a_fraction(tmp_path, monkeypatch):
    """With an ncu of one's own that prints what the real one does: a log, the header, the units, a row a kernel."""
    from benchmarks import counters

    sweep = tmp_path / "sweep.csv"
    rows = [("bf16", "forward", 64, "roof", 98), ("bf16", "forward", 64, "ours", 100),
            ("bf16", "backward", 3001, "roof", 90), ("bf16", "backward", 3001, "ours", 100)]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["dtype", "op", "dim", "provider", "value"]).assign(status="ok")
    frame.to_csv(sweep, index=False)
    names = counters.below(sweep, 0.97)
    assert names == ["bf16,backward,3001"]
    cells = [counters.parse(name) for name in names]
    assert (cells[0].rows, cells[0].dim) == (89448, 3001)

    metrics = list(counters.METRICS.values())
    values = dict.fromkeys(metrics, "1.5") | dict(
        zip(metrics[:6], ["2,000", "85", cells[0].moved, 0, 0, 0], strict=True)
    )
    values[counters.STALL.format("barrier")] = "7.25"
    lines = ["ID", *metrics], ["", *("unit" for _ in metrics)], ["0", *map(str, values.values())]
    text = "==PROF== Connected\n" + "".join(",".join(f'"{x}"' for x in line) + "\n" for line in lines)
    (tmp_path / "out.txt").write_text(text)
    ncu = tmp_path / "ncu"
    ncu.write_text(f"#!/bin/sh\ncat {tmp_path / 'out.txt'}\n")
    ncu.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    row = counters.table(counters.watched(names), cells).iloc[0]
    assert row["cell"] == "bf16 89448 x 3001 backward"
    assert (row["us"], row["DRAM (% of peak)"], row["DRAM bytes / needed"]) == (2.0, 85, 1.0)
    assert row["warps stalled per issue"].startswith("barrier 7.2")

    with pytest.raises(RuntimeError, match="ncu ended with 0"):
        counters.watched([*names, "bf16,forward,64"])
