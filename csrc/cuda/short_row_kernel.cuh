// The kernel of short rows that are no whole vectors. A thread takes a chunk: the elements that 16 bytes of the main
// operand hold. Where rows follow each other without gaps, a chunk may have parts of several.
//
// It has next to nothing to do for each element, so that most of its time is what it does once: an H200 was at 0.83 of
// the roof with 205 instructions a thread (bfloat16, dim 9 to 31, forward), is at 0.91 with 180, and 0.98 where a block
// further on is prefetched as well. A thread of two chunks has fewer, but too few are on their way: 0.76.
#pragma once
#include "row_kernel.cuh"
#include "short_row_block.cuh"

namespace srmsnorm {

// The rows of a block, as one of its threads has them. An Op is as row_kernel.cuh says. A row is summed chunk by chunk,
// from one 16-byte boundary of the main operand to the next, and a chunk element by element: in an order that dim and
// the row's address alone decide. gapless: rows follow each other without gaps in all operands; else each has places
// for as many chunks as it may need.
template <class Op, bool gapless>
struct ShortRows {
  using General = typename Op::template Args<false>;
  using Args = std::conditional_t<gapless, GaplessArgs<Op>, General>;
  using Total = typename Op::Total;
  static constexpr int N = Op::kElements;

  const Args& args;
  RowTotals<Op>& totals;
  const int dim, chunk;
  int start, last;  // of the chunk: its first element among the block's (the row's, where there are gaps), and before
                    // which are those of rows
  Part part;        // its first
  Chunk<N> loaded;
  typename Op::template Held<1, true, true> held[N];  // its elements

  __device__ __forceinline__ ShortRows(const General& general, RowTotals<Op>& totals)
      : args(static_cast<const Args&>(general)), totals(totals), dim(static_cast<int>(args.dim)), chunk(threadIdx.x) {
    if constexpr (gapless) {
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
    if constexpr (gapless)
      return args.block.phase;
    else
      return bytes_past_16(Op(args, first_row() + row).begin()) / static_cast<int>(sizeof(typename Op::Element));
  }

  // f(held, pointer to the row, its elements in the chunk) of every operand.
  template <class Held, class F>
  __device__ __forceinline__ void each_operand(const Op& op, Held& held, F f) {
    int i = 0;
    auto next = [&]<class E>(auto& to, const E* row) { f(to, row, loaded.template elements<E>(i++)); };
    op.each(held, next);
    op.each_late(held, next);
  }

  // Whether all elements of the chunk are rows'.
  __device__ __forceinline__ bool is_full() const { return part.first == 0 && last == N; }

  // Whether so are those that lie in the same 16 bytes of any operand, before and behind them. Behind a block that is
  // followed by the last one there may be fewer than a chunk has.
  __device__ __forceinline__ bool is_surrounded() const {
    return gapless && is_full() && (blockIdx.x > 0 || start >= N) &&
           (blockIdx.x + 2 < gridDim.x || elements_in_block() - start >= 2 * N);
  }

  // All operands in one way: else one waits for the other.
  __device__ __forceinline__ void load(const Op& op) {
    uintptr_t addresses = 0;
    each_operand(op, held[0], [&](auto&, auto row, auto) { addresses |= reinterpret_cast<uintptr_t>(row + start); });
    if (is_full() && addresses % 16 == 0)
      each_operand(op, held[0],
                   [&]<class E>(auto&, const E* row, E* to) { copy_pieces<N * sizeof(E)>(to, row + start); });
    else if (is_surrounded())
      each_operand(op, held[0],
                   [&]<class E>(auto&, const E* row, E* to) { copy_across<N * sizeof(E)>(to, row + start); });
    else
      each_operand(op, held[0],
                   [&]<class E>(auto&, const E* row, E* to) { copy_some<N>(to, row + start, part.first, last); });
  }

  __device__ __forceinline__ void unpack(const Op& op) {
    each_operand(op, held[0], []<class E>(auto&, const E*, E* elements) { stay_packed<N * sizeof(E)>(elements); });
#pragma unroll
    for (int j = 0; j < N; j++) {
      each_operand(op, held[j],
                   [&]<class E>(auto& to, const E*, const E* elements) { to.element[0] = widened(elements, j); });
      op.combine(held[j]);
    }
  }

  // Whether an element is behind the first part: asked of one number, whose bits become predicates at once.
  __device__ __forceinline__ unsigned elements_behind(const Part& p) const { return gapless ? ~0u << p.end : 0; }
  static __device__ __forceinline__ bool is_behind(unsigned behind, int j) { return j > 0 && behind >> j & 1; }

  // The parts of the chunk: of the first one and of what is behind it at once, which is one more where a row is no
  // shorter than a chunk.
  __device__ __forceinline__ void reduce_parts(const Op& op) const {
    Total sum{}, rest{};
    const unsigned behind = elements_behind(part);
#pragma unroll
    for (int j = 0; j < N; j++) {
      if (is_behind(behind, j))
        rest = op.add_term(rest, held[j]);
      else
        sum = op.add_term(sum, held[j]);
    }
    totals.put(part, chunk, sum);
    if (!gapless) return;
    if (part.end < last) totals.of_row[part.row + 1].total = rest;
    if (dim >= N) return;
    for (Part p = part.next(dim, last); p.is_there(); p = p.next(dim, last)) {
      sum = Total{};
#pragma unroll
      for (int j = 0; j < N; j++)
        if (p.has(j)) sum = op.add_term(sum, held[j]);
      totals.of_row[p.row].total = sum;
    }
  }

  __device__ __forceinline__ Op opened(int row) const {
    Op op(args, first_row() + row);
    op.open_rest(args, first_row() + row);
    return op;
  }

  // What the chunks have of a row is added by one thread, which makes of it what all of the row's elements need.
  __device__ __forceinline__ void reduce_row(int row, Op op) const {
    unsigned begin = phase_of(row) + (gapless ? row * dim : 0);  // to divide a signed one takes more instructions
    const Total* chunks = totals.of_chunk + (gapless ? 0 : row * args.block.places);
    Total total = totals.of_row[row].total;
#pragma unroll 1
    for (unsigned i = begin / N + 1; i <= (begin + dim - 1) / N; i++) total += chunks[i];
    op.finish(total, args);
    op.store_row(args, first_row() + row);
    totals.of_row[row].scalars = op.scalars();
  }

  // The results of the elements before the part's end by op, of those behind it by of_next.
  template <bool all>
  __device__ __forceinline__ void make(Chunk<N>& results, const Part& p, const Op& op, const Op& of_next) const {
    const unsigned behind = elements_behind(p);
#pragma unroll
    for (int j = 0; j < N; j++) {
      if (!all && j < p.first) continue;
      Op own = is_behind(behind, j) ? of_next : op;
      int i = 0;
      auto set = [&]<class E>(const auto& from, E*, bool) { from.store(results.template elements<E>(i++) + j); };
      own.template store<0>(held[j], set);
      own.template store<1>(held[j], set);
    }
  }

  // Words wait for the sum and are unpacked again, unless something was made of them: else a register for each half,
  // and a spill (bfloat16, dim 9, H200, backward 0.87 of the roof for 0.73).
  __device__ __forceinline__ void store() {
    Chunk<N> results;
    Op op = opened(gapless ? 0 : part.row), of_next = op;
    if constexpr (!Op::kCombines) unpack(op);
    op.take(totals.of_row[part.row].scalars);
    of_next.take(totals.of_row[part.row + (gapless ? 1 : 0)].scalars);
    make<true>(results, part, op, of_next);
    if (gapless && dim < N)
      for (Part p = part.next(dim, last).next(dim, last); p.is_there(); p = p.next(dim, last)) {
        of_next.take(totals.of_row[p.row].scalars);
        make<false>(results, p, of_next, of_next);
      }
    int i = 0;
    auto write = [&]<class E>(const auto&, E* row, bool wanted) {
      const E* elements = results.template elements<E>(i++);
      if (wanted) write_chunk(row + start, elements);
    };
    op.template store<0>(held[0], write);
    op.template store<1>(held[0], write);
  }

  template <class E>
  __device__ __forceinline__ void write_chunk(E* to, const E* elements) const {
    constexpr int kBytes = N * sizeof(E);
    const bool aligned = reinterpret_cast<uintptr_t>(to) % sizeof(Piece<kBytes>) == 0;
    if (is_full() && aligned) return copy_pieces<kBytes>(to, elements);
    if constexpr (gapless && kBytes == 16)
      if (!aligned) {
        uint4 chunk = *reinterpret_cast<const uint4*>(elements);
        return store_across<sizeof(E)>(to, chunk, part.first, last, lanes_with_chunks());
      }
    store_some<N>(to, elements, part.first, last);
  }

  // Of this warp.
  __device__ __forceinline__ unsigned lanes_with_chunks() const {
    const int others = (elements_in_block() - start + N - 1) / N, lanes = threadIdx.x % 32 + others;
    return lanes < 32 ? ~(~0u << lanes) : ~0u;
  }

  // Of the block that many further on, unless it is the last one. By one thread.
  __device__ __forceinline__ void prefetch_ahead() {
    const int ahead = args.block.ahead;
    if (!gapless || chunk > 0 || ahead == 0 || blockIdx.x + ahead + 1 >= gridDim.x) return;
    const int elements = args.block.elements;
    each_operand(Op(args, 0), held[0], [&]<class E>(auto&, const E* row, auto) {
      prefetch_bytes(row + int64_t{ahead} * elements, int64_t{elements} * sizeof(E));
    });
  }

  // A row's own numbers, as a gradient's rstd, are on their way together with the chunks.
  __device__ __forceinline__ void take() {
    const bool has_row = chunk < rows();
    Op of_own_row(args, first_row() + (gapless || !has_row ? 0 : chunk));
    if (has_row) of_own_row.open_rest(args, first_row() + chunk);
    prefetch_ahead();
    if (part.is_there()) {
      Op op(args, first_row() + (gapless ? 0 : part.row));
      load(op);
      unpack(op);
      reduce_parts(op);
    }
    __syncthreads();
    if (has_row) reduce_row(chunk, of_own_row);
    for (int row = chunk + blockDim.x; row < rows(); row += blockDim.x) reduce_row(row, opened(row));
    __syncthreads();
    if (part.is_there()) store();
  }
};

// Blocks of the most threads that a multiprocessor is to have room for; 0: left to the compiler, as backward in
// float32, which takes as many registers as 6 leave. As many as spill next to nothing (sm_90; on sm_80 the norm with a
// residual spills 28 bytes): dim 31, H200, before it took fewer instructions, forward 0.85 of the roof with 8, 0.79
// with 6, with residual 0.95 and 0.88; backward 0.86 with 6, with 8 0.47.
template <class Op>
constexpr int short_row_blocks() {
  constexpr Chunks chunks = Op::kChunks;
  constexpr int size = sizeof(typename Op::Element);
  if (size > (chunks.backward ? 2 : 4) || chunks.few || chunks.in_bytes || chunks.gated || chunks.all > 3) return 0;
  return chunks.all == 3 ? 5 : chunks.backward ? 6 : 8;
}

// Whether a block has so many rows at most for each element of a chunk.
constexpr bool rows_fit(int most) {
  for (int dim = 1; dim < kMostShortRowThreads; dim++)
    if ((threads_for_short_rows(dim) - 1) / dim > most) return false;
  return true;
}
static_assert(rows_fit(kShortRowThreads), "the kernel's places for rows");

template <class Op>
__global__ void __launch_bounds__(kMostShortRowThreads, short_row_blocks<Op>())
    short_row_kernel(const __grid_constant__ typename Op::template Args<false> args) {
  __shared__ RowTotals<Op> totals;
  if (args.block.gapless)
    ShortRows<Op, true>(args, totals).take();
  else
    ShortRows<Op, false>(args, totals).take();
}

}  // namespace srmsnorm
