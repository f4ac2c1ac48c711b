"""Every kernel family once, on few rows: what compute-sanitizer runs over (select with -m sanitizer).

Values are made and checked on the CPU, so that little runs beside the kernels.
"""

import plans
import pytest
import samples
import torch
import truth
from samples import BFLOAT, DOUBLE, FLOAT, HALF, Kind
from tolerances import assert_backward, assert_output

import srmsnorm

pytestmark = [pytest.mark.sanitizer, pytest.mark.usefixtures("plain_memory")]
LAYOUTS = {True: samples.contiguous, False: samples.padded}


def families(kind, aligned, **options) -> list[int]:
    """One dim for each way a row is taken: part of a warp or whole ones, vectors, cluster, twice, shifted, edges.
    Results are fresh, so that padded operands lie differently."""
    found, options = {}, {"in_phase": aligned, **options}
    for dim in sorted({*plans.around(kind, **options), 64, 200, 4096, 65_536, 2**20}):
        plan = srmsnorm.launch_plan(dim, kind.dtype, kind.residual, **options)
        way = plan["threads_per_row"] >= 32, plan["rows_per_block"] > 1, plan["vectors"], plan["cluster"] > 1
        found.setdefault((*way, plan["twice"], plan["shifted"], plan["edges"]), dim)
    return sorted(found.values())


def rows_for(dim):
    """A partly filled block of short rows, two of long ones, one of a row that takes a while."""
    return 5 if dim < 2048 else 2 if dim < 2**18 else 1


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(
    "kind", [Kind(BFLOAT), Kind(HALF, HALF), Kind(BFLOAT, FLOAT), Kind(FLOAT), Kind(DOUBLE)], ids=str
)
def test_forward(cuda, kind, aligned):
    for dim in families(kind, aligned):
        held = samples.forward(kind, (rows_for(dim), dim))
        input, residual = (
            None if t is None else LAYOUTS[aligned](t.shape, dtype=t.dtype, device=cuda).copy_(t) for t in held
        )
        assert_output(srmsnorm.srms_norm(input, residual).cpu(), truth.forward(*held)[0])
        if residual is not None:
            y, sum, _ = torch.ops.srmsnorm._add_srms_norm(input, residual, None)
            assert torch.equal(sum.cpu(), truth.rounded_sum(*held))
            srmsnorm.add_srms_norm_(input, residual)
            assert torch.equal(input.cpu(), y.cpu()) and torch.equal(residual.cpu(), sum.cpu())


@pytest.mark.parametrize("grad_sum", [False, True])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("kind", [Kind(BFLOAT), Kind(HALF, FLOAT), Kind(FLOAT)], ids=str)
def test_backward(cuda, kind, aligned, grad_sum):
    for dim in families(kind, aligned, backward=True, grad_sum=grad_sum):
        shape = rows_for(dim), dim
        y, rstd = torch.ops.srmsnorm._srms_norm(*samples.forward(kind, shape), None)
        held = samples.grad_output(kind, shape), y, samples.grad_sum(kind, shape) if grad_sum else None
        g, output, gh = (
            None if t is None else LAYOUTS[aligned](t.shape, dtype=t.dtype, device=cuda).copy_(t) for t in held
        )
        operands = g, output, rstd.to(cuda), gh
        expected = truth.backward(held[0], y, rstd, held[2])
        grads = [torch.ops.srmsnorm._srms_norm_backward(*operands)]
        if kind in samples.MIXED:
            grads += torch.ops.srmsnorm._srms_norm_backward_pair(*operands)
        for grad in grads:
            assert_backward(grad.cpu(), expected, held[0], y, rstd, held[2])


def test_rows_by_level(cuda):
    """Leading dimensions that do not merge: the row index is taken apart."""
    for dim in (24, 4096):
        held = samples.tensor((2, 3, 2, 3, 2, dim), FLOAT)
        input = samples.gapped(held.shape, dtype=FLOAT, device=cuda).copy_(held)
        assert_output(srmsnorm.srms_norm(input).cpu(), truth.forward(held)[0])
