// The CUDA key: device guard, stream, launch. No kernels here, and of torch no CUDA library: what a torch with CUDA of
// any version or without has in common.
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include <string>
#include <vector>

#include "../backend.h"
#include "../layout.h"
#include "launchers.h"
#include "plan.h"

namespace srmsnorm {
namespace {

// torch.AcceleratorError in Python, as of torch's own kernels.
void check(cudaError_t error) {
  if (error == cudaSuccess) [[likely]]
    return;
  std::string message = std::string("srmsnorm: CUDA error: ") + cuda::text_of(error) +
                        "\nIt may be that of an earlier launch; CUDA_LAUNCH_BLOCKING=1 shows which.";
  throw c10::AcceleratorError({__func__, __FILE__, __LINE__}, error, std::move(message));
}

const Gpu& gpu_of(int device) {
  static const auto all = [] {
    std::vector<Gpu> gpus(c10::impl::VirtualGuardImpl(c10::kCUDA).deviceCount());
    for (size_t i = 0; i < gpus.size(); i++) check(cuda::describe(static_cast<int>(i), gpus[i]));
    return gpus;
  }();
  return all[device];
}

cudaStream_t current_stream(c10::Device device) {
  c10::impl::VirtualGuardImpl cuda(c10::kCUDA);
  return static_cast<cudaStream_t>(cuda.getStreamNativeHandle(cuda.getStream(device)));
}

// Whether all rows do; of a tensor that there is.
bool begins_at_16_bytes(const Tensor& tensor) {
  if (!tensor.defined()) return true;
  bool yes = reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
  for (int64_t i = 0; i + 1 < tensor.dim(); i++)
    yes = yes && (tensor.size(i) == 1 || tensor.stride(i) * tensor.element_size() % 16 == 0);
  return yes;
}

struct Cuda {
  template <class Tensors>
  static void run(const Tensors& tensors) {
    const Tensor& tensor = tensors.main();
    c10::DeviceGuard guard(tensor.device());
    auto stream = current_stream(tensor.device());
    Gpu gpu = gpu_of(tensor.device().index());
    if (is_wide<Tensors>(tensor.size(-1), static_cast<int>(tensor.element_size())))
      check(cuda::find_largest_cluster(stream, gpu));
    over_rows(tensors, [&](const auto& args) { check(cuda::launch(args, gpu, stream)); });
  }

  // The lanes that share a group are those that share its vectors where the row begins at 16 bytes. Other rows are
  // normalized first, in their own order, and quantised from there.
  static void run(const QuantizedTensors& tensors) {
    if (tensors.input.numel() == 0) return write_given_scale(tensors);
    bool together =
        begins_at_16_bytes(tensors.input) && begins_at_16_bytes(tensors.residual) && begins_at_16_bytes(tensors.sum);
    if (tensors.quantization.group == 0 || together) return run<>(tensors);
    auto y = at::empty(tensors.input.sizes(), tensors.input.options());
    run(ForwardTensors{{.input = tensors.input, .residual = tensors.residual, .output = y, .sum = tensors.sum},
                       {tensors.eps}});
    QuantizedTensors rest{{.input = y, .output = tensors.output, .scale = tensors.scale}, {0, tensors.quantization}};
    rest.quantization.normalized = true;
    run(rest);
  }
};

// A GPU as srmsnorm.Gpu has it, with the largest cluster of the current stream's context.
std::vector<int64_t> numbers_of(int64_t device) {
  auto count = c10::impl::VirtualGuardImpl(c10::kCUDA).deviceCount();
  TORCH_CHECK_VALUE(device >= 0 && device < count, "srmsnorm: no CUDA device ", device, ", there are ", count);
  c10::Device named(c10::kCUDA, static_cast<c10::DeviceIndex>(device));
  c10::DeviceGuard guard(named);
  Gpu gpu = gpu_of(static_cast<int>(device));
  check(cuda::find_largest_cluster(current_stream(named), gpu));
  return {gpu.capability, gpu.multiprocessors, gpu.shared_bytes, gpu.l2_bytes, gpu.bandwidth, gpu.largest_cluster};
}

}  // namespace

SRMSNORM_SCHEMAS(m) { m.def("_gpu(int device) -> int[]", &numbers_of); }

SRMSNORM_KERNELS(CUDA, m) { Kernels<Cuda>::add_to(m); }

}  // namespace srmsnorm
