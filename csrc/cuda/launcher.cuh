// From arguments to a launch: the plan, the instance of the kernel that it names, the grid.
#pragma once
#include <iterator>
#include <utility>

#include "call.h"
#include "launchers.h"
#include "row_kernel.cuh"
#include "short_row_kernel.cuh"

namespace srmsnorm {

template <class Op, bool flat>
using Kernel = void (*)(typename Op::template Args<flat>);

template <class Op, bool flat, Reading reading, size_t i>
void find_instance(const LaunchPlan& plan, Kernel<Op, flat>& found) {
  constexpr Instance instance = kInstances[i];
  if constexpr (instance.is_for(Op::kChunks, reading, flat))
    if (holds(instance, plan)) found = kInstanceFor<Op, instance.vectors, instance.sharing, flat, reading>;
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
Kernel<Op, true> flat_kernel(const LaunchPlan& plan, bool folded, bool kept) {
  if (folded) return instance_of<Op, true, Reading::Folded>(plan);
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
    case Reading::InParts:
      return short_row_kernel<Op>;
    case Reading::Once:
    case Reading::Kept:
    case Reading::Folded:
      return instance_of<Op, false, Reading::Once>(plan);
  }
  __builtin_unreachable();
}

// Dynamic shared memory of a block, and the most that its instance of the kernel may ask for, whatever the row: calls
// of other threads set the same. In clusters late chunks are staged and others parked; else it may keep other blocks
// away.
struct SharedBytes {
  int of_call, most;
};

template <class Op>
SharedBytes shared_bytes(const LaunchPlan& plan, const Resident& apart, const Gpu& gpu) {
  if (plan.cluster > 1 && !plan.twice && Op::kChunks.late > 0) {
    int most = stage_bytes(Op::kChunks.late, plan.vectors, max_cluster_threads(Op::kChunks, plan.vectors));
    return {stage_bytes(Op::kChunks.late, plan.vectors, plan.threads_per_row), most};
  }
  int parked = parks(plan, Op::kChunks) ? parked_bytes(Op::kChunks, plan.vectors, plan.threads_per_row) : 0;
  return {std::max(parked, apart.shared_bytes), shared_bytes_for(1, gpu)};
}

template <class Args>
dim3 block_of(const LaunchPlan& plan, const Args& args) {
  if constexpr (!Args::kFlat)
    if (reading_of(plan) == Reading::InParts)
      return dim3(args.block.spacing != Spacing::Apart ? threads_for_short_rows(static_cast<int>(args.dim))
                                                       : kShortRowThreads);
  return dim3(plan.threads_per_row, plan.rows_per_block);
}

// Blocks are not kept apart where the driver does not know how: in all of the L1 they would be slower than all that
// fit.
inline Resident as_driver_can(const Resident& apart) {
  return apart.of_multiprocessor && !cuda::takes_carveout() ? Resident{} : apart;
}

// Of a launch: a cluster, and how much of the L1 is shared memory. Only what it needs: even a cluster of one slows the
// issue of blocks, 347 us for 258 at dim 2048.
struct LaunchAttributes {
  cudaLaunchAttribute of[2]{};
  unsigned count = 0;

  LaunchAttributes(int cluster, const Resident& apart, const Gpu& gpu) {
    if (cluster > 1) {
      of[count].id = cudaLaunchAttributeClusterDimension;
      of[count++].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    }
    if (apart.of_multiprocessor) {
      of[count].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
      of[count++].val.sharedMemCarveout = apart.of_multiprocessor / (gpu.shared_bytes / 100);  // percent
    }
  }
};

template <class Args>
cudaError_t launch_as(void (*kernel)(Args), const Args& args, const LaunchPlan& plan, SharedBytes shared,
                      const Resident& apart, const Gpu& gpu, cudaStream_t stream) {
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
  config.blockDim = block_of(plan, args);
  config.dynamicSmemBytes = shared.of_call;
  config.stream = stream;
  LaunchAttributes attributes(plan.cluster, apart, gpu);
  config.attrs = attributes.of;
  config.numAttrs = attributes.count;
  // Programmatic dependent launch is left out: at 1 x 4096 a norm after a norm took 1.20 us for 1.62, but a norm after
  // a kernel that knows nothing of it took 0.03 us more, at 64 x 4096 0.22 us more.
  return cudaLaunchKernelEx(&config, kernel, args);
}

// Asked once of all Ops that read alike.
template <Chunks chunks>
constexpr bool kEveryRowHasAnInstance = every_plan_has_an_instance(chunks) && every_folded_row_has_an_instance(chunks);

// row: of the table of hints; the tuner asks for others.
template <class Op>
cudaError_t launch(const typename Op::Call& call, const Gpu& gpu, const GpuClass& row, cudaStream_t stream) {
  static_assert(kEveryRowHasAnInstance<Op::kChunks>);
  auto [plan, flat, folded, hints] = choose_launch(call, traits_of<Op>(), gpu, row);
  hints.apart = as_driver_can(hints.apart);
  auto shared = shared_bytes<Op>(plan, hints.apart, gpu);
  auto launched = [&, &plan = plan, &hints = hints](auto kernel, const auto& args) {
    return launch_as(kernel, args, plan, shared, hints.apart, gpu, stream);
  };
  auto args_for = [&, &plan = plan, &hints = hints]<bool is_flat>() {
    return kernel_args<typename Op::Operands, typename Op::template Args<is_flat>>(call, plan, hints);
  };
  return flat ? launched(flat_kernel<Op>(plan, folded, hints.kept), args_for.template operator()<true>())
              : launched(general_kernel<Op>(plan), args_for.template operator()<false>());
}

template <class Op>
cudaError_t launch(const typename Op::Call& call, const Gpu& gpu, cudaStream_t stream) {
  return launch<Op>(call, gpu, class_of(gpu), stream);
}

// Of Ops of the main operand's type T and of that of an operand beside it: float beside 16 bits, or T too; where it may
// be absent, void.
template <template <class, class> class Op, class T, bool may_be_absent = true, class Call>
cudaError_t launch_beside(const Rows& beside, const Call& call, const Gpu& gpu, cudaStream_t stream) {
  if constexpr (may_be_absent)
    if (!beside.data) return launch<Op<T, void>>(call, gpu, stream);
  if constexpr (kIs16Bit<T>)
    if (beside.dtype == DType::Float) return launch<Op<T, float>>(call, gpu, stream);
  return launch<Op<T, T>>(call, gpu, stream);
}

}  // namespace srmsnorm
