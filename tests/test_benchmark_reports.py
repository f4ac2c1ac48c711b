"""Markdown, plots, pages and the project's tables come from the CSVs alone, byte for byte."""

import csv
import re
import shutil
import subprocess

import pandas as pd
import pytest
from benchmark_samples import BENCHMARKS, EXAMPLES, rows_of

from benchmarks import reports
from benchmarks.record import results
from benchmarks.reports import cells, common, compare, model, page, readme
from benchmarks.suites import SUITES, features


@pytest.mark.parametrize("suite", SUITES)
def test_the_markdown_comes_from_the_csv_byte_for_byte(suite):
    text = reports.markdown(reports.read(EXAMPLES / f"{suite}.csv"))
    assert text.encode() == (EXAMPLES / f"{suite}.md").read_bytes()


@pytest.mark.parametrize(
    "path", sorted((BENCHMARKS / "results").glob("*/*.csv")), ids=lambda p: f"{p.parent.name}-{p.stem}"
)
def test_committed_markdown_comes_from_its_csv(path):
    assert reports.markdown(reports.read(path)).encode() == path.with_suffix(".md").read_bytes()


@pytest.mark.parametrize("suite", [suite for suite in SUITES if suite != "features"])  # yes and no
def test_the_plots_come_from_the_csv_byte_for_byte(suite, tmp_path):
    from benchmarks.reports import plots

    frame = reports.read(EXAMPLES / f"{suite}.csv")
    first, second = (plots.plot(frame, tmp_path / run / suite) for run in ("a", "b") if not (tmp_path / run).mkdir())
    assert {path.suffix for path in first} == (set() if suite == features.NAME else {".png", ".svg"})
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


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
    (cell,) = (c for c in cells.cells_of(frame) if (c.dtype, c.op, c.dim) == ("bf16", "forward", 65536))
    assert cell.fraction["toc"] == pytest.approx(0.9, rel=1e-4)
    assert cell.fraction["ours"] == pytest.approx(0.97, rel=1e-4)
    assert (cell.best, cell.ratio) == ("tocm", pytest.approx(0.98 / 0.97, rel=1e-4))
    with pytest.raises(ValueError, match="different suites"):
        results.join([parts[0], EXAMPLES / "host.csv"], tmp_path / "no.csv")


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
    lines = [line for line in compare.markdown(before, after).splitlines() if " x " in line]
    ours = [line for line in lines if "| ours" in line.replace("     ours", "ours") or " ours |" in line]
    assert [line.split("|")[-2].strip() for line in ours] == ["worse"]
    assert "+3.0%" in ours[0] and "x 64" in ours[0]
    assert not any(" toc |" in line and "3001" in line for line in lines)
    assert "Nothing changed" in compare.markdown(before, before)


def test_models_are_compared_with_the_best_of_the_others():
    """The operator with all but "auto", "auto" with the operator too; what is noisy is nobody's best."""
    row = {"suite": "model", "cuda": "13.0", "status": "ok", "unit": "tokens/s", "p20": 1.0, "p80": 1.0}
    speeds = {"ours": 100.0, "auto": 99.5, "to": 90.0, "rms": 99.0, "quack": 200.0}
    rows = pd.DataFrame([row | {"provider": name, "value": value} for name, value in speeds.items()])
    rows.loc[rows["provider"] == "quack", "p80"] = 90.0
    assert model.ratios(rows, "speed") == {"ours": 100 / 99, "auto": 99.5 / 100}
    assert model.ratios(rows, "memory") == {"ours": 100 / 90, "auto": 99.5 / 90}
    assert model.ratios(rows[rows["provider"] == "auto"], "speed") == {}


def test_the_readme_is_written_from_the_results(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("before\n\n<!-- tables:begin -->\nold\n<!-- tables:end -->\n\nafter\n")
    assert common.insert(path, "tables", readme.section(EXAMPLES, tmp_path))
    text = path.read_text()
    assert text.startswith("before\n\n<!-- tables:begin -->\n") and text.endswith("<!-- tables:end -->\n\nafter\n")
    assert "old" not in text
    assert not common.insert(path, "tables", readme.section(EXAMPLES, tmp_path))
    with pytest.raises(ValueError, match="needs one"):
        common.insert(path, "features", "")
    published = next(line for line in text.splitlines() if " speed, forward |" in line)
    assert "0.0500" in published and "0.1112" in published  # ours and torch.compile's on the H100, at n = 2048
    assert "Worst cell: mixed, backward+sum" in text
    both = readme.section(EXAMPLES, tmp_path, [EXAMPLES])
    assert both.count("Worst cell: mixed, backward+sum") == 2
    lines = [line for line in both.splitlines() if " speed, forward |" in line]
    assert len(lines) == 2 and ["0.1112" in line for line in lines] == [True, False]  # what was published stands once
    assert (
        "own roof, bf16 beside torch.compile, torch.compile, max-autotune (at 1 of 3 dims), F.rms_norm; mixed" in both
    )


def test_who_was_timed_beside_whom(tmp_path):
    frame = common.read(EXAMPLES / "sweep.csv")
    frame = frame[(frame["dtype"] == "bf16") | frame["provider"].isin(["ours", "roof"])]
    assert readme._company(frame).endswith("; mixed alone")


def test_the_projects_readme_holds_the_committed_results():
    """Tables that nobody typed."""
    folders = [path.parent for path in (BENCHMARKS / "results").glob("nvidia-*/tables.csv")]
    others = [BENCHMARKS / "results/nvidia-h200"]
    path = BENCHMARKS.parent / "README.md"
    _, _, rest = path.read_text(encoding="utf-8").partition("<!-- tables:begin -->\n")
    section = rest.partition("<!-- tables:end -->")[0]
    assert section in ["", *(readme.section(folder, path.parent, others) for folder in folders)]
    if folders:
        assert section


def test_the_page_is_self_contained_and_holds_every_suite(tmp_path):
    from benchmarks.reports import plots

    for path in EXAMPLES.glob("*.csv"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    plots.plot(reports.read(EXAMPLES / "sweep.csv"), tmp_path / "sweep")
    plots.plot(reports.read(EXAMPLES / "small.csv"), tmp_path / "small")
    text = page.write(tmp_path, list(SUITES)).read_text()
    for suite in SUITES:
        assert text.count(f'<section id="suite-{suite}">') == 1
    assert text.count("<svg") == 2
    figures = [
        common.figure(row.to_frame().T, lambda v: f"{v:.2f}")
        for _, row in reports.read(EXAMPLES / "small.csv").iterrows()
    ]
    assert all(figure in text for figure in figures)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)
    assert not re.search(r'(src|href)="(?!#)', text)  # nothing is loaded from elsewhere


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_a_window(tmp_path, width):
    """In a browser: tables and plots scroll in their own boxes, the page does not."""
    from benchmarks.reports import plots

    for suite in SUITES:
        (tmp_path / f"{suite}.csv").write_bytes((EXAMPLES / f"{suite}.csv").read_bytes())
    plots.plot(reports.read(EXAMPLES / "sweep.csv"), tmp_path / "sweep")
    index = page.write(tmp_path, list(SUITES))
    told = "<script>document.title = `${innerWidth} ${document.documentElement.scrollWidth}`</script></body>"
    index.write_text(index.read_text().replace("</body>", told))
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
