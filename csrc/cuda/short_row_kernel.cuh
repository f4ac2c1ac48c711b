// The kernel of short rows that are no whole vectors. A thread takes a chunk: the elements that 16 bytes of the main
// operand hold. Where rows follow each other without gaps, a chunk may have parts of several.
//
// It has next to nothing to do for each element, so that most of its time is what it does once: an H200 was at 0.83 of
// the roof with 205 instructions a thread (bfloat16, dim 9 to 31, forward), is at 0.91 with 180, and 0.98 where a block
// further on is prefetched as well. A thread of two chunks has fewer, but too few are on their way: 0.76.
#pragma once
#include "row_kernel.cuh"
#include "short_row_accesses.cuh"
#include "short_row_block.cuh"
#include "short_row_place.cuh"

namespace srmsnorm {

// The rows of a block, as one of its threads has them. An Op is as row_kernel.cuh says. A row is summed chunk by chunk,
// from one 16-byte boundary of the main operand to the next, and a chunk element by element: in an order that dim and
// the row's address alone decide.
template <class Op, Spacing spacing>
struct ShortRows : ShortRowPlace<Op, spacing> {
  using Place = ShortRowPlace<Op, spacing>;
  using typename Place::General;
  using Total = typename Op::Total;
  using Place::is_full, Place::is_among_others, Place::is_pair_full;
  using Place::kGapless, Place::args, Place::chunk, Place::dim, Place::start, Place::last, Place::part;
  using Place::rows, Place::first_row, Place::phase_of, Place::elements_in_block, Place::lanes_that_store;
  static constexpr int N = Op::kElements;

  SharedOfBlock<Op>& shared;
  RowTotals<Op>& totals;
  Chunk<N> loaded;
  typename Op::template Held<1, true, true> held[N];  // its elements

  __device__ __forceinline__ ShortRows(const General& general, SharedOfBlock<Op>& shared)
      : Place(general), shared(shared), totals(shared.totals) {}

  // Whether the chunk begins at 16 bytes in all operands that are read.
  __device__ __forceinline__ bool is_aligned(const Op& op) {
    uintptr_t addresses = 0;
    each_operand(op, held[0], loaded, OrAddresses{addresses, start});
    return spacing == Spacing::InPhase || addresses % 16 == 0;
  }

  // All operands in one way, and all threads of most blocks: else one waits for the other (H200, one element off, dim
  // 33, bfloat16, with residual 0.98 of the roof for 0.78 where a block's first and last thread went another way).
  __device__ __forceinline__ void load(const Op& op) {
    if (is_among_others()) {
      if (is_aligned(op))
        each_operand(op, held[0], loaded, CopyPieces<N>{start});
      else
        each_operand(op, held[0], loaded, CopyAcross<N>{start});
      if (!is_full()) each_operand(op, held[0], loaded, KeepSome<N>{part.first, last});
    } else if (is_full() && is_aligned(op)) {
      each_operand(op, held[0], loaded, CopyPieces<N>{start});
    } else {
      each_operand(op, held[0], loaded,
                   [&]<class E>(auto&, E* to, const E* row) { copy_some<N>(to, row + start, part.first, last); });
    }
  }

  __device__ __forceinline__ void unpack(const Op& op) {
    each_operand(op, held[0], loaded, StayPackedChunk<N>());
#pragma unroll
    for (int j = 0; j < N; j++) {
      each_operand(op, held[j], loaded, WidenElement{j});
      op.combine(held[j]);
    }
  }

  // Whether an element is behind the first part: asked of one number, whose bits become predicates at once.
  __device__ __forceinline__ unsigned elements_behind(const Part& p) const { return kGapless ? ~0u << p.end : 0; }
  static __device__ __forceinline__ bool is_behind(unsigned behind, int j) { return j > 0 && behind >> j & 1; }

  // Of rows no shorter than a chunk: of the chunk's first part, and of what is behind it, which is the next row's.
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
    if (kGapless && part.end < last) totals.of_row[part.row + 1].total = rest;
  }

  __device__ __forceinline__ Op opened(int row) const {
    Op op(args, first_row() + row);
    op.open_rest(args, first_row() + row);
    return op;
  }

  // The first rows that a thread reduces, one unless they are shorter than a chunk: with numbers of their own, as a
  // gradient's rstd, on their way together with the chunks. All eight would take too many registers (bfloat16, H200,
  // backward of 5 and 7 elements 0.74 and 0.76 of the roof, with four 0.80 and 0.84).
  static constexpr int kOpen = Op::kChunks.backward ? std::min(N, 4) : 1;
  struct OwnRows {
    Op of[kOpen];
  };

  template <size_t... k>
  __device__ __forceinline__ OwnRows open_own_rows(std::index_sequence<k...>) const {
    Op op(args, first_row() + (kGapless || chunk >= rows() ? 0 : chunk));
    OwnRows own{{(static_cast<void>(k), op)...}};
#pragma unroll
    for (int i = 0; i < (are_shorter() ? kOpen : 1) && i * kShortRowThreads < rows(); i++) {
      const int row = chunk + i * kShortRowThreads;
      if (row < rows()) own.of[i].open_rest(args, first_row() + row);
    }
    return own;
  }

  // What the chunks have of a row is added by one thread, which makes of it what all of the row's elements need.
  __device__ __forceinline__ void reduce_row(int row, Op& op) const {
    unsigned begin = phase_of(row) + (kGapless ? row * dim : 0);  // to divide a signed one takes more instructions
    const Total* chunks = totals.of_chunk + (kGapless ? 0 : row * args.block.places);
    Total total = totals.of_row[row].total;
#pragma unroll 1
    for (unsigned i = begin / N + 1; i <= (begin + dim - 1) / N; i++) total += chunks[i];
    totals.of_row[row].scalars = finished(op, total, row);
  }

  __device__ __forceinline__ typename Op::Scalars finished(Op& op, Total total, int row) const {
    op.finish(total, args);
    op.store_row(args, first_row() + row);
    return op.scalars();
  }

  __device__ __forceinline__ void make_element(Chunk<N>& results, int j, const Op& op) const {
    each_result(op, held[j], results, SetElement{j});
  }

  // To words, in each of two ways before they meet: else a register for each half goes on from there, and a spill.
  __device__ __forceinline__ void pack(Chunk<N>& results, const Op& op) const {
    each_result(op, held[0], results, StayPackedChunk<N>());
  }

  // The results of the first part's elements, and of the next row's.
  __device__ __forceinline__ void make_parts(Chunk<N>& results, Op op) const {
    Op of_next = op;
    op.take(totals.of_row[part.row].scalars);
    of_next.take(totals.of_row[part.row + (kGapless ? 1 : 0)].scalars);
    const unsigned behind = elements_behind(part);
#pragma unroll
    for (int j = 0; j < N; j++) {
      const Op own = is_behind(behind, j) ? of_next : op;  // a copy: one that has an address lies in memory
      make_element(results, j, own);
    }
    pack(results, op);
  }

  // Rows shorter than a chunk, which may have parts of many: each element has a place, for the total of its row from
  // the row's or the chunk's begin on, and where a row ends in the end for what is made of all of it. A thread's rows
  // are as many apart as a block has threads, so that all of them begin and end at the same element of a chunk. Where
  // there are gaps they are rows like any other, and the kernel has none of this code.
  __device__ __forceinline__ bool are_shorter() const { return kGapless && dim < N; }

  // The elements with which a row begins, by bits: behind the first part, and as far as the next row behind the chunk.
  __device__ __forceinline__ unsigned begins() const { return args.block.multiples << (part.begin + dim); }

  __device__ __forceinline__ void reduce_elements(const Op& op) const {
    const unsigned begun = begins();
    Total sum{};
#pragma unroll
    for (int j = 0; j < N; j++) {
      if (j > 0 && begun >> j & 1) sum = Total{};
      sum = op.add_term(sum, held[j]);
      totals.of_row[totals.place_of(j, chunk)].total = sum;
    }
  }

  __device__ __forceinline__ void reduce_shorter_rows(OwnRows& own) const {
    const unsigned begin = args.block.phase + chunk * dim, end = begin + dim - 1;
    int back = begin / N == end / N ? 0 : totals.place_of(end % N, end / N) - totals.place_of(N - 1, begin / N);
    auto* place = totals.of_row + totals.place_of(end % N, end / N);
    const int n = rows();
    int row = chunk;
#pragma unroll 1
    while (row < n) {
#pragma unroll
      for (int i = 0; i < kOpen; i++) {
        if (i == 0 || row < n) {
          Total total = place->total;
          if constexpr (kOpen == 1) forget(back);
          if (back) total += place[-back].total;
          place->scalars = finished(own.of[i], total, row);
          const int later = row + kOpen * kShortRowThreads;
          if (later < n) own.of[i].open_rest(args, first_row() + later);
        }
        row += kShortRowThreads;
        place += kShortRowThreads / N * dim;
      }
    }
  }

  // The compiler must not know that a thread's rows are alike: it makes a loop of those within a chunk and another one
  // of those across two, which run one after the other (bfloat16, dim 3, H200, forward 0.72 of the roof for 0.87).
  static __device__ __forceinline__ void forget(int& value) { asm volatile("" : "+r"(value)); }

  // Whether there are registers for all that eight rows need: not of three operands, nor beside a gate, a conversion or
  // a quantisation.
  static constexpr bool kReadFirst =
      N > 4 && Op::kChunks.all <= 2 && !(Op::kChunks.gated || Op::kChunks.few || Op::kChunks.in_bytes);

  // From the last element on: where a row ends is what is needed of it. Of the eight of 16 bits all are read first,
  // whether or not a row ends there, as each would wait for the one before (H200, forward of 1, 2, 3 elements 0.64,
  // 0.83, 0.90 of the roof for 0.62, 0.80, 0.87); of the four of float32 it loses.
  __device__ __forceinline__ void make_elements(Chunk<N>& results, Op op) const {
    const unsigned ends = begins() >> 1;
    const unsigned last_end = N - 2 + __ffs(ends >> (N - 1));
    auto scalars_at = [&](int j) { return totals.of_row[totals.place_of(j, chunk)].scalars; };
    typename Op::Scalars read[N];
#pragma unroll
    for (int j = 0; kReadFirst && j < N - 1; j++) read[j] = scalars_at(j);
    op.take(totals.of_row[totals.place_of(last_end % N, chunk + last_end / N)].scalars);
#pragma unroll
    for (int j = N - 1; j >= 0; j--) {
      if (j < N - 1 && ends >> j & 1) op.take(kReadFirst ? read[j] : scalars_at(j));
      make_element(results, j, op);
    }
    pack(results, op);
  }

  // None is where rstd alone is asked for.
  __device__ __forceinline__ bool is_any_wanted(const Op& op, Chunk<N>& results) const {
    bool any = false;
    each_result(op, held[0], results, AnyWanted{any});
    return any;
  }

  // Words wait for the sum and are unpacked again, unless something was made of them: else a register for each half,
  // and a spill (bfloat16, dim 9, H200, backward 0.87 of the roof for 0.73).
  __device__ __forceinline__ void store() {
    Chunk<N> results;
    Op op = opened(kGapless ? 0 : part.row);
    if (!is_any_wanted(op, results)) return;
    if constexpr (!Op::kCombines) unpack(op);
    if (!are_shorter())
      make_parts(results, op);
    else if constexpr (kGapless)
      make_elements(results, op);
    each_result(op, held[0], results, [&]<class E>(const auto& result, const E* elements, E* row, bool wanted) {
      if (!wanted) return;
      if constexpr (requires { result.convert; })
        result.convert(reinterpret_cast<const E(&)[N]>(*elements),
                       [&](const auto& converted, auto* to) { write_chunk(to + start, converted); });
      else
        write_chunk(row + start, elements);
    });
  }

  template <class E>
  __device__ __forceinline__ void write_chunk(E* to, const E* elements) const {
    constexpr int kBytes = N * sizeof(E);
    constexpr bool kWhole = kBytes % 16 == 0;
    if constexpr (spacing == Spacing::Shifted && kWhole)
      if (bytes_past_16(to) > 0) return stage_chunk(to, elements);
    if constexpr (kGapless && kBytes == 32)
      if (store_in_pairs(to, elements, is_pair_full(), lanes_that_store())) return;
    const bool aligned = (kGapless && kWhole) || reinterpret_cast<uintptr_t>(to) % sizeof(Piece<kBytes>) == 0;
    if (is_full() && aligned) return store_pieces<kBytes>(to, elements);
    store_some<N>(to, elements, part.first, last);
  }

  // By a function that is called, unless one operand is read: as part of the kernel it has words spilled (H200, input
  // one element off and y not, dim 9, bfloat16, with residual 0.68 of the roof for 0.83).
  template <class E>
  __device__ __forceinline__ void stage_chunk(E* to, const E* elements) const {
    const auto& own = *reinterpret_cast<const typename Stage<N>::template OfChunk<E>*>(elements);
    if constexpr (Op::kChunks.all > 1)
      shared.stage.call_to_store(to, own, args.block.phase, elements_in_block());
    else
      shared.stage.store(to, own, args.block.phase, elements_in_block());
  }

  // Of the block that many further on, unless it is the last one. By one thread.
  __device__ __forceinline__ void prefetch_ahead() {
    const int ahead = args.block.ahead;
    if (!kGapless || chunk > 0 || ahead == 0 || blockIdx.x + ahead + 1 >= gridDim.x) return;
    const int elements = args.block.elements;
    each_operand(Op(args, 0), held[0], loaded, PrefetchElements{int64_t{ahead} * elements, elements});
  }

  __device__ __forceinline__ void take() {
    OwnRows own = open_own_rows(std::make_index_sequence<kOpen>());
    prefetch_ahead();
    if (part.is_there()) {
      Op op(args, first_row() + (kGapless ? 0 : part.row));
      load(op);
      unpack(op);
      if (!are_shorter())
        reduce_parts(op);
      else if constexpr (kGapless)
        reduce_elements(op);
    }
    __syncthreads();
    if (!are_shorter()) {
      if (chunk < rows()) reduce_row(chunk, own.of[0]);
    } else if constexpr (kGapless) {
      reduce_shorter_rows(own);
    }
    __syncthreads();
    // What is staged all threads store together: one without a chunk makes something of nothing, which is not stored.
    // Asked of what is kept anyway: what is_there() said would be a word more, and spilled.
    if (part.first < last || spacing == Spacing::Shifted) store();
  }
};

// Blocks of the most threads that a multiprocessor is to have room for, as many as spill next to nothing (sm_90); 0:
// left to the compiler. H200, dim 31, before it took fewer instructions, forward 0.85 of the roof with 8, 0.79 with 6,
// with residual 0.95 and 0.88; backward 0.86 with 6, with 8 0.47. Dim 33, a gate's gradient in float16 0.84 with 5,
// 0.77 with what the compiler took; gated in float32 1.03 with 8, 0.94 with 6. Dim 1, backward in float32 0.75
// with what the compiler took, 0.71 with 6.
template <class Op>
constexpr int short_row_blocks() {
  constexpr Chunks chunks = Op::kChunks;
  constexpr int size = sizeof(typename Op::Element);
  if (size > 4 || chunks.in_bytes || (chunks.few && chunks.all == 1)) return 0;
  if (chunks.gated || chunks.few) return chunks.backward ? 5 : size > 2 ? 8 : 6;
  if (chunks.all > 3) return 0;
  if (chunks.all == 3) return chunks.backward ? 5 : 6;
  return !chunks.backward ? 8 : size > 2 ? 0 : 6;
}

// Whether so many threads a block are enough for rows of short dims: a place for each row; where they are shorter than
// a chunk, they are the block's threads.
constexpr bool are_enough(int threads) {
  for (int dim = 1; dim < kMostShortRowThreads; dim++) {
    const int of_block = threads_for_short_rows(dim);
    if ((of_block - 1) / dim > threads || (dim < 8 && of_block != threads)) return false;
  }
  return true;
}
static_assert(are_enough(kShortRowThreads));

template <class Op>
__global__ void __launch_bounds__(kMostShortRowThreads, short_row_blocks<Op>())
    short_row_kernel(const __grid_constant__ typename Op::template Args<false> args) {
  __shared__ SharedOfBlock<Op> shared;
  if (args.block.spacing == Spacing::InPhase)
    ShortRows<Op, Spacing::InPhase>(args, shared).take();
  else if (args.block.spacing == Spacing::Shifted)
    ShortRows<Op, Spacing::Shifted>(args, shared).take();
  else
    ShortRows<Op, Spacing::Apart>(args, shared).take();
}

}  // namespace srmsnorm
