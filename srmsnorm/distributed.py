"""DTensor: importing this module registers how the operators run on tensors that are distributed over a mesh.

A norm needs whole rows and nothing else. So on each dimension of the mesh all operands get one placement, the first of
theirs that shards a leading dimension, else ``Replicate``; operands that have it are used as they are, without
communication, and results have it too. Anything else is redistributed: a shard of the last dimension is gathered, a
partial sum reduced. Backward is linear in the gradients, so that partial ones stay partial beside a replicated output.

These are strategies of DTensor's own kind and not ``torch.distributed.tensor.experimental.register_sharding``, which
gathers where a mesh has more processes than the tensor has rows, and redistributes the second operand of an operator in
place into a copy.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch._ops import OpOverload
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate
from torch.distributed.tensor._dtensor_spec import DTensorSpec
from torch.distributed.tensor._op_schema import OpSchema, OpSpec, OpStrategy, RuntimeSchemaInfo

__all__: list[str] = []

# (placements of the operands on one mesh dimension, number of leading dimensions) -> the placements they need there.
# The results have the first one's.
_Rule = Callable[[Sequence[Placement], int], Sequence[Placement]]


def _rows(placements: Sequence[Placement], leading: int) -> Placement:
    """The first shard of a leading dimension; Shard and its strided kin have a ``dim``, other placements have not."""
    return next((p for p in placements if getattr(p, "dim", leading) < leading), Replicate())


def _forward(placements: Sequence[Placement], leading: int) -> Sequence[Placement]:
    return [_rows(placements, leading)] * len(placements)


def _backward(names: Sequence[str], placements: Sequence[Placement], leading: int) -> Sequence[Placement]:
    """names: of all tensors that the operator takes, of which the last may be absent."""
    is_gradient = [name.startswith("grad_") for name, _ in zip(names, placements, strict=False)]
    gradients = [p for p, linear in zip(placements, is_gradient, strict=True) if linear]
    kept = [p for p, linear in zip(placements, is_gradient, strict=True) if not linear]
    partials = [p for p in gradients if p != Replicate()]
    if all(p == Replicate() for p in kept) and partials and all(_is_linear(p) and p == partials[0] for p in partials):
        return [partials[0] if linear else Replicate() for linear in is_gradient]
    return [_rows([*kept, *gradients], leading)] * len(placements)


def _is_linear(placement: Placement) -> bool:
    """Whether the whole is a sum of the processes' tensors, up to a factor."""
    return type(placement) is Partial and placement.reduce_op in ("sum", "avg")


def _strategy(rule: _Rule, op_schema: OpSchema) -> OpStrategy:
    operands = [strategy.strategies[0].output_spec for strategy in op_schema.args_strategy]
    leading = operands[0].ndim - 1
    mesh_dims = zip(*(spec.placements for spec in operands), strict=True)
    mesh = op_schema.get_mesh_from_args()
    by_mesh_dim = [rule(placements, leading) for placements in mesh_dims]
    needed = [DTensorSpec(mesh, placements) for placements in zip(*by_mesh_dim, strict=True)]
    if op_schema.is_inplace_op():
        _check_in_place(operands, needed)
    returns = len(op_schema.op._schema.returns)
    results = None if returns == 0 else needed[0] if returns == 1 else (needed[0],) * returns
    return OpStrategy([OpSpec(results, needed)])


def _quantized(op_schema: OpSchema) -> OpStrategy:
    """Rows as ever. A scale that is one element is everywhere the same; others are split as the rows are."""
    names = [argument.name for argument in op_schema.op._schema.arguments]
    specs = {
        name: strategy.strategies[0].output_spec
        for name, strategy in zip(names, op_schema.args_schema, strict=False)
        if isinstance(strategy, OpStrategy)
    }
    mesh, leading, given = op_schema.get_mesh_from_args(), specs["input"].ndim - 1, specs.get("scale")
    kept = ["residual"] if op_schema.is_inplace_op() else ["input", "residual"]
    by_mesh_dim = zip(*(specs[name].placements for name in kept if name in specs), strict=True)
    rows = DTensorSpec(mesh, tuple(_rows(placements, leading) for placements in by_mesh_dim))
    if op_schema.is_inplace_op():
        _check_in_place([specs["residual"]], [rows])
    same = DTensorSpec(mesh, (Replicate(),) * mesh.ndim)
    one = given is not None and math.prod(given.shape) == 1
    number = {"scale_value", "scale_name"} & {k for k, v in op_schema.kwargs_schema.items() if v is not None}
    used = same if one or number else rows
    needed = [used if name == "scale" else rows for name in specs]
    return OpStrategy([OpSpec((rows, used, rows)[: len(op_schema.op._schema.returns)], needed)])


def _check_in_place(operands: Sequence[DTensorSpec], needed: Sequence[DTensorSpec]) -> None:
    if any(has.placements != needs.placements for has, needs in zip(operands, needed, strict=True)):
        raise RuntimeError(
            "srmsnorm: in place, all operands must have the same placements, each Replicate or a shard of a leading "
            f"dimension, got {' and '.join(str(spec.placements) for spec in operands)}: what would be written is a "
            "redistributed copy. Redistribute them first, or use add_srms_norm"
        )


def _operators() -> list[OpOverload]:
    """Those with kernels of their own: csrc/operators.h has the table."""
    names = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeExplicitAutograd")
    ours = [name.removeprefix("srmsnorm::") for name in names if name.startswith("srmsnorm::")]
    return [getattr(torch.ops.srmsnorm, name).default for name in sorted(ours)]


def _cache_key(op: OpOverload) -> RuntimeSchemaInfo:
    """What is no tensor belongs to the key of DTensor's cache: a call must not get what another was given."""
    arguments = op._schema.arguments
    positions = [i for i, argument in enumerate(arguments) if "Tensor" not in str(argument.type)]
    return RuntimeSchemaInfo(
        static_argnum=min((i for i in positions if not arguments[i].kwarg_only), default=len(arguments)),
        static_kwargkey=[arguments[i].name for i in positions if arguments[i].kwarg_only],
    )


def _register() -> None:
    propagator = DTensor._op_dispatcher.sharding_propagator
    for op in _operators():
        names = [argument.name for argument in op._schema.arguments]
        if "scale" in names:
            propagator.register_op_strategy(op, _quantized, _cache_key(op))
            continue
        rule = partial(_backward, names) if names[0] == "grad_output" else _forward
        propagator.register_op_strategy(op, partial(_strategy, rule), _cache_key(op))


_register()
