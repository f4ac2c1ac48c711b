// The launchers of calls whose results have another dtype than the main operand, or are given numbers.
#include "converted.cuh"
#include "launcher.cuh"

namespace srmsnorm {

cudaError_t cuda::launch_converted(const ForwardArgs& args, const Gpu& gpu, cudaStream_t stream) {
  return with_type<half, bfloat16>(args.input.dtype, [&]<class T>(T) {
    return launch_beside<ConvertedForward, T>(args.residual, args, gpu, stream);
  });
}

cudaError_t cuda::launch_converted(const BackwardArgs& args, const Gpu& gpu, cudaStream_t stream) {
  return args.grad_sum.data ? launch<ConvertedBackward<true>>(args, gpu, stream)
                            : launch<ConvertedBackward<false>>(args, gpu, stream);
}

cudaError_t cuda::launch(const WideBackwardArgs& args, const Gpu& gpu, cudaStream_t stream) {
  return with_type<half, bfloat16>(args.input.dtype, [&]<class T>(T) {
    if constexpr (kIs16Bit<T>) return launch<WideBackward<T>>(args, gpu, stream);
    return cudaErrorInvalidValue;
  });
}

}  // namespace srmsnorm
