"""Launch plans, as plain numbers: every row is covered, and nothing asks for more than a GPU has."""

import itertools
import pathlib
import runpy
import shutil
import subprocess

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
    for kind, alignment, cluster in itertools.product(samples.KINDS, ALIGNMENTS, (1, 8, 16))
]
BACKWARD = [
    (kind, {"backward": True, "grad_sum": grad_sum, **alignment, "max_cluster": cluster})
    for kind, grad_sum, alignment, cluster in itertools.product(
        [kind for kind in samples.KINDS if kind.residual != kind.dtype], (True, False), ALIGNMENTS, (1, 16)
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
    # Shuffles name all lanes of a warp: blocks are whole warps, and a row's part of one is a power of two.
    assert threads * rows % 32 == 0 and (threads % 32 == 0 or (threads < 32 and 32 % threads == 0))
    assert threads * rows <= (256 if plan["vectors"] <= 3 and not plan["twice"] else 512) and plan["vectors"] >= 1
    assert cluster in (1, 2, 4, 8, 16) and cluster <= options["max_cluster"]
    assert rows == 1 or (cluster == 1 and threads <= 32 and plan["vectors"] <= 3)
    assert plan["vector_elements"] * kind.dtype.itemsize == 16
    assert plan["edges"] or aligned
    # Short rows of whole vectors that are read alone are cut from their begin on, wherever that is.
    from_begin = plan["edges"] and plan["threads_per_row"] <= 32 and dim % plan["vector_elements"] == 0
    from_begin = from_begin and kind.residual is None and not options.get("backward", False)
    assert plan["shifted"] == (plan["twice"] or not in_phase or from_begin)
    assert plan["edges"] or not plan["shifted"]
    assert plan["twice"] or threads * cluster * plan["vectors"] >= dim // plan["vector_elements"]
    assert plan["vectors"] in instances(plan, options.get("backward", False))
    return plan


def instances(plan, backward):
    """The vectors of a thread for which there is a kernel, where lanes, warps or blocks share a row."""
    lanes = plan["threads_per_row"] <= 32
    if plan["twice"]:
        return set() if lanes else {2}
    if plan["cluster"] > 1:
        return {8} if backward else {4, 8}
    if lanes:
        return {1, 2, 3}
    return {2, 4} if plan["shifted"] else {2, 4, 8}


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
    for dim in range(64, 40_000, 8):
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
    """The threads of a row are the same however it lies in memory."""
    for dim in [*range(1, 3000), *range(3000, 200_000, 997), *range(4096, 20_000, 256), *POWERS]:
        plans_ = [
            srmsnorm.launch_plan(dim, kind.dtype, kind.residual, backward=backward, aligned=aligned, in_phase=in_phase)
            for aligned, in_phase in ((True, True), (False, True), (False, False))
        ]
        assert len({(plan["threads_per_row"], plan["cluster"]) for plan in plans_}) == 1
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
    ("dtype", "residual"), [(torch.int64, None), (torch.float8_e4m3fn, None), (FLOAT, BFLOAT), (BFLOAT, HALF)]
)
def test_bad_dtypes(dtype, residual):
    with pytest.raises(RuntimeError, match="srmsnorm: "):
        srmsnorm.launch_plan(64, dtype, residual)


INSTANCES = """
#include "{csrc}/cuda/backward.cuh"
#include "{csrc}/cuda/forward.cuh"
using namespace srmsnorm;
using F = Forward<__nv_bfloat16, float>;
using B = Backward<__nv_bfloat16, float, true>;
#define INSTANCE(Op, flat, ...) \\
  template __global__ void srmsnorm::row_kernel<Op, __VA_ARGS__>(const __grid_constant__ Op::Args<flat>)
INSTANCE(F, false, 2, Sharing::Lanes, false, Reading::Once);
INSTANCE(F, true, 4, Sharing::Warps, true, Reading::Kept);
INSTANCE(F, false, 2, Sharing::Warps, false, Reading::Shifted);
INSTANCE(B, true, 8, Sharing::Blocks, true, Reading::Once);
INSTANCE(B, false, 2, Sharing::Blocks, false, Reading::Twice);
"""


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_89", "sm_90", "sm_120"])
def test_kernels_compile_for_other_architectures(architecture, tmp_path):
    """With clusters and without; what a build compiles is one architecture alone."""
    setup = pathlib.Path(srmsnorm.__file__).parents[1] / "setup.py"
    home = runpy.run_path(str(setup))["find_toolkit"]() if setup.exists() and torch.version.cuda else None
    if home is None:
        pytest.skip("needs nvcc and the source tree")
    source = tmp_path / "instances.cu"
    source.write_text(INSTANCES.format(csrc=setup.parent / "csrc"))
    command = [
        home / "bin/nvcc",
        "-std=c++20",
        f"-arch={architecture}",
        "-ptx",
        source,
        "-o",
        tmp_path / "instances.ptx",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


RESIDENT = """
#include "{csrc}/cuda/launch.h"
using namespace srmsnorm;
constexpr bool stand(int blocks, int asked) {{ return blocks * (shared_bytes_for(asked) + 1024 + 256) <= 228 << 10; }}
template <int... blocks>
constexpr bool just_so_many = ((stand(blocks, blocks) && !stand(blocks + 1, blocks)) && ...);
static_assert(just_so_many<1, 2, 3, 4, 5, 6, 7, 8>);  // 256 bytes: what a kernel has besides, and more
static_assert(shared_bytes_for(1) <= 227 << 10);      // of one block
constexpr Chunks one = forward_chunks(2, 0), two = forward_chunks(2, 2), mixed = forward_chunks(2, 4);
static_assert(resident_blocks(128, false, two, false) == 0 && resident_blocks(512, false, one, false) == 6);
static_assert(resident_blocks(375, false, two, false) == 4 && resident_blocks(2048, false, two, false) == 1);
static_assert(resident_blocks(375, false, mixed, true) == 3 && resident_blocks(2048, true, two, false) == 0);
int main() {{}}
"""


def test_so_many_blocks_stand_on_a_multiprocessor(tmp_path):
    """As many as the launch asks for, and not one more: shared memory that they do not use is what keeps them away."""
    csrc = pathlib.Path(srmsnorm.__file__).parents[1] / "csrc"
    if not csrc.exists() or shutil.which("c++") is None:
        pytest.skip("needs a compiler and the source tree")
    source = tmp_path / "resident.cpp"
    source.write_text(RESIDENT.format(csrc=csrc))
    done = subprocess.run(["c++", "-std=c++20", "-fsyntax-only", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_tuner_compiles(tmp_path):
    """With one number of vectors; it includes the kernels' headers."""
    setup = pathlib.Path(srmsnorm.__file__).parents[1] / "setup.py"
    home = runpy.run_path(str(setup))["find_toolkit"]() if setup.exists() and torch.version.cuda else None
    if home is None:
        pytest.skip("needs nvcc and the source tree")
    defines = ["-DELEMENT=bfloat16", "-DBESIDE=float", "-DVECTORS=2"]
    tuner = setup.parent / "benchmarks/tune.cu"
    command = [home / "bin/nvcc", "-std=c++20", "-arch=sm_90", *defines, "-ptx", tuner, "-o", tmp_path / "tune.ptx"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
