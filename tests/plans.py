"""Where launch plans change, from the plans themselves: the dims at which a launch can go wrong."""

from functools import cache

import srmsnorm

LIMIT = 2**20 + 1
SHAPE = ("threads_per_row", "rows_per_block", "vectors", "cluster", "twice", "shifted", "vector_elements")


BACKWARD = "_srms_norm_backward_input"
#: What an operator calls the operand beside its input.
BESIDE = {"gated_srms_norm": "gate_dtype", "_gated_srms_norm_backward": "gate_dtype"}


def launch(dim, kind, operator=None, **options) -> dict:
    """As the launcher takes it: on the GPU that is here, or one with clusters of 16 blocks. Without an operator, the
    norm's on the latter, which is quicker to ask."""
    if operator is None:
        return srmsnorm.launch_plan(dim, kind.dtype, kind.residual, **options)
    beside = {BESIDE.get(operator, "residual_dtype"): kind.residual}
    return srmsnorm.launch_plan(operator, dim, kind.dtype, **beside, **options)


def plan(dim, kind, **options) -> tuple:
    found = launch(dim, kind, **options)
    return tuple(found[key] for key in SHAPE)


@cache
def _changes(kind, limit, **options) -> list[tuple[int, int]]:
    """Neighbours (last dim of a plan, first dim of the next): among dims of whole vectors, and among the others."""
    elements = 16 // kind.dtype.itemsize
    whole = range(elements, limit + 1, elements)
    others = [dim for dim in range(1, limit + 1) if dim % elements]
    return [*_changes_among(whole, kind, options), *_changes_among(others, kind, options)]


def _changes_among(dims, kind, options):
    """Each of the first dims is looked at; past them a plan holds for ranges that steps of a 64th do not jump over, and
    the change is found by halving."""
    found, low = [], 0
    while low < len(dims) - 1:
        high = min(low + max(1, low // 64), len(dims) - 1)
        found += _between(dims, low, high, kind, options)
        low = high
    return found


def _between(dims, low, high, kind, options):
    if plan(dims[low], kind, **options) == plan(dims[high], kind, **options):
        return []
    if high - low == 1:
        return [(dims[low], dims[high])]
    middle = (low + high) // 2
    return _between(dims, low, middle, kind, options) + _between(dims, middle, high, kind, options)


def boundaries(kind, limit=LIMIT, **options) -> list[int]:
    """The dims up to limit at which a plan begins."""
    return sorted(first for _, first in _changes(kind, limit, **options))


def around(kind, limit=LIMIT, **options) -> list[int]:
    """Both sides of every boundary and their neighbours, the first dims and the limit."""
    sides = {dim for change in _changes(kind, limit, **options) for dim in change} | {2, limit}
    near = {dim + step for dim in sides for step in (-1, 0, 1)}
    return sorted(dim for dim in near if 1 <= dim <= limit)
