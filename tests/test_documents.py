"""README.md and CONTRIBUTING.md name the files that there are."""

import re

import fresh
import pytest

pytestmark = pytest.mark.skipif(not (fresh.ROOT / "README.md").exists(), reason="needs the source tree")


def named(text):
    """File names in a text, ``layout.h, .cpp`` being two."""
    for stem, endings in re.findall(r"([\w-]+)((?:\.\w+)(?:, \.\w+)*)", text):
        yield from (stem + ending for ending in endings.split(", "))


def test_the_tree_names_every_source():
    readme = (fresh.ROOT / "README.md").read_text()
    (tree,) = re.findall(r"^csrc/\n.*?(?=^srmsnorm/ )", readme, re.M | re.S)
    sources = {path.name for path in (fresh.ROOT / "csrc").rglob("*") if path.is_file()}
    assert set(named(tree)) == sources


def test_what_contributing_names_is_there():
    contributing = (fresh.ROOT / "CONTRIBUTING.md").read_text()
    names = set(re.findall(r"`([\w/]+\.(?:h|cpp|cu|cuh|py|txt|csv))`", contributing))
    folders = ("csrc", "srmsnorm", "tests", "benchmarks", "tools")
    files = [path.as_posix() for folder in folders for path in (fresh.ROOT / folder).rglob("*.*")]
    lost = [name for name in names if "NAME" not in name and not any(file.endswith(f"/{name}") for file in files)]
    assert len(names) > 30 and not lost
