// An epilogue that writes bytes: y in units of a 127th of its row's largest |y|. For what no operator has yet: a row
// reduced to two numbers, and results narrower than a vector. Prints the launches whose bytes are not those of the
// host's formula.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "../csrc/cuda/convert.cuh"

namespace srmsnorm {

template <int N>
__device__ __forceinline__ void narrow(const float (&from)[N], int8_t (&to)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) to[i] = static_cast<int8_t>(rintf(from[i]));
}

}  // namespace srmsnorm

#include "../csrc/cuda/forward.cuh"
#include "../csrc/cuda/gpu.cu"
#include "../csrc/cuda/launcher.cuh"

namespace srmsnorm {

template <class Source>
struct Bytes : Normalized<Source, int8_t> {
  using Base = Normalized<Source, int8_t>;
  using Accumulator = typename Source::Accumulator;
  using Total = SumAndLargest<Accumulator>;

  Accumulator per_unit;  // of h

  template <int N>
  static __device__ __forceinline__ Total add_term(Total before, const Accumulator (&h)[N]) {
    Accumulator largest = before.largest;
#pragma unroll
    for (int i = 0; i < N; i++) largest = larger(largest, fabsf(h[i]));
    return {dot(h, h, before.sum), largest};
  }

  static __device__ __forceinline__ Accumulator squares(Total total) { return total.sum; }
  __device__ __forceinline__ void reduced(Total total, Accumulator) { per_unit = 127 / total.largest; }

  template <int pass, int N, class Finish, class F>
  __device__ __forceinline__ void store_rows(const Accumulator (&h)[N], Accumulator, Finish, F f) const {
    if constexpr (pass == 0) {
      Accumulator units[N];
#pragma unroll
      for (int i = 0; i < N; i++) units[i] = h[i] * per_unit;
      Vector<int8_t, N> out;
      out.set(units);
      store_if(true, f, out, Base::output);
    }
  }
};

}  // namespace srmsnorm

using namespace srmsnorm;
using Op = ForwardOp<Source<bfloat16, void>, Bytes<Source<bfloat16, void>>>;

static void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  std::exit(1);
}

template <class T>
T* managed(int64_t count) {
  T* data;
  check(cudaMallocManaged(&data, count * sizeof(T)));
  return data;
}

// Of a row; how many of its bytes are not those of the host's formula.
int64_t wrong(const bfloat16* input, const int8_t* output, int64_t dim) {
  float largest = 0;
  for (int64_t i = 0; i < dim; i++) largest = std::max(largest, std::fabs(__bfloat162float(input[i])));
  int64_t count = 0;
  for (int64_t i = 0; i < dim; i++)
    count += output[i] != static_cast<int8_t>(std::rint(__bfloat162float(input[i]) * (127 / largest)));
  return count;
}

// In rows of the input that lie so many elements apart, of results that begin `past` bytes past 16.
int64_t run(const Gpu& gpu, int64_t dim, int64_t apart, int64_t past) {
  const int64_t rows = 37;
  auto* input = managed<bfloat16>(rows * apart);
  auto* bytes = managed<int8_t>(past + rows * dim + 16);
  for (int64_t i = 0; i < rows * apart; i++)
    input[i] = __float2bfloat16(static_cast<float>((i * 7919 + i / apart) % (1021 - i / apart) - 510) / 64);
  std::fill_n(bytes, past + rows * dim + 16, 99);
  ForwardArgs args;
  args.space.rows = args.space.sizes[0] = rows;
  args.space.dim = dim;
  args.input = {input, DType::BFloat16, {apart}};
  args.output = {bytes + past, DType::BFloat16, {dim}};  // bytes have no name yet; the epilogue knows
  check(launch<Op>(args, gpu, nullptr));
  check(cudaDeviceSynchronize());
  int64_t count = 0;
  for (int64_t row = 0; row < rows; row++) count += wrong(input + row * apart, bytes + past + row * dim, dim);
  for (int64_t i = 0; i < 16; i++) count += bytes[past + rows * dim + i] != 99;
  for (int64_t i = 0; i < past; i++) count += bytes[i] != 99;
  check(cudaFree(input));
  check(cudaFree(bytes));
  return count;
}

int main() {
  Gpu gpu;
  check(cuda::describe(0, gpu));
  check(cuda::find_largest_cluster(nullptr, gpu));
  for (int64_t dim : {1, 3, 8, 64, 127, 520, 1000, 3001, 4096, 16384, 40001, 65536, 262144, 1048576})
    for (int64_t gap : {0, 1, 8})
      for (int64_t past : {0, 3})
        if (auto count = run(gpu, dim, dim + gap, past))
          std::printf("dim %ld, rows %ld apart, %ld past 16: %ld bytes are wrong\n", static_cast<long>(dim),
                      static_cast<long>(dim + gap), static_cast<long>(past), static_cast<long>(count));
  std::puts("done");
}
