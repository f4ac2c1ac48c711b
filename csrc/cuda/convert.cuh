// Elements to the accumulation type and back, and the dot product of two vectors in it.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace srmsnorm {

using half = __half;
using bfloat16 = __nv_bfloat16;

template <class T>
constexpr bool kIs16Bit = std::is_same_v<T, half> || std::is_same_v<T, bfloat16>;

template <class T>
using accumulate_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

// The intrinsics, not the operators: torch's builds disable the implicit conversions.
__device__ __forceinline__ float widen(half x) { return __half2float(x); }
__device__ __forceinline__ float widen(bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }

// The two elements of 16 bits in a word.
template <class T>
__device__ __forceinline__ void widen_word(uint32_t word, float* to) {
  if constexpr (std::is_same_v<T, bfloat16>) {  // a bfloat16 is the upper half of a float
    to[0] = __uint_as_float(word << 16);
    to[1] = __uint_as_float(word & 0xffff0000);
  } else {
    float2 two = __half22float2(__halves2half2(__ushort_as_half(word & 0xffff), __ushort_as_half(word >> 16)));
    to[0] = two.x;
    to[1] = two.y;
  }
}

// The elements in 16 bytes.
template <class T>
__device__ __forceinline__ void widen16(const uint4& chunk, accumulate_t<T>* to) {
  const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if constexpr (std::is_same_v<T, bfloat16>) {  // a bfloat16 is the upper half of a float
      to[2 * i] = __uint_as_float(words[i] << 16);
      to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000);
    } else if constexpr (std::is_same_v<T, half>) {
      float2 two =
          __half22float2(__halves2half2(__ushort_as_half(words[i] & 0xffff), __ushort_as_half(words[i] >> 16)));
      to[2 * i] = two.x;
      to[2 * i + 1] = two.y;
    } else if constexpr (std::is_same_v<T, float>) {
      to[i] = __uint_as_float(words[i]);
    } else if (i % 2 == 0) {
      to[i / 2] = __hiloint2double(words[i + 1], words[i]);
    }
  }
}

// N elements to N of a narrower type, in pairs where the hardware rounds two at a time.
template <int N>
__device__ __forceinline__ void narrow(const float (&from)[N], half (&to)[N]) {
#pragma unroll
  for (int i = 0; i < N; i += 2) reinterpret_cast<__half2*>(to)[i / 2] = __floats2half2_rn(from[i], from[i + 1]);
}
template <int N>
__device__ __forceinline__ void narrow(const float (&from)[N], bfloat16 (&to)[N]) {
#pragma unroll
  for (int i = 0; i < N; i += 2)
    reinterpret_cast<__nv_bfloat162*>(to)[i / 2] = __floats2bfloat162_rn(from[i], from[i + 1]);
}
__device__ __forceinline__ void narrow(const float (&from)[1], half (&to)[1]) { to[0] = __float2half_rn(from[0]); }
__device__ __forceinline__ void narrow(const float (&from)[1], bfloat16 (&to)[1]) {
  to[0] = __float2bfloat16_rn(from[0]);
}
template <class T, int N>
__device__ __forceinline__ void narrow(const T (&from)[N], T (&to)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) to[i] = from[i];
}

// a . b, added to what is before it. By halves: N terms in log2(N) roundings, where one after the other would take N.
// fma is explicit and nothing else can be contracted, so that every instance of a kernel rounds alike.
template <class T, int N>
__device__ __forceinline__ T dot(const T (&a)[N], const T (&b)[N], T before) {
  if constexpr (N == 1) {
    return fma(a[0], b[0], before);
  } else {
    T terms[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++) terms[i] = fma(a[i], b[i], a[i + N / 2] * b[i + N / 2]);
#pragma unroll
    for (int left = N / 4; left > 0; left /= 2) {
#pragma unroll
      for (int i = 0; i < left; i++) terms[i] += terms[i + left];
    }
    return before + terms[0];
  }
}

}  // namespace srmsnorm
