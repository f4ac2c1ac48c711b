"""Programs that are saved, which together hold every operator.

``python tests/saved_programs.py NAME`` wrote ``tests/data/NAME.pt2`` (the program) and ``NAME.pt`` (its inputs and
results), with torch 2.11 and srmsnorm 0.1.0: ``operators`` before ``_srms_norm_backward`` became a choice between two
other operators, ``later`` after that, ``gated`` with the first operators that take a gate, ``converted`` with the first
that take a dtype by its name and with rstd alone, ``quantized`` with those whose results are bytes. They show that
programs stay
loadable, so write another pair of files beside them rather than these again. ``schemas.txt`` is what the operators were
when programs were first saved with them: its lines stay, too."""

import pathlib
import sys

import torch

import srmsnorm  # noqa: F401  the operators

FOLDER = pathlib.Path(__file__).parent / "data"
SCHEMAS = FOLDER / "schemas.txt"


def files(name: str) -> tuple[pathlib.Path, pathlib.Path]:
    """The program's, and that of its inputs and results."""
    return FOLDER / f"{name}.pt2", FOLDER / f"{name}.pt"


class Every(torch.nn.Module):
    """With every operator that gradients went through."""

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


class Later(torch.nn.Module):
    """What that one lacks: the operator in place, and those of a gradient each."""

    def forward(self, x, stream, g, gh):
        ops = torch.ops.srmsnorm
        z, rstd = ops._srms_norm(x, stream, 1e-3)
        y, sum = x * 2, stream * 2
        ops.add_srms_norm_(y, sum, eps=1e-3)
        return (
            y,
            sum,
            ops._srms_norm_backward_input(g, z, rstd),
            ops._srms_norm_backward_input(g, z, rstd, gh),
            ops._srms_norm_backward_residual(g, z, rstd),
            ops._srms_norm_backward_residual(g, z, rstd, gh),
        )


class Converted(torch.nn.Module):
    """The operators whose results have another dtype than the input; rstd alone, and rows times numbers."""

    def forward(self, x, stream, g, gh):
        ops = torch.ops.srmsnorm
        z, rstd = ops._srms_norm(x, None, 1e-3, dtype="float32")
        y, sum = ops.add_srms_norm(x, stream, dtype="float16")
        more, _, r = ops._add_srms_norm(x, stream, None, dtype="float32")
        return (
            ops.srms_norm(x, stream, eps=1e-3, dtype="float32"),
            z,
            y,
            sum,
            more,
            ops._srms_norm_backward_of_input(gh, x, rstd),
            ops._srms_norm_backward_input(gh, more, r, dtype="bfloat16"),
            *ops._srms_norm_backward_pair(gh, more, r, gh, dtype="bfloat16"),
            ops.rstd(x),
            ops.rstd(x, stream, eps=1e-3),
            ops._scale_rows(x, stream, r),
            ops._scale_rows(g, None, r, rstd, dtype="float32"),
        )


class Gated(torch.nn.Module):
    """The operators with a gate: every activation and order."""

    def forward(self, x, gate, g, _):
        ops = torch.ops.srmsnorm
        found = [
            ops.gated_srms_norm(x, gate),
            ops._gated_srms_norm_backward(g, x, gate, ops._srms_norm(x, None, None)[1]),
        ]
        for activation in (None, "silu", "swish", "sigmoid"):
            for first in (True, False):
                options = {"activation": activation, "norm_before_gate": first}
                z, rstd = ops._gated_srms_norm(x, gate, **options, eps=1e-3)
                found += [z, rstd, ops.gated_srms_norm(x, gate, **options, eps=1e-3)]
                found += [
                    ops._gated_srms_norm_backward(g, x, gate, rstd, **options),
                    ops._gated_srms_norm_backward_input(g, x, gate, rstd, **options),
                    ops._gated_srms_norm_backward_gate(g, x, gate, rstd, **options),
                ]
        return tuple(torch.utils._pytree.tree_leaves(found))


class Quantized(torch.nn.Module):
    """Every dtype and way to a scale."""

    def forward(self, x, stream, *_):
        ops, found = torch.ops.srmsnorm, []
        wide = x.repeat(1, 8), stream.repeat(1, 8)
        given = x.new_full((1,), 0.125, dtype=torch.float32)
        ways = [{}, {"power_of_two": True, "scale_ub": 1.0}, {"group_size": 64}, {"group_size": 128, "eps": 1e-3}]
        ways += [{"scale_value": 0.25}, {"scale_name": "bound"}]
        for dtype in ("float8_e4m3fn", "float8_e5m2", "int8"):
            for scale, options in [(None, way) for way in ways] + [(given, {})]:
                options = {"dtype": dtype, **options}
                own = wide[1] + 1
                found += [
                    ops.srms_norm_quantized(wide[0], None, scale, **options),
                    ops.add_srms_norm_quantized(*wide, scale, **options),
                    ops.add_srms_norm_quantized_(wide[0], own, scale, **options),
                    own,
                ]
        return tuple(torch.utils._pytree.tree_leaves(found))


PROGRAMS = {"operators": Every, "later": Later, "gated": Gated, "converted": Converted, "quantized": Quantized}


def operands() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    narrow, wide = torch.bfloat16, torch.float32
    return tuple(torch.randn(3, 16).to(dtype) for dtype in (narrow, wide, narrow, wide))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        program, tensors = files(name)
        exported = torch.export.export(PROGRAMS[name](), operands())
        for node in exported.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of the machine that saves
        torch.export.save(exported, program)
        torch.save((operands(), PROGRAMS[name]()(*operands())), tensors)
