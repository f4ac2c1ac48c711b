// The launcher of forward: the instance of the kernel for the dtypes of a call.
#include "forward.cuh"
#include "kernels.h"
#include "launcher.cuh"

namespace srmsnorm {
namespace {

template <class T>
cudaError_t launch_forward(const ForwardArgs& args, const Gpu& gpu, cudaStream_t stream) {
  auto alignment = alignment_of(args.space, args.input, args.residual, args.output, args.sum);
  if (!args.residual.data) return launch<Forward<T, void>>(args, alignment, gpu, stream);
  if constexpr (sizeof(T) == 2)
    if (args.residual.dtype == DType::Float) return launch<Forward<T, float>>(args, alignment, gpu, stream);
  return launch<Forward<T, T>>(args, alignment, gpu, stream);
}

}  // namespace

cudaError_t cuda::forward(const ForwardArgs& args, const Gpu& gpu, cudaStream_t stream) {
  switch (args.input.dtype) {
    case DType::Half:
      return launch_forward<half>(args, gpu, stream);
    case DType::BFloat16:
      return launch_forward<bfloat16>(args, gpu, stream);
    case DType::Float:
      return launch_forward<float>(args, gpu, stream);
    default:
      return launch_forward<double>(args, gpu, stream);
  }
}

}  // namespace srmsnorm
