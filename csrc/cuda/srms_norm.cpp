// The CUDA key: device guard, stream, launch. No kernels here.
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../backend.h"
#include "../layout.h"
#include "kernels.h"
#include "launch.h"

namespace srmsnorm {
namespace {

// Compute capability 9 and 10 have clusters of 16, later ones of 8, earlier ones none.
constexpr int max_cluster(int major) { return major < 9 ? 1 : major <= 10 ? kMaxCluster : kPortableCluster; }

template <class Tensors, class Launcher>
void launch_on(const Tensor& tensor, const Tensors& tensors, Launcher launcher) {
  c10::cuda::CUDAGuard guard(tensor.device());
  int major = at::cuda::getCurrentDeviceProperties()->major;  // torch keeps the properties: no query
  auto stream = c10::cuda::getCurrentCUDAStream().stream();
  over_rows(tensors, [&](const auto& args) { C10_CUDA_CHECK(launcher(args, max_cluster(major), stream)); });
}

struct Cuda {
  static void forward(const ForwardTensors& tensors) { launch_on(tensors.input, tensors, cuda::forward); }
  static void backward(const BackwardTensors& tensors) { launch_on(tensors.output, tensors, cuda::backward); }
};

}  // namespace

SRMSNORM_KERNELS(CUDA, m) { Kernels<Cuda>::add_to(m); }

}  // namespace srmsnorm
