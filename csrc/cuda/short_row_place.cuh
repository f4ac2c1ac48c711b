// Where the rows of a block of short rows lie, as one of its threads sees it: which elements its chunk has of them.
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

// Rows that are apart have places for as many chunks as each may need.
template <class Op, Spacing spacing>
struct ShortRowPlace {
  static constexpr bool kGapless = spacing != Spacing::Apart;
  using General = typename Op::template Args<false>;
  using Args = std::conditional_t<kGapless, GaplessArgs<Op>, General>;
  static constexpr int N = Op::kElements;

  const Args& args;
  const int dim, chunk;
  int start, last;  // of the chunk: its first element among the block's (the row's, where there are gaps), and before
                    // which are those of rows
  Part part;        // its first

  __device__ __forceinline__ ShortRowPlace(const General& general)
      : args(static_cast<const Args&>(general)), dim(static_cast<int>(args.dim)), chunk(threadIdx.x) {
    if constexpr (kGapless) {
      start = chunk * N - args.block.phase;
      last = min(elements_in_block() - start, N);
      int of_rows = max(start, 0), row = __umulhi(2 * of_rows, args.block.inverse_dim);
      int begin = row * dim - start;
      part = {row, begin, of_rows - start, min(begin + dim, last)};
    } else {
      int row = chunk / args.block.places;
      bool is_there = row < rows();
      int begin = is_there ? phase_of(row) - chunk % args.block.places * N : N;
      start = -begin;
      last = min(begin + dim, N);
      part = {is_there ? row : 0, begin, max(begin, 0), last};
    }
  }

  __device__ __forceinline__ bool in_last_block() const { return blockIdx.x + 1 == gridDim.x; }
  __device__ __forceinline__ int rows() const { return in_last_block() ? args.block.last_rows : args.block.rows; }
  __device__ __forceinline__ int elements_in_block() const {
    return in_last_block() ? args.block.last_elements : args.block.elements;
  }
  __device__ __forceinline__ int64_t first_row() const {
    return int64_t{blockIdx.x} * static_cast<uint32_t>(args.block.rows);
  }

  // Elements past 16 bytes.
  __device__ __forceinline__ int phase_of(int row) const {
    if constexpr (kGapless)
      return args.block.phase;
    else
      return bytes_past_16(Op(args, first_row() + row).begin()) / static_cast<int>(sizeof(typename Op::Element));
  }

  // Whether all elements of the chunk are rows'.
  __device__ __forceinline__ bool is_full() const { return part.first == 0 && last == N; }

  // Whether there are two chunks and more of other blocks' rows before the block's and behind them. Behind a block that
  // is followed by the last one there may be less.
  __device__ __forceinline__ bool is_among_others() const {
    return kGapless && blockIdx.x > 0 && blockIdx.x + 2 < gridDim.x;
  }

  // Whether all elements of the even one of two chunks and of the odd one are rows'.
  __device__ __forceinline__ bool is_pair_full() const {
    const int first = start - chunk % 2 * N;
    return first >= 0 && first + 2 * N <= elements_in_block();
  }

  // Of this warp: all, or those with a chunk.
  __device__ __forceinline__ unsigned lanes_that_store() const {
    const int others = (elements_in_block() - start + N - 1) / N, lanes = threadIdx.x % 32 + others;
    return spacing == Spacing::Shifted || lanes >= 32 ? ~0u : ~(~0u << lanes);
  }
};

}  // namespace srmsnorm
