"""A fresh Python process, for what can be seen only once in one."""

import os
import pathlib
import subprocess
import sys

import srmsnorm

ROOT = pathlib.Path(srmsnorm.__file__).parents[1]


def run(program: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs the program with this srmsnorm in reach."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )
