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
  auto hints = launch_hints(args.space.rows, row_bytes(args.space, args.grad_output, args.output, args.grad_sum),
                            row_bytes(args.space, args.grad_input, args.grad_residual));
  hints.past_l2 &= !repeats(args.space, args.grad_output) && !repeats(args.space, args.grad_sum);
  return args.grad_sum.data ? launch<Backward<T, S, true>>(args, alignment, gpu, hints, stream)
                            : launch<Backward<T, S, false>>(args, alignment, gpu, hints, stream);
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
