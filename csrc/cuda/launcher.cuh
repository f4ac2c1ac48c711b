// From arguments to a launch: the plan, the instance of the kernel that it names, the grid.
#pragma once
#include <iterator>
#include <utility>

#include "hints.h"
#include "launchers.h"
#include "row_kernel.cuh"

namespace srmsnorm {

// Whether neighbouring rows of an operand are the same memory.
inline bool repeats(const RowSpace& space, const Rows& rows) {
  return rows.data && space.sizes[0] > 1 && rows.strides[0] == 0;
}

template <class Call>
Traffic traffic_of(const Call& call) {
  Traffic traffic{call.space.rows, 0, 0, false};
  Call::zip(
      [&](Use use, const Rows& rows) {
        if (!rows.data || !use.whole_row) return;
        (use.written ? traffic.written : traffic.read) += call.space.dim * size_of(rows.dtype);
        if (!use.written) traffic.repeats |= repeats(call.space, rows);
      },
      call);
  return traffic;
}

// Whether an operand is 16-byte aligned at the same elements of all rows as the first one; with first null, at all
// rows' begin.
inline bool in_phase(const RowSpace& space, const Rows& rows, const Rows* first) {
  if (!rows.data) return true;
  int64_t size = size_of(rows.dtype);
  auto elements = [](const Rows* rows) {
    return rows ? reinterpret_cast<intptr_t>(rows->data) / size_of(rows->dtype) : 0;
  };
  bool yes = (elements(&rows) - elements(first)) * size % 16 == 0;
  for (int i = 0; i < space.levels; i++)
    yes = yes && (space.sizes[i] == 1 || (rows.strides[i] - (first ? first->strides[i] : 0)) * size % 16 == 0);
  return yes;
}

// Whether that holds of every operand that has whole rows, but for results narrower than the main operand, which are
// stored at any address.
template <class Call, class Holds>
bool of_all_rows(const Call& call, Holds holds) {
  bool all = true;
  Call::zip(
      [&](Use use, const Rows& rows) {
        bool counts = use.whole_row && !(use.written && size_of(rows.dtype) < size_of(call.main().dtype));
        if (counts) all = all && holds(rows);
      },
      call);
  return all;
}

template <class Call>
Alignment alignment_of(const Call& call) {
  if (of_all_rows(call, [&](const Rows& rows) { return in_phase(call.space, rows, nullptr); })) return Alignment::Whole;
  bool together = of_all_rows(call, [&](const Rows& rows) { return in_phase(call.space, rows, &call.main()); });
  return together ? Alignment::InPhase : Alignment::Any;
}

template <class Op, bool flat>
using Kernel = void (*)(typename Op::template Args<flat>);

template <class Op, bool flat, Reading reading, size_t i>
void find_instance(const LaunchPlan& plan, Kernel<Op, flat>& found) {
  constexpr Instance instance = kInstances[i];
  if constexpr (instance.is_for(Op::kChunks, reading, flat))
    if (holds(instance, plan)) found = row_kernel<Op, instance.vectors, instance.sharing, flat, reading>;
}

template <class Op, bool flat, Reading reading>
Kernel<Op, flat> instance_of(const LaunchPlan& plan) {
  Kernel<Op, flat> found = nullptr;
  [&]<size_t... i>(std::index_sequence<i...>) {
    (find_instance<Op, flat, reading, i>(plan, found), ...);
  }(std::make_index_sequence<std::size(kInstances)>());
  return found;
}

template <class Op>
Kernel<Op, true> flat_kernel(const LaunchPlan& plan, bool kept) {
  if (kept && has_instance(plan, Reading::Kept, true, Op::kChunks)) return instance_of<Op, true, Reading::Kept>(plan);
  return instance_of<Op, true, Reading::Once>(plan);
}

// Rows in several levels lose what being kept gains: packed qkv of dim 4096 0.97 of the roof for 1.01.
template <class Op>
Kernel<Op, false> general_kernel(const LaunchPlan& plan) {
  switch (reading_of(plan)) {
    case Reading::Twice:
      return instance_of<Op, false, Reading::Twice>(plan);
    case Reading::Shifted:
      return instance_of<Op, false, Reading::Shifted>(plan);
    case Reading::Once:
    case Reading::Kept:
      return instance_of<Op, false, Reading::Once>(plan);
  }
  __builtin_unreachable();
}

// Dynamic shared memory of a block, and the most that its instance of the kernel may ask for, whatever the row: calls
// of other threads set the same. Late chunks are staged in clusters; else it may keep other blocks away.
struct SharedBytes {
  int of_call, most;
};

template <class Op>
SharedBytes shared_bytes(const LaunchPlan& plan, int64_t dim, bool apart, const Gpu& gpu) {
  bool clustered = plan.cluster > 1;
  if (clustered && !plan.twice && Op::kChunks.late > 0) {
    int most = stage_bytes(Op::kChunks.late, plan.vectors, max_cluster_threads(Op::kChunks, plan.vectors));
    return {stage_bytes(Op::kChunks.late, plan.vectors, plan.threads_per_row), most};
  }
  int vectors = ceil_div(std::min<int64_t>(dim / plan.vector_elements, INT32_MAX), plan.cluster);
  int blocks = apart ? resident_blocks(vectors, clustered, Op::kChunks, kIsMixed<Op>) : 0;
  return blocks ? SharedBytes{shared_bytes_for(blocks, gpu), shared_bytes_for(1, gpu)} : SharedBytes{0, 0};
}

template <class Args>
cudaError_t launch_as(void (*kernel)(Args), const Args& args, const LaunchPlan& plan, SharedBytes shared,
                      const Gpu& gpu, cudaStream_t stream) {
  int64_t blocks = (args.rows + plan.rows_per_block - 1) / plan.rows_per_block * plan.cluster;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  auto set = [&](CUfunction_attribute attribute, int value) {
    return cuda::set_attribute(reinterpret_cast<const void*>(kernel), attribute, value, gpu);
  };
  if (plan.cluster > kPortableCluster)
    if (auto error = set(CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1)) return error;
  if (shared.of_call > (32 << 10))  // 48 KB come unasked, and the static part counts too
    if (auto error = set(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared.most)) return error;

  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(plan.threads_per_row, plan.rows_per_block);
  config.dynamicSmemBytes = shared.of_call;
  config.stream = stream;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(plan.cluster), 1, 1};
  config.attrs = &cluster;
  config.numAttrs = plan.cluster > 1;  // even a cluster of one slows the issue of blocks: 347 us for 258 at dim 2048
  // Programmatic dependent launch is left out: at 1 x 4096 a norm after a norm took 1.20 us for 1.62, but a norm after
  // a kernel that knows nothing of it took 0.03 us more, at 64 x 4096 0.22 us more.
  return cudaLaunchKernelEx(&config, kernel, args);
}

template <class Op>
cudaError_t launch(const typename Op::Call& call, const Gpu& gpu, cudaStream_t stream) {
  static_assert(every_plan_has_an_instance(Op::kChunks));
  auto plan = plan_launch(call.space.dim, sizeof(typename Op::Element), Op::kChunks, alignment_of(call), gpu);
  auto hints = launch_hints(gpu, plan, traffic_of(call));
  bool flat = !plan.edges && call.space.levels == 1 && has_instance(plan, reading_of(plan), true, Op::kChunks);
  bool gains = flat && !Op::kChunks.late && !Op::kChunks.gated && !Op::kChunks.few;
  if (!flat) plan = general_plan(plan, Op::kChunks);
  auto shared = shared_bytes<Op>(plan, call.space.dim, gains && hints.apart, gpu);
  auto launched = [&](auto kernel, const auto& args) { return launch_as(kernel, args, plan, shared, gpu, stream); };
  return flat ? launched(flat_kernel<Op>(plan, gains && hints.kept),
                         kernel_args<typename Op::Operands, typename Op::template Args<true>>(call, hints))
              : launched(general_kernel<Op>(plan),
                         kernel_args<typename Op::Operands, typename Op::template Args<false>>(call, hints));
}

}  // namespace srmsnorm
