// The CUDA key: device guard, stream, launch. No kernels here.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <vector>

#include "../backend.h"
#include "../layout.h"
#include "launchers.h"
#include "plan.h"

namespace srmsnorm {
namespace {

const Gpu& gpu_of(int device) {
  static const auto all = [] {
    std::vector<Gpu> gpus(c10::cuda::device_count());
    for (size_t i = 0; i < gpus.size(); i++) C10_CUDA_CHECK(cuda::describe(static_cast<int>(i), gpus[i]));
    return gpus;
  }();
  return all[device];
}

struct Cuda {
  template <class Tensors>
  static void run(const Tensors& tensors) {
    const Tensor& tensor = tensors.main();
    c10::cuda::CUDAGuard guard(tensor.device());
    auto stream = c10::cuda::getCurrentCUDAStream().stream();
    Gpu gpu = gpu_of(tensor.device().index());
    if (is_wide<Tensors>(tensor.size(-1), static_cast<int>(tensor.element_size())))
      C10_CUDA_CHECK(cuda::find_largest_cluster(stream, gpu));
    over_rows(tensors, [&](const auto& args) { C10_CUDA_CHECK(cuda::launch(args, gpu, stream)); });
  }
};

}  // namespace

SRMSNORM_KERNELS(CUDA, m) { Kernels<Cuda>::add_to(m); }

}  // namespace srmsnorm
