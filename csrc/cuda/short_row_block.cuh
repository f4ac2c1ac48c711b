// What the threads of a block of short rows tell each other, in shared memory: of its rows, and of results.
#pragma once
#include "plan.h"
#include "short_row_chunk.cuh"

namespace srmsnorm {

// What threads of a block tell each other of its rows. Places that have nothing may be read, and are not used.
template <class Op>
struct RowTotals {
  static constexpr int kPitch = kShortRowThreads + 4;  // so that a chunk's elements lie in different banks

  // What the chunk in which it begins has of its total; then, in the same place, what is made of all of it.
  union Row {
    typename Op::Total total;
    typename Op::Scalars scalars;
  };

  Row of_row[kPitch * Op::kElements];
  typename Op::Total of_chunk[kMostShortRowThreads];  // of the row that goes on in it

  // Of an element of a chunk, where rows are shorter than one.
  static __device__ __forceinline__ int place_of(int element, int chunk) { return element * kPitch + chunk; }

  // By its bytes: a choice of two addresses becomes two stores.
  __device__ __forceinline__ void put(const Part& part, int chunk, typename Op::Total total) {
    static_assert(alignof(typename Op::Total) <= alignof(Row), "chunks' are right behind rows'");
    constexpr int kOfRow = sizeof(Row), kOfChunk = sizeof(total), kRows = sizeof(of_row);
    int place = part.begins_row() ? part.row * kOfRow : kRows + chunk * kOfChunk;
    *reinterpret_cast<typename Op::Total*>(reinterpret_cast<char*>(this) + place) = total;
  }
};

// A block's results that lie otherwise in 16 bytes than its chunks, by way of shared memory: a thread stores what is 16
// bytes of memory, of its chunk and the next one. H200, input one element off and y not, bfloat16, 9 elements 0.79 of
// the roof for 0.62, with residual 0.85 for 0.66.
template <int N>
struct Stage {
  static constexpr int kMostPieces = Chunk<N>::kMost * N / 16;  // of a chunk
  uint4 pieces[kMostPieces * kMostShortRowThreads + 1];         // one more may be read, and is not used

  template <class E>
  struct OfChunk {
    alignas(16) E elements[N];
  };

  // to: where the thread's chunk is to lie. Of the block's first chunk the elements from `begin` on are stored, and
  // those behind, so many. By all threads of the block.
  template <class E>
  __device__ __forceinline__ void store(E* to, const OfChunk<E>& own, int begin, int count) {
    constexpr int kPieces = N * sizeof(E) / 16, kOf16 = 16 / sizeof(E);
    const int chunk = threadIdx.x, past = bytes_past_16(to), shift = past / sizeof(E);
    E* boundary = to - shift - chunk * N;  // before the first chunk
    const int first = shift + begin, end = first + count;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kPieces; i++) pieces[chunk * kPieces + i] = reinterpret_cast<const uint4*>(own.elements)[i];
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kPieces; j++) {
      const int i = chunk + j * blockDim.x, at = (i + 1) * kOf16;
      if (first <= at && at + kOf16 <= end)
        store_piece(reinterpret_cast<uint4*>(boundary + at), bytes_from(pieces[i], pieces[i + 1], 16 - past));
    }
    if (chunk < kOf16) store_edges(boundary, reinterpret_cast<const E*>(pieces) - shift, first, end, chunk);
  }

  // A function that is called.
  template <class E>
  __device__ __noinline__ void call_to_store(E* to, OfChunk<E> own, int begin, int count) {
    __builtin_assume(__isShared(pieces));
    store(to, own, begin, count);
  }

  // One element before the first 16 bytes that are stored as a whole and one behind the last, of each of the first
  // threads.
  template <class E>
  static __device__ __forceinline__ void store_edges(E* to, const E* staged, int first, int end, int thread) {
    constexpr int kOf16 = 16 / sizeof(E);
    const int whole = min((first + kOf16 - 1) / kOf16 * kOf16, end), last = max(end / kOf16 * kOf16, whole);
    if (first + thread < whole) to[first + thread] = staged[first + thread];
    if (last + thread < end) to[last + thread] = staged[last + thread];
  }
};

// What all of a block's rows are made of has been read when results are staged.
template <class Op>
union SharedOfBlock {
  RowTotals<Op> totals;
  Stage<Op::kElements> stage;
};

}  // namespace srmsnorm
