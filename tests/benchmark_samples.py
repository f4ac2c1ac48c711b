"""What the tests of the benchmark share: where it is, its example results, and providers that are wrong."""

import csv
import pathlib
import sys

import pytest
import torch

for package in ("matplotlib", "pandas", "rich", "tabulate", "typer"):
    pytest.importorskip(package)

BENCHMARKS = pathlib.Path(__file__).resolve().parent.parent / "benchmarks"
EXAMPLES = BENCHMARKS / "examples"

# As run.py does it: the package of this tree, whatever srmsnorm is tested.
sys.path.insert(0, str(BENCHMARKS.parent))
import benchmarks  # noqa: E402, F401

sys.path.append(sys.path.pop(0))

from benchmarks.providers.pytorch import Eager  # noqa: E402


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
