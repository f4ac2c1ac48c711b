// From arguments to a launch: the plan, the instance of the kernel that it names, the grid.
#pragma once
#include "row_kernel.cuh"

namespace srmsnorm {

template <class... Operands>
bool rows_are_aligned(const RowSpace& space, const Operands&... operands) {
  auto aligned = [&](const Rows& rows) {
    int64_t size = rows.dtype == DType::Double ? 8 : rows.dtype == DType::Float ? 4 : 2;
    bool yes = reinterpret_cast<uintptr_t>(rows.data) % 16 == 0;
    for (int i = 0; i < space.levels; i++) yes = yes && (space.sizes[i] == 1 || rows.strides[i] * size % 16 == 0);
    return yes;
  };
  return (aligned(operands) && ...);
}

template <class Op>
using Kernel = void (*)(typename Op::Args);

template <class Op, bool edges>
Kernel<Op> kernel_held_in_registers(const LaunchPlan& plan) {
  if (plan.cluster > 1) return row_kernel<Op, cluster_vectors(Op::kChunks), edges, true, false>;
  switch (plan.vectors) {
    case 1:
      return row_kernel<Op, 1, edges, false, false>;
    case 2:
      return row_kernel<Op, 2, edges, false, false>;
    case 3:
      return row_kernel<Op, 3, edges, false, false>;
    case 8:
      if constexpr (Op::kChunks == 1) return row_kernel<Op, 8, edges, false, false>;
    default:
      return row_kernel<Op, 4, edges, false, false>;
  }
}

template <class Op>
Kernel<Op> kernel_of(const LaunchPlan& plan) {
  if (plan.twice)
    return plan.cluster > 1 ? row_kernel<Op, kTwiceVectors, true, true, true>
                            : row_kernel<Op, kTwiceVectors, true, false, true>;
  return plan.edges ? kernel_held_in_registers<Op, true>(plan) : kernel_held_in_registers<Op, false>(plan);
}

template <class Op>
cudaError_t launch(const typename Op::Args& args, bool aligned, bool clusters, cudaStream_t stream) {
  aligned = aligned && args.space.dim % Op::kElements == 0;
  auto plan = plan_launch(args.space.dim, {sizeof(typename Op::Element), Op::kChunks}, aligned, clusters);
  int64_t blocks = (args.space.rows + plan.rows_per_block - 1) / plan.rows_per_block * plan.cluster;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;

  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(plan.threads_per_row, plan.rows_per_block);
  config.stream = stream;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(plan.cluster), 1, 1};
  config.attrs = &cluster;
  config.numAttrs = plan.cluster > 1;  // even a cluster of one slows the issue of blocks: 347 us for 258 at dim 2048
  return cudaLaunchKernelEx(&config, kernel_of<Op>(plan), args);
}

}  // namespace srmsnorm
