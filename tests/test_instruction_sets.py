"""The CPU kernel for the processors that this one is not: torch's own switch chooses them at start."""

import pathlib
import platform

import fresh
import pytest
import torch

PROGRAM = """
import sys, pytest, torch
assert torch.backends.cpu.get_cpu_capability() != "{here}"
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-m", "not gpu", "-k", "{chosen}", "--tb=short", *{files}]))
"""
FILES = [
    str(pathlib.Path(__file__).parent / name) for name in ("test_forward.py", "test_backward.py", "test_narrowing.py")
]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="one instruction set on this machine")
@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_other_instruction_sets(capability):
    here = torch.backends.cpu.get_cpu_capability()
    if capability == "default" and here == "NO AVX" or capability == "avx2" and here != "AVX512":
        pytest.skip(f"this processor has {here}")
    chosen = "against_float64 or every_small_dim or extreme_values or parallel_to_y or narrowing or long_rows"
    done = fresh.run(PROGRAM.format(here=here, chosen=chosen, files=FILES), ATEN_CPU_CAPABILITY=capability)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
