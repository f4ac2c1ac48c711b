// What a thread holds of a row: its vectors, and its elements before and behind the row's vectors.
#pragma once
#include "accesses.cuh"
#include "instances.h"

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

  __device__ __forceinline__ Folded(Index thread, Index)
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
  static constexpr bool kAsksIfAligned = kSkipsUnneeded<Op, sharing, reading>;
  Held held[kHeld];

  // All loads before the first use: what stands between two loads keeps the second one waiting.
  template <class Cut, class At>
  __device__ __forceinline__ void load(const Op& op, const Cut& cut, At at) {
    if constexpr (kHeld < vectors) park(op, cut, at);
#pragma unroll
    for (int i = 0; i < kHeld; i++) {
      auto vector = at(i);
      if (vector < cut.vectors) {
        auto load = load_at<kKept, kShifted>(cut, vector);
        op.each(held[i], load);
        if constexpr (!staged) op.each_late(held[i], load);
      } else {
        op.each(held[i], Clear());
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
    wait_for_copies();
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
    const PutInPlace<Cut, kAsksIfAligned> put{cut};
#pragma unroll
    for (int i = 0; i < kHeld; i++) {
      if constexpr (kShifted) op.each(held[i], put), op.each_late(held[i], put);
      op.combine(held[i]);
    }
  }

  __device__ __forceinline__ void stay_packed(const Op& op) {
#pragma unroll
    for (int i = 0; i < kHeld; i++) {
      op.each(held[i], StayPacked());
      if constexpr (!staged) op.each_late(held[i], StayPacked());
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
      if constexpr (Op::kChunks.in_bytes)
        op.template of_vector<vectors>(i).template store<0>(held[i], store_at<kShifted, kAsksIfAligned>(cut, vector));
      else
        op.template store<0>(held[i], store_at<kShifted, kAsksIfAligned>(cut, vector));
      if constexpr (kShifted && Op::kPasses > 1)
        op.template store<1>(held[i], store_at<kShifted, kAsksIfAligned>(cut, vector));
    }
    // Shifted ones gain nothing from a pass of their own (dim 3001 0.942 of the roof either way).
    if constexpr (!kShifted && Op::kPasses > 1) {
#pragma unroll
      for (int i = 0; i < kHeld; i++) op.template store<1>(held[i], store_at<kShifted, kAsksIfAligned>(cut, at(i)));
    }
    if constexpr (kHeld < vectors) {
#pragma unroll
      for (int i = kHeld; i < vectors; i++)
        store_all(op, parked(op, i), store_at<kShifted, kAsksIfAligned>(cut, at(i)));
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

  // This warp's part.
  static __device__ __forceinline__ uint4* stage(int i) {
    extern __shared__ uint4 chunks[];
    return chunks + Op::kChunks.late * (i * blockDim.x + threadIdx.x / 32 * 32);
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

  // By all of this thread's, in order.
  template <class Cut, class Index, class Total>
  __device__ __forceinline__ Total add(const Op& op, const Cut& cut, Index thread, Index threads, Total total) const {
    each(op, cut, thread, threads, [&](const Held& held, Index) { total = op.add_term(total, held); });
    return total;
  }

  template <class Cut, class Index>
  __device__ __forceinline__ void store(const Op& op, const Cut& cut, Index thread, Index threads) const {
    each(op, cut, thread, threads, [&](const Held& held, Index i) { store_all(op, held, StoreElement<Index>{i}); });
  }

 private:
  // f(held, index in the row).
  template <class Cut, class Index, class F>
  __device__ __forceinline__ void each(const Op& op, const Cut& cut, Index thread, Index threads, F f) const {
    if (thread < cut.edge_count()) f(first, cut.edge(thread));
    for (Index i = thread + threads; i < cut.edge_count(); i += threads) f(element(op, cut.edge(i)), cut.edge(i));
  }

  template <class Index>
  static __device__ __forceinline__ Held element(const Op& op, Index i) {
    Held held;
    op.each(held, LoadElement<Index>{i});
    op.each_late(held, LoadElement<Index>{i});
    op.combine(held);
    return held;
  }
};

}  // namespace srmsnorm
