"""The other norms: one that is not installed costs its column, and the benchmark's own Triton norm is right."""

import os
import pathlib
import subprocess
import sys

import benchmark_samples  # noqa: F401 - where the benchmark is, and whether it can run
import pytest
import torch

from benchmarks.protocol import check
from benchmarks.providers import load


def test_a_peer_that_is_not_installed_costs_its_column_only():
    names = ["quack", "liger", "fla", "mamba", "flashinfer", "ours"]
    there, missing = load(names, "cuda")
    assert "ours" in [provider.name for provider in there]
    for why in missing.values():
        assert why.startswith("not installed")
    assert {provider.name for provider in there} | set(missing) == set(names)
    assert "does not run on cpu" in load(["quack"], "cpu")[1]["quack"]


def test_triton_kernels_in_the_interpreter():
    """In its own process: Triton decides at import whether it interprets."""
    pytest.importorskip("triton")
    code = "import test_benchmark_providers; test_benchmark_providers.triton_against_the_reference()"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=pathlib.Path(__file__).parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def triton_against_the_reference():
    """Rows shared by a block, one row a block, an odd dim, and a row that is read twice. Not in bfloat16, to which the
    interpreter truncates where the compiler rounds."""
    from benchmarks.providers import EPS, triton_norm

    for shape in ((33, 64), (2, 2048), (3, 1001), (2, 40000)):
        for dtype in (torch.float16, torch.float32):
            x, r, g, gh = (torch.randn(shape, dtype=dtype) for _ in range(4))
            for residual in (None, r):
                y, total, rstd = triton_norm.forward(x, residual, eps=EPS, write_sum=True, write_rstd=True)
                check.require(f"y {shape}", check.forward_error(y, x, residual, 1))
                assert torch.equal(total, x if residual is None else x + residual)
                for grad_sum in (None, gh):
                    grad = triton_norm.backward(g, y, rstd, grad_sum)
                    check.require(f"grad {shape}", check.backward_error(grad, g, x, residual, 1, grad_sum))
                    if dtype == torch.float16:
                        both = triton_norm.backward_pair(g, y, rstd, None if grad_sum is None else grad_sum.float())
                        assert [grad.dtype for grad in both] == [torch.float16, torch.float32]
                        for grad in both:
                            check.require(f"pair {shape}", check.backward_error(grad, g, x, residual, 1, grad_sum))
            x.requires_grad_()
            r.requires_grad_()
            for outputs, grad_sum in (
                ((triton_norm.srms_norm(x, r, eps=EPS),), None),
                (triton_norm.add_srms_norm(x, r, eps=EPS), gh),
            ):
                grads = torch.autograd.grad(outputs, (x, r), (g, gh)[: len(outputs)])
                for grad in grads:
                    check.require(f"autograd {shape}", check.backward_error(grad, g, x, r, 1, grad_sum))
