"""examples/cpp: programs on LibTorch that call the operators, train, and run an AOTInductor package, without Python."""

import importlib.util
import json
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
LIBRARY = srmsnorm.library_path
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


# As everyone has it: the system's CMake, where there is one, and make.
SYSTEM_CMAKE = "/usr/bin/cmake" if os.path.exists("/usr/bin/cmake") else CMAKE
USUAL = [] if shutil.which("make") else ["-G", "Ninja"]


def configure(folder, *options):
    run(SYSTEM_CMAKE, "-S", EXAMPLE, "-B", folder, *USUAL, *options, PATH=BESIDE_PYTHON)


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cpp")
    configure(folder, f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path};{srmsnorm.cmake_prefix_path}")
    run(SYSTEM_CMAKE, "--build", folder, "--parallel", "2", PATH=BESIDE_PYTHON)
    return folder


@pytest.mark.parametrize("name", ["CMAKE_PREFIX_PATH", "Torch_ROOT"])
def test_configures_with_torch_alone(name, tmp_path):
    """By torch's prefix path, or by its folder."""
    torch_folder = torch.__path__[0]
    configure(tmp_path, f"-D{name}={torch.utils.cmake_prefix_path if name == 'CMAKE_PREFIX_PATH' else torch_folder}")
    found = re.search(r"^TORCH_INCLUDE:PATH=(.*)", (tmp_path / "CMakeCache.txt").read_text(), re.M)[1]
    assert os.path.samefile(found, os.path.join(torch_folder, "include"))


@pytest.mark.parametrize("built_for", ["2.10.0", ["2.10"]])
def test_package_for_another_torch(built_for, tmp_path):
    """find_package says what it has, as an import does."""
    package = shutil.copytree(pathlib.Path(srmsnorm.cmake_prefix_path), tmp_path / "srmsnorm/cmake").parent
    (package / "built_for.json").write_text(json.dumps({"torch": built_for}))
    (package / "_ops.abi3.so").touch()
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(test NONE)\nfind_package(srmsnorm REQUIRED)\n"
    )
    paths = f"{package / 'cmake'};{torch.utils.cmake_prefix_path}"
    command = [CMAKE, "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={paths}"]
    done = subprocess.run(command, capture_output=True, text=True)
    said = " ".join(done.stderr.split())
    assert done.returncode and "no library for torch" in said and "2.10" in said, done.stderr


def without_python(*command):
    """What it prints; the loader's log names every library that came into the process."""
    done = run(*command, LD_DEBUG="libs")
    loaded = set(re.findall(r"calling init: (\S+)", done.stderr))
    assert LIBRARY in loaded
    assert not [name for name in loaded if re.search(r"libpython|libtorch_python|_C\.", pathlib.Path(name).name)]
    return done.stdout


def test_programs(device, programs, tmp_path):
    before, after = map(float, re.findall(r"\d+\.\d+", without_python(programs / "operators", LIBRARY, device)))
    assert 0 < after < before
    assert "loss" in without_python(programs / "linked", device)

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
