// The one kernel: a group of threads takes a row, loads it once, reduces once, stores once.
//
// An Op is what one thread does with the vectors of its row; forward.cu and backward.cu have one each:
//   Args, Element, Accumulator, kElements (of a vector), kChunks (16-byte pieces held for a vector)
//   Vectors                              what is held for one vector of the row, by operand
//   Op(args, row index)                  pointers to the row
//   begin()                              the operand that decides where the row's vectors begin
//   in_phase(before)                     whether all operands can be moved by vectors that begin there
//   each(vectors, f)                     f(vector, pointer to its row) for every operand that is read
//   term(vectors)                        the vector's part of the sum
//   finish(sum, args)                    the row's scalars
//   store(vectors, f)                    f(vector, pointer to its row) for every result
//   store_row()                          what there is once a row
#pragma once
#include <cooperative_groups.h>

#include "../row_args.h"
#include "launch.h"
#include "vector.cuh"

namespace srmsnorm {

// The index of a row, by level.
struct RowIndex {
  int64_t at[kMaxLevels];

  __device__ __forceinline__ RowIndex(const RowSpace& space, int64_t row) {
    at[0] = row;
    if (space.levels == 1) return;
    bool small = space.rows <= UINT32_MAX;  // 64-bit division costs several times as much
#pragma unroll
    for (int i = 0; i < kMaxLevels - 1; i++) {
      at[i + 1] = 0;
      if (i + 1 >= space.levels) continue;
      int64_t above =
          small ? static_cast<uint32_t>(at[i]) / static_cast<uint32_t>(space.sizes[i]) : at[i] / space.sizes[i];
      at[i + 1] = above;
      at[i] -= above * space.sizes[i];
    }
  }

  template <class T>
  __device__ __forceinline__ T* in(const Rows& rows, int levels) const {
    int64_t offset = at[0] * rows.strides[0];
    if (levels > 1) {
#pragma unroll
      for (int i = 1; i < kMaxLevels; i++)
        if (i < levels) offset += at[i] * rows.strides[i];
    }
    return static_cast<T*>(rows.data) + offset;
  }
};

// The threads that share a row: blockDim.x of each block (a part of a warp, or whole warps), of one block or of a
// cluster.
template <bool clustered>
struct RowGroup {
  int blocks = 1, rank = 0;  // kept: reading them from the hardware again for each vector costs more than the load

  __device__ __forceinline__ RowGroup() {
    if constexpr (clustered) {
      auto cluster = cooperative_groups::this_cluster();
      blocks = cluster.num_blocks();
      rank = cluster.block_rank();
      cluster.barrier_arrive();  // "this block runs": sum waits for that before it writes to a peer
    }
  }

  __device__ __forceinline__ int size() const { return blocks * blockDim.x; }
  __device__ __forceinline__ int thread() const { return rank * blockDim.x + threadIdx.x; }
  __device__ __forceinline__ int64_t row() const {
    if constexpr (clustered) return blockIdx.x / blocks;
    return static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  }

  // The sum over the row's threads, in an order that the group's size alone decides. Called once.
  template <class T>
  __device__ __forceinline__ T sum(T value) const {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2)
      if (offset < blockDim.x) value += __shfl_xor_sync(~0u, value, offset);
    if (blockDim.x > 32) value = sum_over_warps(value);
    if constexpr (clustered) value = sum_over_blocks(value);
    return value;
  }

 private:
  template <class T>
  __device__ __forceinline__ T sum_over_warps(T value) const {
    __shared__ T of_warp[32];
    int warps = blockDim.x / 32, first = threadIdx.y * warps;
    if (threadIdx.x % 32 == 0) of_warp[first + threadIdx.x / 32] = value;
    __syncthreads();
    return sum_of(of_warp + first, warps);
  }

  template <class T>
  __device__ __forceinline__ T sum_over_blocks(T value) const {
    __shared__ T of_block[kMaxCluster];
    auto cluster = cooperative_groups::this_cluster();
    cluster.barrier_wait();
    if (threadIdx.x < blocks) *cluster.map_shared_rank(&of_block[rank], threadIdx.x) = value;
    cluster.sync();  // also: no block leaves before its peers have written to it
    return sum_of(of_block, blocks);
  }

  // By halves, in every lane: one after the other, 32 terms err by 2 ulp of rstd.
  template <class T>
  static __device__ __forceinline__ T sum_of(const T* terms, int count) {
    int width = 1 << (32 - __clz(count - 1)), lane = threadIdx.x % width;
    T value = lane < count ? terms[lane] : T();
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2)
      if (offset < width) value += __shfl_xor_sync(~0u, value, offset);
    return value;
  }
};

// The vectors of a row that one thread holds at a time.
template <class Op, int vectors, bool edges, class Index>
struct Tile {
  static constexpr int N = Op::kElements;
  const Op& op;
  const Index dim, stride;  // between a thread's vectors
  const int before;         // elements that the row's first vector has before the row
  const Index end;          // vectors in the row
  const bool in_phase;
  typename Op::Vectors held[vectors];

  __device__ __forceinline__ Tile(const Op& op, bool active, int64_t dim, int stride)
      : op(op),
        dim(static_cast<Index>(dim)),
        stride(stride),
        before(edges ? reinterpret_cast<uintptr_t>(op.begin()) % 16 / sizeof(typename Op::Element) : 0),
        end(active ? (before + this->dim + N - 1) / N : 0),
        in_phase(!edges || op.in_phase(before)) {}

  __device__ __forceinline__ Span<Index> span(Index vector) const { return {vector * N - before, dim}; }

  // All loads before the first branch: what stands between two loads keeps the second one waiting.
  __device__ __forceinline__ void load(Index start) {
    if (!edges || in_phase)
      load_with(start, [&](auto& to, auto row, auto where) { to.template load<edges>(row, where); });
    else
      load_with(start, [&](auto& to, auto row, auto where) { to.load_elements(row, where); });
    if constexpr (edges) mask(start);
  }

  template <class F>
  __device__ __forceinline__ void load_with(Index start, F load_one) {
#pragma unroll
    for (int i = 0; i < vectors; i++) {
      Index vector = start + i * stride;
      if (vector < end)
        op.each(held[i], [&](auto& to, auto row) { load_one(to, row, span(vector)); });
      else
        op.each(held[i], [](auto& to, auto) { to.clear(); });
    }
  }

  __device__ __forceinline__ void mask(Index start) {
#pragma unroll
    for (int i = 0; i < vectors; i++) {
      auto where = span(start + i * stride);
      if (!where.has_all(N)) op.each(held[i], [&](auto& vector, auto) { vector.mask(where); });
    }
  }

  template <class T>
  __device__ __forceinline__ T sum(T total) const {
#pragma unroll
    for (int i = 0; i < vectors; i++) total += op.term(held[i]);
    return total;
  }

  __device__ __forceinline__ void stay_packed() {
#pragma unroll
    for (int i = 0; i < vectors; i++) op.each(held[i], [](auto& vector, auto) { vector.stay_packed(); });
  }

  __device__ __forceinline__ void store(Index start) const {
#pragma unroll
    for (int i = 0; i < vectors; i++) {
      Index vector = start + i * stride;
      if (vector >= end) continue;
      auto where = span(vector);
      if (!edges || (in_phase && where.has_all(N)))
        op.store(held[i], [&](const auto& from, auto row) { from.store(row, where); });
      else
        op.store(held[i], [&](const auto& from, auto row) { from.store_elements(row, where); });
    }
  }
};

template <class Op, int vectors, bool edges, bool clustered, bool twice>
__global__ void __launch_bounds__(max_threads(Op::kChunks, vectors))
    row_kernel(const __grid_constant__ typename Op::Args args) {
  using Index = std::conditional_t<twice, int64_t, int>;  // a row that fits registers has no 2^31 elements
  const RowGroup<clustered> group;
  const int64_t row = group.row();
  const bool active = row < args.space.rows;  // the others still take part in the sum
  Op op(args, active ? row : 0);
  Tile<Op, vectors, edges, Index> tile(op, active, args.space.dim, group.size());

  typename Op::Accumulator total = 0;
  if constexpr (twice) {
    for (Index start = group.thread(); start < tile.end; start += vectors * tile.stride) {
      tile.load(start);
      total = tile.sum(total);
    }
  } else {
    tile.load(group.thread());
    total = tile.sum(total);
    tile.stay_packed();
  }
  op.finish(group.sum(total), args);
  if (active && group.thread() == 0) op.store_row();
  if constexpr (twice) {
    for (Index start = group.thread(); start < tile.end; start += vectors * tile.stride) {
      tile.load(start);
      tile.store(start);
    }
  } else {
    tile.store(group.thread());
  }
}

}  // namespace srmsnorm
