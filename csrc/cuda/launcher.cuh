// From arguments to a launch: the plan, the instance of the kernel that it names, the grid.
#pragma once
#include "hints.h"
#include "kernels.h"
#include "row_kernel.cuh"

namespace srmsnorm {

constexpr int64_t size_of(DType dtype) { return dtype == DType::Double ? 8 : dtype == DType::Float ? 4 : 2; }

template <class... Operands>
int64_t row_bytes(const RowSpace& space, const Operands&... operands) {
  return space.dim * ((operands.data ? size_of(operands.dtype) : 0) + ...);
}

// Whether neighbouring rows of an operand are the same memory.
inline bool repeats(const RowSpace& space, const Rows& rows) {
  return rows.data && space.sizes[0] > 1 && rows.strides[0] == 0;
}

inline Traffic traffic_of(const ForwardArgs& call) {
  return {call.space.rows, row_bytes(call.space, call.input, call.residual),
          row_bytes(call.space, call.output, call.sum),
          repeats(call.space, call.input) || repeats(call.space, call.residual)};
}

inline Traffic traffic_of(const BackwardArgs& call) {
  return {call.space.rows, row_bytes(call.space, call.grad_output, call.output, call.grad_sum),
          row_bytes(call.space, call.grad_input, call.grad_residual),
          repeats(call.space, call.grad_output) || repeats(call.space, call.grad_sum)};
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

// first: the operand that decides how rows are cut for the sum; it has the most elements in 16 bytes.
template <class... Operands>
Alignment alignment_of(const RowSpace& space, const Rows& first, const Operands&... others) {
  if (in_phase(space, first, nullptr) && (in_phase(space, others, nullptr) && ...)) return Alignment::Whole;
  return (in_phase(space, others, &first) && ...) ? Alignment::InPhase : Alignment::Any;
}

template <class Op, bool flat>
using Kernel = void (*)(typename Op::template Args<flat>);

template <class Op, Sharing sharing, bool flat, Reading reading, int... vectors>
Kernel<Op, flat> kernel_with(int wanted) {
  Kernel<Op, flat> found = nullptr;
  ((vectors == wanted ? found = row_kernel<Op, vectors, sharing, flat, reading> : nullptr), ...);
  return found;
}

// Of flat rows, those of one block gain from being kept: where one operand is read, two and four vectors a thread, else
// all (dim 64 to 256: backward 1.0 to 1.2 %); a cluster's reads are prefetched instead.
template <class Op, bool flat, Reading kept>
Kernel<Op, flat> kernel_in_registers(const LaunchPlan& plan) {
  constexpr Reading kOthers = Op::kChunks.all > 1 ? kept : Reading::Once;
  switch (sharing_of(plan.cluster, plan.threads_per_row)) {
    case Sharing::Lanes:
      return plan.vectors == 2 ? kernel_with<Op, Sharing::Lanes, flat, kept, 2>(2)
                               : kernel_with<Op, Sharing::Lanes, flat, kOthers, 1, 3>(plan.vectors);
    case Sharing::Warps:
      return plan.vectors == 8 ? kernel_with<Op, Sharing::Warps, flat, kOthers, 8>(8)
                               : kernel_with<Op, Sharing::Warps, flat, kept, 2, 4>(plan.vectors);
    default:
      if constexpr (Op::kChunks.backward)
        return kernel_with<Op, Sharing::Blocks, flat, Reading::Once, 8>(plan.vectors);
      else
        return kernel_with<Op, Sharing::Blocks, flat, Reading::Once, 4, 8>(plan.vectors);
  }
}

template <class Op>
Kernel<Op, true> flat_kernel(const LaunchPlan& plan, bool kept) {
  if constexpr (Op::kChunks.late == 0)  // a gradient of the sum gains nothing
    if (kept) return kernel_in_registers<Op, true, Reading::Kept>(plan);
  return kernel_in_registers<Op, true, Reading::Once>(plan);
}

// Rows in several levels lose what being kept gains: packed qkv of dim 4096 0.97 of the roof for 1.01.
template <class Op>
Kernel<Op, false> general_kernel(const LaunchPlan& plan) {
  constexpr int twice = kTwiceVectors;
  if (plan.twice)
    return plan.cluster > 1 ? kernel_with<Op, Sharing::Blocks, false, Reading::Twice, twice>(twice)
                            : kernel_with<Op, Sharing::Warps, false, Reading::Twice, twice>(twice);
  if (!plan.shifted) return kernel_in_registers<Op, false, Reading::Once>(plan);
  return sharing_of(1, plan.threads_per_row) == Sharing::Lanes
             ? kernel_with<Op, Sharing::Lanes, false, Reading::Shifted, 1, 2, 3>(plan.vectors)
             : kernel_with<Op, Sharing::Warps, false, Reading::Shifted, 2, 4>(plan.vectors);
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

template <class Op, class Call>
cudaError_t launch(const Call& call, Alignment alignment, const Gpu& gpu, cudaStream_t stream) {
  auto plan = plan_launch(call.space.dim, sizeof(typename Op::Element), Op::kChunks, alignment, gpu);
  auto hints = launch_hints(gpu, plan, traffic_of(call));
  bool flat = !plan.edges && call.space.levels == 1, gains = flat && Op::kChunks.late == 0;
  auto shared = shared_bytes<Op>(plan, call.space.dim, gains && hints.apart, gpu);
  auto launched = [&](auto kernel, const auto& args) { return launch_as(kernel, args, plan, shared, gpu, stream); };
  return flat ? launched(flat_kernel<Op>(plan, gains && hints.kept),
                         kernel_args<typename Op::Operands, typename Op::template Args<true>>(call, hints.ahead))
              : launched(general_kernel<Op>(plan),
                         kernel_args<typename Op::Operands, typename Op::template Args<false>>(call, hints.ahead));
}

}  // namespace srmsnorm
