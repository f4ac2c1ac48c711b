// The launcher of forward in bytes: the instance of the kernel for the dtypes of a call.
#include "quantized.cuh"

#include "launcher.cuh"

namespace srmsnorm {

cudaError_t cuda::launch(const QuantizedArgs& args, const Gpu& gpu, cudaStream_t stream) {
  return with_type<half, bfloat16>(args.main().dtype, [&]<class T>(T) {
    if constexpr (std::is_same_v<T, double>)
      return cudaErrorInvalidValue;  // refused before
    else
      return launch_beside<ForwardInBytes, T>(args.residual, args, gpu, stream);
  });
}

}  // namespace srmsnorm
