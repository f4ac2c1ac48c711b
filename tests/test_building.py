"""The build: what it says is missing, what a source distribution holds."""

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile

import fresh
import pytest
import torch
from torch.utils.cpp_extension import include_paths

pytestmark = pytest.mark.skipif(not (fresh.ROOT / "setup.py").exists(), reason="needs the source tree")
BACKEND = ["-c", "import build_backend"]  # what pip does first
SETUP = ["setup.py", "--version"]


def build(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=fresh.ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "SRMSNORM_CUDA": "0", **{name: str(value) for name, value in environment.items()}},
    )


def one_sentence(done):
    assert done.returncode == 1, done
    assert re.fullmatch(r"srmsnorm: .*\n", done.stderr), done.stderr
    return done.stderr


@pytest.fixture
def packages(tmp_path):
    """A folder where packages of the given versions seem to be installed; with `python -S` there are no others."""

    def install(**versions):
        for name, version in versions.items():
            about = tmp_path / f"{name}-{version}.dist-info"
            about.mkdir()
            (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        return tmp_path

    return install


@pytest.mark.parametrize("command", [BACKEND, SETUP])
def test_nothing_there(command, tmp_path):
    said = one_sentence(build("-S", *command, PATH=tmp_path))
    assert "no setuptools, no torch, no ninja" in said
    assert f"{sys.executable} -m pip install 'setuptools>=77' 'torch>=2.11' ninja" in said


@pytest.mark.parametrize("command", [BACKEND, SETUP])
def test_too_old(command, packages):
    folder = packages(setuptools="65.5.0", torch="2.9.1+cpu")
    said = one_sentence(build("-S", *command, PYTHONPATH=folder))
    assert "setuptools 65.5.0, torch 2.9.1+cpu." in said and "no ninja" not in said


@pytest.mark.parametrize("torch", ["2.11.0+cpu", "2.12.0a0+git123", "3.0"])
def test_new_enough(torch, packages):
    done = build("-S", *SETUP, PYTHONPATH=packages(setuptools="100", torch=torch))
    assert "srmsnorm:" not in done.stderr and "No module named" in done.stderr  # they only seem to be there


def test_ninja_of_an_environment_that_is_not_activated():
    assert shutil.which("ninja", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]))
    assert build(*BACKEND).returncode == 0


COMPILERS = {"none": "", "without C++20": "#!/bin/sh\necho \"error: unrecognized option '-std=c++20'\" >&2\nexit 1\n"}


@pytest.mark.parametrize("kind", COMPILERS)
def test_compiler(kind, tmp_path):
    compiler = tmp_path / "compiler"
    if COMPILERS[kind]:
        compiler.write_text(COMPILERS[kind])
        compiler.chmod(0o755)
    note = tmp_path / "srmsnorm/built_for.json"
    note.parent.mkdir()
    note.write_text("{}")
    done = build("setup.py", "build_ext", "--build-lib", tmp_path, "--build-temp", tmp_path, CXX=compiler)
    said = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and said.startswith("srmsnorm: a C++20 compiler is needed") and str(compiler) in said
    assert ("unrecognized option" if COMPILERS[kind] else "No such file") in said
    assert note.exists()  # nothing was touched


@pytest.fixture
def setup(monkeypatch):
    """setup.py as a module."""
    monkeypatch.syspath_prepend(str(fresh.ROOT))
    spec = importlib.util.spec_from_file_location("srmsnorm_setup", fresh.ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("named", ["", " 9.0 "])
@pytest.mark.parametrize("given", ["", "auto", "native", "0", "1"])
def test_native_is_what_this_machine_can_run(setup, monkeypatch, given, named, gpu):
    monkeypatch.setenv("SRMSNORM_CUDA", given)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", named)
    monkeypatch.setattr(setup.torch.cuda, "is_available", lambda: gpu)
    if given == "native":
        assert setup.cuda_setting() == ("1" if named else "auto" if gpu else "0")
    else:
        assert setup.cuda_setting() == (given or "auto")


def test_unknown_setting():
    assert "SRMSNORM_CUDA must be auto, native, 0 or 1, got 'yes'" in one_sentence(build(*SETUP, SRMSNORM_CUDA="yes"))


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(("given", "wanted"), [({}, "native"), ({"SRMSNORM_CUDA": "1"}, "1")], ids=str)
def test_make_builds_for_this_machine(given, wanted, tmp_path):
    """Unless told otherwise: what every verb begins with sees the setting."""
    (tmp_path / "python").write_text('#!/bin/sh\necho "$SRMSNORM_CUDA: $*"\n')
    (tmp_path / "python").chmod(0o755)
    done = subprocess.run(
        ["make", "-s", "test", "VENV=", f"PYTHON={tmp_path / 'python'}"],
        cwd=fresh.ROOT,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], **given},  # nothing of a make that runs the tests
    )
    assert done.stdout.splitlines() == [f"{wanted}: setup.py build_ext --inplace", f"{wanted}: -m pytest"], done


@pytest.mark.skipif(not (fresh.ROOT / ".git").exists() or shutil.which("git") is None, reason="needs the repository")
def test_source_distribution(tmp_path):
    done = build("setup.py", "egg_info", "--egg-base", tmp_path, "sdist", "--dist-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=fresh.ROOT, capture_output=True, text=True, check=True)
    files = {name for name in tracked.stdout.splitlines() if not name.startswith((".ci/", ".gitignore"))}
    assert files and not files - held
    assert not [name for name in held if name.endswith((".so", ".pyc", "built_for.json"))]


def test_the_cuda_key_compiles():
    """The one file of csrc/cuda that knows torch, with this torch's headers, also where the build is for the CPU."""
    home = runpy.run_path(str(fresh.ROOT / "setup.py"))["find_toolkit"]() if torch.version.cuda else None
    if home is None or shutil.which("c++") is None:
        pytest.skip("needs a CUDA toolkit and a compiler")
    includes = [f"-I{path}" for path in [*include_paths(), home / "include"]]
    source = fresh.ROOT / "csrc/cuda/srms_norm.cpp"
    command = ["c++", "-std=c++20", "-fsyntax-only", *includes, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("given", "flags"),
    [("9.0", ["90,code=sm_90"]), ("8.0;12.0+PTX", ["80,code=sm_80", "120,code=sm_120", "120,code=compute_120"])],
)
def test_architectures_of_the_wheel(given, flags, monkeypatch):
    monkeypatch.syspath_prepend(str(fresh.ROOT / "tools"))
    import build_wheel

    assert build_wheel.code_for(given) == [f"-gencode arch=compute_{flag}" for flag in flags]
    minor, folder = build_wheel.torch_of(torch.__path__[0])
    assert torch.__version__.startswith(f"{minor}.") and (folder / "lib/libtorch_cpu.so").exists()
    assert minor in build_wheel.TORCHES  # a wheel of the newest torch is asked for by its number
