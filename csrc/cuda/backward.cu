// The launcher of backward: the instance of the kernel for the dtypes of a call.
#include "backward.cuh"
#include "kernels.h"
#include "launcher.cuh"

namespace srmsnorm {
namespace {

template <class T, class S>
cudaError_t launch_beside(const BackwardArgs& args, const Gpu& gpu, cudaStream_t stream) {
  auto alignment =
      alignment_of(args.space, args.output, args.grad_output, args.grad_sum, args.grad_input, args.grad_residual);
  return args.grad_sum.data ? launch<Backward<T, S, true>>(args, alignment, gpu, stream)
                            : launch<Backward<T, S, false>>(args, alignment, gpu, stream);
}

template <class T>
cudaError_t launch_backward(const BackwardArgs& args, const Gpu& gpu, cudaStream_t stream) {
  if constexpr (sizeof(T) == 2)
    if (args.grad_residual.data || (args.grad_sum.data && args.grad_sum.dtype == DType::Float))
      return launch_beside<T, float>(args, gpu, stream);
  return launch_beside<T, T>(args, gpu, stream);
}

}  // namespace

cudaError_t cuda::backward(const BackwardArgs& args, const Gpu& gpu, cudaStream_t stream) {
  switch (args.output.dtype) {
    case DType::Half:
      return launch_backward<half>(args, gpu, stream);
    case DType::BFloat16:
      return launch_backward<bfloat16>(args, gpu, stream);
    case DType::Float:
      return launch_backward<float>(args, gpu, stream);
    default:
      return launch_backward<double>(args, gpu, stream);
  }
}

}  // namespace srmsnorm
