"""Launch plans, as plain numbers: every row is covered, and nothing asks for more than a GPU has."""

import itertools

import plans
import pytest
import samples
import torch
from samples import BFLOAT, DOUBLE, FLOAT, HALF, Kind

import srmsnorm

KEYS = {"threads_per_row", "rows_per_block", "vectors", "cluster", "twice", "shifted", "edges", "vector_elements"}
ALIGNMENTS = [{"aligned": True}, {"aligned": False}, {"in_phase": False}]
FORWARD = [
    (kind, {**alignment, "max_cluster": cluster})
    for kind, alignment, cluster in itertools.product(samples.KINDS, ALIGNMENTS, (1, 2, 4, 8, 16))
]
BACKWARD = [
    (kind, {"backward": True, "grad_sum": grad_sum, **alignment, "max_cluster": cluster})
    for kind, grad_sum, alignment, cluster in itertools.product(
        [kind for kind in samples.KINDS if kind.residual != kind.dtype], (True, False), ALIGNMENTS, (1, 4, 16)
    )
]
POWERS = sorted({2**k + step for k in range(17, 21) for step in (-1, 0, 1)})


def label(value):
    return ",".join(f"{key}={int(on)}" for key, on in value.items()) if isinstance(value, dict) else str(value)


def check(dim, kind, options):
    plan = srmsnorm.launch_plan(dim, kind.dtype, kind.residual, **options)
    threads, rows, cluster = plan["threads_per_row"], plan["rows_per_block"], plan["cluster"]
    in_phase = options.get("in_phase", True)
    aligned = in_phase and options.get("aligned", True) and dim % plan["vector_elements"] == 0
    if plan["vectors"] == 0:
        return check_chunks(dim, plan)
    # Shuffles name all lanes of a warp: blocks are whole warps, and a row's part of one is a power of two.
    assert threads * rows % 32 == 0 and (threads % 32 == 0 or (threads < 32 and 32 % threads == 0))
    assert threads * rows <= (256 if plan["vectors"] <= 3 and not plan["twice"] else 512)
    assert cluster in (1, 2, 4, 8, 16) and cluster <= options["max_cluster"]
    assert rows == 1 or (cluster == 1 and threads <= 32 and plan["vectors"] <= 3)
    assert plan["vector_elements"] * kind.dtype.itemsize == 16
    # Short rows of whole vectors are cut from their begin on, wherever that is.
    from_begin = not aligned and dim % plan["vector_elements"] == 0 and threads <= 32
    assert plan["edges"] == (plan["twice"] or not (aligned or from_begin))
    assert plan["shifted"] == (plan["twice"] or not in_phase or from_begin)
    assert plan["twice"] or threads * cluster * plan["vectors"] >= dim // plan["vector_elements"]
    return plan


def check_chunks(dim, plan):
    """Of short rows: a thread for each chunk that a row may have a part of, and up to 256 for those of a block's rows,
    which begin and end at one where the first does. At most a ninth of whole warps is idle, or as few as can be."""
    elements = plan["vector_elements"]
    assert dim % elements and dim < 16 * elements and plan["edges"] and plan["cluster"] == 1 and not plan["twice"]
    at_any_address = [len({(first + i) // elements for i in range(dim)}) for first in range(elements)]
    assert plan["threads_per_row"] == max(at_any_address)
    assert plan["rows_per_block"] >= elements and plan["rows_per_block"] % elements == 0
    chunks = plan["rows_per_block"] // elements * dim
    threads = -(chunks + 1) // 32 * -32
    assert chunks + 1 <= threads <= 256 and plan["rows_per_block"] <= 128 * elements
    busy = max((others - 1) // dim * dim / others for others in range(96, 257, 32))
    assert chunks >= min(0.89, busy) * threads
    return plan


def test_which_rows_are_short():
    """No whole vectors, and few of them: of 16 bits fewer where they begin and end at 8 bytes."""
    longest = {HALF: (111, 60), BFLOAT: (111, 60), FLOAT: (63, 63), DOUBLE: (7, 7)}
    in_backward = {HALF: (55, 28), BFLOAT: (55, 28), FLOAT: (15, 15), DOUBLE: (7, 7)}
    for backward, by_dtype in ((False, longest), (True, in_backward)):
        for dtype, (longest_of_any, longest_at_8_bytes) in by_dtype.items():
            for dim in range(1, 200):
                at_8_bytes = dim * dtype.itemsize % 8 == 0
                short = dim * dtype.itemsize % 16 and dim <= (longest_at_8_bytes if at_8_bytes else longest_of_any)
                found = srmsnorm.launch_plan(dim, dtype, backward=backward)["vectors"] == 0
                assert found == bool(short), (dtype, dim, backward)


def test_backward_of_one_block():
    """Four vectors a thread up to 1280 of a row, from there eight."""
    for dtype, dim in ((BFLOAT, 10_240), (FLOAT, 5120), (DOUBLE, 2560)):
        for grad_sum in (False, True):
            last, next = (
                srmsnorm.launch_plan(dim + more, dtype, backward=True, grad_sum=grad_sum)
                for more in (0, 16 // dtype.itemsize)
            )
            assert (last["threads_per_row"], last["vectors"]) == (320, 4)
            assert (next["threads_per_row"], next["vectors"]) == (192, 8)


@pytest.mark.parametrize(("kind", "options"), FORWARD + BACKWARD, ids=label)
def test_every_dim_is_covered(kind, options):
    for dim in [*range(1, 70_001 if kind in (Kind(BFLOAT), Kind(FLOAT, FLOAT)) else 9_001), *POWERS]:
        try:
            check(dim, kind, options)
        except AssertionError as error:
            raise AssertionError(
                f"dim {dim}: {srmsnorm.launch_plan(dim, kind.dtype, kind.residual, **options)}"
            ) from error


def test_keys_and_arguments():
    assert set(srmsnorm.launch_plan(64, FLOAT)) == KEYS
    options = {"backward": True, "grad_sum": True, "aligned": False, "max_cluster": 1}
    assert set(srmsnorm.launch_plan(64, BFLOAT, FLOAT, **options)) == KEYS
    assert srmsnorm.launch_plan(64, FLOAT) == srmsnorm.launch_plan(
        dim=64,
        dtype=FLOAT,
        residual_dtype=None,
        backward=False,
        grad_sum=False,
        aligned=True,
        in_phase=True,
        max_cluster=16,
    )


@pytest.mark.parametrize("dim", [0, -1])
def test_bad_dims(dim):
    with pytest.raises((RuntimeError, ValueError), match=str(dim)):
        srmsnorm.launch_plan(dim, FLOAT)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("kind", [Kind(BFLOAT), Kind(BFLOAT, FLOAT), Kind(DOUBLE, DOUBLE)], ids=str)
def test_huge_dims(kind, backward):
    """A plan for every number there is, that of the widest row."""
    for cluster in (1, 8, 16):
        options = {"backward": backward, "max_cluster": cluster}
        for step in (0, 1):
            widest = check(2**40 + step, kind, options)
            for exponent in (31, 32, 35, 45, 62):
                assert check(2**exponent + step, kind, options) == widest
        assert check(2**63 - 1, kind, options) == widest
        with pytest.raises(TypeError):
            srmsnorm.launch_plan(2**63, kind.dtype, kind.residual, **options)


@pytest.mark.parametrize("cluster", [0, 17])
def test_bad_cluster(cluster):
    with pytest.raises(RuntimeError, match=f"max_cluster.*{cluster}"):
        srmsnorm.launch_plan(64, FLOAT, max_cluster=cluster)


@pytest.mark.parametrize(("kind", "options"), FORWARD + BACKWARD, ids=label)
def test_threads_grow_with_dim(kind, options):
    """From one boundary to the next the threads of a row never halve again."""
    at_most = 1
    for dim in plans.boundaries(kind, **options):
        plan = srmsnorm.launch_plan(dim, kind.dtype, kind.residual, **options)
        threads = plan["threads_per_row"] * plan["cluster"]
        at_most = max(at_most, threads)
        assert 4 * threads >= at_most, (dim, plan)


@pytest.mark.parametrize("kind", [Kind(HALF), Kind(BFLOAT, FLOAT), Kind(FLOAT), Kind(DOUBLE)], ids=str)
def test_work_is_spread(kind):
    """Rows held in registers leave less than two thirds of the room empty, past the first vectors."""
    for dim in range(64, 40_000, 7):
        plan = srmsnorm.launch_plan(dim, kind.dtype, kind.residual)
        room = plan["threads_per_row"] * plan["cluster"] * plan["vectors"] * plan["vector_elements"]
        assert plan["twice"] or dim * 3 > room, (dim, plan)


@pytest.mark.parametrize(("kind", "options"), [(Kind(BFLOAT), {}), (Kind(FLOAT), {"backward": True})], ids=label)
def test_boundaries_are_found(kind, options):
    """The list that the numerical tests rest on misses none: the slow way finds the same."""
    elements = 16 // kind.dtype.itemsize
    last, found = {}, []
    for dim in range(1, 40_001):
        plan = plans.plan(dim, kind, **options)
        if last.setdefault(dim % elements == 0, plan) != plan:
            found.append(dim)
        last[dim % elements == 0] = plan
    assert found == plans.boundaries(kind, limit=40_000, **options) and len(found) > 30


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("kind", samples.KINDS, ids=str)
def test_alignment_does_not_change_the_order_of_the_sum(kind, backward):
    """The threads of a row are the same however it lies in memory; or half of them with twice the vectors, within a
    warp."""
    for dim in [*range(1, 3000), *range(3000, 200_000, 997), *range(4096, 20_000, 256), *POWERS]:
        plans_ = [
            srmsnorm.launch_plan(dim, kind.dtype, kind.residual, backward=backward, aligned=aligned, in_phase=in_phase)
            for aligned, in_phase in ((True, True), (False, True), (False, False))
        ]
        shares = {
            (plan["threads_per_row"] * (plan["vectors"] if plan["threads_per_row"] <= 32 else 1), plan["cluster"])
            for plan in plans_
        }
        assert len(shares) == 1
        assert [plan["shifted"] for plan in plans_] in ([False, False, True], [False, True, True], [True] * 3)
        assert [plan["twice"] for plan in plans_] in ([False] * 3, [False, False, True], [True] * 3)
        first = plans_[0]
        assert plans_[2]["twice"] == (first["cluster"] > 1 or first["vectors"] == 8 or first["twice"])


def test_wide_rows():
    assert srmsnorm.launch_plan(262_144, BFLOAT)["cluster"] > 1
    assert srmsnorm.launch_plan(262_144, BFLOAT, max_cluster=8)["cluster"] == 8
    assert srmsnorm.launch_plan(262_144, BFLOAT, max_cluster=1)["twice"]
    assert srmsnorm.launch_plan(2**20, FLOAT)["twice"]
    assert not srmsnorm.launch_plan(2048, BFLOAT)["twice"] and srmsnorm.launch_plan(2048, BFLOAT)["cluster"] == 1


@pytest.mark.parametrize("kind", [Kind(BFLOAT), Kind(BFLOAT, FLOAT), Kind(FLOAT)], ids=str)
def test_staged_rows_fit_the_shared_memory_of_every_gpu_with_clusters(kind):
    """99 KB of a block on compute capability 12, less on none."""
    late = (kind.residual or kind.dtype).itemsize // kind.dtype.itemsize
    for dim in range(16_384, 2**20, 4096):
        for cluster in (8, 16):
            plan = srmsnorm.launch_plan(
                dim, kind.dtype, kind.residual, backward=True, grad_sum=True, max_cluster=cluster
            )
            staged = plan["cluster"] > 1 and not plan["twice"]
            assert not staged or 16 * late * plan["vectors"] * plan["threads_per_row"] <= 96 << 10, (dim, plan)


@pytest.mark.parametrize(
    ("dtype", "residual"),
    [
        (torch.int64, None),
        (torch.bool, None),
        (torch.complex64, None),
        (torch.float8_e4m3fn, None),
        (torch.quint4x2, None),
        (FLOAT, BFLOAT),
        (BFLOAT, HALF),
        (BFLOAT, DOUBLE),
        (DOUBLE, FLOAT),
        (FLOAT, torch.int32),
        (BFLOAT, torch.float8_e5m2),
        (HALF, torch.quint4x2),
    ],
)
def test_bad_dtypes(dtype, residual):
    name = "dtype" if residual is None else "residual_dtype"
    with pytest.raises(RuntimeError, match=f"srmsnorm: {name} must be"):
        srmsnorm.launch_plan(64, dtype, residual)
