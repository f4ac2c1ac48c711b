// Pieces of a row: 16-byte loads and stores, and element by element where a piece crosses the row's edge or is
// misaligned.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace srmsnorm {

using half = __half;
using bfloat16 = __nv_bfloat16;

template <class T>
using accumulate_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

// The intrinsics, not the operators: torch's builds disable the implicit conversions.
__device__ __forceinline__ float widen(half x) { return __half2float(x); }
__device__ __forceinline__ float widen(bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }

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
template <class T, int N>
__device__ __forceinline__ void narrow(const T (&from)[N], T (&to)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) to[i] = from[i];
}

// a . b by halves: N terms in log2(N) roundings, where one after the other would take N. fma is explicit and nothing
// else can be contracted, so that every instance of a kernel rounds alike.
template <class T, int N>
__device__ __forceinline__ T dot(const T (&a)[N], const T (&b)[N]) {
  T terms[N / 2];
#pragma unroll
  for (int i = 0; i < N / 2; i++) terms[i] = fma(a[i], b[i], a[i + N / 2] * b[i + N / 2]);
#pragma unroll
  for (int left = N / 4; left > 0; left /= 2) {
#pragma unroll
    for (int i = 0; i < left; i++) terms[i] += terms[i + left];
  }
  return terms[0];
}

__device__ __forceinline__ uint4 load16(const uint4* from) { return *from; }
__device__ __forceinline__ void store16(uint4* to, uint4 value) { *to = value; }

// Where a vector of N elements lies in its row: at [first, first + N), of which those in [0, dim) are the row's.
template <class Index>
struct Span {
  Index first, dim;

  __device__ __forceinline__ bool has(int i) const { return first + i >= 0 && first + i < dim; }
  __device__ __forceinline__ bool has_all(int N) const { return first >= 0 && first + N <= dim; }
};

__device__ __forceinline__ bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// N elements, as they lie in memory.
template <class T, int N>
struct alignas(16) Vector {
  static constexpr int kChunks = N * sizeof(T) / 16;
  uint4 chunks[kChunks];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kChunks; i++) chunks[i] = uint4{0, 0, 0, 0};
  }

  // The compiler must forget what it made of the chunks: else it keeps the widened elements in twice the registers, or
  // spills.
  __device__ __forceinline__ void stay_packed() {
#pragma unroll
    for (int i = 0; i < kChunks; i++)
      asm volatile("" : "+r"(chunks[i].x), "+r"(chunks[i].y), "+r"(chunks[i].z), "+r"(chunks[i].w));
  }

  // In 16 aligned bytes at a time. At an edge of the row they hold a neighbour's elements too, whatever those are: 16
  // aligned bytes with an element of the tensor in them are always readable. Bytes with none are not touched.
  template <bool edges, class Index>
  __device__ __forceinline__ void load(const T* row, Span<Index> span) {
    const auto* from = reinterpret_cast<const uint4*>(row + span.first);
#pragma unroll
    for (int i = 0; i < kChunks; i++) {
      constexpr int n = N / kChunks;
      bool inside = !edges || kChunks == 1 || (span.first + (i + 1) * n > 0 && span.first + i * n < span.dim);
      chunks[i] = inside ? load16(from + i) : uint4{0, 0, 0, 0};
    }
  }

  // Zero for the neighbours' elements.
  template <class Index>
  __device__ __forceinline__ void mask(Span<Index> span) {
    T elements[N];
    memcpy(elements, chunks, sizeof(elements));
#pragma unroll
    for (int i = 0; i < N; i++) elements[i] = span.has(i) ? elements[i] : T();
    memcpy(chunks, elements, sizeof(elements));
  }

  template <class Index>
  __device__ __forceinline__ void load_elements(const T* row, Span<Index> span) {
    T elements[N];
#pragma unroll
    for (int i = 0; i < N; i++) elements[i] = span.has(i) ? row[span.first + i] : T();
    memcpy(chunks, elements, sizeof(elements));
  }

  template <class Index>
  __device__ __forceinline__ void store(T* row, Span<Index> span) const {
    auto* to = reinterpret_cast<uint4*>(row + span.first);
#pragma unroll
    for (int i = 0; i < kChunks; i++) store16(to + i, chunks[i]);
  }

  template <class Index>
  __device__ __forceinline__ void store_elements(T* row, Span<Index> span) const {
    T elements[N];
    memcpy(elements, chunks, sizeof(elements));
#pragma unroll
    for (int i = 0; i < N; i++)
      if (span.has(i)) row[span.first + i] = elements[i];
  }

  __device__ __forceinline__ void widened(accumulate_t<T> (&to)[N]) const {
    T elements[N];
    memcpy(elements, chunks, sizeof(elements));
#pragma unroll
    for (int i = 0; i < N; i++) to[i] = widen(elements[i]);
  }

  __device__ __forceinline__ void set(const accumulate_t<T> (&from)[N]) {
    T elements[N];
    narrow(from, elements);
    memcpy(chunks, elements, sizeof(elements));
  }
};

// An operand that there is not.
template <int N>
struct Vector<void, N> {};

}  // namespace srmsnorm
