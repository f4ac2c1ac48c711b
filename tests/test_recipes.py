"""The recipes of docs/models.md, both sides of each run as they stand there."""

import pathlib
import re

import pytest
import torch
from torch.nn import functional as F

import srmsnorm

PAGE = (pathlib.Path(__file__).parents[1] / "docs/models.md").read_text()
RECIPES = re.findall(r"^\| `(.+?)` \| `(srmsnorm\..+?)` \| (the same|differs)", PAGE, re.MULTILINE)


def test_all_are_found():
    assert len(RECIPES) == 11


@pytest.mark.parametrize("theirs, ours, relation", RECIPES)
def test_recipe(theirs, ours, relation):
    torch.manual_seed(0)
    d, eps = 48, 1e-6
    x, residual = torch.randn(2, 3, d).double(), torch.randn(2, 3, d).double()
    names = {"torch": torch, "F": F, "srmsnorm": srmsnorm, "x": x, "d": d, "eps": eps}
    names |= {"weight": torch.randn(d).double(), "residual": residual}
    rounded = 1e-6 if "float()" in theirs else 1e-12
    a, b = eval(theirs, names), eval(ours, names)
    torch.testing.assert_close(b, a, rtol=rounded if relation == "the same" else 10 * eps, atol=0)
    names["x"] = torch.zeros(2, 3, d).double()
    if "residual" not in ours:
        assert torch.equal(eval(theirs, names), eval(ours, names))
