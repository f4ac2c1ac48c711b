"""A program that is saved, with every operator that gradients go through.

``python tests/saved_program.py`` wrote ``tests/data/operators.pt2`` (the program) and ``operators.pt`` (its inputs and
results), with torch 2.11 and srmsnorm 0.1.0 before ``_srms_norm_backward`` became a choice between two other operators.
They show that programs stay loadable, so write another pair of files beside them rather than these again."""

import pathlib

import torch

import srmsnorm  # noqa: F401  the operators

FOLDER = pathlib.Path(__file__).parent / "data"
PROGRAM, TENSORS = FOLDER / "operators.pt2", FOLDER / "operators.pt"


class Every(torch.nn.Module):
    def forward(self, x, stream, g, gh):
        ops = torch.ops.srmsnorm
        y, sum = ops.add_srms_norm(x, stream, eps=1e-3)
        z, rstd = ops._srms_norm(x, stream, 1e-3)
        _, more, r = ops._add_srms_norm(y, sum, None)
        return (
            ops.srms_norm(x),
            ops.srms_norm(x, stream, eps=1e-3),
            y,
            sum,
            z,
            rstd,
            more,
            r,
            ops._srms_norm_backward(g, z, rstd),
            ops._srms_norm_backward(g, z, rstd, gh),
            ops._srms_norm_backward(g, z, rstd, dtype=torch.bfloat16),
            ops._srms_norm_backward(g, z, rstd, dtype=torch.float32),
            ops._srms_norm_backward(g, z, rstd, gh, dtype=torch.float32),
            *ops._srms_norm_backward_pair(g, z, rstd),
            *ops._srms_norm_backward_pair(g, z, rstd, gh),
        )


def operands() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    narrow, wide = torch.bfloat16, torch.float32
    return tuple(torch.randn(3, 16).to(dtype) for dtype in (narrow, wide, narrow, wide))


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    torch.export.save(torch.export.export(Every(), operands()), PROGRAM)
    torch.save((operands(), Every()(*operands())), TENSORS)
