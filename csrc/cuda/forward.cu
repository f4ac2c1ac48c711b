// The launcher of forward: the instance of the kernel for the dtypes of a call.
#include "forward.cuh"
#include "launcher.cuh"

namespace srmsnorm {
namespace {

template <class T>
cudaError_t launch_forward(const ForwardArgs& args, const Gpu& gpu, cudaStream_t stream) {
  if (!args.residual.data) return launch<Forward<T, void>>(args, gpu, stream);
  if constexpr (kIs16Bit<T>)
    if (args.residual.dtype == DType::Float) return launch<Forward<T, float>>(args, gpu, stream);
  return launch<Forward<T, T>>(args, gpu, stream);
}

}  // namespace

cudaError_t cuda::launch(const ForwardArgs& args, const Gpu& gpu, cudaStream_t stream) {
  if (is_converted(args)) return launch_converted(args, gpu, stream);
  return with_type<half, bfloat16>(args.input.dtype, [&]<class T>(T) { return launch_forward<T>(args, gpu, stream); });
}

}  // namespace srmsnorm
