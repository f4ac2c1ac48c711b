// The launchers: raw pointers and sizes in, an error code out. What runs is in launch.h (which launch) and
// row_kernel.cuh.
#pragma once
#include <cuda_runtime_api.h>

#include "../row_args.h"

namespace srmsnorm::cuda {

// clusters: whether the GPU has thread block clusters (compute capability 9.0 and up).
cudaError_t forward(const ForwardArgs& args, bool clusters, cudaStream_t stream);
cudaError_t backward(const BackwardArgs& args, bool clusters, cudaStream_t stream);

}  // namespace srmsnorm::cuda
