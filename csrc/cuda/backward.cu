// The launcher of backward: the instance of the kernel for the dtypes of a call.
#include "backward.cuh"
#include "launcher.cuh"

namespace srmsnorm {
namespace {

template <class T, class S>
cudaError_t launch_beside(const BackwardArgs& args, const Gpu& gpu, cudaStream_t stream) {
  return args.grad_sum.data ? launch<Backward<T, S, true>>(args, gpu, stream)
                            : launch<Backward<T, S, false>>(args, gpu, stream);
}

template <class T>
cudaError_t launch_backward(const BackwardArgs& args, const Gpu& gpu, cudaStream_t stream) {
  if constexpr (kIs16Bit<T>)
    if (args.grad_residual.data || (args.grad_sum.data && args.grad_sum.dtype == DType::Float))
      return launch_beside<T, float>(args, gpu, stream);
  return launch_beside<T, T>(args, gpu, stream);
}

}  // namespace

cudaError_t cuda::launch(const BackwardArgs& args, const Gpu& gpu, cudaStream_t stream) {
  if (is_converted(args)) return launch_converted(args, gpu, stream);
  return with_type<half, bfloat16>(args.output.dtype,
                                   [&]<class T>(T) { return launch_backward<T>(args, gpu, stream); });
}

}  // namespace srmsnorm
