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
    return plan


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


def check_compiles(program, tmp_path):
    """Its static_asserts hold."""
    csrc = pathlib.Path(srmsnorm.__file__).parents[1] / "csrc"
    if not csrc.exists() or shutil.which("c++") is None:
        pytest.skip("needs a compiler and the source tree")
    source = tmp_path / "program.cpp"
    source.write_text(program.format(csrc=csrc))
    done = subprocess.run(["c++", "-std=c++20", "-fsyntax-only", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


TABLE = """
#include "{csrc}/cuda/instances.h"
using namespace srmsnorm;
// By threads of a row, vectors, cluster, and whether it is read twice or shifted.
constexpr LaunchPlan plan(int threads, int vectors, int cluster, bool twice, bool shifted) {{
  return {{8, threads, 1, vectors, cluster, twice, shifted, shifted}};
}}
constexpr bool exists(LaunchPlan plan, Reading reading, Chunks chunks) {{ return has_instance(plan, reading, chunks); }}
constexpr Chunks one = chunks_of(ForwardOperands<int>{{2}}), two = chunks_of(ForwardOperands<int>{{2, 2}});
constexpr Chunks backward = chunks_of(BackwardOperands<int>{{2, 2}});
constexpr Chunks late = chunks_of(BackwardOperands<int>{{2, 2, 0, 4}});
static_assert(one.all == 1 && two.all == 2 && backward.all == 2 && !backward.late && late.all == 4 && late.late == 2);
static_assert(every_plan_has_an_instance(one) && every_plan_has_an_instance(two));
static_assert(every_plan_has_an_instance(backward) && every_plan_has_an_instance(late));
static_assert(exists(plan(128, 4, 16, false, false), Reading::Once, one));
static_assert(!exists(plan(128, 4, 16, false, false), Reading::Once, backward));     // not of backward
static_assert(!exists(plan(128, 3, 1, false, false), Reading::Once, one));           // not with so many vectors
static_assert(!exists(plan(128, 8, 1, false, true), Reading::Shifted, one));         // not shifted
static_assert(exists(plan(32, 3, 1, false, false), Reading::Kept, two));
static_assert(!exists(plan(32, 3, 1, false, false), Reading::Kept, one));            // not worth it
static_assert(!exists(plan(32, 2, 1, false, false), Reading::Kept, late));
int main() {{}}
"""


def test_the_table_of_instances(tmp_path):
    """A plan without an instance does not compile: the launcher asserts the same of every kernel."""
    check_compiles(TABLE, tmp_path)


RESIDENT = """
#include <type_traits>
#include "{csrc}/cuda/hints.h"
using namespace srmsnorm;
constexpr Gpu gpu{{0, 90, 132, 228 << 10}};
constexpr bool stand(int blocks, int asked) {{ return blocks * (shared_bytes_for(asked, gpu) + 1280) <= 228 << 10; }}
template <int... blocks>
constexpr bool just_so_many = ((stand(blocks, blocks) && !stand(blocks + 1, blocks)) && ...);
static_assert(just_so_many<1, 2, 3, 4, 5, 6, 7, 8>);  // 1024 and 256 bytes: what a kernel has besides, and more
static_assert(shared_bytes_for(1, gpu) <= 227 << 10);  // of one block
constexpr Chunks reads(int input, int residual) {{ return chunks_of(ForwardOperands<int>{{input, residual}}); }}
constexpr Chunks one = reads(2, 0), two = reads(2, 2), mixed = reads(2, 4);
static_assert(resident_blocks(128, false, two, false) == 0 && resident_blocks(512, false, one, false) == 6);
static_assert(resident_blocks(375, false, two, false) == 4 && resident_blocks(2048, false, two, false) == 1);
static_assert(resident_blocks(375, false, mixed, true) == 3 && resident_blocks(2048, true, two, false) == 0);
// A plan that knew the rows could change bits with them.
static_assert(std::is_same_v<decltype(plan_launch), LaunchPlan(int64_t, int, Chunks, Alignment, const Gpu&)>);
int main() {{}}
"""


def test_so_many_blocks_stand_on_a_multiprocessor(tmp_path):
    """As many as the launch asks for, and not one more: shared memory that they do not use is what keeps them away."""
    check_compiles(RESIDENT, tmp_path)


LARGEST = """
#include "{csrc}/cuda/plan.h"
using namespace srmsnorm;
constexpr int largest(int capability, int room) {{
  return largest_cluster(capability, [=](int cluster) {{ return cluster <= room; }});
}}
static_assert(largest(90, 16) == 16 && largest(90, 15) == 8 && largest(90, 8) == 8 && largest(90, 7) == 4);
static_assert(largest(90, 3) == 2 && largest(90, 1) == 1 && largest(90, 0) == 1 && largest(100, 100) == 16);
static_assert(largest(89, 16) == 1 && largest(80, 16) == 1);  // of the GPU, or of what the code was compiled for
constexpr int asked(int room) {{
  int times = 0;
  largest_cluster(120, [&](int cluster) {{ return times++, cluster <= room; }});
  return times;
}}
static_assert(asked(16) == 1 && asked(8) == 2 && asked(1) == 4);
constexpr int cluster(int64_t dim, int largest) {{
  Gpu gpu;
  gpu.largest_cluster = largest;
  return plan_launch(dim, 2, chunks_of(ForwardOperands<int>{{2}}), Alignment::Whole, gpu).cluster;
}}
template <int... dims>  // rows for which the largest cluster is not asked have the same plan with any
constexpr bool not_asked = ((is_wide(dims, 2) || cluster(dims, 1) == cluster(dims, 16)) && ...);
static_assert(not_asked<1, 8, 768, 4096, 8192, 16376, 16384, 16391, 16392> && is_wide(16392, 2) && !is_wide(16391, 2));
static_assert(cluster(16392, 1) == 1 && cluster(16392, 16) == 4 && cluster(16392, 2) == 2);
int main() {{}}
"""


def test_the_largest_cluster(tmp_path):
    """What is decided from what a context has room for; the GPU is asked in test_part_of_a_gpu.py."""
    check_compiles(LARGEST, tmp_path)


ASK = """
#include "{csrc}/cuda/gpu.cu"
#include <cstdio>
int main() {{
  srmsnorm::Gpu gpu;
  if (auto error = srmsnorm::cuda::describe(0, gpu)) return error;
  if (auto error = srmsnorm::cuda::find_largest_cluster(nullptr, gpu)) return error;
  std::printf("%d %d", gpu.capability, gpu.largest_cluster);
}}
"""


def ask_gpu(tmp_path, *code):
    """(compute capability, largest cluster) as a program with such code finds them."""
    setup = pathlib.Path(srmsnorm.__file__).parents[1] / "setup.py"
    home = runpy.run_path(str(setup))["find_toolkit"]() if setup.exists() and torch.version.cuda else None
    if home is None:
        pytest.skip("needs nvcc and the source tree")
    source, program = tmp_path / "ask.cu", tmp_path / "ask"
    source.write_text(ASK.format(csrc=setup.parent / "csrc"))
    subprocess.run([home / "bin/nvcc", "-std=c++20", *code, source, "-o", program], check=True)
    return lambda: tuple(map(int, subprocess.run([program], capture_output=True, check=True).stdout.split()))


def test_a_program_that_asks_compiles(tmp_path):
    assert ask_gpu(tmp_path, "-arch=sm_90")


def test_code_for_older_gpus_has_no_clusters(cuda, tmp_path):
    """Compiled for one without, as PTX that the driver compiles for this one: no cluster is larger than a block."""
    major, minor = torch.cuda.get_device_capability()
    own, older = tmp_path / "own", tmp_path / "older"
    own.mkdir()
    older.mkdir()
    largest = 1 if major < 9 else 16 if major <= 10 else 8
    assert ask_gpu(own, f"-arch=sm_{major}{minor}")() == (10 * major + minor, largest)
    assert ask_gpu(older, "-gencode=arch=compute_80,code=compute_80")() == (10 * major + minor, 1)


HINTS = """
#include "{csrc}/cuda/hints.h"
using namespace srmsnorm;
constexpr Gpu gpu_of(int capability, int multiprocessors, int64_t mhz, int bits) {{
  Gpu gpu{{0, capability, multiprocessors, 228 << 10, 50 << 20}};
  gpu.bandwidth = 2 * mhz * 1000000 * bits / 8;
  return gpu;
}}
constexpr Gpu h100 = gpu_of(90, 132, 2619, 5120), h200 = gpu_of(90, 132, 3201, 6144);
constexpr Gpu others[] = {{gpu_of(80, 108, 1593, 5120), gpu_of(89, 142, 9001, 384), gpu_of(90, 114, 1593, 5120),
                          gpu_of(90, 132, 2619, 6144), gpu_of(100, 148, 3996, 8192), gpu_of(90, 16, 2619, 5120),
                          gpu_of(90, 132, 0, 5120), gpu_of(100, 132, 2619, 5120), Gpu{{}}}};
constexpr LaunchHints hints(const Gpu& gpu, int64_t dim, int read, int written, int64_t rows = 1 << 30,
                            bool same = false) {{
  auto plan = plan_launch(dim, 2, chunks_of(ForwardOperands<int>{{2}}), Alignment::Whole, gpu);
  return launch_hints(gpu, plan, {{rows, 2 * dim * read, 2 * dim * written, same}});
}}
constexpr bool is(LaunchHints hints, bool kept, bool apart) {{ return hints.kept == kept && hints.apart == apart; }}
constexpr bool everywhere(const Gpu& gpu, bool balanced, bool others, bool in_a_warp, bool apart) {{
  for (int64_t dim : {{64, 96, 2048, 4096, 6144, 8192, 16384}})
    for (int read : {{1, 2, 3}})
      for (int written : {{1, 2}}) {{
        bool kept = dim < 1000 ? in_a_warp : read == written ? balanced : others;
        if (!is(hints(gpu, dim, read, written), kept, apart)) return false;
        if (!is(hints(gpu, dim, read, written, 16), false, false)) return false;             // fits the L2
        if (!is(hints(gpu, dim, read, written, 1 << 30, true), false, false)) return false;  // expanded
      }}
  return true;
}}
static_assert(everywhere(h100, true, true, true, true) && everywhere(h200, true, false, false, false));
constexpr bool nothing_elsewhere() {{
  for (const auto& gpu : others)
    if (!everywhere(gpu, false, false, false, false)) return false;
  return true;
}}
static_assert(nothing_elsewhere());
// A prefetch goes 2 MB ahead on all, 4 MB beside few writes.
static_assert(hints(h100, 65536, 1, 1).ahead == 16 && hints(h200, 65536, 2, 1).ahead == 8);
static_assert(hints(Gpu{{}}, 65536, 3, 1).ahead == 10 && hints(h100, 1 << 22, 1, 1).ahead == 1);
int main() {{}}
"""


def test_hints_of_a_gpu(tmp_path):
    """Measured cards have their row, by what a multiprocessor has to move; any other, one that costs nothing."""
    check_compiles(HINTS, tmp_path)


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
