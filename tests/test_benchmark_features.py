"""The suite of yes and no: what it claims of srmsnorm, what it finds missing, and that it leaves nothing behind."""

import dataclasses
import pathlib
import time

import benchmark_samples  # noqa: F401 - where the benchmark is, and whether it can run
import pytest
import torch

from benchmarks.suites import features
from benchmarks.suites.features import compiling, deployment, running

QUICK = [
    name
    for name, feature in features.FEATURES.items()
    if not (feature.gpu or feature.alone or feature.group in (compiling.FEATURES.title, deployment.FEATURES.title))
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", QUICK)
def test_features(name, plain_memory):
    """What the page claims of srmsnorm, as far as it takes no compiler."""
    assert running.outcome(name, "srmsnorm", "cpu") == "ok"


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
        assert running.outcome(name, "wrong", "cpu") != "ok", name
    for name in ("double backward", "vmap of vmap", "jvp"):
        assert running.outcome(name, "Python custom_op", "cpu") != "ok", name


def test_a_feature_that_crashes_leaves_no_process_behind():
    """One that holds its output, or does not end."""
    start = "import os, subprocess, time; child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True); "
    with pytest.raises(AssertionError) as error:
        running.run_alone(start + "os.abort()")
    left = pathlib.Path(f"/proc/{error.value}/exe")
    until = time.monotonic() + 10  # a process that is killed takes a while to go
    while left.exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert not left.exists()
    with pytest.raises(AssertionError, match="did not end in 1 s"):
        running.run_alone(start + "time.sleep(600)", timeout=1)
