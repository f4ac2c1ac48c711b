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

// For those that this warp has started.
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
  __syncwarp();
}

__device__ __forceinline__ int bytes_past_16(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16; }

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

// A value of another lane; by all lanes of the warp.
__device__ __forceinline__ uint4 of_lane(uint4 value, int lane) {
  return {__shfl_sync(~0u, value.x, lane), __shfl_sync(~0u, value.y, lane), __shfl_sync(~0u, value.z, lane),
          __shfl_sync(~0u, value.w, lane)};
}

// A warp has a part of a row or the whole of several: then blockDim.x is a power of two.
__device__ __forceinline__ int lane_in_row() { return threadIdx.x % 32; }
__device__ __forceinline__ int lane_in_warp() {
  return blockDim.x < 32 ? (threadIdx.y * blockDim.x + threadIdx.x) % 32 : threadIdx.x % 32;
}

__device__ __forceinline__ uint32_t word_at(uint4 value, int byte) {
  uint32_t low = byte & 4 ? value.y : value.x, high = byte & 4 ? value.w : value.z;
  return byte & 8 ? high : low;
}

// Of 16 bytes the first ones to one address and the others, at the same place in 16, to another; neither are all, and
// both a multiple of element_size.
template <int element_size>
__device__ __forceinline__ void store_parts(uint4 value, int bytes, uint4* first, uint4* others) {
  auto *low = reinterpret_cast<char*>(first), *high = reinterpret_cast<char*>(others);
  auto four = [&](char* to, int byte) { *reinterpret_cast<uint32_t*>(to + byte) = word_at(value, byte); };
  auto two = [&](char* to, int byte) {
    *reinterpret_cast<uint16_t*>(to + byte) = static_cast<uint16_t>(word_at(value, byte) >> 8 * (byte & 2));
  };
  if (bytes & 8) *reinterpret_cast<uint2*>(low) = {value.x, value.y};
  if (element_size <= 4 && bytes & 4) four(low, bytes & 8);
  if (element_size <= 2 && bytes & 2) {
    two(low, bytes & 12);
    two(high, bytes);
    bytes += 2;
  }
  if (element_size <= 4 && bytes & 4) {
    four(high, bytes);
    bytes += 4;
  }
  if (bytes == 8) *reinterpret_cast<uint2*>(high + 8) = {value.z, value.w};
}

// Where a vector stands among those of its row. Neighbouring lanes have neighbouring ones; a run: those of a warp's
// lanes that share the row.
template <class Index>
struct Place {
  Index left;  // vectors of the row from this one on; none or fewer: the row does not have it
  int run;     // lanes
  __device__ __forceinline__ bool ends_run() const { return left == 1 || lane_in_row() == run - 1; }
};

// N elements, as they lie in memory. shifted: at any element's address; the 16-byte pieces that they lie in are loaded
// first, and put in place when all loads are on their way.
template <class T, int N, bool shifted = false>
struct alignas(16) Vector {
  static constexpr int kChunks = N * sizeof(T) / 16;
  uint4 chunks[kChunks + shifted];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kChunks + shifted; i++) chunks[i] = uint4{0, 0, 0, 0};
  }

  // The compiler must forget what it made of the chunks: else it keeps the widened elements in twice the registers, or
  // spills.
  __device__ __forceinline__ void stay_packed() {
#pragma unroll
    for (int i = 0; i < kChunks; i++)
      asm volatile("" : "+r"(chunks[i].x), "+r"(chunks[i].y), "+r"(chunks[i].z), "+r"(chunks[i].w));
  }

  // past: bytes past 16. Shifted, the first piece has an element of the vector in it, and unless past is 0 so has the
  // one behind the last, of which only what is in the row is read.
  template <class Index>
  __device__ __forceinline__ void load(const T* from, int past, const Place<Index>& place) {
    const auto* aligned = reinterpret_cast<const uint4*>(reinterpret_cast<const char*>(from) - past);
#pragma unroll
    for (int i = 0; i < kChunks; i++) chunks[i] = aligned[i];
    if constexpr (shifted) {
      if (place.left == 1)
        chunks[kChunks] = load_first<sizeof(T)>(aligned + kChunks, past);
      else if (past != 0)
        chunks[kChunks] = aligned[kChunks];
    }
  }

  __device__ __forceinline__ void put_in_place(int past) {
    if constexpr (shifted) {
#pragma unroll
      for (int i = 0; i < kChunks; i++) chunks[i] = bytes_from(chunks[i], chunks[i + 1], past);
    }
  }

  __device__ __forceinline__ void load_kept(const T* from) {
#pragma unroll
    for (int i = 0; i < kChunks; i++) chunks[i] = load16_kept(reinterpret_cast<const uint4*>(from) + i);
  }

  // Neighbouring threads have neighbouring vectors: one of them for each line.
  static __device__ __forceinline__ void release(const T* from) {
    if (threadIdx.x % (kLineBytes / sizeof(Vector)) == 0) release_line(from);
  }

  // A warp's vectors, as many as are left of the row, to its part of shared memory, past the registers: neighbouring
  // lanes copy neighbouring pieces. By all lanes of the warp, as what a lane loads others have copied.
  template <class Index>
  static __device__ __forceinline__ void start_copies(uint4* shared, const T* of_warp, Index left) {
    const auto* pieces = reinterpret_cast<const uint4*>(of_warp);
#pragma unroll
    for (int i = 0; i < kChunks; i++) {
      int piece = 32 * i + lane_in_row();
      if (piece / kChunks < left) start_copy16(shared + piece, pieces + piece);
    }
  }

  __device__ __forceinline__ void load_copies(const uint4* shared) {
#pragma unroll
    for (int i = 0; i < kChunks; i++) chunks[i] = shared[lane_in_row() * kChunks + i];
  }

  // By all lanes of the warp. Of vectors in two pieces, two lanes store first the even one's and then the odd one's: a
  // store of every other 16 bytes would cost the L2 as much as a full one.
  template <class Index>
  __device__ __forceinline__ void store(T* to, const Place<Index>& place) const {
    auto* pieces = reinterpret_cast<uint4*>(to);
    if (kChunks == 2 && blockDim.x > 1) {
      int odd = threadIdx.x % 2;
      uint4 others = of_lane(odd ? chunks[0] : chunks[kChunks - 1], lane_in_warp() ^ 1);
      if (place.left + odd > 0) pieces[-odd] = odd ? others : chunks[0];
      if (place.left + odd > 1) pieces[2 - odd] = odd ? chunks[kChunks - 1] : others;
    } else if (place.left > 0) {
#pragma unroll
      for (int i = 0; i < kChunks; i++) pieces[i] = chunks[i];
    }
  }

  // To an address that is `past` bytes past 16, in aligned pieces out of two lanes' vectors each. The pieces before the
  // first and behind the last vector of a run are parts of one, which the last lane writes, to which the first is the
  // next. By all lanes of the warp.
  template <class Index>
  __device__ __forceinline__ void store_shifted(T* to, int past, const Place<Index>& place) const {
    uint4 next = of_lane(chunks[0], lane_in_warp() + (place.ends_run() ? -lane_in_row() : 1));
    if (place.left <= 0) return;
    auto* aligned = reinterpret_cast<uint4*>(reinterpret_cast<char*>(to) - past);
    if (past == 0) {
#pragma unroll
      for (int i = 0; i < kChunks; i++) aligned[i] = chunks[i];
      return;
    }
#pragma unroll
    for (int i = 1; i < kChunks; i++) aligned[i] = bytes_from(chunks[i - 1], chunks[i], 16 - past);
    uint4 last = bytes_from(chunks[kChunks - 1], next, 16 - past);
    if (place.ends_run())
      store_parts<sizeof(T)>(last, past, aligned + kChunks, aligned - lane_in_row() * kChunks);
    else
      aligned[kChunks] = last;
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

  __device__ __forceinline__ void load(const T* from) { element[0] = *from; }
  __device__ __forceinline__ void store(T* to) const { *to = element[0]; }
  __device__ __forceinline__ void widened(accumulate_t<T> (&to)[1]) const { to[0] = widen(element[0]); }
  __device__ __forceinline__ void set(const accumulate_t<T> (&from)[1]) { narrow(from, element); }
};

// An operand that there is not.
template <int N, bool shifted>
struct Vector<void, N, shifted> {};
template <>
struct Vector<void, 1> {};

}  // namespace srmsnorm
