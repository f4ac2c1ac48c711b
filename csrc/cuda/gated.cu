// The launchers of the gated norm: the instance of the kernel for the dtypes of a call.
#include "gated.cuh"
#include "launcher.cuh"

namespace srmsnorm {
namespace {

// Op: of the input's type and the gate's.
template <template <class, class> class Op, class Call>
cudaError_t launch_gated(const Call& args, const Gpu& gpu, cudaStream_t stream) {
  return with_type<half, bfloat16>(args.main().dtype, [&]<class T>(T) {
    if constexpr (kIs16Bit<T>)
      if (args.gate.dtype == DType::Float) return launch<Op<T, float>>(args, gpu, stream);
    return launch<Op<T, T>>(args, gpu, stream);
  });
}

}  // namespace

cudaError_t cuda::launch(const GatedForwardArgs& args, const Gpu& gpu, cudaStream_t stream) {
  return launch_gated<GatedForward>(args, gpu, stream);
}

cudaError_t cuda::launch(const GatedBackwardArgs& args, const Gpu& gpu, cudaStream_t stream) {
  return launch_gated<GatedBackward>(args, gpu, stream);
}

}  // namespace srmsnorm
