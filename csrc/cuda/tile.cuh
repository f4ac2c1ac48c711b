// What a thread holds of a row: its vectors, and its elements before and behind the row's vectors.
#pragma once
#include "instances.h"
#include "row_cut.cuh"
#include "vector.cuh"

namespace srmsnorm {

template <Reading reading>
constexpr bool kIsShifted = reading == Reading::Shifted || reading == Reading::Twice;

// Whether rows of whole vectors are cut from their begin on, wherever that is (plan_launch).
template <Sharing sharing, Reading reading>
constexpr bool kFromBegin = cut_from_begin(sharing) && kIsShifted<reading>;

// Whether a kernel of such rows asks for what only others need: edges, and the shifting of operands that are aligned.
// Not of bytes, which are read twice (fp8, dim 64, one element off, 602 us for 523).
template <class Op, Sharing sharing, Reading reading>
constexpr bool kSkipsUnneeded = kFromBegin<sharing, reading> && !Op::kChunks.in_bytes;

// Which vectors of a row a thread has: every so many.
template <class Index>
struct Strided {
  Index first, stride;
  __device__ __forceinline__ Index operator()(int i) const { return first + i * stride; }
};

// Of a row that is folded, so that what a thread adds is what threads of the plan would add first. Of 8 threads, thread
// 3 has vectors 3, 11, 19 and 27, as four of 32 lanes would; of 16, 3, 19, 35 and 51, as lanes 3 and 19; of 32 and
// more, where t is the number of the plan's threads, 3, 19, 3 + t and 19 + t, and thread 16 begins at 32.
template <class Index>
struct Folded {
  Index first, other, stride;

  explicit __device__ __forceinline__ Folded(Index thread)
      : first(thread / 16 * 32 + thread % 16), other(min(blockDim.x, 16)), stride(2 * blockDim.x) {}

  __device__ __forceinline__ Index operator()(int i) const { return first + i % 2 * other + i / 2 * stride; }
};

// The vectors of a row that one thread holds at a time. staged: what the reduction does not need waits in shared
// memory, since its registers are worth another block on the multiprocessor; a warp reads only what it has copied there
// itself, which takes no barrier of the block. Or the last vectors of one operand are parked there (parked_vectors), of
// which a thread reads its own; what it reads of one that the row has not is neither summed nor stored.
template <class Op, int vectors, Sharing sharing, Reading reading, bool staged>
struct Tile {
  static constexpr int N = Op::kElements;
  static constexpr bool kShifted = kIsShifted<reading>, kKept = reading == Reading::Kept;
  static constexpr int kHeld = vectors - parked_vectors(sharing, vectors, Op::kChunks);
  using Held = typename Op::template Held<N, kShifted, kFromBegin<sharing, reading>>;
  static_assert(kHeld == vectors || (Op::kChunks.all == 1 && !staged && !kShifted), "a chunk for each vector");
  Held held[kHeld];

  // All loads before the first use: what stands between two loads keeps the second one waiting.
  template <class Cut, class At>
  __device__ __forceinline__ void load(const Op& op, const Cut& cut, At at) {
    park(op, cut, at);
#pragma unroll
    for (int i = 0; i < kHeld; i++) {
      auto vector = at(i);
      if (vector < cut.vectors) {
        auto load = load_at(cut, vector);
        op.each(held[i], load);
        if constexpr (!staged) op.each_late(held[i], load);
      } else {
        op.each(held[i], [](auto& to, auto) { to.clear(); });
      }
      if constexpr (staged) {
        auto of_warp = vector - lane_in_row();
        op.each_late(held[i], [&](auto& to, auto row) {
          to.start_copies(stage(i), cut.at(row, of_warp), cut.vectors - of_warp);
        });
      }
    }
  }

  // Behind those that are held.
  template <class T, class Cut, class At>
  __device__ __forceinline__ T reduce_parked(const Op& op, T total, const Cut& cut, At at) const {
    if constexpr (kHeld < vectors) wait_for_copies();
#pragma unroll
    for (int i = kHeld; i < vectors; i++)
      if (at(i) < cut.vectors) total = op.add_term(total, parked(op, i));
    return total;
  }

  template <class T>
  __device__ __forceinline__ T reduce(const Op& op, T total) const {
    T of_other{};
#pragma unroll
    for (int i = 0; i < kHeld; i++) {
      T& part = reading == Reading::Folded && i % 2 ? of_other : total;
      part = op.add_term(part, held[i]);
    }
    return reading == Reading::Folded ? total + of_other : total;
  }

  // What has been loaded, ready for use.
  template <class Cut>
  __device__ __forceinline__ void prepare(const Op& op, const Cut& cut) {
    auto put = [&](auto& vector, auto row) {
      int past = bytes_past_16(row + cut.head);
      if (!all_at_16(past)) vector.put_in_place(past);
    };
#pragma unroll
    for (int i = 0; i < kHeld; i++) {
      if constexpr (kShifted) op.each(held[i], put), op.each_late(held[i], put);
      op.combine(held[i]);
    }
  }

  // Of vectors that are going to be stored. By all lanes of the warp.
  __device__ __forceinline__ void survey(Op& op) const {
    if constexpr (Op::kChunks.in_bytes) op.survey(held);
  }

  __device__ __forceinline__ void stay_packed(const Op& op) {
    if constexpr (!Op::kCombines) {
#pragma unroll
      for (int i = 0; i < kHeld; i++) {
        op.each(held[i], [](auto& vector, auto) { vector.stay_packed(); });
        if constexpr (!staged) op.each_late(held[i], [](auto& vector, auto) { vector.stay_packed(); });
      }
    }
  }

  // By all lanes of the warp.
  template <class Cut, class At>
  __device__ __forceinline__ void store(Op& op, const Cut& cut, At at) {
    if constexpr (staged) wait_for_copies();
    if constexpr (Op::kChunks.in_bytes) op.scale_groups();
#pragma unroll
    for (int i = 0; i < kHeld; i++) {
      auto vector = at(i);
      if constexpr (staged) op.each_late(held[i], [&](auto& to, auto) { to.load_copies(stage(i)); });
      of_vector(op, i).template store<0>(held[i], store_at(cut, vector));
      if constexpr (kShifted) op.template store<1>(held[i], store_at(cut, vector));
    }
    // Shifted ones gain nothing from a pass of their own (dim 3001 0.942 of the roof either way).
    if constexpr (!kShifted) {
#pragma unroll
      for (int i = 0; i < kHeld; i++) op.template store<1>(held[i], store_at(cut, at(i)));
    }
#pragma unroll
    for (int i = kHeld; i < vectors; i++) {
      Held one = parked(op, i);
      op.template store<0>(one, store_at(cut, at(i)));
      op.template store<1>(one, store_at(cut, at(i)));
    }
  }

 private:
  // A thread's own chunks, past the registers.
  template <class Cut, class At>
  static __device__ __forceinline__ void park(const Op& op, const Cut& cut, At at) {
#pragma unroll
    for (int i = kHeld; i < vectors; i++) {
      Held nothing;
      op.each(nothing, [&](auto&, auto row) {
        if (at(i) < cut.vectors) start_copy16(parked_chunk(i), reinterpret_cast<const uint4*>(cut.at(row, at(i))));
      });
    }
  }

  static __device__ __forceinline__ Held parked(const Op& op, int i) {
    Held one;
    op.each(one, [&](auto& vector, auto) { vector.chunks[0] = *parked_chunk(i); });
    op.combine(one);
    return one;
  }

  static __device__ __forceinline__ uint4* parked_chunk(int i) {
    extern __shared__ uint4 chunks[];
    return chunks + (i - kHeld) * blockDim.x + threadIdx.x;
  }

  static __device__ __forceinline__ decltype(auto) of_vector(const Op& op, int i) {
    if constexpr (Op::kChunks.in_bytes)
      return op.template of_vector<vectors>(i);
    else
      return (op);
  }

  // This warp's part.
  static __device__ __forceinline__ uint4* stage(int i) {
    extern __shared__ uint4 chunks[];
    return chunks + Op::kChunks.late * (i * blockDim.x + threadIdx.x / 32 * 32);
  }

  template <class Cut, class Index>
  static __device__ __forceinline__ Place<Index> place_of(const Cut& cut, Index vector) {
    return {cut.vectors - vector, min(static_cast<int>(blockDim.x), 32), cut.goes_on};
  }

  // Whether the warp's rows of an operand lie at 16 bytes, so that none is shifted. By all lanes.
  static __device__ __forceinline__ bool all_at_16(int past) {
    return kSkipsUnneeded<Op, sharing, reading> && !__any_sync(~0u, past);
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
      if constexpr (kShifted) {
        int past = bytes_past_16(row + cut.head);
        if (!all_at_16(past)) return from.store_shifted(cut.at(row, vector), past, place_of(cut, vector));
      }
      from.store(cut.at(row, vector), place_of(cut, vector));
    };
  }
};

// The elements of a row before and behind its vectors. A thread holds the first of its own; more than one it has where
// few threads share a row, and those are read again for the result.
template <class Op>
struct Edges {
  using Held = typename Op::template Held<1, false, false>;
  Held first;

  template <class Cut, class Index>
  __device__ __forceinline__ void load(const Op& op, const Cut& cut, Index thread) {
    if (thread < cut.edge_count()) first = element(op, cut.edge(thread));
  }

  // f(held, index in the row) for all of this thread's, in order.
  template <class Cut, class Index, class F>
  __device__ __forceinline__ void each(const Op& op, const Cut& cut, Index thread, Index threads, F f) const {
    if (thread < cut.edge_count()) f(first, cut.edge(thread));
    for (Index i = thread + threads; i < cut.edge_count(); i += threads) f(element(op, cut.edge(i)), cut.edge(i));
  }

 private:
  template <class Index>
  static __device__ __forceinline__ Held element(const Op& op, Index i) {
    Held held;
    auto load = [&](auto& to, auto row) { to.load(row + i); };
    op.each(held, load);
    op.each_late(held, load);
    op.combine(held);
    return held;
  }
};

}  // namespace srmsnorm
