"""An installed srmsnorm: import, forward and backward, compiled too, beside the definition."""

import pathlib
import sys

import torch

import srmsnorm

assert pathlib.Path(srmsnorm.__file__).is_relative_to(sys.prefix), srmsnorm.__file__
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() and srmsnorm.build_info()["cuda"] else "cpu"
operands = [torch.randn(64, 512, device=device, requires_grad=True) for _ in range(2)]
weights = [torch.randn(64, 512, device=device) for _ in range(2)]
# Without a compiler on the PATH inductor has nothing to compile with; what it is handed is the same.
compiled = torch.compile(srmsnorm.add_srms_norm, fullgraph=True, backend="aot_eager")
results = []
for norm in (srmsnorm.reference.add_srms_norm, srmsnorm.add_srms_norm, compiled):
    outputs = norm(*operands, eps=1e-6)
    results.append([*outputs, *torch.autograd.grad(outputs, operands, weights)])
for result in results[1:]:
    torch.testing.assert_close(result, results[0])
print(f"{torch.__version__} {device}")
