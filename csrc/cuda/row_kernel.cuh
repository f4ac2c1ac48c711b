// The kernel: a group of threads takes a row, loads it once, reduces once, stores once. (Of short rows that are no
// whole vectors a thread has several: short_row_kernel.cuh, with the same Ops.)
//
// An Op is what one thread does with what it holds of its row; forward.cuh, backward.cuh and gated.cuh have them:
// clang-format off
//   Element, Accumulator        of the main operand; of what is computed
//   Total                       what a row is reduced to (totals.cuh)
//   Call, Operands, Args<flat>  what is called, an OperandList of it, and a KernelArgs
//   kElements, kChunks          of a vector: its elements, and what is read for it
//   kBesideSize                 bytes of an element beside them: of residual and sum, or of the gate
//   Held<N, shifted, first>     what is held of N elements of the row, by operand; shifted: those that do not lie as
//                               begin() does, first: that one too
//   Op(args, row index)         pointers to the row in the operands that are loaded first
//   open_rest(args, row index)  and in the others, the first of which is never absent but where there is a kAnyAbsent;
//                               what is read once a row
//   begin()                     the operand whose address decides how the row is cut
//   each(held, f)               f(vector, pointer to its row) for every operand that the reduction needs
//   each_late(held, f)          the same for those that it does not
//   kCombines, combine(held)    whether something is made of them once and held in their place, and what
//   add_term(before, held)      what is before their part of the reduction, and that
//   finish(total, args)         the row's scalars
//   Scalars, scalars(), take(s) those that a row's elements need, from one thread to others
//   kPasses                     in which results are stored: one, or two
//   store<pass>(held, f)        f(vector, pointer to its row) for every result of that pass, by store_if
//   store_row(args, row index)  what there is once a row
// and of bytes, whose groups are of several lanes:
//   survey(held vectors)        what of all of a thread's vectors is asked before the row's scalars are known
//   scale_groups()              what is made of it when they are
//   of_vector<count>(i)         itself, as it stores the i-th of them
// clang-format on
#pragma once
#include "kernel_args.h"
#include "row_group.cuh"
#include "tile.cuh"

namespace srmsnorm {

// What this block, or one that takes its place, will read of a row further on starts on its way to the L2: the memory
// stays busy while threads wait for each other, and a cluster for the places of all its blocks. A hint: nothing depends
// on it.
template <class Op, class Group>
__device__ __forceinline__ void prefetch(const Op& op, const Group& group, int64_t dim) {
  typename Op::template Held<1, false, false> nothing;
  auto start = [&](auto&, auto row) {
    int64_t bytes = dim * sizeof(*row) / group.blocks / 16 * 16;
    prefetch_bytes(reinterpret_cast<const char*>(row) + group.rank * bytes, bytes);
  };
  op.each(nothing, start);
  op.each_late(nothing, start);
}

template <class Op, Sharing sharing, bool flat, Reading reading>
constexpr bool kPrefetches = prefetches(sharing, flat, reading, Op::kChunks);

// A row's lines are no longer the last to leave the L2. By all threads of the row; one that begins or ends inside a
// line may leave its end to the next one. A function that is called: as part of the kernel it takes registers of it
// (forward, 4 vectors a thread, 58 for 50).
template <class Op, class Args>
__device__ __noinline__ void release(const Args& args, int64_t row, int thread, int threads) {
  typename Op::template Held<1, false, false> nothing;
  Op(args, row).each(nothing, [&](auto&, auto row) {
    const char* from = reinterpret_cast<const char*>(row);
    int64_t bytes = args.dim * sizeof(*row);
    for (int64_t at = int64_t{kLineBytes} * thread; at < bytes; at += int64_t{kLineBytes} * threads)
      release_line(from + at);
  });
}

// Whether other operands are wider than the input.
template <class Op>
constexpr bool kIsMixed = Op::kBesideSize > sizeof(typename Op::Element);

// Whether the kernel asks if rows have edges: where they may have none, and in a norm with a residual of the input's
// dtype, which is faster so though most have some (H200, bf16, 63 0.97 of the roof for 0.91, 127 0.98 for 0.95; without
// a residual 127 0.95 for 0.96, with one of float 1.01 for 1.03).
template <class Op, Sharing sharing, bool flat, Reading reading>
constexpr bool kAsksForEdges = kSkipsUnneeded<Op, sharing, reading> ||
                               (!flat && sharing == Sharing::Lanes && is_norm(Op::kChunks) && Op::kChunks.all == 2);

// What the compiler is told of a block's threads, and of the blocks that a multiprocessor is to have room for; 0: left
// to it. nvcc 13.0 spilled a word or two to have more of them in some of these instances (sm_90); told one, in none.
struct Bounds {
  int threads, blocks;
};

// Of quantised rows a thread has more to do between loads and stores, and gains by more of them: 6 x 256 threads, dim
// 1024 1.01 of the roof for 0.93, 4096 0.99 for 0.90; 2 x 512, 28672 0.88 for 0.82, 65536 0.90 for 0.85. So has a
// backward with a gate: 3 x 256, H200, a float gate, 4096 0.99 for 0.96. And a norm beside a float residual where lanes
// share a row that is not flat: 6 x 256, H200, 127 1.05 for 0.97. Vectors are parked (plan.h) for the sake of 2 x 512.
template <class Op, int vectors, Sharing sharing, bool flat, Reading reading>
constexpr Bounds bounds() {
  constexpr Chunks chunks = Op::kChunks;
  constexpr bool twice = reading == Reading::Twice, narrow = kIs16Bit<typename Op::Element>;
  if (reading == Reading::Folded) return {kMostFoldedThreads, 0};
  if (flat && sharing == Sharing::Warps && vectors == 2 && chunks.gated && chunks.backward) return {256, 3};
  if (is_norm(chunks) && kIsMixed<Op> && !flat && sharing == Sharing::Lanes && vectors == 1 && reading == Reading::Once)
    return {256, 6};
  int staged = sharing == Sharing::Blocks ? chunks.late : 0;
  bool one = kIsMixed<Op> || twice || (!flat && (Op::kBesideSize >= 4 || chunks.gated));
  if (parked_vectors(sharing, vectors, chunks)) return {kMostThreads, 2};
  Bounds bounds{max_threads(chunks.all - staged, vectors, twice, chunks.gated), one ? 1 : 0};
  if (chunks.in_bytes && chunks.all == 1 && !twice) {
    if (sharing == Sharing::Warps && vectors == 2 && (narrow || flat)) bounds.blocks = narrow ? 6 : 8;
    if (sharing == Sharing::Warps && vectors == 4 && !narrow && flat) bounds.blocks = 3;
    if (sharing == Sharing::Blocks && vectors == 4 && narrow) bounds.blocks = 2;
  }
  return bounds;
}

template <class Op, int vectors, Sharing sharing, bool flat, Reading reading>
constexpr Bounds kBounds = bounds<Op, vectors, sharing, flat, reading>();

// flat: rows in one level that begin and end at 16 bytes; else they may lie anywhere, which takes levels and edges. Few
// rows wait for every instruction (1 x 4096 1.30 us, with levels and edges 1.43; few rows are timed here in a bare loop
// of graph nodes, which takes about 0.16 us less than the benchmark's). However a row is read, it is reduced in the
// same order. Why the memory likes rows that are kept is not known (hints.h has the gains). Kept lines make way for
// those of later rows and for no other kernel's, so the last rows release what is left: ten passes over 40 MB after a
// norm 115 us on an H200, 139 with nothing released, 115 without the hint. To release every row as it is done with
// takes an H200 1 to 5 % of its time, an H100 none.
template <class Op, int vectors, Sharing sharing, bool flat, Reading reading>
__global__ void __launch_bounds__(kBounds<Op, vectors, sharing, flat, reading>.threads,
                                  kBounds<Op, vectors, sharing, flat, reading>.blocks)
    row_kernel(const __grid_constant__ typename Op::template Args<flat> args) {
  constexpr bool twice = reading == Reading::Twice, clustered = sharing == Sharing::Blocks;
  static_assert(!flat || !kIsShifted<reading>, "operands that lie differently do not all begin at 16 bytes");
  static_assert(reading != Reading::Kept || (flat && Op::kChunks.late == 0),
                "release knows nothing of edges and of what the reduction does not need");
  using Index = std::conditional_t<twice, int64_t, int>;  // a row that fits registers has no 2^31 elements
  const RowGroup<typename Op::Total, sharing, kBounds<Op, vectors, sharing, flat, reading>.threads,
                 reading == Reading::Folded>
      group;
  const int64_t row = group.row();
  const bool active = sharing != Sharing::Lanes || row < args.rows;  // the others still take part in the reduction
  const Index dim = active ? args.dim : 0, thread = group.thread(), threads = group.size();
  const int64_t readable = active ? row : 0;
  Op op(args, readable);
  const bool from_begin = kFromBegin<sharing, reading> && args.dim % Op::kElements == 0;
  bool goes_on = false, has_edges = !flat;
  if constexpr (kIsShifted<reading>) goes_on = args.followed && row + 1 < args.rows;
  if constexpr (kAsksForEdges<Op, sharing, flat, reading>) has_edges = args.edges;
  const Cut<Op, !flat, Index> cut(op.begin(), dim, from_begin, goes_on);
  constexpr bool staged = clustered && !twice && Op::kChunks.late > 0;
  Tile<Op, vectors, sharing, reading, staged> tile;
  using Own = std::conditional_t<reading == Reading::Folded, Folded<Index>, Strided<Index>>;
  const Own own{thread, threads};

  typename Op::Total total{};
  Edges<Op> edge;
  auto add_edges = [&] {
    if constexpr (!flat)
      if (has_edges) {
        edge.load(op, cut, thread);
        total = edge.add(op, cut, thread, threads, total);
      }
  };
  if constexpr (twice) {
    op.open_rest(args, readable);
    add_edges();
    for (Index start = thread; start < cut.vectors; start += vectors * threads) {
      tile.load(op, cut, Strided<Index>{start, threads});
      tile.prepare(op, cut);
      total = tile.reduce(op, total);
    }
  } else {
    tile.load(op, cut, own);
    if constexpr (kPrefetches<Op, sharing, flat, reading>)
      if (threadIdx.x == 0 && args.ahead > 0 && row + args.ahead < args.rows)
        prefetch(Op(args, row + args.ahead), group, args.dim);
    // While the loads are on their way: these arguments are cold too. The branch, always taken, keeps them from being
    // asked for before the loads (64 x 16384 with residual: 4.43 us for 4.57); the trap, never met, from being asked
    // for after the reduction, as where lanes share a row (64 x 256 1.15 us for 1.21, backward 1.25 for 1.41).
    if (args.dim > 0) {
      op.open_rest(args, readable);
      if constexpr (!requires { Op::kAnyAbsent; })
        if (!args.of(Op::template Args<flat>::kFirstOfRest).data) __trap();
    }
    add_edges();
    // The branch, always taken, keeps all loads before it: else some wait until others are summed, which saves
    // registers and costs time (dim 28672 with residual: 0.88 of the roof for 1.00). Few vectors need none (1 x 4096
    // with residual: 1.50 us for 1.60), and lanes of a row that there is not have to stay with the others.
    if (vectors <= 3 || sharing == Sharing::Lanes || dim > 0) {
      tile.prepare(op, cut);
      if constexpr (Op::kChunks.in_bytes) op.survey(tile.held);
      total = tile.reduce(op, total);
      if constexpr (tile.kHeld < vectors) total = tile.reduce_parked(op, total, cut, own);
    }
    if constexpr (!Op::kCombines) tile.stay_packed(op);
  }
  op.finish(group.reduce(total), args);
  if constexpr (twice) {
    // By all lanes, as shifted stores want it, whichever row of a warp has one vector more.
    const Index most = sharing == Sharing::Lanes ? args.dim / Op::kElements : cut.vectors;
    for (Index done = 0; done < most; done += vectors * threads) {
      const Strided<Index> next{done + thread, threads};
      tile.load(op, cut, next);
      tile.prepare(op, cut);
      if constexpr (Op::kChunks.in_bytes) op.survey(tile.held);
      tile.store(op, cut, next);
    }
  } else {
    tile.store(op, cut, own);
  }
  if constexpr (reading == Reading::Kept)
    if (active && row + args.tail >= args.rows) {
      release<Op>(args, row, thread, threads);
      if (row >= args.tail) release<Op>(args, row - args.tail, thread, threads);
    }
  if constexpr (!flat)
    if (has_edges) edge.store(op, cut, thread, threads);
  if (active && thread == 0) op.store_row(args, row);
}

// The Op of an instance: the one that is asked for, or where so many vectors are better held otherwise, another of the
// same arguments and results.
template <class Op, Sharing sharing, int vectors, Reading reading>
struct OpOfInstance {
  using type = Op;
};

// The instance of the kernel for an Op.
template <class Op, int vectors, Sharing sharing, bool flat, Reading reading>
constexpr auto kInstanceFor =
    row_kernel<typename OpOfInstance<Op, sharing, vectors, reading>::type, vectors, sharing, flat, reading>;

}  // namespace srmsnorm
