// The launchers: raw pointers and sizes in, an error code out. What runs is in plan.h (which launch) and
// row_kernel.cuh.
#pragma once
#include <cuda.h>
#include <cuda_runtime_api.h>

#include "../row_args.h"
#include "gpu.h"

namespace srmsnorm::cuda {

// Of every list of operands. gpu: the stream's; of wide rows with the largest cluster of the stream's context. Groups
// of quantised elements only of rows that begin at 16 bytes.
#define SRMSNORM_LAUNCHER(name) cudaError_t launch(const name##Args& args, const Gpu& gpu, cudaStream_t stream);
SRMSNORM_EVERY_LIST(SRMSNORM_LAUNCHER)
#undef SRMSNORM_LAUNCHER

// What those of forward and backward call for results of another dtype than the main operand's, and where numbers are
// given.
cudaError_t launch_converted(const ForwardArgs& args, const Gpu& gpu, cudaStream_t stream);
cudaError_t launch_converted(const BackwardArgs& args, const Gpu& gpu, cudaStream_t stream);

// All of a GPU but the largest cluster.
cudaError_t describe(int device, Gpu& gpu);

// The largest cluster of the context that the stream launches in: of a whole GPU or of a part of it. Asked once for
// each; also while the stream is captured. Decided before a launch, not by one that fails, as a captured launch does
// not fail, and as what has room would differ with what a launch needs: one context, one order of a row's sum.
cudaError_t find_largest_cluster(cudaStream_t stream, Gpu& gpu);

// Of a kernel. The runtime's own function would clear an error that somebody else has left for whoever looks next.
cudaError_t set_attribute(const void* function, CUfunction_attribute attribute, int value, const Gpu& gpu);

// Whether a launch may say how much of the L1 is to be shared memory. A driver of before CUDA 12.8 may not know the
// attribute, and refuse the launch.
bool takes_carveout();

// What an error means. The runtime then forgets it, but for one that nothing mends.
const char* text_of(cudaError_t error);

}  // namespace srmsnorm::cuda
