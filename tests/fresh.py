"""A fresh Python process, for what can be seen only once in one."""

import os
import pathlib
import subprocess
import sys

import pytest
import torch.utils.cpp_extension

import srmsnorm

ROOT = pathlib.Path(srmsnorm.__file__).parents[1]


def run(program: str, *, timeout: float | None = None, **environment: str) -> subprocess.CompletedProcess:
    """Runs the program with this srmsnorm in reach, for no more than ``timeout`` seconds."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )


PACKAGE_OF_TORCH_ALONE = """
import torch
program = torch.export.export(torch.nn.Tanh(), (torch.randn(4, 16, device="cuda"),))
torch._inductor.aoti_load_package(torch._inductor.aoti_compile_and_package(program, package_path="{path}"))
"""


def skip_without_packages(device: str, path: pathlib.Path) -> None:
    """Where torch and the CUDA toolkit do not go together, loading an AOTInductor package kills the process."""
    if device != "cuda":
        return
    if torch.utils.cpp_extension.CUDA_HOME is None:
        pytest.skip("needs a CUDA toolkit")
    alone = run(PACKAGE_OF_TORCH_ALONE.format(path=path / "alone.pt2"))
    if alone.returncode != 0:
        pytest.skip(f"a package of torch.nn.Tanh does not load here either (exit code {alone.returncode})")
