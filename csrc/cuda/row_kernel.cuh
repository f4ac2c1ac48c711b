// The one kernel: a group of threads takes a row, loads it once, reduces once, stores once.
//
// An Op is what one thread does with the pieces of its row; forward.cuh and backward.cuh have one each:
//   Args, Element, Accumulator, kElements (of a vector), kChunks (16-byte pieces read for a vector), kLateChunks
//   (those of them that the sum does not need)
//   Pieces<N>                            what is held of N elements of the row, by operand
//   Op(args, row index)                  pointers to the row
//   begin()                              the operand whose address decides how the row is cut for the sum
//   result()                             the operand whose address decides how the row is cut for the stores
//   each(pieces, f)                      f(vector, pointer to its row) for every operand that the sum needs
//   each_late(pieces, f)                 the same for those that it does not
//   term(pieces)                         their part of the sum
//   finish(sum, args)                    the row's scalars
//   store(pieces, f)                     f(vector, pointer to its row) for every result
//   store_row()                          what there is once a row
#pragma once
#include <cooperative_groups.h>

#include "../row_args.h"
#include "launch.h"
#include "vector.cuh"

// The compilation for an architecture that has thread block clusters; the names below do not exist for others.
#define SRMSNORM_CLUSTERS (__CUDA_ARCH__ >= 900)

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
#if SRMSNORM_CLUSTERS
      auto cluster = cooperative_groups::this_cluster();
      blocks = cluster.num_blocks();
      rank = cluster.block_rank();
      cluster.barrier_arrive();  // "this block runs": sum waits for that before it writes to a peer
#else
      __trap();  // code for an earlier architecture on a GPU that has clusters: an error, not a wrong sum
#endif
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
#if SRMSNORM_CLUSTERS
    __shared__ T of_block[kMaxCluster];
    auto cluster = cooperative_groups::this_cluster();
    cluster.barrier_wait();
    if (threadIdx.x < blocks) *cluster.map_shared_rank(&of_block[rank], threadIdx.x) = value;
    cluster.sync();  // also: no block leaves before its peers have written to it
    return sum_of(of_block, blocks);
#else
    return value;
#endif
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

// How a row is cut: whole vectors from the first 16-byte boundary on, and the elements before and behind them.
template <class Op, bool edges, class Index>
struct Cut {
  static constexpr int N = Op::kElements;
  Index head, vectors, tail, dim;  // tail: where the elements behind the vectors begin

  __device__ __forceinline__ Cut(const typename Op::Element* row, Index dim) : head(0), dim(dim) {
    if constexpr (edges) {
      Index before = (16 - bytes_past_16(row)) % 16 / sizeof(typename Op::Element);
      head = before < dim ? before : dim;
    }
    vectors = (dim - head) / N;
    tail = head + vectors * N;
  }

  template <class F>
  __device__ __forceinline__ void each_edge(Index thread, Index threads, F f) const {
    Index between = tail - head;  // one loop for both edges: their loads wait for memory once
    for (Index i = thread; i < dim - between; i += threads) f(i < head ? i : i + between);
  }
};

// The vectors of a row that one thread holds at a time. unaligned: operands may lie at any address. staged: what the
// sum does not need waits in shared memory, since its registers are worth another block on the multiprocessor; a thread
// reads only what it has copied there itself, which takes no barrier.
template <class Op, int vectors, bool unaligned, bool staged>
struct Tile {
  static constexpr int N = Op::kElements;
  typename Op::template Pieces<N> held[vectors];

  // All loads before the first use: what stands between two loads keeps the second one waiting.
  template <class Cut, class Index>
  __device__ __forceinline__ void load(const Op& op, const Cut& cut, Index start, Index stride) {
#pragma unroll
    for (int i = 0; i < vectors; i++) {
      Index vector = start + i * stride;
      if (vector < cut.vectors) {
        op.each(held[i], load_at(cut.head + vector * N));
        if constexpr (staged)
          op.each_late(held[i], [&](auto& to, auto row) { to.copy_to(slot(i), row + cut.head + vector * N); });
        else
          op.each_late(held[i], load_at(cut.head + vector * N));
      } else {
        op.each(held[i], [](auto& to, auto) { to.clear(); });
      }
    }
  }

  template <class T>
  __device__ __forceinline__ T sum(const Op& op, T total) const {
#pragma unroll
    for (int i = 0; i < vectors; i++) total += op.term(held[i]);
    return total;
  }

  __device__ __forceinline__ void stay_packed(const Op& op) {
#pragma unroll
    for (int i = 0; i < vectors; i++) {
      op.each(held[i], [](auto& vector, auto) { vector.stay_packed(); });
      if constexpr (!staged) op.each_late(held[i], [](auto& vector, auto) { vector.stay_packed(); });
    }
  }

  template <class Cut, class Index>
  __device__ __forceinline__ void store(const Op& op, const Cut& cut, Index start, Index stride) {
    if constexpr (staged) wait_for_copies();
#pragma unroll
    for (int i = 0; i < vectors; i++) {
      Index vector = start + i * stride;
      if (vector >= cut.vectors) continue;
      if constexpr (staged) op.each_late(held[i], [&](auto& to, auto) { to.copy_from(slot(i)); });
      op.store(held[i], store_at(cut.head + vector * N));
    }
  }

 private:
  // Neighbouring threads' places are next to each other, a piece of 16 bytes after the other.
  static __device__ __forceinline__ uint4* slot(int i) {
    extern __shared__ uint4 stage[];
    return stage + i * Op::kLateChunks * blockDim.x + threadIdx.x;
  }

  template <class Index>
  static __device__ __forceinline__ auto load_at(Index element) {
    return [element](auto& to, auto row) {
      if constexpr (unaligned)
        to.load_any(row + element);
      else
        to.load(row + element);
    };
  }

  template <class Index>
  static __device__ __forceinline__ auto store_at(Index element) {
    return [element](const auto& from, auto row) {
      if constexpr (unaligned)
        from.store_any(row + element);
      else
        from.store(row + element);
    };
  }
};

// One element of a row, where it begins or ends inside a vector.
template <class Op>
struct Element {
  typename Op::template Pieces<1> held;

  template <class Index>
  __device__ __forceinline__ Element(const Op& op, Index i) {
    auto load = [&](auto& to, auto row) { to.load_any(row + i); };
    op.each(held, load);
    op.each_late(held, load);
  }
};

// What this block will read of a row further on starts on its way to the L2: the memory stays busy while the blocks of
// a cluster wait for each other and for the places of all of them. A hint: nothing depends on it.
template <class Op, class Group>
__device__ __forceinline__ void prefetch(const Op& op, const Group& group, int64_t dim) {
#if SRMSNORM_CLUSTERS
  typename Op::template Pieces<1> none;
  auto start = [&](auto&, auto row) {
    int64_t bytes = dim * sizeof(*row) / group.blocks / 16 * 16;
    const char* from = reinterpret_cast<const char*>(row) + group.rank * bytes;
    from -= bytes_past_16(from);
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(static_cast<int>(bytes)) : "memory");
  };
  op.each(none, start);
  op.each_late(none, start);
#endif
}

// edges: rows may begin or end inside 16 aligned bytes, all operands at the same element. twice: the row is read again
// for the result, since it does not fit the group's registers, or since operands lie differently in 16 bytes: its
// vectors are cut by the first operand for the sum and by the result for the stores. Both ways sum in the same order.
// ahead: clusters start a prefetch of the row that many further on.
template <class Op, int vectors, bool edges, bool clustered, bool twice>
__global__ void __launch_bounds__(max_threads(Op::kChunks - (clustered ? Op::kLateChunks : 0), vectors, twice))
    row_kernel(const __grid_constant__ typename Op::Args args, int ahead) {
  using Index = std::conditional_t<twice, int64_t, int>;  // a row that fits registers has no 2^31 elements
  using Part = Cut<Op, edges, Index>;
  const RowGroup<clustered> group;
  const int64_t row = group.row();
  const bool active = row < args.space.rows;  // the others still take part in the sum
  const Index dim = active ? args.space.dim : 0, thread = group.thread(), threads = group.size();
  Op op(args, active ? row : 0);
  Part cut(op.begin(), dim);
  Tile<Op, vectors, twice, (clustered && !twice && Op::kLateChunks > 0)> tile;

  typename Op::Accumulator total = 0;
  auto add_edges = [&] {
    if constexpr (edges) cut.each_edge(thread, threads, [&](Index i) { total += op.term(Element<Op>(op, i).held); });
  };
  if constexpr (twice) {
    add_edges();
    for (Index start = thread; start < cut.vectors; start += vectors * threads) {
      tile.load(op, cut, start, threads);
      total = tile.sum(op, total);
    }
  } else {
    tile.load(op, cut, thread, threads);
    if (clustered && threadIdx.x == 0 && row + ahead < args.space.rows)
      prefetch(Op(args, row + ahead), group, args.space.dim);
    add_edges();
    // The branch keeps all loads before it: else some wait until others are summed, which saves registers and costs
    // time (dim 28672 with residual: 0.88 of the roof for 1.00).
    if (active) total = tile.sum(op, total);
    tile.stay_packed(op);
  }
  op.finish(group.sum(total), args);
  if (active && thread == 0) op.store_row();
  if constexpr (twice) {
    cut = Part(op.result(), dim);
    for (Index start = thread; start < cut.vectors; start += vectors * threads) {
      tile.load(op, cut, start, threads);
      tile.store(op, cut, start, threads);
    }
  } else {
    tile.store(op, cut, thread, threads);
  }
  if constexpr (edges)
    cut.each_edge(thread, threads, [&](Index i) {
      op.store(Element<Op>(op, i).held, [&](const auto& from, auto row) { from.store_any(row + i); });
    });
}

}  // namespace srmsnorm
