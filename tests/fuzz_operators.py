"""The operators that the fuzzer calls: what each reads and gives, how often it is drawn, and how it is called."""

from typing import Any

import torch
from samples import FLOAT
from samples import name as name_of
from torch import Tensor

import srmsnorm

NUMBERS = ("rstd", "scale", "factor")  # operands and results that are one number a row
# What each operator reads and gives. "wide" asks for the gradient in float32 beside a 16-bit output, "narrow" for one
# of 16 bits beside an output in float32.
OPERATORS = {
    "srms_norm": ("input residual?", "output"),
    "add_srms_norm": ("input residual", "output sum"),
    "add_srms_norm_": ("input residual", "output sum"),
    "_srms_norm": ("input residual?", "output rstd"),
    "_add_srms_norm": ("input residual", "output sum rstd"),
    "_srms_norm_backward": ("grad_output output rstd grad_sum?", "grad_input"),
    "_srms_norm_backward wide": ("grad_output output rstd grad_sum?", "grad_residual"),
    "_srms_norm_backward_pair": ("grad_output output rstd grad_sum?", "grad_input grad_residual"),
    "_srms_norm_backward_input narrow": ("grad_output output rstd grad_sum?", "grad_input"),
    "_srms_norm_backward_pair narrow": ("grad_output output rstd grad_sum?", "grad_input grad_residual"),
    "_srms_norm_backward_of_input": ("grad_output input rstd", "grad_input"),
    "rstd": ("input residual?", "rstd"),
    "_scale_rows": ("input residual? scale factor?", "output"),
    "gated_srms_norm": ("input gate", "output"),
    "_gated_srms_norm": ("input gate", "output rstd"),
    "_gated_srms_norm_backward": ("grad_output input gate rstd", "grad_input grad_gate"),
    "_gated_srms_norm_backward_input": ("grad_output input gate rstd", "grad_input"),
    "_gated_srms_norm_backward_gate": ("grad_output input gate rstd", "grad_gate"),
    "srms_norm_quantized": ("input residual?", "output scale"),
    "add_srms_norm_quantized": ("input residual", "output scale sum"),
}
WEIGHTS = (4, 4, 4, 3, 3, 3, 2, 2, 2, 1, 2, 3, 2, 4, 2, 3, 1, 1, 3, 2)
IN_PLACE = "add_srms_norm_"
FORWARD = ("srms_norm", "add_srms_norm", "_srms_norm", "_add_srms_norm")
CONVERTING = (*FORWARD, "_scale_rows")  # those that give the output in another dtype, if asked
GATED = ("gated_srms_norm", "_gated_srms_norm")
QUANTIZED = ("srms_norm_quantized", "add_srms_norm_quantized")
ACTIVATIONS = (None, "silu", "swish", "sigmoid")


def invoke(call: Any, t: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """The call's operator on these operands, by the public function or by torch.ops."""
    internal = torch.ops.srmsnorm
    face = srmsnorm if call.function else internal
    if call.gating is not None:
        return _invoke_gated(call, face, t)
    input, residual, eps = t.get("input"), t.get("residual"), call.eps
    if call.quantization:
        found = getattr(srmsnorm, call.operator)(input, residual, **call.quantization, eps=eps)
        return tuple(t for i, t in enumerate(found) if not (i == 1 and "scale" in call.quantization))
    saved = t.get("grad_output"), t.get("output"), t.get("rstd"), t.get("grad_sum")
    to: dict = {"dtype": name_of(call.to)} if call.to else {}
    to_face = {"dtype": call.to} if call.to and call.function else to
    match call.operator:
        case "srms_norm":
            return (face.srms_norm(input, residual, eps=eps, **to_face),)
        case "add_srms_norm":
            return face.add_srms_norm(input, residual, eps=eps, **to_face)
        case "add_srms_norm_":
            assert face.add_srms_norm_(input, residual, eps=eps) is None, "in place returns something"
            return input, residual
        case "_srms_norm":
            return internal._srms_norm(input, residual, eps, **to)
        case "_add_srms_norm":
            return internal._add_srms_norm(input, residual, eps, **to)
        case "_srms_norm_backward":
            return (internal._srms_norm_backward(*saved),)
        case "_srms_norm_backward wide":
            return (internal._srms_norm_backward(*saved, dtype=FLOAT),)
        case "_srms_norm_backward_input narrow":
            return (internal._srms_norm_backward_input(*saved, **to),)
        case "_srms_norm_backward_pair" | "_srms_norm_backward_pair narrow":
            return internal._srms_norm_backward_pair(*saved, **to)
        case "_srms_norm_backward_of_input":
            return (internal._srms_norm_backward_of_input(t["grad_output"], input, t["rstd"]),)
        case "rstd":
            return (face.rstd(input, residual, eps=eps),)
        case "_scale_rows":
            return (internal._scale_rows(input, residual, t["scale"], t.get("factor"), **to),)
    raise ValueError(call.operator)


def _invoke_gated(call: Any, face: Any, t: dict[str, Tensor]) -> tuple[Tensor, ...]:
    name, options = call.operator, call.gating
    if name in GATED:
        options = {**options, "eps": call.eps}
    face = face if name == "gated_srms_norm" else torch.ops.srmsnorm
    returned = getattr(face, name)(*(t[operand] for operand in OPERATORS[name][0].split()), **options)
    return (returned,) if isinstance(returned, Tensor) else returned
