"""The operations beside the norm, by the names that stand in --ops, where commas part them. Their roof is copy_ of as
many bytes.

One more is its definition, a call, a check and a row of GATES or OUTPUTS; what it calls is a method of the providers
that have the like.
"""

from .gates import GATES
from .operations import Op
from .outputs import OUTPUTS

NEIGHBOURS: dict[str, Op] = GATES | OUTPUTS


def neighbour(name: str, dtype: str) -> Op | None:
    """None where there is no such thing."""
    op = NEIGHBOURS.get(name)
    return op if op is not None and dtype in op.dtypes else None
