"""The suites, run at small sizes on the CPU: every cell has its row, and a run goes on past what fails."""

import dataclasses

import pytest
import torch
from benchmark_samples import EXAMPLES, Unlucky, WrongOutput, rows_of

from benchmarks import reports, suites
from benchmarks.models import Size
from benchmarks.protocol import measuring, operations
from benchmarks.protocol.gates import GATES
from benchmarks.protocol.outputs import OUTPUTS
from benchmarks.providers import REGISTRY
from benchmarks.providers.pytorch import Eager
from benchmarks.record.plan import Plan
from benchmarks.record.recorder import Recorder
from benchmarks.suites import cpu, fusion, neighbours, small, sweep, tables


def test_sweep_on_the_cpu(tmp_path, plain_memory):
    """Every dtype and operation; a part that goes on measures what is missing, and takes no cell twice."""
    plan = Plan("cpu", tmp_path, providers=["to"], dims=[65], dtypes=list(operations.DTYPES), elements=260, rounds=2)
    sweep.run(dataclasses.replace(plan, dtypes=["bf16"], ops=["backward"]))
    sweep.run(dataclasses.replace(plan, append=True))
    rows = rows_of(tmp_path / "sweep.csv")
    measured = [(row["dtype"], row["op"], row["provider"]) for row in rows]
    assert len(set(measured)) == len(measured) == 2 * (5 * 5 - 1)  # nothing is mixed without a residual
    assert all(row["status"] == "ok" and float(row["value"]) > 0 for row in rows)
    assert len({row["date"] for row in rows if row["op"] == "backward" and row["dtype"] == "bf16"}) == 1
    moved = {(row["dtype"], row["op"]): int(row["bytes"]) / 260 for row in rows}
    assert moved["fp16", "forward"] == 4
    assert moved["fp64", "backward+sum"] == 32
    assert moved["mixed", "forward+residual"] == 2 + 4 + 2
    assert moved["mixed", "backward+sum"] == 2 + 2 + 4 + 2 + 4
    text = reports.markdown(reports.read(tmp_path / "sweep.csv"))
    assert "## mixed, backward+sum" in text


def test_neighbours_on_the_cpu(tmp_path, plain_memory):
    """Every operation that it knows, forward and backward; of those asked for, the ones that are another suite's are
    left out."""
    plan = Plan("cpu", tmp_path, providers=["ours", "to"], dims=[65], dtypes=["bf16", "mixed"], elements=260, rounds=1)
    neighbours.run(dataclasses.replace(plan, ops=["forward", "gated silu"]))
    assert {row["op"] for row in rows_of(tmp_path / "neighbours.csv")} == {"gated silu"}
    neighbours.run(plan)
    rows = rows_of(tmp_path / "neighbours.csv")
    assert len(rows) == 3 * (2 * len(GATES) + len(OUTPUTS) - 1 + 1)  # 65 is no groups; a residual alone can be mixed
    assert all(row["status"] == "ok" and float(row["value"]) > 0 for row in rows)
    moved = {(row["dtype"], row["op"]): int(row["bytes"]) / 260 for row in rows}
    assert (moved["bf16", "gated"], moved["bf16", "gated backward"]) == (6, 10)
    assert moved["mixed", "silu gate first backward"] == 2 + 2 + 4 + 2 + 4
    assert "## mixed, gated silu backward" in reports.markdown(reports.read(tmp_path / "neighbours.csv"))
    sweep.run(dataclasses.replace(plan, ops=["gated"]))
    assert rows_of(tmp_path / "sweep.csv") == []


def test_few_rows_have_two_times(tmp_path, plain_memory):
    """On a CPU there is one clock; the second metric is asked for here all the same."""
    plan = Plan("cpu", tmp_path, providers=["ours", "to"], rounds=2)
    wanted = measuring.cells(plan, [(1, 64), (4, 32)], ["forward"])
    measuring.run(plan, "small", wanted, ("ours",), 2, eager=True)
    rows = rows_of(tmp_path / "small.csv")
    assert [row["metric"] for row in rows] == 2 * (3 * ["speed"] + 3 * ["call"])
    assert all(row["status"] == "ok" and float(row["value"]) > 0 for row in rows)
    text = reports.markdown(reports.read(tmp_path / "small.csv"))
    assert "eager call (us)" in text and "1 x 64" in text
    small.run(dataclasses.replace(plan, dims=[8], rows=[3], quick=True))
    assert {(row["n"], row["dim"], row["op"]) for row in rows_of(tmp_path / "small.csv")} == {
        ("3", "8", "forward"),
        ("3", "8", "forward+residual"),
    }


def test_the_cpu_on_one_thread_and_on_all(tmp_path, monkeypatch, plain_memory):
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    cpu.run(Plan("cuda", tmp_path, providers=["ours"], dims=[16], ops=["forward"], elements=64, rounds=1))
    monkeypatch.undo()
    torch.set_num_threads(threads)
    rows = rows_of(tmp_path / "cpu.csv")
    assert [(row["dtype"], row["threads"], row["provider"]) for row in rows] == [
        (dtype, count, name) for dtype in ("bf16", "fp32") for count in "12" for name in ("roof", "ours")
    ]
    assert all(row["status"] == "ok" for row in rows)
    text = reports.markdown(reports.read(tmp_path / "cpu.csv"))
    assert "## fp32, forward, 1 thread\n" in text and "## fp32, forward, 2 threads\n" in text


def test_memory_on_the_cpu(tmp_path, monkeypatch, plain_memory):
    monkeypatch.setattr(suites.memory, "SIZE_CPU", Size(2, 64, 64, 2, 2))
    plan = Plan("cpu", tmp_path, providers=["ours", "to"], dims=[64], rows=[32], dtypes=["bf16"], rounds=1)
    suites.memory.run(plan)
    kept = {(row["op"], row["provider"]): float(row["value"]) for row in rows_of(tmp_path / "memory.csv")}
    for op in suites.memory.CALLS:  # the outputs and 4 bytes a row, nothing else
        assert kept[op, "ours"] == kept[op, "least"] < kept[op, "to"]
    assert kept["QK-norm GPT", "ours"] < kept["QK-norm GPT", "to"]
    # The fused gate keeps what it is of, and neither y nor the activated gate.
    assert kept["gated TransNormer", "ours"] < kept["TransNormer", "ours"]


def test_models(tmp_path, monkeypatch, plain_memory):
    """A wrong norm is refused in a model's output and in its gradients."""
    monkeypatch.setitem(REGISTRY, "wrong", WrongOutput)
    monkeypatch.setattr(WrongOutput, "name", "wrong")
    monkeypatch.setattr(suites.model, "SIZES_CPU", {"small": Size(2, 64, 32, 2, 2)})
    suites.model.run(Plan("cpu", tmp_path, providers=["ours", "to", "auto", "wrong"], modes=["eager"], rounds=2))
    rows = rows_of(tmp_path / "model.csv")
    assert len(rows) == (6 * 3 + 2) * 2 * 3  # models and modes (fp8 is not trained), metrics, providers: eager, no auto
    for row in rows:
        assert row["status"].startswith("wrong:") if row["provider"] == "wrong" else row["status"] == "ok"
    assert "QK-norm GPT, training, eager" in reports.markdown(reports.read(tmp_path / "model.csv"))


def test_a_part_of_the_models(tmp_path, plain_memory):
    """One model, mode and size; then what is compiled, and the compilers' times, beside what is there already."""
    plan = Plan("cpu", tmp_path, providers=["to"], models=["QK-norm GPT"], modes=["decode"], sizes=["small"], rounds=1)
    suites.model.run(dataclasses.replace(plan, modes=["decode", "eager"]))
    suites.model.run(dataclasses.replace(plan, append=True, quick=True, compile_times=True))
    rows = [(row["op"], row["metric"], row["status"]) for row in rows_of(tmp_path / "model.csv")]
    eager, compiled = (f"QK-norm GPT, decode, {how}" for how in suites.model.HOW)
    assert rows == [(eager, "speed", "ok"), (eager, "memory", "ok"),
                    *((compiled, metric, "ok") for metric in ("compile", "speed", "memory"))]  # fmt: skip
    text = reports.markdown(reports.read(tmp_path / "model.csv"))
    assert "## Seconds to compile, fp32, 1 x 32 tokens of 64 features" in text


def test_fusion_suite(tmp_path, monkeypatch, plain_memory):
    """Without compiling: every variant computes the same models; one that does not is refused."""
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    wrong = dataclasses.replace(fusion.VARIANTS["formula"](), norm=lambda x, eps: x, add_norm=lambda x, r, eps: (x, r))
    monkeypatch.setitem(fusion.VARIANTS, "wrong", lambda: wrong)
    fusion.run(Plan("cpu", tmp_path, dims=[64], quick=True))
    rows = rows_of(tmp_path / "fusion.csv")
    assert len(rows) == len(fusion.MODELS) * len(fusion.OPS) * len(fusion.VARIANTS)
    for row in rows:
        assert row["status"].startswith("wrong:") if row["provider"] == "wrong" else row["status"] == "ok"


def test_what_fails_is_reported_and_the_run_goes_on(tmp_path, plain_memory):
    plan = Plan("cpu", tmp_path)
    providers = [WrongOutput(), Unlucky(), Eager()]
    with Recorder(plan, "tables", 1) as recorder:
        case = tables.Case(plan, "bf16", 64, 8, residual=False)
        case.measure(providers, {"absent": "not installed: absent"}, 1, recorder)
    rows = rows_of(tmp_path / "tables.csv")
    assert len(rows) == 4 * 4
    for row in rows:
        assert (row["value"] != "") == (row["provider"] == "to") == (row["status"] == "ok")
    status = {row["provider"]: row["status"] for row in rows}
    assert status["wrong output"].startswith("wrong: y is")
    assert status["unlucky"] == "out of memory"
    assert "- unlucky: out of memory" in reports.markdown(reports.read(tmp_path / "tables.csv"))


def test_another_device_is_not_mixed_in(tmp_path):
    (tmp_path / "sweep.csv").write_bytes((EXAMPLES / "sweep.csv").read_bytes())
    with pytest.raises(ValueError, match="Example GPU"):
        sweep.run(Plan("cpu", tmp_path, providers=["to"], dims=[8], elements=8, append=True))
    assert (tmp_path / "sweep.csv").read_bytes() == (EXAMPLES / "sweep.csv").read_bytes()
