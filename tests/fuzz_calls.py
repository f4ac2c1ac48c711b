"""Calls for the fuzzer: each is drawn from a seed and an index alone, so that these two numbers repeat it."""

import math
import random
from dataclasses import dataclass, field

import fuzz_operators
import torch
from fuzz_operators import (
    ACTIVATIONS,
    CONVERTING,
    FORWARD,
    GATED,
    IN_PLACE,
    NUMBERS,
    OPERATORS,
    QUANTIZED,
    WEIGHTS,
)
from samples import BFLOAT, DOUBLE, FLOAT, HALF, OTHERS
from torch import Tensor

from srmsnorm.reference import accumulation_dtype

EPS = (None, 1e-6, 1e-6, 1e-5, 1e-3, 0.25, 0.0, 1e-12, 1e-30, 1e-38, 3e-45, 1e-50, 1e10)
FAULTS = ("nan", "inf", "-inf", "all bits")
MISTAKES = ("shape", "dtype", "to", "eps", "scalar", "empty rows", "stride", "requires grad", "tangent", "rstd")


@dataclass
class Operand:
    """A view into a buffer that a slice of the pool fills."""

    dtype: torch.dtype
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    buffer: int = 0
    start: int = 0  # in the pool
    content: str = "normal"  # or zero, small (16 bits of a row's size), positive
    spread: int = 0  # rows are scaled by 2^-spread ... 2^spread
    scale: int = 0  # and all by 2^scale
    negated: bool = False
    lazy: bool = False  # a copy-on-write clone
    margin: int = 3  # elements behind it in its buffer
    batched: bool = True  # under vmap
    rows: bool = True  # not one number a row

    @property
    def length(self) -> int:
        reach = sum((size - 1) * stride for size, stride in zip(self.sizes, self.strides, strict=True))
        return 0 if 0 in self.sizes else self.offset + reach + 1


@dataclass
class Call:
    seed: int
    index: int
    operator: str
    mode: str  # plain, inference, vmap, gradients, tangents, second, compiled, mistake
    shape: tuple[int, ...]
    operands: dict[str, Operand]
    eps: float | None = None
    to: torch.dtype | None = None  # of the output, or of a narrow gradient
    activation: str | None = None
    norm_before_gate: bool = True
    quantization: dict = field(default_factory=dict)
    shared: bool = False  # operands lie in one buffer
    row: float = 0.0  # the row that is looked at alone
    fault: tuple = ()  # (operand, row, place, kind)
    threads: int = 1
    function: bool = False  # by the public function instead of torch.ops
    wanted: tuple[str, ...] = ()  # what requires grad or carries a tangent
    given: tuple[str, ...] = ()  # outputs that have a gradient
    dim: int = 0  # that vmap takes
    mistake: str = ""
    cotangents: dict[str, Operand] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        return (self.operands.get("input") or self.operands["output"]).dtype

    @property
    def beside(self) -> torch.dtype:
        """Of the residual, the sum, the gate and their gradients."""
        stream = self.operands.get("residual") or self.operands.get("grad_sum") or self.operands.get("gate")
        wide = self.operator.endswith(("wide", "pair"))
        return stream.dtype if stream else FLOAT if wide else self.dtype

    @property
    def converted(self) -> torch.dtype:
        """Of the output, or of the input's gradient."""
        return self.to or self.dtype

    def result_dtype(self, name: str) -> torch.dtype:
        if name == "rstd":
            return accumulation_dtype(self.dtype)
        if self.quantization and name in ("output", "scale"):
            return self.quantization["dtype"] if name == "output" else FLOAT
        return self.beside if name in ("sum", "grad_residual", "grad_gate") else self.converted

    @property
    def gating(self) -> dict | None:
        """The options of an operator with a gate."""
        gated = "gate" in OPERATORS[self.operator][0]
        return {"activation": self.activation, "norm_before_gate": self.norm_before_gate} if gated else None

    @property
    def results(self) -> list[str]:
        given = "scale" in self.quantization  # which is returned as it is
        return [name for name in OPERATORS[self.operator][1].split() if not (given and name == "scale")]

    def invoke(self, t: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The operator on these operands."""
        return fuzz_operators.invoke(self, t)


def draw(seed: int, index: int, *, wide: float = 0.002, large: float = 0.01, compiled: float = 1 / 4000) -> Call:
    rng = random.Random(seed << 40 | index)
    (operator,) = rng.choices(list(OPERATORS), WEIGHTS)
    mode = _mode(rng, operator, compiled)
    dtype = _dtype(rng, operator)
    dim = _dim(rng, wide if mode in ("plain", "gradients") else 0.0)
    shape = _shape(rng, dim, large, least=1 if mode == "vmap" else 0)
    call = Call(seed, index, operator, mode, shape, {}, rng.choice(EPS), row=rng.random(), function=rng.random() < 0.5)
    call.shared = mode in ("plain", "inference", "vmap") and rng.random() < 0.06
    if operator in QUANTIZED:
        call.quantization = _quantization(rng, dim)
    call.activation, call.norm_before_gate = rng.choice(ACTIVATIONS), rng.random() < 0.5
    if operator.endswith("narrow"):
        call.to = rng.choice((HALF, BFLOAT))
    elif operator in CONVERTING and mode != "second" and rng.random() < 0.25:
        call.to = rng.choice((dtype, *OTHERS[dtype] * 3))
    _draw_operands(rng, call, dtype)
    if call.mode == "vmap":
        _draw_batch(rng, call)
    elif call.mode in ("gradients", "tangents", "second"):
        _draw_derivative(rng, call)
    elif call.mode == "mistake":
        call.mistake = rng.choice(MISTAKES)
    elif not call.shared and rng.random() < 0.05:
        _draw_fault(rng, call)
    if math.prod(shape) > 20_000:
        call.threads = rng.choice((1, 2, 3, 4))
    return call


def _dtype(rng, operator: str) -> torch.dtype:
    if operator.endswith("narrow"):
        return FLOAT
    narrow = operator.endswith(("wide", "pair", "of_input"))
    dtype = rng.choice((HALF, BFLOAT) if narrow else (HALF, BFLOAT, FLOAT, FLOAT, DOUBLE))
    return FLOAT if operator in QUANTIZED and dtype == DOUBLE else dtype


def _quantization(rng, dim: int) -> dict:
    options = {"dtype": rng.choice((torch.float8_e4m3fn, torch.float8_e5m2, torch.int8))}
    if rng.random() < 0.3:
        return {**options, "scale": rng.choice(("bound", 0.02, 1e-3, 2.0**-140, 1.0))}
    if dim % 64 == 0 and rng.random() < 0.7:
        options["group_size"] = 128 if dim % 128 == 0 and rng.random() < 0.5 else 64
    if rng.random() < 0.3:
        options["scale_ub"] = rng.choice((0.5, 1.0, 3.0, 1e-6))
    return {**options, "power_of_two": rng.random() < 0.3}


def _mode(rng, operator: str, compiled: float) -> str:
    if rng.random() < compiled:
        return "compiled"
    if operator in FORWARD:
        modes, weights = (
            ("plain", "inference", "vmap", "gradients", "tangents", "second", "mistake"),
            (9, 1, 2, 5, 2, 1, 0.5),
        )
    elif operator in (*GATED, "rstd"):
        modes, weights = ("plain", "inference", "vmap", "gradients", "mistake"), (9, 1, 2, 5, 0.5)
    else:
        modes, weights = ("plain", "inference", "vmap", "mistake"), (10, 1, 2, 0.5)
    return rng.choices(modes, weights)[0]


def _dim(rng, wide: float) -> int:
    kind = rng.random()
    if kind < wide:
        return int(2 ** rng.uniform(12.3, 20)) + rng.randrange(2)
    if kind < 0.35:
        return rng.randint(1, 40)
    if kind < 0.6:
        return max(1, 2 ** rng.randint(0, 12) + rng.randint(-1, 1))
    return int(2 ** rng.uniform(0, math.log2(5000)))


def _shape(rng, dim: int, large: float, least: int) -> tuple[int, ...]:
    """Leading dimensions of a few rows; of none at times, of many rarely."""
    most = max(1, (60_000 if rng.random() < large else 3000) // dim)
    leading = [
        rng.choice((1, 2, 2, 3, 3, 4, 5, 7, most)) for _ in range(max(least, rng.choice((0, 1, 1, 1, 2, 2, 3, 4))))
    ]
    while math.prod(leading) > most and max(leading) > 1:
        leading[leading.index(max(leading))] //= 2
    if leading and least == 0 and rng.random() < 0.03:
        leading[rng.randrange(len(leading))] = 0
    return (*leading, dim)


def _draw_operands(rng, call: Call, dtype) -> None:
    mixed = dtype in (HALF, BFLOAT) and (call.operator.endswith(("wide", "pair")) or rng.random() < 0.4)
    writable = (
        call.operator == IN_PLACE or call.mode == "tangents"
    )  # make_dual writes a tangent in its operand's layout
    overlapping = 0.01 if call.operator == IN_PLACE else 0.0 if writable else 0.12
    wide_range = rng.random() < 0.1 and dtype != HALF and call.mode in ("plain", "inference", "vmap")
    of_products = call.gating is not None or call.operator.endswith(
        "of_input"
    )  # of four operands: would leave the range
    wide_range = wide_range and not of_products
    alike = rng.random() < 0.5  # one layout for all
    layout = None
    for name in OPERATORS[call.operator][0].split():
        if name.endswith("?") and rng.random() < 0.5:
            continue
        name = name.rstrip("?")
        rows = name not in NUMBERS
        sizes = call.shape if rows else call.shape[:-1]
        if not rows or layout is None or not alike:
            drawn = _layout(rng, sizes, writable=writable, overlapping=overlapping, row=rows)
            layout = drawn if rows else layout
        else:
            drawn = layout
        beside = name in ("residual", "grad_sum", "gate") and mixed
        beside = beside or (name == "grad_output" and call.operator.endswith("of_input"))
        own = FLOAT if beside else dtype if rows else accumulation_dtype(dtype)
        operand = Operand(own, sizes, *drawn, start=rng.randrange(1 << 20), rows=rows)
        _draw_values(rng, call, name, operand, wide_range)
        call.operands[name] = operand
        operand.buffer = 0 if call.shared else len(call.operands) - 1
    if call.shared:
        _share(rng, call)


def _draw_values(rng, call: Call, name: str, operand: Operand, wide_range: bool) -> None:
    operand.margin = rng.choice((0, 3))
    operand.spread = rng.choice((0, 0, 3)) if operand.dtype == HALF else rng.choice((0, 3, 10))
    if wide_range:
        operand.scale = rng.randint(-36, 24) if name == "input" else rng.randint(-20, 20)
    if name in NUMBERS:
        operand.content = "positive"
    elif call.mode != "second":
        operand.content = rng.choices(("normal", "zero", "small"), (30, 1, 2))[0]
    if call.mode == "plain" and not call.shared and name not in NUMBERS:
        operand.negated = rng.random() < 0.01
        operand.lazy = rng.random() < 0.01


def _layout(rng, sizes, *, writable: bool = False, overlapping: float = 0.12, row: bool = True):
    """Strides and an offset: contiguous, or with dimensions in another order, gaps, expansion, rows that overlap."""
    contiguous = rng.random() < 0.4
    rank, strides, step = len(sizes), [0] * len(sizes), 1
    order = list(range(rank))[::-1]
    if not contiguous and rng.random() < 0.3:
        leading = order[1:]
        rng.shuffle(leading)
        order[1:] = leading
        if row and not writable and rng.random() < 0.1:
            rng.shuffle(order)  # the last dimension too: copied
    apart = 0.0 if contiguous else 0.35
    expanded = 0.0 if contiguous else overlapping
    for place, d in enumerate(order):
        last = row and d == rank - 1
        kind = rng.random()
        if last and (kind > 0.06 or writable or contiguous):
            strides[d] = step
        elif last:
            strides[d] = rng.choice((0, 2, 3)) * step
        elif kind < expanded:
            strides[d] = 0
        elif kind < 1.2 * expanded:
            strides[d] = rng.randrange(step + 1)  # rows that overlap
        else:
            strides[d] = step
        if sizes[d] == 1 and rng.random() < 0.2 and not contiguous and not (last and writable):
            strides[d] = rng.choice((0, 1, 5, 1 << 33))
        step = max(step, strides[d] * max(sizes[d], 1)) if sizes[d] != 1 else step
        if rng.random() < apart and (place > 0 or not row):
            step = rng.choice((step * 2, step + 1, step + 3, step + 16))
        elif place == 0 and rng.random() < apart:
            step += rng.choice((1, 2, 8, 13, 2 * sizes[d]))
    return tuple(strides), rng.choice((0, 0, 0, 1, 2, 3, 5, 8, 16))


def _share(rng, call: Call) -> None:
    """One buffer for all: side by side as q and k are, or wherever."""
    first = next(iter(call.operands.values()))
    extent = max(first.length - first.offset, 1)
    for operand in call.operands.values():
        operand.start, operand.scale, operand.spread = first.start, 0, 0
        operand.content = "positive" if operand.content == "positive" else "normal"
        wide = max(operand.dtype.itemsize // first.dtype.itemsize, 1)  # elements of the first one in one of these
        apart = rng.choice((0, 1, call.shape[-1], call.shape[-1], rng.randrange(extent + 1), extent, extent + 3))
        if operand is not first:
            operand.offset = (first.offset + apart + wide - 1) // wide


def _draw_batch(rng, call: Call) -> None:
    leading = [d for d, size in enumerate(call.shape[:-1]) if size > 0]
    if not leading:
        call.mode = "plain"
        return
    call.dim = rng.choice(leading)
    names = list(call.operands)
    alone = rng.choice(names) if call.operator != IN_PLACE and len(names) > 1 and rng.random() < 0.4 else None
    if alone and not call.shared:
        operand = call.operands[alone]
        operand.batched = False
        for part in ("sizes", "strides"):
            values = getattr(operand, part)
            setattr(operand, part, values[: call.dim] + values[call.dim + 1 :])


def _draw_derivative(rng, call: Call) -> None:
    """Which operands are differentiated, and cotangents or tangents in layouts of their own."""
    names = list(call.operands)
    call.wanted = tuple(rng.choice([names, names, names[:1], names[-1:]]))
    results = [name for name in call.results if name != "rstd" or call.operator == "rstd" or rng.random() < 0.3]
    call.given = tuple(results)
    if call.mode == "second":
        call.given = tuple(name for name in results if name != "rstd")
    elif call.mode == "gradients" and len(results) > 1:
        call.given = tuple(rng.choice([results, results, results[:1], results[1:]]))
    if call.gating is not None:
        call.given = ("output",)  # of rstd: test_gated_derivatives.py
    for operand in call.operands.values():
        operand.scale = 0
        operand.content = "normal" if call.mode == "second" else operand.content
    if call.mode == "gradients":
        wanted = {f"grad {name}": (call.result_dtype(name), name == "rstd") for name in call.given}
    else:
        wanted = {f"tangent {name}": (call.operands[name].dtype, False) for name in call.wanted}
        if call.mode == "second":
            wanted |= {f"grad {name}": (call.result_dtype(name), False) for name in call.given}
    for name, (dtype, of_rows) in wanted.items():
        sizes = call.shape[:-1] if of_rows else call.shape
        drawn = _layout(rng, sizes, row=not of_rows)
        start, spread = rng.randrange(1 << 20), rng.choice((0, 3))
        call.cotangents[name] = Operand(dtype, sizes, *drawn, start=start, spread=spread, rows=not of_rows)


def _draw_fault(rng, call: Call) -> None:
    name = rng.choice(list(call.operands))
    operand = call.operands[name]
    if 0 not in operand.sizes and not operand.lazy and not operand.negated:
        call.fault = (name, rng.random(), rng.random(), rng.choice(FAULTS))


def program(call: Call) -> str:
    """The call in plain PyTorch, with other numbers."""
    lines = ["import torch, srmsnorm", f"# {call.mode} of {call.operator}, shape {call.shape}"]
    for name, o in {**call.operands, **call.cotangents}.items():
        view = f"{o.sizes}, {o.strides}, {o.offset})"
        lines.append(
            f"{name.replace(' ', '_')} = torch.randn({o.length + o.margin}, dtype={o.dtype}).as_strided({view}"
        )
        notes = {key: value for key, value in vars(o).items() if key in ("content", "spread", "scale") and value}
        flags = [key for key in ("negated", "lazy") if getattr(o, key)] + ([] if o.batched else ["not batched"])
        lines[-1] += f"  # {notes} {' '.join(flags)}"
    drawn = (
        "eps",
        "to",
        "activation",
        "norm_before_gate",
        "quantization",
        "shared",
        "fault",
        "threads",
        "wanted",
        "given",
        "dim",
        "mistake",
    )
    lines.append("# " + ", ".join(f"{key}={getattr(call, key)}" for key in drawn))
    return "\n".join("    " + line for line in lines)
