// The launchers of the gated norm: the instance of the kernel for the dtypes of a call.
#include "gated.cuh"
#include "launcher.cuh"

namespace srmsnorm {

cudaError_t cuda::launch(const GatedForwardArgs& args, const Gpu& gpu, cudaStream_t stream) {
  return with_type<half, bfloat16>(args.input.dtype, [&]<class T>(T) {
    return launch_beside<GatedForward, T, /*may_be_absent=*/false>(args.gate, args, gpu, stream);
  });
}

cudaError_t cuda::launch(const GatedBackwardArgs& args, const Gpu& gpu, cudaStream_t stream) {
  return with_type<half, bfloat16>(args.input.dtype, [&]<class T>(T) {
    return launch_beside<GatedBackward, T, /*may_be_absent=*/false>(args.gate, args, gpu, stream);
  });
}

}  // namespace srmsnorm
