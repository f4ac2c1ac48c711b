"""One self-contained HTML page of all suites' reports in a folder: tables, and the plots as inline SVG."""

import pathlib
import re

import pandas as pd
from markdown_it import MarkdownIt

from . import markdown
from .common import read

STYLE = """
:root { color-scheme: light dark; --line: #8884; --panel: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 75rem; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
nav a { display: inline-block; margin-right: 1rem; padding: .3rem 0; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem; white-space: nowrap; }
th { background: var(--panel); }
th:first-child, td:first-child { position: sticky; left: 0; background: Canvas; }
figure { margin: 1rem 0; background: #fff; } figure svg { height: auto; min-width: 42rem; width: 100%; }
section { border-top: 2px solid var(--line); margin-top: 2rem; }
"""


def write(folder: pathlib.Path, order: list[str]) -> pathlib.Path:
    """index.html beside the CSVs; suites in that order."""
    path = folder / "index.html"
    path.write_text(of_folder(folder, order), encoding="utf-8", newline="\n")
    return path


def of_folder(folder: pathlib.Path, order: list[str]) -> str:
    found = [folder / f"{name}.csv" for name in order if (folder / f"{name}.csv").exists()]
    if not found:
        raise ValueError(f"{folder} has no results")
    return page([(csv.stem, read(csv), drawings(csv)) for csv in found])


def drawings(csv: pathlib.Path) -> list[str]:
    """The suite's SVG files; their ids are made the suite's own, since all stand on one page."""
    texts = []
    for path in sorted(csv.parent.glob(f"{csv.stem}*.svg")):
        svg = path.read_text(encoding="utf-8")
        svg = svg[svg.index("<svg") :]
        svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{path.stem}-", svg)
        svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
        svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
        texts.append(f'<figure class="wide">{svg}</figure>')
    return texts


def page(suites: list[tuple[str, pd.DataFrame, list[str]]]) -> str:
    render = MarkdownIt("commonmark", {"html": False}).enable("table").render
    device = next((frame["device"].iloc[0] for _, frame, _ in suites if not frame.empty), "")
    links = "".join(f'<a href="#suite-{name}">{name}</a>' for name, _, _ in suites)
    parts = []
    for name, frame, plots in suites:
        html = render(markdown(frame)).replace("<table>", '<div class="wide"><table>')
        html = html.replace("</table>", "</table></div>")
        head, rest = (html.split("<h2>", 1) + [""])[:2]
        rest = f"<h2>{rest}" if rest else ""
        parts.append(f'<section id="suite-{name}">{head}{"".join(plots)}{rest}</section>')
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>srmsnorm: {device}</title><style>{STYLE}</style></head>\n"
        f"<body><nav>{links}</nav>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
