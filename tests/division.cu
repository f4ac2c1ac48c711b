// Counts the quotients that divisor.cuh would have as another byte than a division has: all mantissas of the elements
// by all mantissas of a divisor, over all exponents of the quotient that a type of a byte tells apart. Prints those.
#include <cuda_runtime.h>

#include <cstdio>

#include "../csrc/cuda/bytes.cuh"
#include "../csrc/cuda/divisor.cuh"

namespace srmsnorm {

template <Quantized type>
__device__ uint32_t byte_of(float value) {
  const float four[4] = {value};
  return four_bytes<type>(four) & 0xff;
}

template <class T>
constexpr int kMantissas = std::is_same_v<T, half> ? 1024 : 128;

// A thread has a divisor. Exponents: of the smallest and the largest quotient.
template <class T, Quantized type>
__global__ void count_wrong(int smallest, int largest, unsigned long long* wrong) {
  const Divisor<T> divisor(__uint_as_float(0x3f800000 | (blockIdx.x * blockDim.x + threadIdx.x)));
  unsigned long long count = 0;
  for (int i = 0; i < kMantissas<T>; i++)
    for (int exponent = smallest; exponent <= largest; exponent++) {
      float element = ldexpf(1 + static_cast<float>(i) / kMantissas<T>, exponent);
      for (float a : {element, -element})
        count += byte_of<type>(divisor.divide(a)) != byte_of<type>(__fdiv_rn(a, divisor.value));
    }
  for (float zero : {0.f, -0.f}) count += __float_as_uint(divisor.divide(zero)) != __float_as_uint(zero);
  if (count) atomicAdd(wrong, count);
}

// Of what makes a scale: any float by the largest number of a type.
__global__ void count_wrong_scales(float most, unsigned long long* wrong) {
  float a = __uint_as_float(0x3f800000 | (blockIdx.x * blockDim.x + threadIdx.x)), inverse = 1 / most;
  if (corrected(__fmul_rn(a, inverse), a, most, inverse) != __fdiv_rn(a, most)) atomicAdd(wrong, 1);
}

constexpr int kBlocks = (1 << 23) / 256;

unsigned long long* wrong;

void report(const char* what) {
  if (auto error = cudaDeviceSynchronize()) std::printf("%s: %s\n", what, cudaGetErrorString(error));
  if (*wrong) std::printf("%s: %llu\n", what, *wrong);
  *wrong = 0;
}

template <class T>
void run(const char* of) {
  std::printf("%s\n", of);
  count_wrong<T, Quantized::Float8E4M3><<<kBlocks, 256>>>(-12, 10, wrong);
  report("float8_e4m3fn");
  count_wrong<T, Quantized::Float8E5M2><<<kBlocks, 256>>>(-19, 17, wrong);
  report("float8_e5m2");
  count_wrong<T, Quantized::Int8><<<kBlocks, 256>>>(-3, 8, wrong);
  report("int8");
}

}  // namespace srmsnorm

int main() {
  using namespace srmsnorm;
  if (auto error = cudaMallocManaged(&wrong, sizeof(*wrong))) return std::puts(cudaGetErrorString(error)), 1;
  *wrong = 0;
  for (auto type : {Quantized::Float8E4M3, Quantized::Float8E5M2, Quantized::Int8}) {
    count_wrong_scales<<<kBlocks, 256>>>(largest(type), wrong);
    report("scales");
  }
  run<bfloat16>("bfloat16");
  run<half>("float16");
  std::puts("done");
}
