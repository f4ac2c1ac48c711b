"""examples/cpp: programs on LibTorch that call the operators, train, and run an AOTInductor package, without Python."""

import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys

import fresh
import pytest
import torch

import srmsnorm

EXAMPLE = fresh.ROOT / "examples/cpp"
(LIBRARY,) = pathlib.Path(srmsnorm.__file__).parent.glob("_ops.*")
BESIDE_PYTHON = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])  # where its wheels put programs
CMAKE = shutil.which("cmake", path=BESIDE_PYTHON)

pytestmark = [
    pytest.mark.skipif(CMAKE is None, reason="needs cmake"),
    pytest.mark.skipif(not EXAMPLE.exists(), reason="needs the source tree"),
]


def run(*command, **environment):
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cpp")
    run(CMAKE, "-S", EXAMPLE, "-B", folder, "-G", "Ninja", f"-DTorch_ROOT={torch.__path__[0]}", PATH=BESIDE_PYTHON)
    run(CMAKE, "--build", folder, PATH=BESIDE_PYTHON)
    return folder


def without_python(*command):
    """What it prints; the loader's log names every library that came into the process."""
    done = run(*command, LD_DEBUG="libs")
    loaded = set(re.findall(r"calling init: (\S+)", done.stderr))
    assert str(LIBRARY) in loaded
    assert not [name for name in loaded if re.search(r"libpython|libtorch_python|_C\.", pathlib.Path(name).name)]
    return done.stdout


def test_programs(device, programs, tmp_path):
    before, after = map(float, re.findall(r"\d+\.\d+", without_python(programs / "operators", LIBRARY, device)))
    assert 0 < after < before

    fresh.skip_without_packages(device, tmp_path)
    spec = importlib.util.spec_from_file_location("export_example", EXAMPLE / "export.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    package = tmp_path / "model.pt2"
    example.export(str(package), device)
    model = example.model(device)
    lines = without_python(programs / "package", LIBRARY, package, device).splitlines()
    assert len(lines) == 2
    for line in lines:
        rows, *got = map(float, line.replace(":", " ").split())
        x = torch.linspace(-1, 1, int(rows) * example.DIM, device=device).view(int(rows), -1)
        torch.testing.assert_close(torch.tensor(got), model(x, x.square()).cpu(), rtol=1e-4, atol=1e-5)
