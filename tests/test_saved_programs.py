"""Programs that were saved before keep their meaning; packages of the operators in them return what eager calls do."""

import pytest
import saved_program
import torch
from tolerances import unit_roundoff


def check(function):
    operands, saved = torch.load(saved_program.TENSORS)
    got, now = function(*operands), saved_program.Every()(*operands)
    for a, b, before in zip(got, now, saved, strict=True):
        assert a.dtype == b.dtype == before.dtype
        assert torch.equal(a, b)
        torch.testing.assert_close(a, before, rtol=4 * unit_roundoff(a.dtype), atol=32 * unit_roundoff(a.dtype))


@pytest.mark.parametrize("decomposed", [False, True])
def test_saved_program(decomposed):
    program = torch.export.load(saved_program.PROGRAM)
    assert "dtype: torch.float32" in str(program.graph)
    if decomposed:
        program = program.run_decompositions()
        assert "dtype" not in str(program.graph)
    check(program.module())


@pytest.mark.parametrize("source", ["saved", "strict", "not strict"])
def test_package(source, tmp_path):
    if source == "saved":
        program = torch.export.load(saved_program.PROGRAM)
    else:
        program = torch.export.export(saved_program.Every(), saved_program.operands(), strict=source == "strict")
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "every.pt2"))
    check(torch._inductor.aoti_load_package(path))
