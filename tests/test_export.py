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


class InPlace(torch.nn.Module):
    def forward(self, x, stream):
        y = x * 2
        srmsnorm.add_srms_norm_(y, stream, eps=EPS)
        return y + 1


def test_export_in_place(device, tmp_path):
    """Functionalized: an operand that is the program's input is written back, one that is not is a value."""
    x, stream, _ = operands(Kind(BFLOAT, FLOAT), device)
    program = torch.export.export(InPlace(), (x, stream.clone()))
    y, sum = srmsnorm.add_srms_norm(x * 2, stream, eps=EPS)
    for exported in (program, program.run_decompositions()):
        written = stream.clone()
        assert torch.equal(exported.module()(x, written), y + 1)
        assert torch.equal(written, sum)
    assert list(program.run_decompositions().graph_signature.user_inputs_to_mutate.values()) == ["stream"]


class Both(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model, self.in_place = Model(), InPlace()

    def forward(self, x, stream, shortcut):
        return *self.model(x, stream, shortcut), self.in_place(x, shortcut)


def test_aot_inductor(device, tmp_path):
    """Every public operator in one package."""
    fresh.skip_without_packages(device, tmp_path)
    tensors = operands(Kind(FLOAT, FLOAT), device)
    program = torch.export.export(Both(), tuple(t.clone() for t in tensors))
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    twins = [t.clone() for t in tensors]
    got = torch._inductor.aoti_load_package(path)(*tensors)
    assert_compiled([*got, *tensors], [*Both()(*twins), *twins])
