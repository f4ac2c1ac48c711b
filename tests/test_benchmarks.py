"""The benchmark itself: what it refuses, what it counts, and that its report comes from the CSV alone."""

import csv
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

for package in ("matplotlib", "pandas", "rich", "tabulate", "typer"):
    pytest.importorskip(package)

BENCHMARKS = pathlib.Path(__file__).resolve().parent.parent / "benchmarks"
EXAMPLES = BENCHMARKS / "examples"
sys.path.insert(0, str(BENCHMARKS))

import cells  # noqa: E402
import check  # noqa: E402
import memory  # noqa: E402
import models  # noqa: E402
import operations  # noqa: E402
import peers  # noqa: E402, F401
import precompile  # noqa: E402
import protocol  # noqa: E402
import providers  # noqa: E402
import reports.compare  # noqa: E402
import reports.page  # noqa: E402
import reports.readme  # noqa: E402
import results  # noqa: E402
import suites.model  # noqa: E402
from plan import Plan, Recorder  # noqa: E402
from providers import REGISTRY, Eager  # noqa: E402
from reports.common import insert  # noqa: E402
from suites import SUITES, cpu, features, fusion, small, sweep, tables  # noqa: E402


class WrongOutput(Eager):
    """0.5 % off: more than a rounding to bfloat16, which is at most 0.4 %."""

    name = "wrong output"

    def norm(self, x, residual=None):
        return (super().norm(x.double(), residual) * 1.005).to(x.dtype)


class WrongGradient(Eager):
    """The right y; its gradient misses the mean's term."""

    name = "wrong gradient"

    def norm(self, x, residual=None):
        rstd = torch.rsqrt(x.detach().float().square().mean(-1, keepdim=True) + 1e-6)
        return (x.float() * rstd).to(x.dtype)


class Unlucky(Eager):
    name = "unlucky"

    def norm(self, x, residual=None):
        raise torch.OutOfMemoryError("this tensor is too large")


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("residual", [False, True])
def test_the_definition_passes(dtype, residual):
    x, r, g = (torch.randn(3, 5, 257, dtype=dtype, requires_grad=i < 2) for i in range(3))
    check.check_norm(Eager(), x, r if residual else None, g)


@pytest.mark.parametrize("provider", [WrongOutput, WrongGradient])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_wrong_result_is_refused(provider, dtype):
    x, g = torch.randn(4, 64, dtype=dtype, requires_grad=True), torch.randn(4, 64, dtype=dtype)
    with pytest.raises(check.WrongResult):
        check.check_norm(provider(), x, None, g)


def test_nan_is_refused():
    with pytest.raises(check.WrongResult):
        check.require("y", float("nan"))
    x = torch.randn(2, 8)
    y = Eager().norm(x)
    y[1, 3] = float("nan")
    with pytest.raises(check.WrongResult):
        check.require("y", check.forward_error(y, x, None, 1))


def test_a_status_is_one_plain_line():
    assert check.status_of(RuntimeError("\x1b[91merror:\x1b[0m no IR\nmore")) == "RuntimeError: error: no IR"


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


def test_a_slower_call_takes_longer():
    means = {ms: protocol.of_means([protocol.do_bench(lambda ms=ms: time.sleep(ms / 1e3), "cpu")]) for ms in (1, 8)}
    assert means[8].value > means[1].value >= 1
    for mean in means.values():
        assert mean.p20 <= mean.p80


def test_rounds_go_over_all_providers_and_leave_out_what_fails():
    order, statuses = [], {}

    def fails():
        raise ValueError("no")

    samples = protocol.in_rounds(2, {"a": lambda: 1.0, "b": fails, "c": lambda: 3.0}, statuses, order.append)
    assert samples == {"a": [1.0, 1.0], "c": [3.0, 3.0]}
    assert statuses == {"b": "ValueError: no"}
    assert order == ["a", "b", "c", "b", "c", "a"]


def test_statistics():
    assert protocol.quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert protocol.quantile([0.0, 10.0], 0.2) == 2.0
    of_means = protocol.of_means([[1.0, 3.0], [5.0], [9.0, 9.0]])
    assert (of_means.value, of_means.rounds, of_means.repeats) == (5.0, 3, 5)
    assert protocol.of_medians([1.0, 9.0, 2.0], 10) == protocol.Statistic(
        2.0, pytest.approx(1.4), pytest.approx(6.2), 3, 30
    )


def test_the_memory_account_agrees_with_known_tensors(device, plain_memory):
    """A MiB is 2^18 float32; the CPU also counts a few bytes for scalars."""

    def temporary():
        x = torch.ones(1 << 18, device=device)
        return lambda: (x * 2) + 1

    def accumulated():
        x = torch.ones(1 << 18, device=device, requires_grad=True)
        y, g = x.sin(), torch.ones(1 << 18, device=device)
        return lambda: y.backward(g, retain_graph=True)

    assert memory.peak_mib(temporary, device, 3) == pytest.approx([3, 3, 3], abs=1e-3)
    # x, y, g, and in backward cos(x) and the gradient, from the second repeat on beside .grad.
    assert memory.peak_mib(accumulated, device, 3) == pytest.approx([5, 6, 6], abs=1e-3)


@pytest.mark.parametrize("suite", SUITES)
def test_the_markdown_comes_from_the_csv_byte_for_byte(suite):
    text = reports.markdown(reports.read(EXAMPLES / f"{suite}.csv"))
    assert text.encode() == (EXAMPLES / f"{suite}.md").read_bytes()


@pytest.mark.parametrize("suite", [suite for suite in SUITES if suite != "features"])  # yes and no
def test_the_plots_come_from_the_csv_byte_for_byte(suite, tmp_path):
    import plots

    frame = reports.read(EXAMPLES / f"{suite}.csv")
    first, second = (plots.plot(frame, tmp_path / run / suite) for run in ("a", "b") if not (tmp_path / run).mkdir())
    assert {path.suffix for path in first} == (set() if suite == features.NAME else {".png", ".svg"})
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


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


def test_few_rows_have_two_times(tmp_path, plain_memory):
    """On a CPU there is one clock; the second metric is asked for here all the same."""
    plan = Plan("cpu", tmp_path, providers=["ours", "to"], rounds=2)
    wanted = cells.cells(plan, [(1, 64), (4, 32)], ["forward"])
    cells.run(plan, "small", wanted, ("ours",), 2, eager=True)
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


@pytest.mark.parametrize("dtype", operations.DTYPES)
@pytest.mark.parametrize("op", operations.OPS)
def test_every_provider_computes_every_operation(dtype, op, plain_memory):
    """Those that run here. torch.compile's share the functions of `to`."""
    if operations.operation(op, dtype) is None:
        pytest.skip("nothing is mixed without a residual")
    cell = cells.Cell("cpu", dtype, op, 3, 129)
    for name in ("ours", "to", "rms"):
        provider = REGISTRY[name]()
        operands = cell.operands()
        with torch.no_grad():
            cell.operation.check(provider, operands, cell.operation.call(provider, operands)())


def test_a_wrong_operation_is_refused(plain_memory):
    """A sum that is the input; a pair whose second gradient misses the gradient of the sum."""

    class Wrong(Eager):
        def add_norm(self, x, residual):
            return super().add_norm(x, residual)[0], x

        def backward_pair(self, grad_output, saved, grad_sum=None):
            return super().backward_pair(grad_output, saved, grad_sum)[0], super().backward_pair(grad_output, saved)[1]

    for dtype, op in (("bf16", "forward+sum"), ("mixed", "backward+sum")):
        cell = cells.Cell("cpu", dtype, op, 3, 64)
        operands = cell.operands()
        cell.operation.check(Eager(), operands, cell.operation.call(Eager(), operands)())
        with pytest.raises(ValueError if op == "forward+sum" else check.WrongResult):
            cell.operation.check(Wrong(), operands, cell.operation.call(Wrong(), operands)())


class Traffic(TorchDispatchMode):
    """Bytes of the tensors that operators take: what copy_, add and addcmul with an output read and write."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [t for t in (*args, *(kwargs or {}).values()) if isinstance(t, torch.Tensor)]
        self.bytes += sum(t.nbytes for t in tensors)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", operations.DTYPES)
@pytest.mark.parametrize("name", operations.OPS)
def test_a_roof_moves_the_bytes_of_its_operation(dtype, name):
    if (op := operations.operation(name, dtype)) is None:
        pytest.skip("nothing is mixed without a residual")
    cell = cells.Cell("cpu", dtype, name, 2, 8)
    call = operations.roof(op, dtype, cell.operands())
    with Traffic() as traffic:
        call()
    assert traffic.bytes == cell.moved


def test_a_noisy_figure_is_not_printed(tmp_path):
    rows = rows_of(EXAMPLES / "sweep.csv")
    quiet = next(row for row in rows if row["provider"] == "ours")
    path = tmp_path / "sweep.csv"
    for spread, word in ((0.01, "269.78"), (0.2, "noisy")):
        value = float(quiet["value"])
        row = {**quiet, "p20": value * (1 - spread / 2), "p80": value * (1 + spread / 2)}
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, results.FIELDS)
            writer.writeheader()
            writer.writerow(row)
        text = reports.markdown(reports.read(path))
        assert word in text
        assert ("269.78" in text) == (word == "269.78")


def test_parts_are_joined_and_ratios_stay_within_a_part(tmp_path):
    rows = rows_of(EXAMPLES / "sweep.csv")
    parts = []
    for i, date in enumerate(dict.fromkeys(row["date"] for row in rows)):
        parts.append(tmp_path / f"part{i}.csv")
        with parts[-1].open("w", newline="") as file:
            writer = csv.DictWriter(file, results.FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(row for row in rows if row["date"] == date)
    assert results.join([*parts, parts[0]], tmp_path / "sweep.csv") == len(rows)
    frame = reports.read(tmp_path / "sweep.csv")
    (cell,) = (c for c in reports.cells.cells_of(frame) if (c.dtype, c.op, c.dim) == ("bf16", "forward", 65536))
    assert cell.fraction["toc"] == pytest.approx(0.9, rel=1e-4)
    assert cell.fraction["ours"] == pytest.approx(0.97, rel=1e-4)
    assert (cell.best, cell.ratio) == ("tocm", pytest.approx(0.98 / 0.97, rel=1e-4))
    with pytest.raises(ValueError, match="different suites"):
        results.join([parts[0], EXAMPLES / "host.csv"], tmp_path / "no.csv")


def test_the_readme_is_written_from_the_results(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n\n<!-- tables:begin -->\nold\n<!-- tables:end -->\n\nafter\n")
    assert insert(readme, "tables", reports.readme.section(EXAMPLES, tmp_path))
    text = readme.read_text()
    assert text.startswith("before\n\n<!-- tables:begin -->\n") and text.endswith("<!-- tables:end -->\n\nafter\n")
    assert "old" not in text
    assert not insert(readme, "tables", reports.readme.section(EXAMPLES, tmp_path))
    with pytest.raises(ValueError, match="needs one"):
        insert(readme, "features", "")
    published = next(line for line in text.splitlines() if " speed, forward |" in line)
    assert "0.0500" in published and "0.1112" in published  # ours and torch.compile's on the H100, at n = 2048
    assert "Worst cell: mixed, backward+sum" in text


def test_the_projects_readme_holds_the_committed_results():
    """Tables that nobody typed."""
    folders = [path.parent for path in (BENCHMARKS / "results").glob("nvidia-*/tables.csv")]
    readme = BENCHMARKS.parent / "README.md"
    _, _, rest = readme.read_text(encoding="utf-8").partition("<!-- tables:begin -->\n")
    section = rest.partition("<!-- tables:end -->")[0]
    assert section in ["", *(reports.readme.section(folder, readme.parent) for folder in folders)]
    if folders:
        assert section


@pytest.mark.parametrize(
    "path", sorted((BENCHMARKS / "results").glob("*/*.csv")), ids=lambda p: f"{p.parent.name}-{p.stem}"
)
def test_committed_markdown_comes_from_its_csv(path):
    assert reports.markdown(reports.read(path)).encode() == path.with_suffix(".md").read_bytes()


def test_what_was_compiled_ahead_is_found_in_the_cache(monkeypatch):
    """Another process compiles; here the compiler's cache answers. A dim that no earlier run has left there."""
    from torch._dynamo.utils import counters

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
    ticked = []
    cell = cells.Cell("cpu", "fp32", "forward", 3, 100 + time.time_ns() % 1_000_000)
    torch.use_deterministic_algorithms(False)  # part of the cache's key
    precompile.ahead([(cell, "toc")], 1, ticked.append)
    assert ticked == [f"toc {cell}"]
    counters.clear()
    toc = REGISTRY["toc"]()
    toc.new_shape()
    with torch.no_grad():
        cell.operation.call(toc, cell.operands())()
    assert counters["inductor"]["fxgraph_cache_hit"] == 1, counters["inductor"]


def test_what_a_call_keeps_agrees_with_known_tensors(device, plain_memory):
    """exp keeps its output, which is the result; sin of exp keeps exp's output beside its own."""

    def prepare(call):
        x = torch.ones(1 << 18, device=device, requires_grad=True)
        return lambda: call(x)

    def temporary(x):
        return (x.detach() * 2).sum()

    assert memory.kept_and_peak_mib(lambda: prepare(torch.exp), device) == pytest.approx((1, 1), abs=1e-3)
    assert memory.kept_and_peak_mib(lambda: prepare(lambda x: x.exp().sin()), device) == pytest.approx((2, 2), abs=1e-3)
    assert memory.kept_and_peak_mib(lambda: prepare(temporary), device) == pytest.approx((0, 1), abs=2e-3)  # and a sum


def test_memory_on_the_cpu(tmp_path, monkeypatch, plain_memory):
    monkeypatch.setattr(suites.memory, "SIZE_CPU", models.Size(2, 64, 64, 2, 2))
    plan = Plan("cpu", tmp_path, providers=["ours", "to"], dims=[64], rows=[32], dtypes=["bf16"], rounds=1)
    suites.memory.run(plan)
    kept = {(row["op"], row["provider"]): float(row["value"]) for row in rows_of(tmp_path / "memory.csv")}
    for op in suites.memory.CALLS:  # the outputs and 4 bytes a row, nothing else
        assert kept[op, "ours"] == kept[op, "least"] < kept[op, "to"]
    assert kept["QK-norm GPT", "ours"] < kept["QK-norm GPT", "to"]


def test_models(tmp_path, monkeypatch, plain_memory):
    """A wrong norm is refused in a model's output and in its gradients."""
    monkeypatch.setitem(REGISTRY, "wrong", WrongOutput)
    monkeypatch.setattr(WrongOutput, "name", "wrong")
    monkeypatch.setattr(suites.model, "MODES", ["eager"])
    monkeypatch.setattr(suites.model, "SIZE_CPU", models.Size(2, 64, 32, 2, 2))
    suites.model.run(Plan("cpu", tmp_path, providers=["ours", "to", "wrong"], rounds=2))
    rows = rows_of(tmp_path / "model.csv")
    assert len(rows) == 2 * 2 * 2 * 3  # kinds, operations, metrics, providers
    for row in rows:
        assert row["status"].startswith("wrong:") if row["provider"] == "wrong" else row["status"] == "ok"
    assert "QK-norm GPT, training, eager" in reports.markdown(reports.read(tmp_path / "model.csv"))


def test_linear_attention_is_causal_and_chunked():
    q, k, v = torch.randn(3, 2, 2, 2 * models.CHUNK, 4, dtype=torch.float64)
    assert torch.allclose(models.linear_attention(q, k, v), (q @ k.transpose(-1, -2)).tril() @ v)


def test_compare_tells_what_changed_beyond_noise(tmp_path):
    """ours 3 % slower in a cell, all 10 % slower in another (a clock), a change within the noise, a tiny one."""
    rows = rows_of(EXAMPLES / "sweep.csv")
    for row in rows:
        if row["status"] != "ok" or row["op"] != "forward" or row["date"] != rows[0]["date"]:
            continue
        factor = {
            ("64", "ours"): 1.03,
            ("65536", "ours"): 1.1,
            ("65536", "roof"): 1.1,
            ("3001", "toc"): 1.05,
            ("3001", "ours"): 1.008,
        }
        change = factor.get((row["dim"], row["provider"]), 1)
        row.update({name: f"{float(row[name]) * change:.6g}" for name in ("value", "p20", "p80")})
    rows = [row for row in rows if row["date"] == rows[0]["date"]]
    with (tmp_path / "after.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, results.FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    before, after = reports.read(EXAMPLES / "sweep.csv"), reports.read(tmp_path / "after.csv")
    before = before[before["date"] == before["date"].iloc[0]]
    lines = [line for line in reports.compare.markdown(before, after).splitlines() if " x " in line]
    ours = [line for line in lines if "| ours" in line.replace("     ours", "ours") or " ours |" in line]
    assert [line.split("|")[-2].strip() for line in ours] == ["worse"]
    assert "+3.0%" in ours[0] and "x 64" in ours[0]
    assert not any(" toc |" in line and "3001" in line for line in lines)
    assert "Nothing changed" in reports.compare.markdown(before, before)


def test_a_peer_that_is_not_installed_costs_its_column_only():
    there, missing = providers.load(["quack", "liger", "fla", "flashinfer", "ours"], "cuda")
    assert "ours" in [provider.name for provider in there]
    for why in missing.values():
        assert why.startswith("not installed")
    assert {provider.name for provider in there} | set(missing) == {"quack", "liger", "fla", "flashinfer", "ours"}
    assert "does not run on cpu" in providers.load(["quack"], "cpu")[1]["quack"]


def test_the_page_is_self_contained_and_holds_every_suite(tmp_path):
    import plots

    for path in EXAMPLES.glob("*.csv"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    plots.plot(reports.read(EXAMPLES / "sweep.csv"), tmp_path / "sweep")
    plots.plot(reports.read(EXAMPLES / "small.csv"), tmp_path / "small")
    text = reports.page.write(tmp_path, list(SUITES)).read_text()
    for suite in SUITES:
        assert text.count(f'<section id="suite-{suite}">') == 1
    assert text.count("<svg") == 2
    figures = [
        reports.common.figure(row.to_frame().T, lambda v: f"{v:.2f}")
        for _, row in reports.read(EXAMPLES / "small.csv").iterrows()
    ]
    assert all(figure in text for figure in figures)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)
    assert not re.search(r'(src|href)="(?!#)', text)  # nothing is loaded from elsewhere


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "results").glob("*/index.html")), ids=lambda p: p.parent.name)
def test_a_committed_page_comes_from_its_folder(path):
    assert reports.page.of_folder(path.parent, list(SUITES)).encode() == path.read_bytes()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_a_window(tmp_path, width):
    """In a browser: tables and plots scroll in their own boxes, the page does not."""
    import plots

    for suite in SUITES:
        (tmp_path / f"{suite}.csv").write_bytes((EXAMPLES / f"{suite}.csv").read_bytes())
    plots.plot(reports.read(EXAMPLES / "sweep.csv"), tmp_path / "sweep")
    page = reports.page.write(tmp_path, list(SUITES))
    told = "<script>document.title = `${innerWidth} ${document.documentElement.scrollWidth}`</script></body>"
    page.write_text(page.read_text().replace("</body>", told))
    frame = tmp_path / "frame.html"  # a browser's own window is never as narrow as a phone
    frame.write_text(
        f'<iframe id="f" src="index.html" width="{width}" height="800" frameborder="0"></iframe><script>'
        'onload = () => document.title = document.getElementById("f").contentDocument.title</script>'
    )
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1600,900", "--dump-dom", frame.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    (inner, needed) = map(int, re.search(r"<title>(\d+) (\d+)</title>", shown).groups())
    assert inner == width and needed <= inner


def test_another_device_is_not_mixed_in(tmp_path):
    (tmp_path / "sweep.csv").write_bytes((EXAMPLES / "sweep.csv").read_bytes())
    with pytest.raises(ValueError, match="Example GPU"):
        sweep.run(Plan("cpu", tmp_path, providers=["to"], dims=[8], elements=8, append=True))
    assert (tmp_path / "sweep.csv").read_bytes() == (EXAMPLES / "sweep.csv").read_bytes()


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


QUICK = [
    name
    for name, feature in features.FEATURES.items()
    if not (feature.gpu or feature.alone or feature.group in (features.COMPILE, features.EXPORT))
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", QUICK)
def test_features(name, plain_memory):
    """What the page claims of srmsnorm, as far as it takes no compiler."""
    assert features.outcome(name, "srmsnorm", "cpu") == "ok"


def test_a_feature_that_crashes_leaves_no_process_behind():
    """One that holds its output, or does not end."""
    start = "import os, subprocess, time; child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True); "
    with pytest.raises(AssertionError) as error:
        features.run_alone(start + "os.abort()")
    left = pathlib.Path(f"/proc/{error.value}/exe")
    until = time.monotonic() + 10  # a process that is killed takes a while to go
    while left.exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert not left.exists()
    with pytest.raises(AssertionError, match="did not end in 1 s"):
        features.run_alone(start + "time.sleep(600)", timeout=1)


@pytest.mark.filterwarnings("ignore")
def test_features_can_be_missing(monkeypatch, plain_memory):
    """A norm that is 1 % off has no feature that looks at values; what is known to be missing is found missing."""
    ours = features.CANDIDATES["srmsnorm"]()
    wrong = dataclasses.replace(
        ours,
        norm=lambda x: ours.norm(x) * 1.01,
        module=lambda: torch.nn.Sequential(ours.module(), torch.nn.Hardtanh(-1, 1)),
    )
    monkeypatch.setitem(features.CANDIDATES, "wrong", lambda: wrong)
    blind = {"autocast leaves dtypes alone", "same row, same bits, whatever the number of rows", "deterministic mode"}
    blind |= {"flop counter: no error", "dispatch modes see forward and backward"}
    blind |= {"profiler: forward and backward by name"}
    of_the_operator = {"torch.library.opcheck", "a kernel for devices nobody wrote one for"}
    for name in set(QUICK) - blind - of_the_operator:
        assert features.outcome(name, "wrong", "cpu") != "ok", name
    for name in ("double backward", "vmap of vmap", "jvp"):
        assert features.outcome(name, "Python custom_op", "cpu") != "ok", name


def test_page(tmp_path):
    """The table goes between the markers, and nowhere else. What one machine lacks is another's, and says so."""
    import run

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


def test_triton_kernels_in_the_interpreter():
    """In its own process: Triton decides at import whether it interprets."""
    pytest.importorskip("triton")
    code = "import test_benchmarks; test_benchmarks.triton_against_the_reference()"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=pathlib.Path(__file__).parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def triton_against_the_reference():
    """Rows shared by a block, one row a block, an odd dim, and a row that is read twice. Not in bfloat16, to which the
    interpreter truncates where the compiler rounds."""
    import triton_norm
    from providers import EPS

    for shape in ((33, 64), (2, 2048), (3, 1001), (2, 40000)):
        for dtype in (torch.float16, torch.float32):
            x, r, g, gh = (torch.randn(shape, dtype=dtype) for _ in range(4))
            for residual in (None, r):
                y, total, rstd = triton_norm.forward(x, residual, eps=EPS, write_sum=True, write_rstd=True)
                check.require(f"y {shape}", check.forward_error(y, x, residual, 1))
                assert torch.equal(total, x if residual is None else x + residual)
                for grad_sum in (None, gh):
                    grad = triton_norm.backward(g, y, rstd, grad_sum)
                    check.require(f"grad {shape}", check.backward_error(grad, g, x, residual, 1, grad_sum))
                    if dtype == torch.float16:
                        both = triton_norm.backward_pair(g, y, rstd, None if grad_sum is None else grad_sum.float())
                        assert [grad.dtype for grad in both] == [torch.float16, torch.float32]
                        for grad in both:
                            check.require(f"pair {shape}", check.backward_error(grad, g, x, residual, 1, grad_sum))
            x.requires_grad_()
            r.requires_grad_()
            for outputs, grad_sum in (
                ((triton_norm.srms_norm(x, r, eps=EPS),), None),
                (triton_norm.add_srms_norm(x, r, eps=EPS), gh),
            ):
                grads = torch.autograd.grad(outputs, (x, r), (g, gh)[: len(outputs)])
                for grad in grads:
                    check.require(f"autograd {shape}", check.backward_error(grad, g, x, r, 1, grad_sum))


def test_counters_of_the_cells_below_a_fraction(tmp_path, monkeypatch):
    """With an ncu of one's own that prints what the real one does: a log, the header, the units, a row a kernel."""
    import counters

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
