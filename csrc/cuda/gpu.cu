// What the host asks of a GPU, and of the context that a stream launches in.
#include <cuda.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <optional>
#include <utility>

#include "launchers.h"
#include "plan.h"

namespace srmsnorm {
namespace {

// Never launched: it stands for all kernels where it is asked what they were compiled for and how many blocks fit.
__global__ void __launch_bounds__(kMostThreads) probe() {}

// A function of the driver, which is not linked to; null where the driver is older than that.
template <class... Args>
using DriverFunction = CUresult (*)(Args...);

bool driver_has(int version) {
  int driver = 0;
  return cudaDriverGetVersion(&driver) == cudaSuccess && driver >= version;
}

struct Found {
  void* address = nullptr;

  Found(const char* name, int version) {
    cudaDriverEntryPointQueryResult status;
    if (driver_has(version))  // to ask for a later version is an error, which would stay behind
      cudaGetDriverEntryPointByVersion(name, &address, version, cudaEnableDefault, &status);
  }

  template <class F>
  operator F*() const {
    return reinterpret_cast<F*>(address);
  }
};

struct Driver {
  DriverFunction<CUcontext*> current_context = Found("cuCtxGetCurrent", 12000);
  DriverFunction<CUstream, CUcontext*, CUgreenCtx*> contexts_of_stream = Found("cuStreamGetCtx", 12050);
  DriverFunction<CUcontext, unsigned long long*> context_id = Found("cuCtxGetId", 12000);
  DriverFunction<CUgreenCtx, unsigned long long*> green_context_id = Found("cuGreenCtxGetId", 12090);
  DriverFunction<CUdevice*, int> device = Found("cuDeviceGet", 12000);
  DriverFunction<int*, CUfunction_attribute, CUkernel, CUdevice> get_attribute = Found("cuKernelGetAttribute", 12000);
  DriverFunction<CUfunction_attribute, int, CUkernel, CUdevice> set_attribute = Found("cuKernelSetAttribute", 12000);
  DriverFunction<int*, CUfunction, const CUlaunchConfig*> active_clusters =
      Found("cuOccupancyMaxActiveClusters", 12000);
};

const Driver& driver() {
  static const Driver functions;
  return functions;
}

cudaError_t as_runtime_error(CUresult result) { return static_cast<cudaError_t>(result); }  // the same numbers

// A context by a number that no other of the process ever has, as its handle may come again; the kinds count apart.
struct ContextId {
  bool green;
  unsigned long long number;

  auto operator<=>(const ContextId&) const = default;
};

// A thread that has called nothing of CUDA's yet has no context, which a default stream is then of.
cudaError_t have_context(int device) {
  CUcontext context = nullptr;
  auto result = driver().current_context ? driver().current_context(&context) : CUDA_SUCCESS;
  return result == CUDA_SUCCESS && context ? cudaSuccess : cudaSetDevice(device);
}

// The one that the stream launches in; nothing where the driver does not tell, as an older one.
std::optional<ContextId> context_of(cudaStream_t stream) {
  CUcontext context = nullptr;
  CUgreenCtx green = nullptr;
  if (!driver().contexts_of_stream || driver().contexts_of_stream(stream, &context, &green)) return {};
  if (green && !driver().green_context_id) return {};
  ContextId id{green != nullptr, 0};
  auto result = green ? driver().green_context_id(green, &id.number) : driver().context_id(context, &id.number);
  return result == CUDA_SUCCESS ? std::optional(id) : std::nullopt;
}

// Asked with so much shared memory that a block has a multiprocessor to itself, as some launches do: what has room then
// has room in all of them. By the driver's functions, which take the context from the stream, and where there is no
// room leave no error behind for the runtime's next caller.
cudaError_t ask_for_cluster(cudaStream_t stream, const Gpu& gpu, int& largest) {
  cudaKernel_t kernel;
  if (auto error = cudaGetKernel(&kernel, reinterpret_cast<const void*>(&probe))) return error;
  CUdevice handle;
  int compiled_for = 0, shared = shared_bytes_for(1, gpu);
  if (auto result = driver().device(&handle, gpu.device)) return as_runtime_error(result);
  if (auto result = driver().get_attribute(&compiled_for, CU_FUNC_ATTRIBUTE_PTX_VERSION, kernel, handle))
    return as_runtime_error(result);
  if (auto result = driver().set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared, kernel, handle))
    return as_runtime_error(result);
  bool refused = driver().set_attribute(CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1, kernel, handle);
  CUresult failed = CUDA_SUCCESS;
  largest = largest_cluster(std::min(gpu.capability, compiled_for), [&](unsigned cluster) {
    if (refused && cluster > kPortableCluster) return false;
    CUlaunchAttribute attribute{};
    attribute.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    attribute.value.clusterDim = {cluster, 1, 1};
    CUlaunchConfig config{cluster, 1, 1, kMostThreads, 1, 1, static_cast<unsigned>(shared), stream, &attribute, 1};
    int clusters = 0;
    auto result = driver().active_clusters(&clusters, reinterpret_cast<CUfunction>(kernel), &config);
    if (result != CUDA_ERROR_INVALID_CLUSTER_SIZE && result != CUDA_ERROR_INVALID_VALUE && result) failed = result;
    return result == CUDA_SUCCESS && clusters > 0;
  });
  return as_runtime_error(failed);
}

}  // namespace

cudaError_t cuda::describe(int device, Gpu& gpu) {
  cudaError_t error = cudaSuccess;
  auto ask = [&](cudaDeviceAttr what) {
    int value = 0;
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, what, device);
    return value;
  };
  gpu.device = device;
  gpu.capability = 10 * ask(cudaDevAttrComputeCapabilityMajor) + ask(cudaDevAttrComputeCapabilityMinor);
  gpu.multiprocessors = ask(cudaDevAttrMultiProcessorCount);
  gpu.shared_bytes = ask(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  gpu.l2_bytes = ask(cudaDevAttrL2CacheSize);
  int64_t clock = int64_t{1000} * ask(cudaDevAttrMemoryClockRate);
  gpu.bandwidth = 2 * clock * ask(cudaDevAttrGlobalMemoryBusWidth) / 8;  // twice a clock
  return error;
}

bool cuda::takes_carveout() {
  static const bool yes = driver_has(12080);
  return yes;
}

const char* cuda::text_of(cudaError_t error) {
  cudaGetLastError();
  return cudaGetErrorString(error);
}

cudaError_t cuda::set_attribute(const void* function, CUfunction_attribute attribute, int value, const Gpu& gpu) {
  cudaKernel_t kernel;
  CUdevice handle;
  if (auto error = cudaGetKernel(&kernel, function)) return error;
  if (auto result = driver().device(&handle, gpu.device)) return as_runtime_error(result);
  return as_runtime_error(driver().set_attribute(attribute, value, kernel, handle));
}

cudaError_t cuda::find_largest_cluster(cudaStream_t stream, Gpu& gpu) {
  static std::mutex mutex;
  static auto& known = *new std::map<ContextId, int>;  // outlives calls at exit
  if (gpu.capability < 90) return cudaSuccess;
  if (auto error = have_context(gpu.device)) return error;
  auto context = context_of(stream);
  std::lock_guard lock(mutex);
  if (context)
    if (auto found = known.find(*context); found != known.end()) {
      gpu.largest_cluster = found->second;
      return cudaSuccess;
    }
  if (auto error = ask_for_cluster(stream, gpu, gpu.largest_cluster)) return error;
  if (context) known.emplace(*context, gpu.largest_cluster);
  return cudaSuccess;
}

}  // namespace srmsnorm
