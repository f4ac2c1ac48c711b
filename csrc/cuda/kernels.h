// The launchers: raw pointers and sizes in, an error code out. What runs is in launch.h (which launch) and
// row_kernel.cuh.
#pragma once
#include <cuda_runtime_api.h>

#include "../row_args.h"

namespace srmsnorm::cuda {

// max_cluster: blocks in the largest thread block cluster of the GPU; 1 where it has none.
cudaError_t forward(const ForwardArgs& args, int max_cluster, cudaStream_t stream);
cudaError_t backward(const BackwardArgs& args, int max_cluster, cudaStream_t stream);

}  // namespace srmsnorm::cuda
