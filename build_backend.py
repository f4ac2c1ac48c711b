"""setuptools' build backend, behind a look at what the build needs: pip --no-build-isolation looks for nothing."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def fail(message: str) -> None:
    raise SystemExit(f"srmsnorm: {message}")


def check_environment() -> None:
    """Before setuptools is asked: an old one finds fault with pyproject.toml, a missing one is a traceback."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if sys.version_info < (3, 10):  # noqa: UP036 (`python setup.py` asks nobody)
        fail(f"Python 3.10 or newer is needed, this is {version}")
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        fail(f"a Python with the stable ABI is needed, and the free-threaded {version} has none")
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])  # a venv's ninja
    requires = json.loads(re.search(r"^requires = (.*)$", (ROOT / "pyproject.toml").read_text(), re.M)[1])
    lacking = {requirement: found for requirement in requires if (found := found_instead(requirement))}
    if lacking:
        fail(
            f"the build needs {', '.join(requires)}, but {sys.executable} has {', '.join(lacking.values())}. Run "
            f"`{sys.executable} -m pip install {shlex.join(lacking)}` first, or `pip install .` without "
            "--no-build-isolation, which brings them for the build"
        )
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        fail(f"the headers of Python {version} are missing; install them (python3-dev on Debian and Ubuntu)")


def found_instead(requirement: str) -> str:
    """What is there where a requirement, ``name`` or ``name>=version``, is not met; empty where it is."""
    name, _, least = requirement.partition(">=")
    if name == "ninja":  # the program, from wherever
        return "" if shutil.which("ninja") else "no ninja"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"no {name}"
    return f"{name} {version}" if numbers(version) < numbers(least) else ""


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.match(r"\d+(\.\d+)*", version)[0].split(".")))


check_environment()

from setuptools.build_meta import *  # noqa: E402, F403
