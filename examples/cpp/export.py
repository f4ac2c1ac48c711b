"""Makes the package that package.cpp runs: python export.py <model.pt2> [cpu|cuda]"""

import sys

import torch
from torch import Tensor, nn

import srmsnorm

DIM = 64


class Model(nn.Module):
    """The end of a pre-norm network: one number a row."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = srmsnorm.SRMSNorm(DIM)
        self.up = nn.Linear(DIM, DIM)
        self.head = nn.Linear(DIM, 1)

    def forward(self, x: Tensor, stream: Tensor) -> Tensor:
        y, stream = self.norm(x, stream, return_sum=True)
        return self.head(self.norm(self.up(y).relu(), stream)).squeeze(-1)


def model(device: str) -> Model:
    torch.manual_seed(0)
    return Model().eval().to(device)


def export(path: str, device: str) -> None:
    examples = tuple(torch.randn(8, DIM, device=device) for _ in range(2))  # one given twice would be exported as one
    rows = torch.export.Dim("rows", min=1, max=4096)
    with torch.no_grad():
        program = torch.export.export(model(device), examples, dynamic_shapes=({0: rows}, {0: rows}))
        torch._inductor.aoti_compile_and_package(program, package_path=path)


if __name__ == "__main__":
    export(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "cpu")
