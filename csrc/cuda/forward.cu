// The launcher of forward: the instance of the kernel for the dtypes of a call.
#include "forward.cuh"
#include "launcher.cuh"

namespace srmsnorm {

cudaError_t cuda::launch(const ForwardArgs& args, const Gpu& gpu, cudaStream_t stream) {
  if (is_converted(args)) return launch_converted(args, gpu, stream);
  return with_type<half, bfloat16>(
      args.input.dtype, [&]<class T>(T) { return launch_beside<Forward, T>(args.residual, args, gpu, stream); });
}

}  // namespace srmsnorm
