"""Loading: one copy of the library in a process, and what it was built for."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import fresh
import pytest
import torch

import srmsnorm

PACKAGE = pathlib.Path(srmsnorm.__file__).absolute().parent
LIBRARY = pathlib.Path(srmsnorm.library_path)
MINOR = ".".join(torch.__version__.split(".")[:2])

WORKS = """
x = torch.randn(3, 5, requires_grad=True)
y, s = torch.ops.srmsnorm.add_srms_norm(x, x)
(y + s).sum().backward()
torch.testing.assert_close(y, 2 * x * (4 * x * x).mean(-1, keepdim=True).add(torch.finfo(x.dtype).eps).rsqrt())
assert x.grad.isfinite().all() and torch.vmap(torch.ops.srmsnorm.srms_norm)(x).shape == x.shape
"""


@pytest.fixture
def copy(tmp_path):
    """A package of the same name in another folder."""
    return pathlib.Path(shutil.copytree(PACKAGE, tmp_path / "other/srmsnorm"))


def succeeds(program):
    done = fresh.run(f"import ctypes, importlib, sys, torch\n{program}")
    assert done.returncode == 0, done.stderr
    return done.stderr


def import_error(program):
    done = fresh.run(f"import ctypes, importlib, sys, torch\n{program}")
    assert done.returncode == 1, done  # an abort is a negative one
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: srmsnorm"), done.stderr
    return last


# ---- a second copy


@pytest.mark.parametrize("mode", ["RTLD_LOCAL", "RTLD_GLOBAL"])
def test_copy_loaded_before_import(copy, mode):
    (library,) = copy.glob("_ops.*")
    said = import_error(f"ctypes.CDLL({str(library)!r}, ctypes.{mode})\n{WORKS}\nimport srmsnorm")
    assert str(library) in said and str(LIBRARY) in said


@pytest.mark.parametrize("mode", ["RTLD_LOCAL", "RTLD_GLOBAL"])
def test_copy_loaded_after_import(copy, mode):
    """No exception can leave the loader: the second copy says that it stays without effect, and the first one works."""
    (library,) = copy.glob("_ops.*")
    said = succeeds(
        f"import srmsnorm\nctypes.CDLL({str(library)!r}, ctypes.{mode})\ntorch.ops.load_library({str(library)!r})\n"
        f"assert torch.ops.srmsnorm._library() == {str(LIBRARY)!r}\n{WORKS}"
    )
    assert said.count("without effect") == 1 and str(library) in said and str(LIBRARY) in said
    assert "Overriding" not in said  # a dispatch key that registers on its own


def test_package_in_another_folder(copy):
    """It cannot be had beside the first, which goes on working."""
    program = f"""
import srmsnorm
first = srmsnorm
for name in [name for name in sys.modules if name.split(".")[0] == "srmsnorm"]:
    del sys.modules[name]
sys.path.insert(0, {str(copy.parent)!r})
try:
    import srmsnorm
finally:
    first.srms_norm(torch.ones(2, 3))
    {WORKS.strip().replace(chr(10), chr(10) + "    ")}
"""
    said = import_error(program)
    assert str(copy) in said and str(LIBRARY) in said


def test_package_inside_another(copy):
    """Its libraries are those beside it, also where another srmsnorm could be imported."""
    program = f"sys.path.insert(0, {str(copy.parents[1])!r})\nimport other.srmsnorm as vendored\n"
    program += f"assert torch.ops.srmsnorm._library().startswith({str(copy)!r})\n"
    program += f"assert vendored._library._C.__file__.startswith({str(copy)!r})\nassert 'srmsnorm' not in sys.modules\n"
    succeeds(program + WORKS)
    assert str(LIBRARY) in import_error(program + "import srmsnorm")


def test_names_of_another_library():
    said = import_error(
        "library = torch.library.Library('srmsnorm', 'DEF')\nlibrary.define('srms_norm(Tensor x) -> Tensor')\n"
        "import srmsnorm"
    )
    assert "unknown library" in said and str(LIBRARY) in said


# ---- one copy by several names


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_link_to_the_library(tmp_path, link):
    other = tmp_path / "operators.so"
    try:
        link(LIBRARY, other)
    except OSError:
        pytest.skip("a hard link does not cross file systems")
    load = f"torch.ops.load_library({str(other)!r})\n"
    for program in (load + "import srmsnorm\n", "import srmsnorm\n" + load):
        assert "without effect" not in succeeds(program + WORKS)


def test_link_to_the_package(tmp_path):
    (tmp_path / "srmsnorm").symlink_to(PACKAGE)
    program = f"""
import srmsnorm
importlib.reload(srmsnorm._library)
for name in [name for name in sys.modules if name.split(".")[0] == "srmsnorm"]:
    del sys.modules[name]
sys.path.insert(0, {str(tmp_path)!r})
import srmsnorm
assert srmsnorm.__file__.startswith({str(tmp_path)!r})
"""
    succeeds(program + WORKS)


# ---- without Python


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("flags", ["RTLD_NOW | RTLD_GLOBAL", "RTLD_LAZY | RTLD_LOCAL"])
def test_two_copies_in_a_program(tmp_path, copy, flags):
    (library,) = copy.glob("_ops.*")
    (tmp_path / "main.cpp").write_text(
        "#include <dlfcn.h>\n#include <cstdio>\nint main(int n, char** names) {\n"
        f"  for (int i = 1; i < n; ++i) if (!dlopen(names[i], {flags})) return std::puts(dlerror()), 1;\n}}\n"
    )
    program = tmp_path / "program"
    subprocess.run(["c++", tmp_path / "main.cpp", "-o", program, "-ldl"], check=True)
    torch_libraries = os.path.join(torch.__path__[0], "lib")
    done = subprocess.run(
        [program, os.path.relpath(LIBRARY, tmp_path), library],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "LD_LIBRARY_PATH": torch_libraries},
    )
    assert done.returncode == 0, done
    assert LIBRARY.name in done.stderr and str(library) in done.stderr and "Overriding" not in done.stderr


# ---- what it was built for


def test_other_torch():
    last = import_error("torch.__version__ = '9.9.9'; import srmsnorm")
    assert "9.9.9" in last and torch.__version__ in last


def write_note(copy, **changes):
    note = copy / "built_for.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), **changes}))


def import_copy(copy):
    return (
        f"sys.path.insert(0, {str(copy.parent)!r})\nimport srmsnorm\nassert srmsnorm.__file__.startswith({str(copy)!r})"
    )


def test_what_to_run(copy):
    write_note(copy, torch="2.10.0+cpu")
    said = import_error(import_copy(copy))
    assert "torch 2.10.0+cpu, but this is torch" in said
    assert f"{sys.executable} -m pip install --no-build-isolation ." in said
    (copy.parent / "setup.py").touch()  # in its source tree
    assert f"{sys.executable} setup.py build_ext --inplace` in {copy.parent}" in import_error(import_copy(copy))


@pytest.fixture
def wheel(copy):
    """As a wheel has it: libraries in a folder for each minor version of torch."""
    folder = copy / f"torch{MINOR.replace('.', '_')}"
    folder.mkdir()
    for library in copy.glob("*.so"):
        library.rename(folder / library.name)
    write_note(copy, torch=["2.10", MINOR, "9.9"])
    return copy


def test_libraries_of_a_wheel(wheel):
    """A patch release or a build of one's own of a torch that the wheel has takes those of the minor version."""
    for version in (torch.__version__, f"{MINOR}.9+own"):
        succeeds(
            f"torch.__version__ = {version!r}\n{import_copy(wheel)}\n{WORKS}\n"
            f"assert srmsnorm.library_path.startswith({str(wheel / 'torch')!r})\n"
            f"assert torch.ops.srmsnorm._library() == srmsnorm.library_path\n"
            f"assert srmsnorm.build_info()['torch'] == {MINOR!r}"
        )


def test_torch_that_a_wheel_does_not_know(wheel):
    said = import_error(f"torch.__version__ = '9.10.0'\n{import_copy(wheel)}")
    assert f"torch 2.10, {MINOR}, 9.9, but this is torch 9.10.0" in said
    assert "--upgrade srmsnorm" in said and "'torch==9.9.*'" in said and "--no-binary srmsnorm" in said


def test_not_built(copy):
    (copy / "built_for.json").unlink()
    assert f"not built in {copy}" in import_error(import_copy(copy))
