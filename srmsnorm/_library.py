"""Loads the two libraries that go with this torch: the operators (_ops, no Python in it) and their Python face (_C)."""

import importlib
import json
import os
import pathlib
import re
import sys
from types import ModuleType
from typing import Any

import torch

__all__ = ["_C", "build_info", "cmake_prefix_path", "library_path"]

_PACKAGE = pathlib.Path(__file__).absolute().parent
_MINOR = ".".join(torch.__version__.split(".")[:2])  # what a wheel's libraries are for; the ABI is the minor's
_IS_RELEASED = re.fullmatch(r"[\d.]+(\.post\d+)?", torch.__version__.partition("+")[0])  # before, it may be another


def _built_for() -> dict[str, Any]:
    """Read before loading: a library built for another torch may crash the process or compute nonsense."""
    note = _PACKAGE / "built_for.json"
    if not note.exists():
        raise ImportError(f"srmsnorm is not built in {_PACKAGE}: {_remedy()}")
    built: dict[str, Any] = json.loads(note.read_text())
    torches = built["torch"]
    if isinstance(torches, list):
        if _MINOR not in torches or not _IS_RELEASED:
            raise ImportError(_another_wheel(torches))
        return {**built, "torch": _MINOR}
    if torch.__version__ != torches:
        raise ImportError(
            f"srmsnorm was built in {_PACKAGE} for torch {torches}, but this is torch {torch.__version__}: {_remedy()}"
        )
    return built


def _remedy() -> str:
    if (_PACKAGE.parent / "setup.py").exists():
        build = f"`{sys.executable} setup.py build_ext --inplace` in {_PACKAGE.parent}"
        return f"run {build}, or import an installed srmsnorm from another folder"
    return f"run `{sys.executable} -m pip install --no-build-isolation .` in its source tree to build it for this one"


def _another_wheel(minors: list[str]) -> str:
    pip, build = f"{sys.executable} -m pip install", "--no-build-isolation --force-reinstall --no-deps"
    return (
        f"srmsnorm has libraries for torch {', '.join(minors)}, but this is torch {torch.__version__}: run "
        f"`{pip} --upgrade srmsnorm` for a newer srmsnorm, or `{pip} 'torch=={minors[-1]}.*'`, or, with a compiler, "
        f"`{pip} {build} --no-binary srmsnorm srmsnorm` to build it for this one"
    )


def _check_first(library: pathlib.Path) -> None:
    """The operators of a process are those of the library loaded first, which may be of another version."""
    operators = torch.ops.srmsnorm
    if not hasattr(operators, "srms_norm"):
        return
    first = operators._library() if hasattr(operators, "_library") else "an unknown library"
    if not (os.path.exists(first) and os.path.samefile(first, library)):
        raise ImportError(
            f"srmsnorm: this process has the operators of {first}, so that {library} cannot be loaded: import or load "
            "one copy of srmsnorm only"
        )


def _load(library: pathlib.Path) -> ModuleType:
    _check_first(library)
    torch.ops.load_library(library)
    return importlib.import_module(".".join(["", *library.parent.relative_to(_PACKAGE).parts, "_C"]), __package__)


_BUILT = _built_for()
_FOLDER = _PACKAGE / f"torch{_MINOR.replace('.', '_')}"  # of a wheel, which has one for each minor version of torch

#: The library of the operators for this torch: what C++ programs and ``torch.ops.load_library`` load.
library_path = str(next((_FOLDER if _FOLDER.exists() else _PACKAGE).glob("_ops.*so")))
#: For ``CMAKE_PREFIX_PATH``, beside ``torch.utils.cmake_prefix_path``: ``find_package(srmsnorm)``.
cmake_prefix_path = str(_PACKAGE / "cmake")

_C = _load(pathlib.Path(library_path))


def build_info() -> dict[str, str | bool | None]:
    """What was built: ``torch`` (its version; of a wheel the minor version alone), ``cuda`` (the toolkit's version,
    None for a build without CUDA), ``architectures`` (as in ``TORCH_CUDA_ARCH_LIST``) and ``debug``."""
    return {name: _BUILT[name] or None for name in ("torch", "cuda")} | {
        name: _BUILT[name] for name in ("architectures", "debug")
    }
