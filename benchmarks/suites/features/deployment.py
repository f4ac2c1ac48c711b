"""Exported, packaged, traced, scripted, saved."""

import subprocess
import sys
import tempfile

import torch

from .candidates import DIM, Candidate
from .feature import Group, data, formula, need, same, training

FEATURES = Group("deployment")

LOADED = """
import sys, torch
if sys.argv[1]: torch.ops.load_library(sys.argv[1])
x = torch.ones(2, {dim}, device="{device}")
assert torch.allclose(torch.jit.load(sys.argv[2])(x), x, atol=1e-3)
"""


@FEATURES.feature("torch.export with a dynamic dimension, saved and loaded")
def export(c: Candidate, device: str) -> None:
    rows = torch.export.Dim("rows", min=2, max=1024)
    program = torch.export.export(c.module(), (data(device),), dynamic_shapes=({0: rows},), strict=True)
    with tempfile.TemporaryDirectory() as folder:
        torch.export.save(program, f"{folder}/norm.pt2")
        loaded = torch.export.load(f"{folder}/norm.pt2").module()
    same(loaded(data(device, 9, DIM)), formula(data(device, 9, DIM)))


@FEATURES.feature("AOTInductor package", alone=True)
def aot_inductor_package(c: Candidate, device: str) -> None:
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        program = torch.export.export(c.module(), (data(device),))
        path = torch._inductor.aoti_compile_and_package(program, package_path=f"{folder}/norm.pt2")
        same(torch._inductor.aoti_load_package(path)(data(device)), formula(data(device)))


@FEATURES.feature("torch.jit.trace")
def jit_trace(c: Candidate, device: str) -> None:
    traced = torch.jit.trace(c.module(), data(device))
    same(training(traced, data(device, 9, DIM)), training(formula, data(device, 9, DIM)))


@FEATURES.feature("torch.jit.script of the module")
def jit_script(c: Candidate, device: str) -> None:
    same(torch.jit.script(c.module())(data(device)), formula(data(device)))


@FEATURES.feature("a saved model runs where only libraries are loaded, no Python package")
def saved_model_without_python_package(c: Candidate, device: str) -> None:
    need(c.library is not None, "no library to load: its kernels are in Python")
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/norm.pt"
        torch.jit.save(torch.jit.trace(c.module(), data(device)), path)
        program = [sys.executable, "-c", LOADED.format(dim=DIM, device=device), c.library or "", path]
        done = subprocess.run(program, capture_output=True, text=True, cwd=folder)
    need(done.returncode == 0, done.stderr.strip().splitlines()[-1] if done.stderr else "ended")
