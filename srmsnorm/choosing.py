"""Operator or formula: the table that ``inline_under_compile("auto")`` asks for each call of a compiled graph, and the
one of ``inline_under_compile(True)``, which has one answer.

The first row whose condition holds decides. A measurement is a model's tokens a second relative to the same model with
``F.rms_norm`` (above 1 is faster), bf16, 4 x 2048 tokens of 2048 features, heads of 128, on an H100. One compilation
differs from the next by up to 1 %. The models are those of the benchmark's suite `model`.
"""

import hashlib
import pathlib
from collections.abc import Callable, Iterable
from types import CodeType
from typing import Any, Literal, NamedTuple

import torch

from . import inlining

__all__ = ["TABLE", "Call", "Row", "choose", "use"]

Answer = Literal["operator", "formula"]


class Call(NamedTuple):
    """What is known of a call when its graph is about to become code. Sizes that are symbols are None."""

    operator: str  # its name, as "_add_srms_norm"
    backward: bool
    training: bool  # a backward, or a forward whose y or input, and rstd, a backward keeps
    dim: Any  # int | None
    rows: int | None
    unit_stride: bool  # of the last dimension, of every operand
    mixed: bool  # operands and results of more than one dtype, rstd aside
    pointwise_before: bool  # an operand comes from an elementwise operation, a cast too, perhaps through views
    pointwise_after: bool  # a result goes to one
    written: bool  # the first result is read by something not elementwise, or returned, or made again in backward
    grad_sum: bool  # a backward with a gradient of the sum
    sums: int  # that an operand is of, in the same graph: it, and what it was added to; 2 for more

    @property
    def fuses(self) -> bool:
        return self.pointwise_before or self.pointwise_after


class Row(NamedTuple):
    """A reason. The condition is a function of the call alone: it names nothing that may change."""

    reason: str
    holds: Callable[[Call], bool]
    answer: Answer
    measured: str


# Behind the row of those whose length is not known, dim is a number.
TABLE: tuple[Row, ...] = (
    Row(
        "strided last dimension",
        lambda call: not call.unit_stride,
        "formula",
        "not measured: the operator copies the operand first, the formula reads it as it is",
    ),
    Row(
        "row length known at run time alone",
        lambda call: call.dim is None,
        "operator",
        "not measured: generated code cannot hold such a row, and reads it twice",
    ),
    Row(
        "few long rows",
        lambda call: call.dim >= 4096 and call.rows is not None and call.rows <= 64,
        "operator",
        "not measured: generated code gives a row to one block, the operator spreads it",
    ),
    Row(
        "rows past one sweep",
        lambda call: call.dim > 16384,
        "operator",
        "not measured: generated code reads a row twice, the operator once",
    ),
    Row(
        "few short rows",
        lambda call: call.dim <= 256 and not call.training and call.rows is not None and call.rows * call.dim <= 65536,
        "formula",
        "QK-norm GPT, decode of 4 tokens: 0.987 the operator, 1.005 the formula, which takes queries and keys at once; "
        "later, of the best of all, 0.985 and 1.000. "
        "Where few ends is not measured",
    ),
    Row(
        "short rows in training",
        lambda call: call.dim <= 256 and call.training and (call.backward or call.written),
        "operator",
        "QK-norm GPT, training: 1.016 the operator; 1.009 the formula of forward, 1.004 of backward too. Speedrun GPT: "
        "0.993; 1.004 where nothing elementwise is beside it, 0.995 nowhere. Llama 4: 1.015; 0.996, 1.009. Of a y that "
        "backward does not keep, and elementwise operations alone read, the formula: speedrun GPT 1.018 (keeping.py)",
    ),
    Row(
        "short rows beside elementwise operations",
        lambda call: call.dim <= 256 and call.fuses,
        "formula",
        "QK-norm attention, forward: the operator takes 1.297 of the formula's time; "
        "QK-norm GPT, forward: 1.006, the operator 1.008, no more than noise",
    ),
    Row(
        "short rows",
        lambda call: call.dim <= 256,
        "operator",
        "QK-norm GPT, forward: 1.008; 1.004 the formula everywhere",
    ),
    Row(
        "later sums of a stream",
        lambda call: call.sums > 1,
        "operator",
        "Generated code adds up again what it has not written, and keeps all that it is made of. Compiled as a whole, "
        "the formula last: TransNormer, forward 0.996 and 352 MiB for 0.987 and 448, training 1.010 for 1.012; "
        "QK-norm GPT 0.998 and 224 MiB for 0.987 and 320; Llama 4 1.018 and 352 MiB for 0.992 and 384",
    ),
    Row(
        "long rows",
        lambda call: True,
        "formula",
        "TransNormer, forward: 0.997 and 384 MiB; 0.983 and 416 MiB the formula beside elementwise operations alone, "
        "0.963 and 416 MiB the operator. Training: 1.017; 1.010, 0.997. Llama 4: forward 1.007 for 0.985, training "
        "1.006 for 0.993; decode of 4 tokens: TransNormer 0.996 for 0.959, Llama 4 1.002 for 0.961",
    ),
)

EVERYWHERE = (Row("asked for", lambda call: True, "formula", "by inline_under_compile(True)"),)

_tables: dict[str, tuple[Row, ...]] = {}  # by the name that graphs know them by


def use(table: Iterable[Row]) -> None:
    """Another table, for what is compiled from now on under "auto"; to measure one against the other."""
    inlining.table = _known(tuple(table))


def _known(rows: tuple[Row, ...]) -> str:
    name = _name(rows)
    _tables[name] = rows
    return name


def choose(call: Call, table: str) -> tuple[Answer, str]:
    """The answer of the table of that name, and its reason."""
    for row in _tables.get(table, ()):
        if row.holds(call):
            return row.answer, row.reason
    return "operator", "no reason"


_DECIDING = ("choosing", "replacing", "keeping", "formulas", "nodes", "undecided", "widening", "reference")


def _name(rows: tuple[Row, ...]) -> str:
    """Goes into graphs, and so into the keys of PyTorch's caches of compiled code: equal for equal code alone."""
    digest = hashlib.sha256()
    for name in _DECIDING:
        digest.update((pathlib.Path(__file__).parent / f"{name}.py").read_bytes())
    for row in rows:
        digest.update(repr((row.reason, row.answer, _code(row.holds.__code__))).encode())
    return digest.hexdigest()[:16]


def _code(code: CodeType) -> tuple[Any, ...]:
    constants = [_code(value) if isinstance(value, CodeType) else value for value in code.co_consts]
    return code.co_code, code.co_names, code.co_varnames, constants


try:
    from . import undecided as undecided  # the operators of graphs that ask

    torch.compiler._is_exporting_flag  # noqa: B018  what inlining.asked reads
    inlining.everywhere = _known(EVERYWHERE)
    use(TABLE)
except (ImportError, AttributeError, LookupError, TypeError, RuntimeError, OSError) as _error:
    inlining.warn_of(_error)
