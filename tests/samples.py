"""The one matrix of samples that feeds all tests: dtypes, shapes, layouts, residual kinds."""

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

HALF, BFLOAT, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
DTYPES = (HALF, BFLOAT, FLOAT, DOUBLE)


@dataclass(frozen=True)
class Kind:
    """Dtypes of input and residual; no residual for None."""

    dtype: torch.dtype
    residual: torch.dtype | None = None

    def __str__(self):
        short = {HALF: "fp16", BFLOAT: "bf16", FLOAT: "fp32", DOUBLE: "fp64"}
        return short[self.dtype] + (f"+{short[self.residual]}" if self.residual else "")


PLAIN = [Kind(dtype) for dtype in DTYPES]
MIXED = [Kind(HALF, FLOAT), Kind(BFLOAT, FLOAT)]
WITH_RESIDUAL = [Kind(dtype, dtype) for dtype in DTYPES] + MIXED
KINDS = PLAIN + WITH_RESIDUAL
GATED = PLAIN + MIXED  # the residual's dtype is the gate's: a gate of the input's dtype is none more

ACTIVATIONS = (None, "silu", "sigmoid")
GATES = [{"activation": name, "norm_before_gate": first} for first in (True, False) for name in ACTIVATIONS]

SHAPES = [
    (1,),
    (8,),
    (3, 1),
    (5, 3),
    (2, 3, 16),
    (4, 33),
    (70, 64),
    (3, 129),
    (2, 2, 500),
    (3, 1000),
    (2, 2049),
    (1, 9000),
]
EMPTY_SHAPES = [(0, 8), (2, 0, 8), (0, 1)]

# A layout makes a tensor of the given shape, dtype and device with strides of its own; values come later.


def contiguous(shape, **options):
    return torch.empty(shape, **options)


def misaligned(shape, **options):
    """One element past an aligned address."""
    count = torch.Size(shape).numel()
    return torch.empty(count + 1, **options)[1:].view(shape)


def packed(shape, **options):
    """The middle part of a packed qkv tensor."""
    *leading, dim = shape
    return torch.empty((*leading, 3 * dim), **options)[..., dim : 2 * dim]


def padded(shape, **options):
    """Rows an odd number of elements apart, starting one past an aligned address."""
    *leading, dim = shape
    return torch.empty((*leading, dim + 3 - dim % 2), **options)[..., 1 : dim + 1]


def transposed(shape, **options):
    """Leading dimensions in the opposite order in memory."""
    *leading, dim = shape
    order = list(range(len(leading)))[::-1]
    return torch.empty((*leading[::-1], dim), **options).permute(*order, len(leading))


def gapped(shape, **options):
    """Every other index of every leading dimension: nothing merges."""
    *leading, dim = shape
    return torch.empty((*(2 * size for size in leading), dim), **options)[(*(slice(None, None, 2) for _ in leading),)]


def expanded(shape, **options):
    """One row for all (read only)."""
    return torch.empty(shape[-1], **options).expand(shape)


def every_other(shape, **options):
    """A last dimension of stride 2: the one layout that is copied."""
    *leading, dim = shape
    return torch.empty((*leading, 2 * dim), **options)[..., ::2]


def dim_first(shape, **options):
    """The last dimension is outermost in memory (copied too, where there is more than one row)."""
    *leading, dim = shape
    return torch.empty((dim, *leading), **options).movedim(0, -1)


UNIT_STRIDE = [contiguous, misaligned, packed, padded, transposed, gapped]
READABLE = [*UNIT_STRIDE, expanded]
COPIED = [every_other, dim_first]


def values(shape, dtype, device="cpu", *, name="input") -> Tensor:
    """Normal numbers with a mean, every row at a scale of its own, so that no row's result fits another. The same for
    the same name and shape."""
    generator = torch.Generator(device).manual_seed(zlib.crc32(f"{name}{tuple(shape)}".encode()))
    wide = DOUBLE if dtype == DOUBLE else FLOAT
    result = torch.randn(shape, generator=generator, device=device, dtype=wide) + 0.25
    rows = torch.randint(-3, 4, (*shape[:-1], 1), generator=generator, device=device)
    return (result * torch.exp2(rows.to(wide))).to(dtype)


def tensor(shape, dtype, device="cpu", *, layout=contiguous, name="input") -> Tensor:
    """A tensor of that layout, filled with those values."""
    result = layout(shape, dtype=dtype, device=device)
    if layout is expanded:
        result[(0,) * (len(shape) - 1)].copy_(values(shape[-1:], dtype, device, name=name))
    elif result.numel():
        result.copy_(values(shape, dtype, device, name=name))
    return result


def forward(kind, shape, device="cpu", *, layout=contiguous, residual_layout=None):
    """(input, residual); residual is None where the kind has none."""
    input = tensor(shape, kind.dtype, device, layout=layout)
    if kind.residual is None:
        return input, None
    return input, tensor(shape, kind.residual, device, layout=residual_layout or layout, name="residual")


def grad_output(kind, shape, device="cpu", *, layout=contiguous):
    return tensor(shape, kind.dtype, device, layout=layout, name="grad_output")


def grad_sum(kind, shape, device="cpu", *, layout=contiguous):
    return tensor(shape, kind.residual or kind.dtype, device, layout=layout, name="grad_sum")


def gated(kind, shape, device="cpu", *, layout=contiguous, gate_layout=None):
    """(input, gate); the gate is of the residual's dtype, where the kind has one."""
    gate = tensor(shape, kind.residual or kind.dtype, device, layout=gate_layout or layout, name="gate")
    return tensor(shape, kind.dtype, device, layout=layout), gate


def calls(kind, shape, device="cpu", *, layout=contiguous):
    """Every operator, public and internal, with every combination of optional operands that the kind allows:
    (name, tensors and other positional arguments, keyword arguments)."""
    ops = torch.ops.srmsnorm
    x, stream = forward(kind, shape, device, layout=layout)
    y, rstd = ops._srms_norm(x, stream, 1e-3)
    g, gh = grad_output(kind, shape, device, layout=layout), grad_sum(kind, shape, device, layout=layout)
    found = [
        ("srms_norm", (x,), {"eps": 1e-3}),
        ("_srms_norm", (x, None, 1e-3), {}),
        ("_srms_norm_backward_input", (g, y, rstd), {}),
        ("_srms_norm_backward_input", (g, y, rstd, gh), {}),
        ("_srms_norm_backward", (g, y, rstd), {}),
        ("_srms_norm_backward", (g, y, rstd, gh), {}),
    ]
    if kind.residual is not None:
        found += [
            ("srms_norm", (x, stream), {"eps": None}),
            ("_srms_norm", (x, stream, None), {}),
            ("add_srms_norm", (x, stream), {"eps": 1e-3}),
            ("_add_srms_norm", (x, stream, 1e-3), {}),
        ]
        if layout is not expanded and layout not in COPIED:
            found.append(("add_srms_norm_", (x.clone(), stream.clone()), {"eps": 1e-3}))
    if kind in MIXED:
        found += [
            ("_srms_norm_backward_residual", (g, y, rstd), {}),
            ("_srms_norm_backward_residual", (g, y, rstd, gh), {}),
            ("_srms_norm_backward", (g, y, rstd, gh), {"dtype": FLOAT}),
            ("_srms_norm_backward_pair", (g, y, rstd), {}),
            ("_srms_norm_backward_pair", (g, y, rstd, gh), {}),
        ]
    found += converted_calls(kind, shape, device, layout=layout)
    return found + gated_calls(kind, shape, device, layout=layout)


def name(dtype):
    """As schemas hold it."""
    return str(dtype).removeprefix("torch.")


# y in another dtype than the input's: wider, narrower, or another of 16 bits.
OTHERS = {HALF: (FLOAT, BFLOAT), BFLOAT: (FLOAT, HALF), FLOAT: (HALF, BFLOAT), DOUBLE: ()}


def converted_calls(kind, shape, device="cpu", *, layout=contiguous):
    """The operators with a y of another dtype, rstd alone, and rows times numbers."""
    ops = torch.ops.srmsnorm
    x, stream = forward(kind, shape, device, layout=layout)
    rstd = ops._srms_norm(x, stream, 1e-3)[1]
    factor = rstd * -0.5
    found = [
        ("rstd", (x,), {"eps": 1e-3}),
        ("_scale_rows", (x, None, rstd), {}),
        ("_scale_rows", (x, stream, rstd, factor), {}),
    ]
    if kind.residual is not None:
        found.append(("rstd", (x, stream), {}))
    for dtype in OTHERS[kind.dtype]:
        y, g = (tensor(shape, dtype, device, layout=layout, name=of) for of in ("output", "grad_output"))
        found += [
            ("srms_norm", (x, stream), {"eps": 1e-3, "dtype": name(dtype)}),
            ("_srms_norm", (x, stream, 1e-3), {"dtype": name(dtype)}),
            ("_scale_rows", (x, stream, rstd, factor), {"dtype": name(dtype)}),
        ]
        if kind.residual is not None:
            found.append(("_add_srms_norm", (x, stream, 1e-3), {"dtype": name(dtype)}))
            found.append(("add_srms_norm", (x, stream), {"eps": 1e-3, "dtype": name(dtype)}))
        if FLOAT in (dtype, kind.dtype):
            found.append(("_srms_norm_backward_input", (g, y, rstd), {"dtype": name(kind.dtype)}))
        if dtype == FLOAT:
            gh = tensor(shape, FLOAT, device, layout=layout, name="grad_sum")
            found.append(("_srms_norm_backward_input", (g, y, rstd, gh), {"dtype": name(kind.dtype)}))
            found.append(("_srms_norm_backward_of_input", (g, x, rstd), {}))
            if kind.residual == FLOAT:
                found.append(("_srms_norm_backward_pair", (g, y, rstd, gh), {"dtype": name(kind.dtype)}))
    return found


def gated_calls(kind, shape, device="cpu", *, layout=contiguous):
    """Every operator with a gate, and every activation and order in some of them."""
    x, gate = gated(kind, shape, device, layout=layout)
    g = grad_output(kind, shape, device, layout=layout)
    plain, silu, sigmoid_first = GATES[0], GATES[1], GATES[5]
    found = []
    for options in (plain, silu, sigmoid_first):
        rstd = torch.ops.srmsnorm._gated_srms_norm(x, gate, **options, eps=1e-3)[1]
        found += [
            ("gated_srms_norm", (x, gate), {**options, "eps": 1e-3}),
            ("_gated_srms_norm", (x, gate), {**options, "eps": None}),
            ("_gated_srms_norm_backward", (g, x, gate, rstd), options),
        ]
    return [
        *found,
        ("_gated_srms_norm_backward_input", (g, x, gate, rstd), GATES[4]),
        ("_gated_srms_norm_backward_gate", (g, x, gate, rstd), silu),
    ]


def requiring_grad(args):
    """The same arguments with every choice of tensors that require grad: none, each alone, all."""
    tensors = [i for i, arg in enumerate(args) if isinstance(arg, Tensor)]
    for chosen in dict.fromkeys([(), *((i,) for i in tensors), tuple(tensors)]):
        yield tuple(
            arg.detach().clone().requires_grad_(i in chosen) if isinstance(arg, Tensor) else arg
            for i, arg in enumerate(args)
        )
