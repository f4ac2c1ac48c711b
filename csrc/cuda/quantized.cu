// The launcher of forward in bytes: the instance of the kernel for the dtypes of a call.
#include "quantized.cuh"

#include "launcher.cuh"

namespace srmsnorm {
namespace {

template <class T>
cudaError_t launch_quantized(const QuantizedArgs& args, const Gpu& gpu, cudaStream_t stream) {
  if (!args.residual.data) return launch<ForwardInBytes<T, void>>(args, gpu, stream);
  if constexpr (kIs16Bit<T>)
    if (args.residual.dtype == DType::Float) return launch<ForwardInBytes<T, float>>(args, gpu, stream);
  return launch<ForwardInBytes<T, T>>(args, gpu, stream);
}

}  // namespace

cudaError_t cuda::launch(const QuantizedArgs& args, const Gpu& gpu, cudaStream_t stream) {
  return with_type<half, bfloat16>(args.main().dtype, [&]<class T>(T) {
    if constexpr (std::is_same_v<T, double>)
      return cudaErrorInvalidValue;  // refused before
    else
      return launch_quantized<T>(args, gpu, stream);
  });
}

}  // namespace srmsnorm
