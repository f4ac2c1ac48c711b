// The kernel of short rows that are no whole vectors. A thread takes a chunk: the elements that 16 bytes of the main
// operand hold. Where rows follow each other without gaps, a chunk may have parts of several.
#pragma once
#include "row_kernel.cuh"

namespace srmsnorm {

// The part of a chunk that belongs to one row: the elements from first to before end. Element j of the chunk is the
// row's element j - begin.
struct Part {
  int row, begin, first, end;

  __device__ __forceinline__ bool is_there() const { return first < end; }
  __device__ __forceinline__ bool has(int j) const { return first <= j && j < end; }
  __device__ __forceinline__ bool begins_row() const { return begin >= first; }

  // The next row's, in a chunk that has elements before last.
  __device__ __forceinline__ Part next(int dim, int last) const {
    return {row + 1, begin + dim, end, min(begin + 2 * dim, last)};
  }
};

// A chunk of each operand that an Op reads, or of each result, in the order in which it names them: in registers, as it
// lies in memory.
template <int N>
struct Chunk {
  static constexpr int kMost = N == 2 ? 8 : 4;  // bytes of an element
  alignas(16) char of[4][kMost * N];

  template <class E>
  __device__ __forceinline__ E* elements(int operand) {
    static_assert(sizeof(E) <= kMost);
    return reinterpret_cast<E*>(of[operand]);
  }
};

// The largest pieces in which so many bytes are copied.
template <int bytes>
using Piece = std::conditional_t<bytes % 16 == 0, uint4, std::conditional_t<bytes == 8, uint2, uint32_t>>;

// Whether a chunk can be copied at once: all of its elements are rows', and the address allows it.
template <int N, class E>
__device__ __forceinline__ bool is_whole(const E* chunk, int first, int last) {
  return first == 0 && last == N && reinterpret_cast<uintptr_t>(chunk) % sizeof(Piece<N * sizeof(E)>) == 0;
}

template <int bytes>
__device__ __forceinline__ void copy_pieces(void* to, const void* from) {
  using Pieces = Piece<bytes>;
#pragma unroll
  for (int i = 0; i < bytes / sizeof(Pieces); i++) static_cast<Pieces*>(to)[i] = static_cast<const Pieces*>(from)[i];
}

// The compiler must not take words apart and keep the halves in twice the registers.
template <int bytes>
__device__ __forceinline__ void stay_packed(void* words) {
#pragma unroll
  for (int i = 0; i < bytes / 4; i++) asm volatile("" : "+r"(static_cast<uint32_t*>(words)[i]));
}

// The arguments of rows in one level.
template <class Args>
struct OneLevelArgs : Args {
  static constexpr bool kFlat = true;
};

// The rows of a block, as one of its threads has them. An Op is as row_kernel.cuh says. A row is summed chunk by chunk,
// from one 16-byte boundary of the main operand to the next, and a chunk element by element: in an order that dim and
// the row's address alone decide. gapless: rows follow each other without gaps in all operands; else each has places
// for as many chunks as it may need.
template <class Op, bool gapless>
struct ShortRows {
  using General = typename Op::template Args<false>;
  using Args = std::conditional_t<gapless, OneLevelArgs<General>, General>;
  using Total = typename Op::Total;
  using Scalars = typename Op::Scalars;
  static constexpr int N = Op::kElements;

  // Of a row: what the chunk in which it begins has of its total; then, in the same place, what is made of all of it.
  union Row {
    Total total;
    Scalars scalars;
  };

  const Args& args;
  const int64_t first_row;
  const int rows, dim, chunk;
  Row* of_row;
  Total* of_chunk;  // of the row that goes on in it
  int phase = 0;    // of the first row
  int start, last;  // of the chunk: its first element among all, and before which are those of rows
  Part part;        // its first
  Chunk<N> loaded;
  typename Op::template Held<1, false, false> held[N];  // its elements

  __device__ __forceinline__ ShortRows(const General& general, Row* of_row, Total* of_chunk)
      : args(static_cast<const Args&>(general)),
        first_row(int64_t{blockIdx.x} * args.rows_per_block),
        rows(static_cast<int>(min(int64_t{args.rows_per_block}, args.rows - first_row))),
        dim(static_cast<int>(args.dim)),
        chunk(threadIdx.x),
        of_row(of_row),
        of_chunk(of_chunk) {
    if constexpr (gapless) {
      phase = phase_of(0);
      start = chunk * N - phase;
      last = min(rows * dim - start, N);
      int first = max(-start, 0);
      int row = static_cast<int>((start + first + .5f) * static_cast<float>(args.inverse_dim));
      int begin = row * dim - start;
      part = {row, begin, first, min(begin + dim, last)};
    } else {
      int row = chunk / args.places;
      bool is_there = row < rows;
      int begin = is_there ? phase_of(row) - chunk % args.places * N : N;
      last = min(begin + dim, N);
      part = {is_there ? row : 0, begin, max(begin, 0), last};
    }
  }

  // Elements past 16 bytes.
  __device__ __forceinline__ int phase_of(int row) const {
    return bytes_past_16(Op(args, first_row + row).begin()) / static_cast<int>(sizeof(typename Op::Element));
  }

  // f(held, pointer to the row, its elements in the chunk) of every operand.
  template <class Held, class F>
  __device__ __forceinline__ void each_operand(const Op& op, Held& held, F f) {
    int i = 0;
    auto next = [&]<class E>(auto& to, const E* row) { f(to, row, loaded.template elements<E>(i++)); };
    op.each(held, next);
    op.each_late(held, next);
  }

  // What a chunk has outside of the rows is 0.
  __device__ __forceinline__ void load(const Op& op, int offset) {
    bool whole = true;  // of all at once: else one waits for the other
    each_operand(op, held[0], [&](auto&, auto row, auto) { whole &= is_whole<N>(row + offset, part.first, last); });
    if (whole)
      each_operand(op, held[0], [&]<class E>(auto&, const E* row, E* elements) {
        copy_pieces<N * sizeof(E)>(elements, row + offset);
      });
    else
      each_operand(op, held[0], [&]<class E>(auto&, const E* row, E* elements) {
        memset(elements, 0, N * sizeof(E));
#pragma unroll
        for (int j = 0; j < N; j++)
          if (part.first <= j && j < last) elements[j] = row[offset + j];
      });
    unpack(op);
  }

  __device__ __forceinline__ void unpack(const Op& op) {
    each_operand(op, held[0], []<class E>(auto&, const E*, E* elements) { stay_packed<N * sizeof(E)>(elements); });
#pragma unroll
    for (int j = 0; j < N; j++) {
      each_operand(op, held[j], [&]<class E>(auto& to, const E*, E* elements) { to.load(elements + j); });
      op.combine(held[j]);
    }
  }

  __device__ __forceinline__ void put(const Part& p, Total sum) const {
    (p.begins_row() ? of_row[p.row].total : of_chunk[chunk]) = sum;
  }

  // The parts of the chunk: of the first one and of what is behind it at once, which is one more where a row is no
  // shorter than a chunk.
  __device__ __forceinline__ void reduce_parts(const Op& op) const {
    Total terms[N], sum{}, rest{};
#pragma unroll
    for (int j = 0; j < N; j++) terms[j] = op.term(held[j]);
#pragma unroll
    for (int j = 0; j < N; j++) {
      if (!gapless || j < part.end)
        sum += terms[j];
      else
        rest += terms[j];
    }
    put(part, sum);
    if (!gapless || part.end == last) return;
    Part p = part.next(dim, last);
    if (dim >= N) return put(p, rest);
    for (; p.is_there(); p = p.next(dim, last)) {
      sum = Total{};
#pragma unroll
      for (int j = 0; j < N; j++)
        if (p.has(j)) sum += terms[j];
      put(p, sum);
    }
  }

  __device__ __forceinline__ Op opened(int row) const {
    Op op(args, first_row + row);
    op.open_rest(args, first_row + row);
    return op;
  }

  // What the chunks have of a row is added by one thread, which makes of it what all of the row's elements need.
  __device__ __forceinline__ void reduce_row(int row, Op op) const {
    unsigned begin = gapless ? row * dim + phase : phase_of(row);  // to divide a signed one takes more instructions
    const Total* chunks = of_chunk + (gapless ? 0 : row * args.places);
    Total total = of_row[row].total;
#pragma unroll 1
    for (unsigned i = begin / N + 1; i <= (begin + dim - 1) / N; i++) total += chunks[i];
    op.finish(total, args);
    op.store_row(args, first_row + row);
    of_row[row].scalars = op.scalars();
  }

  // The results of the elements before the part's end by op, of those behind it by of_next.
  template <bool all>
  __device__ __forceinline__ void make(Chunk<N>& results, const Part& p, const Op& op, const Op& of_next) const {
#pragma unroll
    for (int j = 0; j < N; j++) {
      if (!all && j < p.first) continue;
      Op own = j < p.end ? op : of_next;
      int i = 0;
      auto set = [&]<class E>(const auto& from, E*, bool) { from.store(results.template elements<E>(i++) + j); };
      own.template store<0>(held[j], set);
      own.template store<1>(held[j], set);
    }
  }

  // Of three operands, words wait for the sum and are unpacked again: their halves would take a register each, one of
  // which is spilled (bfloat16, dim 9, backward with a gradient of the sum, H200, 570 us with the spill, 532 without).
  __device__ __forceinline__ void store() {
    Chunk<N> results;
    Op op = opened(gapless ? 0 : part.row), of_next = op;
    if constexpr (Op::kChunks.late > 0) unpack(op);
    op.take(of_row[part.row].scalars);
    Part next = part.next(dim, last);
    bool more = gapless && part.end < last;
    of_next.take(of_row[more ? next.row : part.row].scalars);
    make<true>(results, part, op, of_next);
    if (more && dim < N)
      for (next = next.next(dim, last); next.is_there(); next = next.next(dim, last)) {
        of_next.take(of_row[next.row].scalars);
        make<false>(results, next, of_next, of_next);
      }
    int i = 0;
    auto write = [&]<class E>(const auto&, E* row, bool wanted) {
      const E* elements = results.template elements<E>(i++);
      E* to = row + (gapless ? start : -part.begin);
      if (!wanted) return;
      if (is_whole<N>(to, part.first, last)) {
        copy_pieces<N * sizeof(E)>(to, elements);
      } else {
#pragma unroll
        for (int j = 0; j < N; j++)
          if (part.first <= j && j < last) to[j] = elements[j];
      }
    };
    op.template store<0>(held[0], write);
    op.template store<1>(held[0], write);
  }

  // A row's own numbers, as a gradient's rstd, are on their way together with the chunks.
  __device__ __forceinline__ void take() {
    bool has_row = chunk < rows;
    Op of_own_row = opened(has_row ? chunk : 0);
    if (part.is_there()) {
      Op op(args, first_row + (gapless ? 0 : part.row));
      load(op, gapless ? start : -part.begin);
      reduce_parts(op);
    }
    __syncthreads();
    if (has_row) reduce_row(chunk, of_own_row);
    for (int row = chunk + blockDim.x; row < rows; row += blockDim.x) reduce_row(row, opened(row));
    __syncthreads();
    if (part.is_there()) store();
  }
};

// Blocks of the most threads that a multiprocessor is to have room for; 0: left to the compiler. As many as spill next
// to nothing: dim 31, H200, forward 0.85 of the roof with 8, 0.79 with 6, with residual 0.95 and 0.88; backward 0.86
// with 6, with 8 0.47.
template <class Op>
constexpr int short_row_blocks() {
  constexpr Chunks chunks = Op::kChunks;
  if (!kIs16Bit<typename Op::Element> || chunks.few || chunks.in_bytes || chunks.gated || chunks.all > 3) return 0;
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
  __shared__ union Rows {
    typename ShortRows<Op, true>::Row gapless[kShortRowThreads * Op::kElements];
    typename ShortRows<Op, false>::Row others[kShortRowThreads];
  } of_row;
  __shared__ typename Op::Total of_chunk[kMostShortRowThreads];
  if (args.gapless)
    ShortRows<Op, true>(args, of_row.gapless, of_chunk).take();
  else
    ShortRows<Op, false>(args, of_row.others, of_chunk).take();
}

}  // namespace srmsnorm
