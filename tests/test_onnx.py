"""torch.onnx.export: the formula in ONNX's own operators, with the values of eager calls."""

import pytest
import samples
import torch
from samples import FLOAT, HALF, Kind

import srmsnorm

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

EPS = 1e-3
ROWS = torch.export.Dim("rows", min=2, max=64)

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.usefixtures("plain_memory")]


class PreNorm(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = srmsnorm.SRMSNorm(16, EPS)

    def forward(self, x, stream):
        y, stream = self.norm(x, stream, return_sum=True)
        return srmsnorm.srms_norm(y * 2), self.norm(y, stream), stream


class InPlace(torch.nn.Module):
    def forward(self, x, stream):
        y, stream = x * 2, stream * 1
        srmsnorm.add_srms_norm_(y, stream, eps=EPS)
        return y, stream


def run(path, tensors):
    """What ONNX makes of them, with no operator but its own."""
    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} == {""}
    inputs = {value.name: t.numpy() for value, t in zip(model.graph.input, tensors, strict=True)}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(result) for result in session.run(None, inputs)]


def assert_onnx(got, want):
    """The compiler's guarantees, as under inline_under_compile: a few units of the result's dtype."""
    for a, b in zip(got, want, strict=True):
        tolerance = 8 * torch.finfo(b.dtype).eps
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", [Kind(FLOAT, FLOAT), Kind(HALF, FLOAT), Kind(HALF, HALF)], ids=str)
@pytest.mark.parametrize("model", [PreNorm(), InPlace()], ids=["pre-norm", "in place"])
def test_export(model, kind, tmp_path):
    """With a number of rows that may change, and without a trace of the export in what is compiled later."""
    path = str(tmp_path / "model.onnx")
    dynamic = ({0: ROWS}, {0: ROWS})
    torch.onnx.export(model, samples.forward(kind, (4, 16)), path, dynamo=True, dynamic_shapes=dynamic, verbose=False)
    for rows in (4, 7):
        tensors = samples.forward(kind, (rows, 16))
        assert_onnx(run(path, tensors), model(*tensors))
    assert not srmsnorm.inlining.wanted()


def test_exported_program(tmp_path):
    """One that was exported before holds the operators; the formula is their decomposition."""
    path = str(tmp_path / "model.onnx")
    tensors = samples.forward(Kind(FLOAT, FLOAT), (4, 16))
    program = torch.export.export(PreNorm(), tensors, dynamic_shapes=({0: ROWS}, {0: ROWS}))
    ops, formula = torch.ops.srmsnorm, srmsnorm.reference
    table = torch.export.default_decompositions()
    table.update({ops.srms_norm.default: formula.srms_norm, ops.add_srms_norm.default: formula.add_srms_norm})
    torch.onnx.export(program.run_decompositions(table), f=path, dynamo=True, verbose=False)
    tensors = samples.forward(Kind(FLOAT, FLOAT), (7, 16))
    assert_onnx(run(path, tensors), PreNorm()(*tensors))


def test_checks_stay(tmp_path):
    x, stream = samples.forward(Kind(FLOAT, FLOAT), (4, 16))
    for args in ((x, stream[:2]), (x, stream.double())):
        with pytest.raises(Exception, match="srmsnorm: residual must have"):
            torch.onnx.export(PreNorm(), args, str(tmp_path / "model.onnx"), dynamo=True, verbose=False)
