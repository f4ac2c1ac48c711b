// Who shares a row: lanes of a warp, warps of a block or blocks of a cluster, and their reduction.
#pragma once
#include "cluster.cuh"
#include "plan.h"
#include "totals.cuh"

namespace srmsnorm {

// The threads that share a row: blockDim.x of each block. T: what they reduce (totals.cuh); most: the largest
// blockDim.x; folded: lanes that are 16 apart stand for those of two warps.
template <class T, Sharing sharing, int most, bool folded>
struct RowGroup {
  static constexpr bool kClustered = sharing == Sharing::Blocks;
  int blocks = 1, rank = 0;  // kept: reading them from the hardware again for each vector costs more than the load

  __device__ __forceinline__ RowGroup() {
    if constexpr (kClustered) {
      blocks = cluster_blocks();
      rank = cluster_rank();
      shared_exchange<T>().open();
    }
  }

  __device__ __forceinline__ int size() const { return blocks * blockDim.x; }
  __device__ __forceinline__ int thread() const { return rank * blockDim.x + threadIdx.x; }
  __device__ __forceinline__ int64_t row() const {
    if constexpr (sharing == Sharing::Lanes) return static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
    return kClustered ? blockIdx.x / blocks : blockIdx.x;
  }

  // The sum of all threads' values, in an order that the group's size alone decides. Called once.
  __device__ __forceinline__ T reduce(T value) const {
#pragma unroll
    for (int step = 0; step < 5; step++) {
      int offset = folded ? 1 << (8 - step) % 5 : 16 >> step;  // 8, 4, 2, 1, 16
      T other = from_lane_xor(value, offset);
      if (sharing != Sharing::Lanes || offset < blockDim.x) value += other;
    }
    if constexpr (sharing != Sharing::Lanes) value = reduce_over_warps(value);
    if constexpr (kClustered) value = reduce_over_blocks(shared_exchange<T>().all(value, blocks, rank));
    return value;
  }

 private:
  static constexpr int kWarps = most / 32;
  static_assert(kWarps <= 16);

  // Zeros fill the places of warps that there are not: all terms are added without asking.
  static __device__ __forceinline__ T reduce_over_warps(T value) {
    __shared__ __align__(16) T of_warp[kWarps];
    int lane = threadIdx.x % 32, place = threadIdx.x / 32 + lane * (blockDim.x / 32);
    if (place < kWarps) of_warp[place] = lane == 0 ? value : T();
    __syncthreads();
    return add_by_halves<kWarps>(of_warp);
  }

  // A cluster is a power of two.
  __device__ __forceinline__ T reduce_over_blocks(const T* of_block) const {
    T pairs[kMaxCluster / 2];
#pragma unroll
    for (int i = 0; i < kMaxCluster / 2; i++) pairs[i] = 2 * i < blocks ? add_by_halves<2>(of_block + 2 * i) : T();
    return add_by_halves<kMaxCluster / 2>(pairs);
  }

  // In every thread; one after the other, many terms err by 2 ulp of rstd.
  template <int count>
  static __device__ __forceinline__ T add_by_halves(const T* terms) {
    if constexpr (count == 1)
      return terms[0];
    else
      return add_by_halves<count / 2>(terms) + add_by_halves<count / 2>(terms + count / 2);
  }
};

}  // namespace srmsnorm
