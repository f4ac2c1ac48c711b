// What the programs of tune.py share: operands, the calls that are timed, and a clock. ELEMENT and BESIDE name the
// dtypes.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "../csrc/cuda/backward.cuh"
#include "../csrc/cuda/converted.cuh"
#include "../csrc/cuda/forward.cuh"
#include "../csrc/cuda/gpu.cu"
#include "../csrc/cuda/launcher.cuh"
#include "../csrc/cuda/quantized.cuh"

namespace srmsnorm {
namespace {

using T = ELEMENT;  // of input and output
using S = BESIDE;   // of residual, sum and the gradient of the sum

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

// ---- time

// Of one call, by the GPU's clock; -1 where it is not possible.
float time_us(const std::function<cudaError_t()>& call) {
  static cudaEvent_t start, end;
  if (!start) check(cudaEventCreate(&start), "event"), check(cudaEventCreate(&end), "event");
  check(cudaEventRecord(start), "record");
  if (call() != cudaSuccess) return -1;
  check(cudaEventRecord(end), "record");
  check(cudaEventSynchronize(end), "a kernel");
  float ms;
  check(cudaEventElapsedTime(&ms, start, end), "elapsed time");
  return ms * 1e3f;
}

const Gpu& this_gpu() {
  static const Gpu described = [] {
    Gpu gpu;
    check(cuda::describe(0, gpu), "the GPU");
    check(cuda::find_largest_cluster(nullptr, gpu), "clusters");
    return gpu;
  }();
  return described;
}

// ---- operands: one large buffer each, rows next to each other

struct Buffers {
  char *read[3], *written[2];
  float* rstd;
};

template <class X>
Rows rows_of(char* data, int64_t dim) {
  auto dtype = std::is_same_v<X, double>     ? DType::Double
               : std::is_same_v<X, float>    ? DType::Float
               : std::is_same_v<X, bfloat16> ? DType::BFloat16
                                             : DType::Half;
  return {data, dtype, {dim}};
}

__global__ void fill(uint32_t* words, int64_t count, uint32_t seed) {
  int64_t i = blockIdx.x * int64_t{256} + threadIdx.x;
  if (i < count) {  // any bits, with exponents near that of 1 in all dtypes of 16 and 32 bits
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u ^ seed;
    x ^= x >> 15;
    words[i] = (x & 0x807f807fu) | 0x3f003f00u;
  }
}

char* filled(int64_t bytes, uint32_t seed) {
  void* data;
  check(cudaMalloc(&data, bytes), "operands");
  fill<<<(bytes / 4 + 255) / 256, 256>>>(static_cast<uint32_t*>(data), bytes / 4, seed);
  return static_cast<char*>(data);
}

std::vector<std::string> split(const std::string& text, char by) {
  std::vector<std::string> parts{""};
  for (char c : text) c == by ? parts.push_back("") : parts.back().push_back(c);
  return parts;
}

Buffers filled_buffers(int64_t elements) {
  int64_t bytes = elements * std::max<int64_t>(sizeof(float), std::max(sizeof(T), sizeof(S))) + 64;
  Buffers buffers{{filled(bytes, 1), filled(bytes, 2), filled(bytes, 3)}, {filled(bytes, 4), filled(bytes, 5)}};
  buffers.rstd = reinterpret_cast<float*>(filled(elements * 4, 6));
  check(cudaDeviceSynchronize(), "fill");
  return buffers;
}

RowSpace space_of(int64_t elements, int64_t dim) {
  RowSpace space;
  space.dim = dim;
  space.rows = space.sizes[0] = elements / dim;
  return space;
}

// ---- the operations, by name

// f.operator()<Op>(call), of "forward", "forward,residual" and "forward,sum".
template <class F>
float with_forward(const std::string& op, const RowSpace& space, const Buffers& b, F f) {
  ForwardArgs args;
  args.space = space;
  args.eps = 1e-6;
  args.input = rows_of<T>(b.read[0], space.dim);
  args.output = rows_of<T>(b.written[0], space.dim);
  if (op == "forward") return f.template operator()<Forward<T, void>>(args);
  args.residual = rows_of<S>(b.read[1], space.dim);
  if (op == "forward,sum") args.sum = rows_of<S>(b.written[1], space.dim);
  return f.template operator()<Forward<T, S>>(args);
}

// Of "backward" and "backward,sum".
template <class F>
float with_backward(const std::string& op, const RowSpace& space, const Buffers& b, F f) {
  BackwardArgs args;
  args.space = space;
  args.grad_output = rows_of<T>(b.read[0], space.dim);
  args.output = rows_of<T>(b.read[1], space.dim);
  args.rstd = {b.rstd, DType::Float, {1}};
  args.grad_input = rows_of<T>(b.written[0], space.dim);
  if (sizeof(S) != sizeof(T)) args.grad_residual = rows_of<S>(b.written[1], space.dim);
  if (op == "backward") return f.template operator()<Backward<T, S, false>>(args);
  args.grad_sum = rows_of<S>(b.read[2], space.dim);
  return f.template operator()<Backward<T, S, true>>(args);
}

// Of "forward,wide", y in float.
template <class F>
float with_wide_forward(const RowSpace& space, const Buffers& b, F f) {
  ForwardArgs args;
  args.space = space;
  args.eps = 1e-6;
  args.input = rows_of<T>(b.read[0], space.dim);
  args.output = rows_of<float>(b.written[0], space.dim);
  return f.template operator()<ConvertedForward<T, void>>(args);
}

// Of "forward,bytes", float8_e4m3fn with a scale for each row.
template <class F>
float with_forward_in_bytes(const RowSpace& space, const Buffers& b, F f) {
  QuantizedArgs args;
  args.space = space;
  args.eps = 1e-6;
  args.quantization = Quantization(Quantized::Float8E4M3);
  args.quantization.upper = std::numeric_limits<float>::infinity();
  args.input = rows_of<T>(b.read[0], space.dim);
  args.output = {b.written[0], DType::Byte, {space.dim}};
  args.scale = {b.rstd, DType::Float, {1}};
  return f.template operator()<ForwardInBytes<T, void>>(args);
}

}  // namespace
}  // namespace srmsnorm
