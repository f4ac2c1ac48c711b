// The one kernel: a group of threads takes a row, loads it once, reduces once, stores once.
//
// An Op is what one thread does with the pieces of its row; forward.cuh and backward.cuh have one each:
// clang-format off
//   Element, Accumulator        of input and output; of the sum
//   Args<flat>, args<flat>(call, ahead)  a KernelArgs, and how it is filled
//   kElements, kChunks          of a vector: its elements, and what is read for it
//   kBesideSize                 bytes of an element of residual and sum
//   Pieces<N, shifted, first>   what is held of N elements of the row, by operand; shifted: those that do not lie as
//                               begin() does, first: that one too
//   Op(args, row index)         pointers to the row in the operands that are read
//   open_rest(args, row index)  and in the others, from kFirstOfRest on, which is never absent; what is read once a row
//   begin()                     the operand whose address decides how the row is cut
//   each(pieces, f)             f(vector, pointer to its row) for every operand that the sum needs
//   each_late(pieces, f)        the same for those that it does not
//   kCombines, combine(pieces)  whether something is made of them once and held in their place, and what
//   term(pieces)                their part of the sum
//   finish(sum, args)           the row's scalars
//   store<pass>(pieces, f)      f(vector, pointer to its row) for every result of pass 0 or 1
//   store_row(args, row index)  what there is once a row
// clang-format on
#pragma once
#include "cluster.cuh"
#include "kernel_args.h"
#include "launch.h"
#include "vector.cuh"

namespace srmsnorm {

// Where a row begins in the operands from first to before end, in elements.
template <class Args, int first, int end>
struct RowOffsets {
  int64_t of[end - first];

  __device__ __forceinline__ RowOffsets(const Args& args, int64_t row) {
    if constexpr (!Args::kFlat) {
      if (args.levels > 1) {
        by_level(args, row);
        return;
      }
    }
#pragma unroll
    for (int i = first; i < end; i++) of[i - first] = row * args.of(i).stride;
  }

  __device__ __forceinline__ void by_level(const Args& args, int64_t row) {
#pragma unroll
    for (int i = first; i < end; i++) of[i - first] = 0;
    uint32_t rest = static_cast<uint32_t>(row);
#pragma unroll 1
    for (int level = 0; level < args.levels; level++) {
      const auto& size = args.sizes[level];
      uint32_t above = static_cast<uint32_t>(__umul64hi(size.reciprocal, rest));
#pragma unroll
      for (int i = first; i < end; i++) of[i - first] += (rest - above * size.value) * args.strides[level][i];
      rest = above;
    }
  }

  // A place also for an operand that is absent, which is never read or written. The pointer is one value from then on:
  // else the compiler adds an element to its offset before it adds the operand's address, four instructions an access
  // for one.
  template <class T>
  __device__ __forceinline__ T* in(const Args& args, int i) const {
    T* row = static_cast<T*>(args.of(i).data) + of[i - first];
    asm("" : "+l"(row));
    __builtin_assume(__isGlobal(row));
    return row;
  }
};

// The threads that share a row: blockDim.x of each block. T: what they sum; most: the largest blockDim.x.
template <class T, Sharing sharing, int most>
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

  // The sum over the row's threads, in an order that the group's size alone decides. Called once.
  __device__ __forceinline__ T sum(T value) const {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      T other = __shfl_xor_sync(~0u, value, offset);
      if (sharing != Sharing::Lanes || offset < blockDim.x) value += other;
    }
    if constexpr (sharing != Sharing::Lanes) value = sum_over_warps(value);
    if constexpr (kClustered) value = sum_over_blocks(shared_exchange<T>().all(value, blocks, rank));
    return value;
  }

 private:
  static constexpr int kWarps = most / 32;
  static_assert(kWarps <= 16);

  // Zeros fill the places of warps that there are not: all terms are added without asking.
  static __device__ __forceinline__ T sum_over_warps(T value) {
    __shared__ __align__(16) T of_warp[kWarps];
    int lane = threadIdx.x % 32, place = threadIdx.x / 32 + lane * (blockDim.x / 32);
    if (place < kWarps) of_warp[place] = lane == 0 ? value : T();
    __syncthreads();
    return sum_by_halves<kWarps>(of_warp);
  }

  // A cluster is a power of two.
  __device__ __forceinline__ T sum_over_blocks(const T* of_block) const {
    T pairs[kMaxCluster / 2];
#pragma unroll
    for (int i = 0; i < kMaxCluster / 2; i++) pairs[i] = 2 * i < blocks ? sum_by_halves<2>(of_block + 2 * i) : T();
    return sum_by_halves<kMaxCluster / 2>(pairs);
  }

  // In every thread; one after the other, many terms err by 2 ulp of rstd.
  template <int count>
  static __device__ __forceinline__ T sum_by_halves(const T* terms) {
    if constexpr (count == 1)
      return terms[0];
    else
      return sum_by_halves<count / 2>(terms) + sum_by_halves<count / 2>(terms + count / 2);
  }
};

// How a row is cut: whole vectors from the first 16-byte boundary on, and the elements before and behind them; where
// from_begin, from its begin on.
template <class Op, bool edges, class Index>
struct Cut {
  static constexpr int N = Op::kElements;
  Index head, vectors, tail, dim;  // tail: where the elements behind the vectors begin

  __device__ __forceinline__ Cut(const typename Op::Element* row, Index dim, bool from_begin) : head(0), dim(dim) {
    if constexpr (edges) {
      Index before = (16 - bytes_past_16(row)) % 16 / sizeof(typename Op::Element);
      head = from_begin ? 0 : before < dim ? before : dim;
    }
    vectors = static_cast<std::make_unsigned_t<Index>>(dim - head) / N;
    tail = head + vectors * N;
  }

  // Of an operand. Counted in vectors: in elements, each access takes a shift more.
  template <class T>
  __device__ __forceinline__ T* at(T* row, Index vector) const {
    return reinterpret_cast<T(*)[N]>(row + head)[vector];
  }

  // The elements of both edges, one after the other.
  __device__ __forceinline__ Index edge_count() const { return dim - (tail - head); }
  __device__ __forceinline__ Index edge(Index i) const { return i < head ? i : i + (tail - head); }
};

// How a row is read: into registers, all operands cut as begin() is; the same, and kept in the L2 until the row is
// written; into registers, operands lying anywhere; or once for the sum and again for the result, lying anywhere.
enum class Reading { Once, Kept, Shifted, Twice };

template <Reading reading>
constexpr bool kIsShifted = reading == Reading::Shifted || reading == Reading::Twice;

// Whether rows of whole vectors are cut from their begin on, wherever that is (plan_launch).
template <class Op, Sharing sharing, Reading reading>
constexpr bool kFromBegin = cut_from_begin(sharing, Op::kChunks) && reading == Reading::Shifted;

// The vectors of a row that one thread holds at a time. staged: what the sum does not need waits in shared memory,
// since its registers are worth another block on the multiprocessor; a warp reads only what it has copied there itself,
// which takes no barrier of the block.
template <class Op, int vectors, Sharing sharing, Reading reading, bool staged>
struct Tile {
  static constexpr int N = Op::kElements;
  static constexpr bool kShifted = kIsShifted<reading>, kKept = reading == Reading::Kept;
  typename Op::template Pieces<N, kShifted, kFromBegin<Op, sharing, reading>> held[vectors];

  // All loads before the first use: what stands between two loads keeps the second one waiting.
  template <class Cut, class Index>
  __device__ __forceinline__ void load(const Op& op, const Cut& cut, Index start, Index stride) {
#pragma unroll
    for (int i = 0; i < vectors; i++) {
      Index vector = start + i * stride;
      if (vector < cut.vectors) {
        auto load = load_at(cut, vector);
        op.each(held[i], load);
        if constexpr (!staged) op.each_late(held[i], load);
      } else {
        op.each(held[i], [](auto& to, auto) { to.clear(); });
      }
      if constexpr (staged) {
        Index of_warp = vector - lane_in_row();
        op.each_late(held[i], [&](auto& to, auto row) {
          to.start_copies(stage(i), cut.at(row, of_warp), cut.vectors - of_warp);
        });
      }
    }
  }

  template <class T>
  __device__ __forceinline__ T sum(const Op& op, T total) const {
#pragma unroll
    for (int i = 0; i < vectors; i++) total += op.term(held[i]);
    return total;
  }

  // What has been loaded, ready for use.
  template <class Cut>
  __device__ __forceinline__ void prepare(const Op& op, const Cut& cut) {
    auto put = [&](auto& vector, auto row) { vector.put_in_place(bytes_past_16(row + cut.head)); };
#pragma unroll
    for (int i = 0; i < vectors; i++) {
      if constexpr (kShifted) op.each(held[i], put), op.each_late(held[i], put);
      op.combine(held[i]);
    }
  }

  __device__ __forceinline__ void stay_packed(const Op& op) {
    if constexpr (!Op::kCombines) {
#pragma unroll
      for (int i = 0; i < vectors; i++) {
        op.each(held[i], [](auto& vector, auto) { vector.stay_packed(); });
        if constexpr (!staged) op.each_late(held[i], [](auto& vector, auto) { vector.stay_packed(); });
      }
    }
  }

  // By all lanes of the warp.
  template <class Cut, class Index>
  __device__ __forceinline__ void store(const Op& op, const Cut& cut, Index start, Index stride) {
    if constexpr (staged) wait_for_copies();
#pragma unroll
    for (int i = 0; i < vectors; i++) {
      Index vector = start + i * stride;
      if constexpr (staged) op.each_late(held[i], [&](auto& to, auto) { to.load_copies(stage(i)); });
      op.template store<0>(held[i], store_at(cut, vector));
      if constexpr (kShifted) op.template store<1>(held[i], store_at(cut, vector));
    }
    // Shifted ones gain nothing from a pass of their own (dim 3001 0.942 of the roof either way).
    if constexpr (!kShifted) {
#pragma unroll
      for (int i = 0; i < vectors; i++) op.template store<1>(held[i], store_at(cut, start + i * stride));
    }
    if constexpr (kKept) release(op, cut, start, stride);
  }

 private:
  template <class Cut, class Index>
  __device__ __forceinline__ void release(const Op& op, const Cut& cut, Index start, Index stride) {
#pragma unroll
    for (int i = 0; i < vectors; i++) {
      Index vector = start + i * stride;
      if (vector >= cut.vectors) continue;
      op.each(held[i], [&](auto& of, auto row) { of.release(cut.at(row, vector)); });
    }
  }

  // This warp's part.
  static __device__ __forceinline__ uint4* stage(int i) {
    extern __shared__ uint4 pieces[];
    return pieces + Op::kChunks.late * (i * blockDim.x + threadIdx.x / 32 * 32);
  }

  template <class Cut, class Index>
  static __device__ __forceinline__ Place<Index> place_of(const Cut& cut, Index vector) {
    return {cut.vectors - vector, min(static_cast<int>(blockDim.x), 32)};
  }

  // How far an operand's vectors are past 16 bytes follows from where its first one is.
  template <class Cut, class Index>
  static __device__ __forceinline__ auto load_at(const Cut& cut, Index vector) {
    return [&cut, vector](auto& to, auto row) {
      if constexpr (kKept)
        to.load_kept(cut.at(row, vector));
      else
        to.load(cut.at(row, vector), kShifted ? bytes_past_16(row + cut.head) : 0, place_of(cut, vector));
    };
  }

  // Whether the row has the vector is asked at the store alone: one predicate instead of a branch.
  template <class Cut, class Index>
  static __device__ __forceinline__ auto store_at(const Cut& cut, Index vector) {
    return [&cut, vector](const auto& from, auto row) {
      __builtin_assume(__isGlobal(row));
      if constexpr (kShifted)
        from.store_shifted(cut.at(row, vector), bytes_past_16(row + cut.head), place_of(cut, vector));
      else
        from.store(cut.at(row, vector), place_of(cut, vector));
    };
  }
};

// The elements of a row before and behind its vectors. A thread holds the first of its own; more than one it has where
// few threads share a row, and those are read again for the result.
template <class Op>
struct Edges {
  using Pieces = typename Op::template Pieces<1, false, false>;
  Pieces first;

  template <class Cut, class Index>
  __device__ __forceinline__ void load(const Op& op, const Cut& cut, Index thread) {
    if (thread < cut.edge_count()) first = element(op, cut.edge(thread));
  }

  // f(pieces, index in the row) for all of this thread's, in order.
  template <class Cut, class Index, class F>
  __device__ __forceinline__ void each(const Op& op, const Cut& cut, Index thread, Index threads, F f) const {
    if (thread < cut.edge_count()) f(first, cut.edge(thread));
    for (Index i = thread + threads; i < cut.edge_count(); i += threads) f(element(op, cut.edge(i)), cut.edge(i));
  }

 private:
  template <class Index>
  static __device__ __forceinline__ Pieces element(const Op& op, Index i) {
    Pieces held;
    auto load = [&](auto& to, auto row) { to.load(row + i); };
    op.each(held, load);
    op.each_late(held, load);
    op.combine(held);
    return held;
  }
};

// What this block will read of a row further on starts on its way to the L2: the memory stays busy while the blocks of
// a cluster wait for each other and for the places of all of them. A hint: nothing depends on it.
template <class Op, class Group>
__device__ __forceinline__ void prefetch(const Op& op, const Group& group, int64_t dim) {
#if SRMSNORM_CLUSTERS
  typename Op::template Pieces<1, false, false> none;
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

// Whether other operands are wider than the input.
template <class Op>
constexpr bool kIsMixed = Op::kBesideSize > sizeof(typename Op::Element);

// Blocks on a multiprocessor that the compiler is told to allow for; 0: left to it. nvcc 13.0 spilled a word or two to
// have more of them in some of these instances (sm_90); told one, in none.
template <class Op, bool flat, Reading reading>
constexpr int min_blocks() {
  return kIsMixed<Op> || reading == Reading::Twice || (!flat && Op::kBesideSize >= 4) ? 1 : 0;
}

template <class Op, int vectors, Sharing sharing, Reading reading>
constexpr int kMostThreadsOf = max_threads(Op::kChunks.all - (sharing == Sharing::Blocks ? Op::kChunks.late : 0),
                                           vectors, reading == Reading::Twice);

// flat: rows in one level that begin and end at 16 bytes; else they may lie anywhere, which takes levels and edges. Few
// rows wait for every instruction (1 x 4096 1.30 us, with levels and edges 1.43; few rows are timed here in a bare loop
// of graph nodes, which takes about 0.16 us less than the benchmark's). However a row is read, it is summed in the same
// order. Why the memory likes rows that are kept is not known: dim 1024 to 16384 0.6 to 1.2 % faster, for operands that
// do not fit the L2. Not released, the lines would stay and cost the next kernel: ten passes over 40 MB after a norm
// 135 us, released 71, without the hint 70.
template <class Op, int vectors, Sharing sharing, bool flat, Reading reading>
__global__ void __launch_bounds__(kMostThreadsOf<Op, vectors, sharing, reading>, min_blocks<Op, flat, reading>())
    row_kernel(const __grid_constant__ typename Op::template Args<flat> args) {
  constexpr bool twice = reading == Reading::Twice, clustered = sharing == Sharing::Blocks;
  static_assert(!flat || !kIsShifted<reading>, "operands that lie differently do not all begin at 16 bytes");
  static_assert(reading != Reading::Kept || (flat && Op::kChunks.late == 0),
                "release knows nothing of edges and of what the sum does not need");
  using Index = std::conditional_t<twice, int64_t, int>;  // a row that fits registers has no 2^31 elements
  const RowGroup<typename Op::Accumulator, sharing, kMostThreadsOf<Op, vectors, sharing, reading>> group;
  const int64_t row = group.row();
  const bool active = sharing != Sharing::Lanes || row < args.rows;  // the others still take part in the sum
  const Index dim = active ? args.dim : 0, thread = group.thread(), threads = group.size();
  const int64_t readable = active ? row : 0;
  Op op(args, readable);
  const bool from_begin = kFromBegin<Op, sharing, reading> && args.dim % Op::kElements == 0;
  const Cut<Op, !flat, Index> cut(op.begin(), dim, from_begin);
  constexpr bool staged = clustered && !twice && Op::kChunks.late > 0;
  Tile<Op, vectors, sharing, reading, staged> tile;

  typename Op::Accumulator total = 0;
  Edges<Op> edge;
  auto add_edges = [&] {
    if constexpr (!flat) {
      edge.load(op, cut, thread);
      edge.each(op, cut, thread, threads, [&](const auto& held, Index) { total += op.term(held); });
    }
  };
  if constexpr (twice) {
    op.open_rest(args, readable);
    add_edges();
    for (Index start = thread; start < cut.vectors; start += vectors * threads) {
      tile.load(op, cut, start, threads);
      tile.prepare(op, cut);
      total = tile.sum(op, total);
    }
  } else {
    tile.load(op, cut, thread, threads);
    if constexpr (clustered)
      if (threadIdx.x == 0 && row + args.ahead < args.rows) prefetch(Op(args, row + args.ahead), group, args.dim);
    // While the loads are on their way: these arguments are cold too. The branch, always taken, keeps them from being
    // asked for before the loads (64 x 16384 with residual: 4.43 us for 4.57); the trap, never met, from being asked
    // for after the sum, as where lanes share a row (64 x 256 1.15 us for 1.21, backward 1.25 for 1.41).
    if (args.dim > 0) {
      op.open_rest(args, readable);
      if (!args.of(Op::kFirstOfRest).data) __trap();
    }
    add_edges();
    // The branch, always taken, keeps all loads before it: else some wait until others are summed, which saves
    // registers and costs time (dim 28672 with residual: 0.88 of the roof for 1.00). Few vectors need none (1 x 4096
    // with residual: 1.50 us for 1.60).
    if (vectors <= 3 || dim > 0) {
      tile.prepare(op, cut);
      total = tile.sum(op, total);
    }
    tile.stay_packed(op);
  }
  op.finish(group.sum(total), args);
  if constexpr (twice) {
    for (Index done = 0; done < cut.vectors; done += vectors * threads) {  // by all lanes, as shifted stores want it
      tile.load(op, cut, done + thread, threads);
      tile.prepare(op, cut);
      tile.store(op, cut, done + thread, threads);
    }
  } else {
    tile.store(op, cut, thread, threads);
  }
  if constexpr (!flat)
    edge.each(op, cut, thread, threads, [&](const auto& held, Index i) {
      auto store = [&](const auto& from, auto row) {
        __builtin_assume(__isGlobal(row));
        from.store(row + i);
      };
      op.template store<0>(held, store);
      op.template store<1>(held, store);
    });
  if (active && thread == 0) op.store_row(args, row);
}

}  // namespace srmsnorm
