// Pieces of a row: N elements in 16-byte loads and stores, at any element's address; or one element.
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
__device__ __forceinline__ float dot(const float (&a)[1], const float (&b)[1]) { return __fmul_rn(a[0], b[0]); }
__device__ __forceinline__ double dot(const double (&a)[1], const double (&b)[1]) { return __dmul_rn(a[0], b[0]); }

// A line that is read so is the last to leave the L2, until release_line makes it one like any other.
__device__ __forceinline__ uint4 load16_kept(const uint4* from) {
#if __CUDA_ARCH__ >= 800
  uint64_t last;
  asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(last));
  uint4 value;
  asm volatile("ld.global.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from), "l"(last)
               : "memory");
  return value;
#else
  return *from;
#endif
}

constexpr int kLineBytes = 128;

__device__ __forceinline__ void release_line(const void* in_line) {
#if __CUDA_ARCH__ >= 800
  auto line = reinterpret_cast<uintptr_t>(in_line) / kLineBytes * kLineBytes;
  asm volatile("applypriority.global.L2::evict_normal [%0], 128;" ::"l"(line) : "memory");
#endif
}

__device__ __forceinline__ void start_copy16(uint4* shared, const uint4* global) {
#if __CUDA_ARCH__ >= 800
  auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
#else
  *shared = *global;
#endif
}

// For those that this thread has started.
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

__device__ __forceinline__ int bytes_past_16(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16; }
__device__ __forceinline__ bool is_aligned(const void* pointer) { return bytes_past_16(pointer) == 0; }

// The first bytes of 16, fewer than all and a multiple of element_size; what is behind them is not touched.
template <int element_size>
__device__ __forceinline__ uint4 load_first(const uint4* from, int bytes) {
  const auto* words = reinterpret_cast<const uint32_t*>(from);
  uint4 value{0, 0, 0, 0};
  bool eight = bytes & 8;
  if (eight) {
    uint2 two = *reinterpret_cast<const uint2*>(from);
    value.x = two.x;
    value.y = two.y;
  }
  uint32_t third = 0, fourth = 0;
  bool four = element_size <= 4 && bytes & 4;
  if (four) third = words[eight ? 2 : 0];
  if (element_size <= 2 && bytes & 2)
    fourth = *reinterpret_cast<const uint16_t*>(words + (eight ? 2 : 0) + (four ? 1 : 0));
  if (!four) third = fourth;
  if (eight) {
    value.z = third;
    value.w = fourth;
  } else {
    value.x = third;
    value.y = fourth;
  }
  return value;
}

// 16 bytes out of 32, from a byte of the first half on.
__device__ __forceinline__ uint4 bytes_from(uint4 low, uint4 high, int first) {
  uint32_t words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int i = 0; i < 6; i++) words[i] = first & 8 ? words[i + 2] : words[i];
#pragma unroll
  for (int i = 0; i < 5; i++) words[i] = first & 4 ? words[i + 1] : words[i];
  int bits = first % 4 * 8;
  return {__funnelshift_r(words[0], words[1], bits), __funnelshift_r(words[1], words[2], bits),
          __funnelshift_r(words[2], words[3], bits), __funnelshift_r(words[3], words[4], bits)};
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

  __device__ __forceinline__ void load(const T* from) {
#pragma unroll
    for (int i = 0; i < kChunks; i++) chunks[i] = reinterpret_cast<const uint4*>(from)[i];
  }

  __device__ __forceinline__ void load_kept(const T* from) {
#pragma unroll
    for (int i = 0; i < kChunks; i++) chunks[i] = load16_kept(reinterpret_cast<const uint4*>(from) + i);
  }

  // Neighbouring threads have neighbouring vectors: one of them for each line.
  static __device__ __forceinline__ void release(const T* from) {
    if (threadIdx.x % (kLineBytes / sizeof(Vector)) == 0) release_line(from);
  }

  // At any element's address: out of aligned 16 bytes, of which the last are read only as far as the vector goes. The
  // first have an element of the vector in them, so that all of them are readable.
  __device__ __forceinline__ void load_any(const T* from) {
    int past = bytes_past_16(from);
    if (past == 0) return load(from);
    const auto* aligned = reinterpret_cast<const uint4*>(reinterpret_cast<const char*>(from) - past);
    uint4 low = *aligned;
#pragma unroll
    for (int i = 0; i < kChunks; i++) {
      uint4 high = i + 1 < kChunks ? aligned[i + 1] : load_first<sizeof(T)>(aligned + i + 1, past);
      chunks[i] = bytes_from(low, high, past);
      low = high;
    }
  }

  // To shared memory, past the registers, and from there; blockDim.x places from a piece to the next.
  __device__ __forceinline__ void copy_to(uint4* slot, const T* from) const {
#pragma unroll
    for (int i = 0; i < kChunks; i++) start_copy16(slot + i * blockDim.x, reinterpret_cast<const uint4*>(from) + i);
  }

  __device__ __forceinline__ void copy_from(const uint4* slot) {
#pragma unroll
    for (int i = 0; i < kChunks; i++) chunks[i] = slot[i * blockDim.x];
  }

  __device__ __forceinline__ void store(T* to) const {
#pragma unroll
    for (int i = 0; i < kChunks; i++) reinterpret_cast<uint4*>(to)[i] = chunks[i];
  }

  __device__ __forceinline__ void store_any(T* to) const {
    if (is_aligned(to)) return store(to);
    T elements[N];
    memcpy(elements, chunks, sizeof(elements));
#pragma unroll
    for (int i = 0; i < N; i++) to[i] = elements[i];
  }

  __device__ __forceinline__ void widened(accumulate_t<T> (&to)[N]) const {
#pragma unroll
    for (int i = 0; i < kChunks; i++) widen16<T>(chunks[i], to + i * (N / kChunks));
  }

  __device__ __forceinline__ void set(const accumulate_t<T> (&from)[N]) {
    T elements[N];
    narrow(from, elements);
    memcpy(chunks, elements, sizeof(elements));
  }
};

// One element.
template <class T>
struct Vector<T, 1> {
  T element[1];

  __device__ __forceinline__ void load_any(const T* from) { element[0] = *from; }
  __device__ __forceinline__ void store_any(T* to) const { *to = element[0]; }
  __device__ __forceinline__ void widened(accumulate_t<T> (&to)[1]) const { to[0] = widen(element[0]); }
  __device__ __forceinline__ void set(const accumulate_t<T> (&from)[1]) { narrow(from, element); }
};

// An operand that there is not.
template <int N>
struct Vector<void, N> {};
template <>
struct Vector<void, 1> {};

}  // namespace srmsnorm
