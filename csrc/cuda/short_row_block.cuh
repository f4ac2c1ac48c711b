// What the threads of a block of short rows have in common: where its rows lie, and what they tell each other of them.
#pragma once
#include "kernel_args.h"
#include "short_row_chunk.cuh"

namespace srmsnorm {

// The operands of an Op that have whole rows, by bits.
template <class Op>
constexpr unsigned whole_rows() {
  typename Op::Call call{};
  Op::Call::zip([](Use use, Rows& rows) { rows.strides[0] = use.whole_row; }, call);
  unsigned bits = 0;
  Op::Operands::each(call, [&](const Rows& rows, int i) { bits |= static_cast<unsigned>(rows.strides[0]) << i; });
  return bits;
}

// The arguments where rows follow each other without gaps: a whole row's operands as they lie at the block's first one.
template <class Op>
struct GaplessArgs : Op::template Args<false> {
  using General = typename Op::template Args<false>;
  static constexpr bool kFlat = true;
  static constexpr unsigned kWholeRows = whole_rows<Op>();

  __device__ __forceinline__ int64_t offset(int i, int64_t row) const {
    if (kWholeRows >> i & 1) return int64_t{blockIdx.x} * static_cast<uint32_t>(this->block.elements);
    return General::offset(i, row);
  }
};

// What threads of a block tell each other of its rows. One more of them than there are may be read, and is not used.
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

}  // namespace srmsnorm
