"""examples/train.py, short: eager, compiled, and FSDP2 in two processes. (examples/cpp: test_cpp.py.)"""

import importlib.util
import os
import re
import subprocess
import sys

import fresh
import pytest
import torch
import torch.distributed as dist

TRAIN = fresh.ROOT / "examples/train.py"
SHORT = ["--steps", "12", "--batch", "4", "--length", "64", "--dim", "64", "--depth", "2", "--heads", "2"]

pytestmark = pytest.mark.skipif(not TRAIN.exists(), reason="needs the source tree")


def final_loss(*arguments):
    path = os.pathsep.join([str(fresh.ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    before, after = map(float, re.search(r"loss (\S+) -> (\S+) nats", done.stdout).groups())
    assert before > 5 and after < before - 0.5, done.stdout
    return after


def test_eager_and_compiled(device, tmp_path):
    arguments = [TRAIN, *SHORT, "--device", device]
    plot = ["--plot", tmp_path / "loss.png"] if importlib.util.find_spec("matplotlib") else []
    eager = final_loss(*arguments, *plot)
    assert not plot or (tmp_path / "loss.png").stat().st_size > 1000
    assert final_loss(*arguments, "--compile", "aot_eager") == pytest.approx(
        eager, abs=0.02 if device == "cuda" else 2e-3
    )


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
def test_fsdp():
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    final_loss(*torchrun, TRAIN, *SHORT, "--device", "cpu", "--fsdp")


def test_the_model_is_causal():
    spec = importlib.util.spec_from_file_location("train_example", TRAIN)
    train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train)
    torch.manual_seed(0)
    model = train.Model(dim=32, depth=2, heads=2).double()
    tokens = torch.randint(256, (1, 16))
    changed = tokens.clone()
    changed[0, 10] ^= 1
    same = (model(tokens) == model(changed)).all(-1)[0]
    assert same[:10].all() and not same[10:].any()
