// Where a row lies: where it begins in each operand, and how it is cut into vectors and edges.
#pragma once
#include "chunk.cuh"
#include "kernel_args.h"

namespace srmsnorm {

// Where a row begins in the operands from first to before end, in elements.
template <class Args, int first, int end>
struct RowOffsets {
  int64_t of[end - first];

  // As if the innermost level went on, and a step for every level that has ended. Of few instructions: packed qkv of
  // dims 64 to 256, H200, forward 0.98 of the roof; 0.83 with the index in each level, divided in 64 bits.
  __device__ __forceinline__ RowOffsets(const Args& args, int64_t row) {
#pragma unroll
    for (int i = first; i < end; i++) of[i - first] = args.offset(i, row);
    if constexpr (!Args::kFlat) {
      uint32_t index = static_cast<uint32_t>(row);
#pragma unroll 1
      for (int level = 0; level < args.levels - 1; level++) {
        index = args.ends[level].size.quotient(index);
#pragma unroll
        for (int i = first; i < end; i++) of[i - first] += index * args.ends[level].steps[i];
      }
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

// How a row is cut: whole vectors from the first 16-byte boundary on, and the elements before and behind them; where
// from_begin, from its begin on. goes_on: as Place has it.
template <class Op, bool edges, class RowIndex>
struct Cut {
  using Index = RowIndex;
  static constexpr int N = Op::kElements;
  Index head, vectors, tail, dim;  // tail: where the elements behind the vectors begin
  bool goes_on;

  __device__ __forceinline__ Cut(const typename Op::Element* row, Index dim, bool from_begin, bool goes_on)
      : head(0), dim(dim), goes_on(goes_on) {
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

}  // namespace srmsnorm
