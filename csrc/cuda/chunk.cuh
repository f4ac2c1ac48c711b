// A chunk: 16 bytes of memory at a multiple of 16. Loading, copying and storing whole chunks and parts of them.
#pragma once
#include <cstdint>

namespace srmsnorm {

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

// So many, a multiple of 16, from the last 16-byte boundary on start on their way to the L2.
__device__ __forceinline__ void prefetch_bytes(const void* from, int64_t bytes) {
#if __CUDA_ARCH__ >= 900
  const char* boundary = static_cast<const char*>(from) - bytes_past_16(from);
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(boundary), "r"(static_cast<int>(bytes)) : "memory");
#endif
}

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

}  // namespace srmsnorm
