"""DTensor: importing this module registers how the operators run on tensors that are distributed over a mesh.

A norm needs its rows and nothing else. So on each dimension of the mesh all operands get one placement, the first of
theirs that shards a leading dimension, else the first that shards the last one, else ``Replicate``; operands that have
it are used as they are and results have it too. Anything else is redistributed, as a partial sum is reduced. Only rows
in pieces, by a shard of the last dimension, need communication beside that (split_rows.py); what is one number a row is
replicated there. Beside a gate and where they are quantised rows must be whole, and such a shard is gathered. Backward
is linear in the gradients, so that partial ones stay partial beside a replicated output.

These are strategies of DTensor's own kind and not ``torch.distributed.tensor.experimental.register_sharding``, which
gathers where a mesh has more processes than the tensor has rows, and redistributes the second operand of an operator in
place into a copy.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch._ops import OpOverload
from torch.distributed._functional_collectives import _are_we_tracing
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.distributed.tensor._op_schema import OpSchema, OpSpec, OpStrategy, RuntimeSchemaInfo

from .split_rows import COMPUTATIONS, Pieces, compute

__all__: list[str] = []

_rstd, _scale_rows = torch.ops.srmsnorm.rstd.default, torch.ops.srmsnorm._scale_rows.default
_in_place_with_results = torch.ops.srmsnorm.add_srms_norm_quantized_.default


def _rule(
    is_linear: Sequence[bool], placements: Sequence[Placement], leading: int, shardable: int
) -> tuple[Sequence[Placement], Placement]:
    """On one dimension of the mesh: (the placements that the operands need, if all are rows; that of the results).
    is_linear: in which operands the results are; of the dimensions that may be sharded, some are leading ones."""
    pairs = list(zip(is_linear, placements, strict=True))
    kept, gradients = ([p for linear, p in pairs if linear == which] for which in (False, True))
    partials = [p for p in gradients if p != Replicate()]
    if all(p == Replicate() for p in kept) and partials and all(_is_sum(p) and p == partials[0] for p in partials):
        return [partials[0] if linear else Replicate() for linear in is_linear], partials[0]
    rows = _rows([*kept, *gradients], leading, shardable)
    return [rows] * len(placements), rows


def _rows(placements: Sequence[Placement], leading: int, shardable: int) -> Placement:
    """The first shard of a leading dimension, else of another that may be sharded. Shard and its strided kin have a
    ``dim``, other placements have not."""
    shards = [p for p in placements if getattr(p, "dim", shardable) < shardable]
    return min(shards, key=lambda p: p.dim >= leading, default=Replicate())  # type: ignore[attr-defined]


def _is_sum(placement: Placement) -> bool:
    """Whether the whole is a sum of the processes' tensors, up to a factor."""
    return type(placement) is Partial and placement.reduce_op in ("sum", "avg")


def _placed(op: OpOverload, specs: dict[str, DTensorSpec], splits: bool) -> tuple[list[DTensorSpec], list[DTensorSpec]]:
    """(the operands as they are needed, the results); splits: whether the operator may have rows in pieces."""
    is_linear = [name.startswith("grad_") or name == "factor" for name in specs]
    operands = list(specs.values())
    rank, mesh = operands[0].ndim, operands[0].mesh
    by_mesh_dim = zip(*(operand.placements for operand in operands), strict=True)
    rules = [_rule(is_linear, placements, rank - 1, rank if splits else rank - 1) for placements in by_mesh_dim]

    def spec(placements: Sequence[Placement], is_rows: bool, meta: TensorMeta | None = None) -> DTensorSpec:
        """Of one number a row there is no last dimension."""
        numbers = (Replicate() if getattr(p, "dim", None) == rank - 1 else p for p in placements)
        return DTensorSpec(mesh, tuple(placements if is_rows else numbers), tensor_meta=meta)

    by_operand = zip(operands, zip(*(needed for needed, _ in rules), strict=True), strict=True)
    needs = [spec(placements, operand.ndim == rank, operand.tensor_meta) for operand, placements in by_operand]
    rows = [result for _, result in rules]
    return needs, [spec(rows, op != _rstd and returned.name != "rstd") for returned in op._schema.returns]


def _strategy(op_schema: OpSchema) -> OpStrategy:
    op, given = op_schema.op, zip(op_schema.op._schema.arguments, op_schema.args_schema, strict=False)
    specs = {a.name: value.strategies[0].output_spec for a, value in given if isinstance(value, OpStrategy)}
    needs, results = _placed(op, specs, splits=op == _scale_rows)
    if op_schema.is_inplace_op():
        _check_in_place(list(specs.values()), needs)
    return OpStrategy([OpSpec(results[0] if len(results) == 1 else tuple(results) or None, needs)])


class _Split(NamedTuple):
    """How operands and results lie where the operands' rows are in pieces."""

    needs: list[DTensorSpec]
    results: list[DTensorSpec]
    mesh_dims: list[int]
    columns: int


_splits: dict[OpSchema, _Split] = {}


def _split(op: OpOverload, schema: OpSchema, whole: Any) -> _Split | None:
    """None where rows are whole. whole: the sharding that DTensor found, for operands that are gathered."""
    given = zip(op._schema.arguments, schema.args_schema, strict=False)
    specs = {argument.name: value for argument, value in given if isinstance(value, DTensorSpec)}
    needs, results = _placed(op, specs, splits=True)
    last = needs[0].ndim - 1
    mesh_dims = [i for i, placement in enumerate(needs[0].placements) if getattr(placement, "dim", None) == last]
    every = whole.output_spec if isinstance(whole.output_spec, tuple) else (whole.output_spec,)
    for result, same in zip(results, every, strict=True):
        result.tensor_meta = same.tensor_meta
    return _Split(needs, results, mesh_dims, needs[0].shape[last]) if mesh_dims else None


def _in_pieces(op: OpOverload, call: Any, split: _Split) -> Any:
    """The results: of another computation than that of whole rows, which they would be gathered for."""
    dispatcher, mesh = DTensor._op_dispatcher, call.compute_mesh
    if mesh.get_coordinate() is None:
        dtypes = (result.tensor_meta.dtype for result in split.results if result.tensor_meta)
        found = tuple(torch.tensor([], dtype=dtype, device=mesh.device_type) for dtype in dtypes)
    else:
        needed = iter(split.needs)
        args = tuple(next(needed) if isinstance(arg, DTensorSpec) else arg for arg in call.schema.args_schema)
        if args != call.schema.args_schema:
            dispatcher.redistribute_local_args(call, OpSchema(op, args, {}), False)
        pieces = Pieces(mesh, split.mesh_dims, split.columns)
        found = compute(op, pieces, call.local_args, call.local_kwargs)
    wrapped: Any = dispatcher.wrap(found, tuple(split.results))
    return wrapped[0] if len(wrapped) == 1 else wrapped


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
    rows = DTensorSpec(mesh, tuple(_rows(placements, leading, leading) for placements in by_mesh_dim))
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
    dispatcher: Any = DTensor._op_dispatcher
    for op in _operators():
        strategy = _quantized if "quantized" in op._schema.name else _strategy
        dispatcher.sharding_propagator.register_op_strategy(op, strategy, _cache_key(op))
    propagate = dispatcher._propagate_op_sharding_dispatch_slow_path

    def propagate_or_compute(op: Any, args: Any, kwargs: Any, call: Any, try_cache: bool) -> Any:
        if op in COMPUTATIONS:
            cache = {} if _are_we_tracing() else _splits
            split = cache.get(call.schema)
            if split is None or split.needs[0].mesh is not call.compute_mesh:  # equal meshes may be of other groups
                whole = propagate(op, args, kwargs, call, True)
                split = _split(op, call.schema, whole)
                if split is None:
                    return whole
                cache[call.schema] = split
            return _in_pieces(op, call, split)
        if op != _in_place_with_results:
            return propagate(op, args, kwargs, call, try_cache)
        # DTensor would return the first operand of whatever is named as in place.
        call.output_sharding = propagate(op, args, kwargs, call, True)
        results = dispatcher._dispatch_get_local_results_slow_path(op, args, call)
        return dispatcher.wrap(results, call.output_sharding.output_spec)

    # Asked for what its cache in C++ does not know; an answer that is no sharding is taken for the results. Not one of
    # DTensor's handlers by operator, past which nothing is cached: a norm of whole rows took 37 us for 13.
    dispatcher._propagate_op_sharding_dispatch_slow_path = propagate_or_compute


_register()
