"""torch.export, its saved programs, and AOTInductor (from C++: test_cpp.py)."""

import fresh
import pytest
import samples
import torch
from samples import BFLOAT, FLOAT, Kind
from tolerances import assert_compiled

import srmsnorm

SHAPE = (3, 16)
EPS = 1e-3


def operands(kind, device, shape=SHAPE):
    x, stream = samples.forward(kind, shape, device)
    return [x, stream, samples.tensor(shape, kind.dtype, device, name="shortcut")]


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = srmsnorm.SRMSNorm(16, eps=EPS)

    def forward(self, x, stream, shortcut):
        y, stream = self.norm(x, stream, return_sum=True)
        return self.norm(y, shortcut), stream, srmsnorm.srms_norm(y * 2)


@pytest.mark.parametrize("strict", [False, True])
def test_export(device, strict):
    tensors = operands(Kind(BFLOAT, FLOAT), device)
    rows = torch.export.Dim("rows", min=1, max=1024)
    program = torch.export.export(Model(), tuple(tensors), dynamic_shapes=({0: rows},) * 3, strict=strict)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {"srmsnorm.srms_norm.default", "srmsnorm.add_srms_norm.default"} <= called
    for exported in (program, program.run_decompositions()):
        for shape in (SHAPE, (5, 16)):
            tensors = operands(Kind(BFLOAT, FLOAT), device, shape)
            assert_compiled(exported.module()(*tensors), Model()(*tensors))


def test_saved_export(device, tmp_path):
    tensors = operands(Kind(FLOAT, FLOAT), device)
    torch.export.save(torch.export.export(Model(), tuple(tensors)), tmp_path / "model.pt2")
    assert_compiled(torch.export.load(tmp_path / "model.pt2").module()(*tensors), Model()(*tensors))


def test_aot_inductor(device, tmp_path):
    fresh.skip_without_packages(device, tmp_path)
    tensors = operands(Kind(FLOAT, FLOAT), device)
    program = torch.export.export(Model(), tuple(tensors))
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    package = torch._inductor.aoti_load_package(path)
    assert_compiled(package(*tensors), Model()(*tensors))
