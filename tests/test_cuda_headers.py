"""The headers of csrc/cuda in programs of their own: they compile, and what they decide at compile time."""

import pathlib
import re
import runpy
import shutil
import subprocess

import pytest
import torch

import srmsnorm

pytestmark = pytest.mark.toolkit

ROOT = pathlib.Path(srmsnorm.__file__).parents[1]

INSTANCES = """
#include "{csrc}/cuda/backward.cuh"
#include "{csrc}/cuda/forward.cuh"
#include "{csrc}/cuda/short_row_kernel.cuh"
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
template __global__ void srmsnorm::short_row_kernel<F>(const __grid_constant__ F::Args<false>);
template __global__ void srmsnorm::short_row_kernel<B>(const __grid_constant__ B::Args<false>);
"""


@pytest.fixture
def nvcc(tmp_path):
    """Compiles a file, or a program's text, with such options; to what the last one names."""
    setup = ROOT / "setup.py"
    home = runpy.run_path(str(setup))["find_toolkit"]() if setup.exists() and torch.version.cuda else None
    if home is None:
        pytest.skip("needs nvcc and the source tree")

    def compile(program, *options, to):
        if isinstance(program, str):
            source = tmp_path / "program.cu"
            source.write_text(program.format(csrc=ROOT / "csrc"))
            program = source
        command = [home / "bin/nvcc", "-std=c++20", *options, program, "-o", to]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return to

    return compile


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_89", "sm_90", "sm_120"])
def test_kernels_compile_for_other_architectures(architecture, nvcc, tmp_path):
    """With clusters and without; what a build compiles is one architecture alone. A kept row releases its own lines and
    those of one before."""
    code = nvcc(INSTANCES, f"-arch={architecture}", "-ptx", to=tmp_path / "instances.ptx").read_text()
    assert len(re.findall(r"call[^;]*srmsnorm7release", code)) == 2
    assert ("applypriority.global.L2::evict_normal" in code) == (architecture != "sm_75")


def check_compiles(program, tmp_path):
    """Its static_asserts hold."""
    csrc = ROOT / "csrc"
    if not csrc.exists() or shutil.which("c++") is None:
        pytest.skip("needs a compiler and the source tree")
    source = tmp_path / "program.cpp"
    source.write_text(program.format(csrc=csrc))
    done = subprocess.run(["c++", "-std=c++20", "-fsyntax-only", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


DIVISIONS = """
#include "{csrc}/cuda/index_divisor.cuh"
#include <algorithm>
using srmsnorm::IndexDivisor;
constexpr uint32_t kLast = INT32_MAX;
constexpr bool exact(uint32_t number, uint32_t index) {{
  return IndexDivisor(number).quotient(index) == index / number;
}}
// At the ends of multiples of it, where a quotient that is off is seen first: the first, the last and some between.
constexpr bool exact(uint32_t number) {{
  uint32_t most = kLast / number;
  for (uint32_t i = 0; i <= 8; i++)
    for (uint32_t multiple : {{std::min(i, most), most / 8 * i, most - std::min(i, most)}}) {{
      uint32_t index = multiple * number;
      if (!exact(number, index) || !exact(number, index - (index > 0))) return false;
    }}
  return exact(number, kLast);
}}
constexpr bool exact_near_powers_of_two() {{
  for (int power = 1; power < 31; power++)
    for (int off = -3; off <= 3; off++)
      if (int64_t number = (int64_t{{1}} << power) + off; number > 1 && !exact(static_cast<uint32_t>(number)))
        return false;
  return exact(kLast) && exact(kLast - 1);
}}
constexpr bool exact_of_small_ones() {{
  for (uint32_t number = 2; number < 300; number++)
    if (!exact(number)) return false;
  return exact(641) && exact(65521) && exact(1000003) && exact(715827883);
}}
static_assert(exact_near_powers_of_two() && exact_of_small_ones());
"""


def test_indices_are_divided_exactly(nvcc, tmp_path):
    nvcc(DIVISIONS, "-ptx", to=tmp_path / "divisions.ptx")


TABLE = """
#include "{csrc}/cuda/call.h"
using namespace srmsnorm;
// By threads of a row, vectors, cluster, and whether it is read twice or shifted.
constexpr LaunchPlan plan(int threads, int vectors, int cluster, bool twice, bool shifted) {{
  return {{8, threads, 1, vectors, cluster, twice, shifted, shifted}};
}}
constexpr bool exists(LaunchPlan plan, Reading reading, Chunks chunks) {{
  return has_instance(plan, reading, !plan.edges, chunks);
}}
constexpr Chunks one = chunks_of(ForwardOperands<int>{{2}}), two = chunks_of(ForwardOperands<int>{{2, 2}});
constexpr Chunks backward = chunks_of(BackwardOperands<int>{{2, 2}});
constexpr Chunks late = chunks_of(BackwardOperands<int>{{2, 2, 0, 4}});
constexpr Chunks gated = chunks_of(GatedBackwardOperands<int>{{2, 2, 4}});
static_assert(one.all == 1 && two.all == 2 && backward.all == 2 && !backward.late && late.all == 4 && late.late == 2);
static_assert(gated.all == 4 && gated.gated && !late.gated && every_plan_has_an_instance(gated));
static_assert(every_plan_has_an_instance(one) && every_plan_has_an_instance(two));
static_assert(every_plan_has_an_instance(backward) && every_plan_has_an_instance(late));
static_assert(exists(plan(128, 4, 16, false, false), Reading::Once, one));
static_assert(!exists(plan(128, 4, 16, false, false), Reading::Once, backward));     // not of backward
static_assert(!exists(plan(128, 3, 1, false, false), Reading::Once, one));           // not with so many vectors
static_assert(!exists(plan(128, 8, 1, false, true), Reading::Shifted, one));         // not shifted
static_assert(exists(plan(32, 3, 1, false, false), Reading::Kept, two));
static_assert(!exists(plan(32, 3, 1, false, false), Reading::Kept, one));            // not worth it
static_assert(!exists(plan(32, 3, 1, false, false), Reading::Kept, chunks_of(ForwardOperands<int>{{8, 8}})));
constexpr Chunks mixed = chunks_of(ForwardOperands<int>{{2, 4}});
static_assert(exists(plan(128, 8, 1, false, false), Reading::Once, two));
static_assert(!exists(plan(128, 8, 1, false, false), Reading::Once, mixed));         // its threads are too few
static_assert(every_plan_has_an_instance(mixed));
static_assert(!exists(plan(32, 2, 1, false, false), Reading::Kept, late));
static_assert(exists(plan(128, 4, 16, false, false), Reading::Once, gated));
static_assert(!exists(plan(128, 8, 16, false, false), Reading::Once, gated));        // of any operator but gated ones
// Folded are rows of which little may be written.
constexpr Chunks bytes = chunks_in_bytes(one);
static_assert(exists(plan(128, 4, 1, false, false), Reading::Folded, bytes));
static_assert(exists(plan(8, 4, 1, false, false), Reading::Folded, with_few_instances(one)));
static_assert(!exists(plan(8, 4, 1, false, false), Reading::Once, bytes));
static_assert(!exists(plan(128, 4, 1, false, false), Reading::Folded, one));
static_assert(!exists(plan(128, 4, 1, false, false), Reading::Folded, chunks_in_bytes(two)));
static_assert(!exists(plan(128, 8, 1, false, false), Reading::Folded, bytes));
static_assert(every_folded_row_has_an_instance(bytes) && every_folded_row_has_an_instance(with_few_instances(one)));
// Lanes of a group stay together: 16 of them where a row is folded.
constexpr Threads threads(int of_row, int vectors, int elements, int group) {{
  QuantizedArgs call{{}};
  call.quantization.group = group;
  auto row = plan(of_row, vectors, 1, false, false);
  row.vector_elements = elements;
  return fewer_threads(call, row);
}}
constexpr bool is(Threads threads, int of_row, int vectors) {{
  return threads.of_row == of_row && threads.vectors == vectors;
}}
static_assert(is(threads(32, 1, 8, 0), 8, 4) && is(threads(32, 1, 8, 64), 8, 4) && is(threads(32, 1, 8, 128), 16, 2));
static_assert(is(threads(64, 2, 8, 128), 32, 4) && is(threads(64, 2, 4, 64), 32, 4));
static_assert(is(threads(64, 2, 4, 128), 0, 0) && is(threads(16, 1, 8, 128), 0, 0));
static_assert(is(threads(96, 2, 8, 0), 0, 0) && is(threads(256, 4, 8, 0), 0, 0));
// What has no instance of its own is read as rows that may lie anywhere.
constexpr LaunchPlan warps = general_plan({{8, 128, 1, 4, 1, false, true, true}}, gated);
constexpr LaunchPlan blocks = general_plan({{8, 128, 1, 4, 16, false, false, true}}, gated);
static_assert(warps.twice && warps.vectors == kTwiceVectors && blocks.twice && blocks.vectors == kTwiceVectors);
static_assert(!general_plan({{8, 128, 1, 4, 1, false, true, true}}, two).twice);
int main() {{}}
"""


def test_the_table_of_instances(tmp_path):
    """A plan without an instance does not compile: the launcher asserts the same of every kernel."""
    check_compiles(TABLE, tmp_path)


TRAITS = """
#include "{csrc}/cuda/call.h"
#include "{csrc}/cuda/converted.cuh"
#include "{csrc}/cuda/gated.cuh"
#include "{csrc}/cuda/quantized.cuh"
using namespace srmsnorm;
char memory;
constexpr DType b = DType::BFloat16, f = DType::Float, h = DType::Half, d = DType::Double;
constexpr Rows at(DType dtype) {{ return {{&memory, dtype}}; }}
constexpr Rows none{{}};
template <class Op>
constexpr bool is(const typename Op::Call& call) {{
  OpTraits a = traits_of(call), b = traits_of<Op>();
  return a.element_size == b.element_size && a.mixed == b.mixed && a.chunks == b.chunks;
}}
using T = bfloat16;
constexpr Rows rstd = at(f);
// input, residual, output, sum, rstd, scale
static_assert(is<Forward<T, void>>({{at(b), none, at(b)}}) && is<Forward<float, void>>({{at(f), none, at(f)}}));
static_assert(is<Forward<T, T>>({{at(b), at(b), at(b), at(b), rstd}}));
static_assert(is<Forward<T, float>>({{at(b), at(f), at(b)}}) && is<Forward<T, float>>({{at(b), at(f), at(b), at(f)}}));
static_assert(is<Forward<double, double>>({{at(d), at(d), at(d)}}));
static_assert(is<ConvertedForward<T, void>>({{at(b), none, at(f)}}));
static_assert(is<ConvertedForward<T, void>>({{at(b), none, at(h)}}) && !is<Forward<T, void>>({{at(b), none, at(h)}}));
static_assert(is<ConvertedForward<T, float>>({{at(b), at(f), at(f), at(f)}}));
static_assert(is<ConvertedForward<T, T>>({{at(b), at(b), none, none, rstd}}));
static_assert(is<ConvertedForward<float, void>>({{at(f), none, at(f), none, none, rstd}}));
// grad_output, output, rstd, grad_sum, grad_input, grad_residual
static_assert(is<Backward<T, T, false>>({{at(b), at(b), rstd, none, at(b)}}));
static_assert(is<Backward<T, T, true>>({{at(b), at(b), rstd, at(b), at(b)}}));
static_assert(is<Backward<T, float, false>>({{at(b), at(b), rstd, none, at(b), at(f)}}));
static_assert(is<Backward<T, float, true>>({{at(b), at(b), rstd, at(f), none, at(f)}}));
static_assert(is<Backward<T, float, true>>({{at(b), at(b), rstd, at(f), at(b)}}));
static_assert(is<ConvertedBackward<false>>({{at(f), at(f), rstd, none, at(b), at(f)}}));
static_assert(is<ConvertedBackward<true>>({{at(f), at(f), rstd, at(f), at(b)}}));
static_assert(is<WideBackward<T>>({{at(f), at(b), rstd, at(b)}}));
// input, gate, output; grad_output, input, gate, rstd, grad_input, grad_gate
static_assert(is<GatedForward<T, T>>({{at(b), at(b), at(b), rstd}}));
static_assert(is<GatedForward<T, float>>({{at(b), at(f), at(b)}}));
static_assert(is<GatedBackward<T, float>>({{at(b), at(b), at(f), rstd, at(b), at(f)}}));
static_assert(is<GatedBackward<float, float>>({{at(f), at(f), at(f), rstd, none, at(f)}}));
// input, residual, given, output, sum, scale
constexpr Rows q = at(DType::Byte);
static_assert(is<ForwardInBytes<T, void>>({{at(b), none, none, q, none, rstd}}));
static_assert(is<ForwardInBytes<T, float>>({{at(b), at(f), rstd, q, at(f)}}));
static_assert(is<ForwardInBytes<float, float>>({{at(f), at(f), none, q, none, rstd}}));
"""


def test_a_call_tells_what_its_kernel_reads(nvcc, tmp_path):
    """What launch_plan makes of a call's operands is what the launcher has of the Op that it takes."""
    nvcc(TRAITS, "-arch=sm_90", "-ptx", to=tmp_path / "traits.ptx")


RESIDENT = """
#include <type_traits>
#include "{csrc}/cuda/hints.h"
using namespace srmsnorm;
constexpr Gpu gpu{{0, 90, 132, 228 << 10}};
constexpr bool stand(int blocks, int shared, int of) {{ return blocks * (shared + 1280) <= of; }}
constexpr bool just_so_many(int blocks, int shared, int of) {{
  return stand(blocks, shared, of) && !stand(blocks + 1, shared - 256, of);
}}
constexpr bool just_so_many_of_each() {{
  for (int blocks = 1; blocks <= 8; blocks++)
    if (!just_so_many(blocks, shared_bytes_for(blocks, gpu), gpu.shared_bytes)) return false;
  for (int blocks = 1; blocks <= 9; blocks++)
    if (!just_so_many(blocks, divided(blocks, gpu).shared_bytes, divided(blocks, gpu).of_multiprocessor)) return false;
  return true;
}}
static_assert(just_so_many_of_each());  // 1024 and 0 to 256 bytes: what a kernel has besides
constexpr Gpu small{{0, 120, 170, 100 << 10}};  // in whose L1 blocks divide all, and none asks for more than it may
static_assert(divided(1, small).of_multiprocessor == 100 << 10 && divided(2, small).shared_bytes > 40 << 10);
static_assert(just_so_many(1, divided(1, small).shared_bytes, 100 << 10));
static_assert(divided(1, small).shared_bytes <= shared_bytes_for(1, small));
static_assert(shared_bytes_for(1, gpu) <= 227 << 10);  // of one block
constexpr Chunks reads(int input, int residual) {{ return chunks_of(ForwardOperands<int>{{input, residual}}); }}
constexpr Chunks one = reads(2, 0), two = reads(2, 2), mixed = reads(2, 4);
static_assert(blocks_by_width(128, false, two, false) == 0 && blocks_by_width(512, false, one, false) == 6);
static_assert(blocks_by_width(375, false, two, false) == 4 && blocks_by_width(2048, false, two, false) == 1);
static_assert(blocks_by_width(375, false, mixed, true) == 3 && blocks_by_width(2048, true, two, false) == 0);
// Of an H100's and an H200's memory.
constexpr Gpu of_speed(int64_t bandwidth) {{
  Gpu gpu{{0, 90, 132, 228 << 10}};
  gpu.bandwidth = 132 * 1000000 * bandwidth;
  return gpu;
}}
constexpr Gpu h100 = of_speed(25400), h200 = of_speed(37250);
constexpr int by_speed(const Gpu& gpu, int vectors, Chunks chunks) {{
  return blocks_by_speed(16 * vectors * chunks.all, false, chunks, gpu);
}}
static_assert(by_speed(h200, 384, two) == 5 && by_speed(h200, 512, two) == 4 && by_speed(h200, 768, two) == 3);
static_assert(by_speed(h200, 1024, two) == 3 && by_speed(h200, 1536, two) == 2 && by_speed(h200, 1 << 20, two) == 2);
static_assert(by_speed(h200, 400, two) == 5 && by_speed(h200, 640, two) == 4);  // of one microsecond 4 and 3
static_assert(by_speed(h200, 256, two) == 0 && by_speed(h200, 1024, one) == 0 && by_speed(h200, 512, mixed) == 3);
static_assert(by_speed(h100, 512, two) == 3 && by_speed(h100, 1024, two) == 2);
static_assert(by_speed(Gpu{{}}, 512, two) == 0);  // of which the driver does not tell the speed
constexpr LaunchPlan block{{8, 256, 1, 2, 1}}, cluster{{8, 128, 1, 8, 16}}, wide{{8, 160, 1, 8, 16}};
constexpr Resident resident(Apart apart, const LaunchPlan& plan, Chunks chunks, int vectors) {{
  return resident_blocks(apart, h200, plan, {{2, chunks, false}}, vectors, 16 * vectors * chunks.all);
}}
constexpr bool is(Resident found, int blocks, int of_multiprocessor) {{
  return found.blocks == blocks && found.of_multiprocessor == of_multiprocessor;
}}
static_assert(is(resident(Apart::Not, block, two, 512), 0, 0));
static_assert(is(resident(Apart::BySpeed, block, two, 512), 4, 100 << 10));
static_assert(is(resident(Apart::BySpeed, cluster, two, 1024), 0, 0));
static_assert(is(resident(Apart::BySpeed, block, chunks_in_bytes(two), 512), 0, 0));
static_assert(is(resident(Apart::ByWidth, block, two, 512), 3, 0));
static_assert(is(resident(Apart::ByWidth, block, two, 128), 0, 0));
// Parked vectors leave room for twice as many blocks as an H100 was measured with, which has no more of them.
static_assert(is(resident(Apart::ByWidth, cluster, one, 1024), 4, 100 << 10));
static_assert(is(resident(Apart::ByWidth, wide, one, 1280), 3, 100 << 10));
static_assert(blocks_of_parked(96) == 6 && blocks_of_parked(256) == 2 && blocks_of_parked(512) == 1);
static_assert(is(resident(Apart::BySpeed, cluster, one, 1024), 0, 0));
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
constexpr int gated_cluster(int64_t dim, int largest) {{
  Gpu gpu;
  gpu.largest_cluster = largest;
  return plan_launch(dim, 2, chunks_of(GatedForwardOperands<int>{{2, 2}}), Alignment::Whole, gpu).cluster;
}}
template <int... dims>  // rows for which the largest cluster is not asked have the same plan with any
constexpr bool not_asked = ((is_wide<ForwardOperands<int>>(dims, 2) || cluster(dims, 1) == cluster(dims, 16)) && ...);
static_assert(not_asked<1, 8, 768, 4096, 8192, 16376, 16384, 16391, 16392> &&
              is_wide<ForwardOperands<int>>(16392, 2) && !is_wide<ForwardOperands<int>>(16391, 2));
template <int... dims>
constexpr bool gated_not_asked = ((is_wide<GatedForwardOperands<int>>(dims, 2) ||
                                   gated_cluster(dims, 1) == gated_cluster(dims, 16)) && ...);
static_assert(gated_not_asked<1, 8, 768, 4096, 8192, 8199, 8200, 16384>);
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


def ask(program):
    """(compute capability, largest cluster) as a program finds them."""
    return tuple(map(int, subprocess.run([program], capture_output=True, check=True).stdout.split()))


def test_a_program_that_asks_compiles(nvcc, tmp_path):
    nvcc(ASK, "-arch=sm_90", to=tmp_path / "ask")


def test_code_for_older_gpus_has_no_clusters(cuda, nvcc, tmp_path):
    """Compiled for one without, as PTX that the driver compiles for this one: no cluster is larger than a block."""
    major, minor = torch.cuda.get_device_capability()
    largest = 1 if major < 9 else 16 if major <= 10 else 8
    own = nvcc(ASK, f"-arch=sm_{major}{minor}", to=tmp_path / "own")
    assert ask(own) == (10 * major + minor, largest)
    older = nvcc(ASK, "-gencode=arch=compute_80,code=compute_80", to=tmp_path / "older")
    assert ask(older) == (10 * major + minor, 1)


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
                            bool same = false, bool in_bytes = false) {{
  Gpu with_clusters = gpu;
  with_clusters.largest_cluster = 16;
  auto plan = plan_launch(dim, 2, chunks_of(ForwardOperands<int>{{2}}), Alignment::Whole, with_clusters);
  return launch_hints(gpu, plan, {{rows, 2 * dim * read, 2 * dim * written, same, in_bytes}});
}}
static_assert(hints(h100, 4096, 1, 2).streamed && !hints(h200, 4096, 1, 2).streamed);  // where it was measured
static_assert(!hints(h100, 4096, 1, 2, 16).streamed);                                 // nor where it fits the L2
constexpr bool everywhere(const Gpu& gpu, bool kept) {{
  for (int64_t dim : {{64, 96, 2048, 4096, 6144, 8192, 16384}})
    for (int read : {{1, 2, 3}})
      for (int written : {{1, 2}}) {{
        if (hints(gpu, dim, read, written).kept != kept) return false;
        if (hints(gpu, dim, read, written, 16).kept) return false;             // fits the L2
        if (hints(gpu, dim, read, written, 1 << 30, true).kept) return false;  // expanded
      }}
  return true;
}}
static_assert(everywhere(h100, true) && everywhere(h200, true));
static_assert(class_of(h100).apart == Apart::ByWidth && class_of(h200).apart == Apart::BySpeed);
constexpr bool nothing_elsewhere() {{
  for (const auto& gpu : others)
    if (!everywhere(gpu, false) || class_of(gpu).apart != Apart::Not) return false;
  return true;
}}
static_assert(nothing_elsewhere());
// The last rows release a quarter of the L2, and those before them another.
static_assert(hints(h100, 4096, 1, 1).tail == (50 << 20) / 4 / 8192 && hints(h100, 4096, 3, 1).tail == 533);
static_assert(hints(Gpu{{}}, 4096, 1, 1).tail == 0 && hints(h100, 1 << 26, 1, 1, 1 << 10).tail == 1);
// Clusters are prefetched by 2 MB, 4 MB beside few writes; on an H200 by 4 MB, but not beside few.
constexpr int megabytes(const Gpu& gpu, int read, int written, bool in_bytes = false) {{
  return hints(gpu, 65536, read, written, 1 << 30, false, in_bytes).ahead * read / 8;
}}
static_assert(megabytes(h100, 1, 1) == 2 && megabytes(h200, 1, 1) == 4 && megabytes(Gpu{{}}, 1, 1) == 2);
static_assert(megabytes(h100, 4, 3) == 2 && megabytes(h200, 4, 3) == 4 && megabytes(Gpu{{}}, 4, 3) == 2);
static_assert(megabytes(h100, 2, 1) == 2 && megabytes(h200, 2, 1) == 0 && megabytes(Gpu{{}}, 2, 1) == 2);
static_assert(megabytes(h100, 4, 1) == 4 && megabytes(h200, 4, 1) == 0 && megabytes(Gpu{{}}, 4, 1) == 4);
static_assert(megabytes(h100, 2, 1, true) == 4 && megabytes(h200, 2, 1, true) == 4 &&
              megabytes(Gpu{{}}, 2, 1, true) == 2);
static_assert(hints(h100, 65536, 3, 1, 16).ahead == 10 && hints(h100, 1 << 22, 1, 1).ahead == 1);
// Rows of one block only on an H200, where they become bytes or wider, and are many.
static_assert(hints(h200, 4096, 1, 2).ahead == 512 && hints(h200, 4096, 2, 1, 1 << 30, false, true).ahead == 256);
static_assert(hints(h200, 4096, 1, 1).ahead == 0 && hints(h200, 4096, 1, 2, 16).ahead == 0);
static_assert(hints(h100, 4096, 1, 2).ahead == 0 && hints(Gpu{{}}, 4096, 2, 1, 1 << 30, false, true).ahead == 0);
int main() {{}}
"""


def test_hints_of_a_gpu(tmp_path):
    """Measured cards have their row, by what a multiprocessor has to move; any other, one that costs nothing."""
    check_compiles(HINTS, tmp_path)


def test_the_hints_tuner_compiles(nvcc, tmp_path):
    """Its host code too. Not optimized: it has the library's instances."""
    options = [
        "-arch=sm_90",
        "--expt-relaxed-constexpr",
        "-Xcicc",
        "-O0",
        "-Xptxas",
        "-O0",
        "-DELEMENT=bfloat16",
        "-DBESIDE=bfloat16",
    ]
    nvcc(ROOT / "benchmarks/hints.cu", *options, "-c", to=tmp_path / "hints.o")


def test_the_tuner_compiles(nvcc, tmp_path):
    """With one number of vectors; it includes the kernels' headers."""
    defines = ["-DELEMENT=bfloat16", "-DBESIDE=float", "-DVECTORS=2"]
    nvcc(ROOT / "benchmarks/tune.cu", "-arch=sm_90", *defines, "-c", to=tmp_path / "tune.o")


BYTES = pathlib.Path(__file__).with_name("narrow_results.cu")


def test_an_epilogue_of_bytes_compiles(nvcc, tmp_path):
    nvcc(BYTES, "-arch=sm_90", "-ptx", to=tmp_path / "bytes.ptx")


def test_an_epilogue_of_bytes(cuda, nvcc, tmp_path):
    """A row is reduced to two numbers, and results are narrower than a vector, at any address and in every launch."""
    major, minor = torch.cuda.get_device_capability()
    program = nvcc(BYTES, f"-arch=sm_{major}{minor}", to=tmp_path / "bytes")
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("done\n", "")


DIVISION = pathlib.Path(__file__).with_name("division.cu")


@pytest.mark.parametrize("architecture", [75, 80, 90])
def test_the_count_of_quotients_compiles(nvcc, tmp_path, architecture):
    """Which converts to bytes by integers before sm_89, and finds a largest of two halves so before sm_80."""
    nvcc(DIVISION, f"-arch=sm_{architecture}", "--expt-relaxed-constexpr", "-ptx", to=tmp_path / "division.ptx")


def test_every_quotient_is_the_byte_of_a_division(cuda, nvcc, tmp_path):
    major, minor = torch.cuda.get_device_capability()
    options = [f"-arch=sm_{major}{minor}", "-O3", "--expt-relaxed-constexpr"]
    program = nvcc(DIVISION, *options, to=tmp_path / "division")
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("bfloat16\nfloat16\ndone\n", "")
