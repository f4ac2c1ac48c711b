// Which launch a row gets: plain integers from plain integers. Host only, no torch, no device code.
//
// Thresholds are in vectors of 16 bytes of the input's dtype, so that they hold for all dtypes. Measured at 2^28 bf16
// elements on an H100 (benchmarks/tune.cu), as fractions of the roof, forward / with residual / backward, unless told
// otherwise.
#pragma once
#include <algorithm>
#include <cstdint>

#include "../operands.h"
#include "gpu.h"

namespace srmsnorm {

struct LaunchPlan {
  int vector_elements;  // elements of the input's dtype in 16 bytes
  // Of one block: a power of two up to 32, else whole warps; of short rows, as many as may have a part of one.
  int threads_per_row;
  int rows_per_block;  // 1 where a row takes more than a warp
  int vectors;         // that a thread holds at a time; 0: it has a chunk of short rows (short_row_kernel.cuh)
  int cluster;         // blocks that share a row
  // Read once for the sum and once for the result: the row does not fit the group's registers, or is shifted and takes
  // a cluster or 8 vectors a thread.
  bool twice;
  bool shifted;  // vectors may lie across 16 bytes, by operand; always where read twice
  bool edges;    // rows may begin or end inside a vector; always where read twice

  // f(name, value) of each.
  template <class F>
  void each(F f) const {
    f("vector_elements", vector_elements), f("threads_per_row", threads_per_row), f("rows_per_block", rows_per_block);
    f("vectors", vectors), f("cluster", cluster), f("twice", twice), f("shifted", shifted), f("edges", edges);
  }
};

// Which threads share a row: lanes of a warp, the warps of a block, or the blocks of a cluster.
enum class Sharing { Lanes, Warps, Blocks };

constexpr Sharing sharing_of(int cluster, int threads_per_row) {
  return cluster > 1 ? Sharing::Blocks : threads_per_row > 32 ? Sharing::Warps : Sharing::Lanes;
}

// How the rows of a call lie in memory: all begin and end at multiples of 16 bytes; all operands are as many elements
// past one; anything else.
enum class Alignment { Whole, InPhase, Any };

constexpr int kPortableCluster = 8;  // what every GPU with clusters grants without asking
constexpr int kMostThreads = 512;
constexpr int kBlockVectors = 4 * kMostThreads;  // of the widest row that one block takes (block_vectors)
constexpr int kTwiceVectors = 2;
constexpr int64_t kWidest = 1 << 30;  // vectors of a row: wider ones have its plan

// What a thread reads for one vector of a row: chunks of 16 bytes, and how many of them the reduction does not need.
// backward: wide rows take 8 vectors a thread. gated: no row does, as an activation takes many instructions, and there
// are fewer instances (instances.h).
struct Chunks {
  int all, late;
  bool backward, gated;
  bool few = false;        // of an operator that has fewer instances (instances.h); no plan depends on it
  bool in_bytes = false;   // quantised: with the norm's plan
  bool of_double = false;  // of a dtype that has fewer instances; no plan depends on it

  bool operator==(const Chunks&) const = default;
};

constexpr Chunks with_few_instances(Chunks chunks) {
  chunks.few = true;
  return chunks;
}

constexpr Chunks chunks_in_bytes(Chunks chunks) {
  chunks.in_bytes = true;
  return chunks;
}

// Of forward without a gate, whose results are neither converted nor bytes.
constexpr bool is_norm(Chunks chunks) { return !chunks.backward && !chunks.gated && !chunks.few && !chunks.in_bytes; }

constexpr int most_vectors(Chunks chunks) { return chunks.gated ? 4 : 8; }

// Of operands given by the size of an element; 0 is an operand that there is not. Each has as many elements as 16 bytes
// of the main one.
template <class Sizes>
constexpr Chunks chunks_of(const Sizes& sizes) {
  Chunks chunks{0, 0, Sizes::kBackward, Sizes::kGated};
  chunks.of_double = sizes.main() == sizeof(double);
  Sizes::zip(
      [&](Use use, int size) {
        if (use.written || !use.whole_row) return;
        chunks.all += size / sizes.main();
        if (use.late) chunks.late += size / sizes.main();
      },
      sizes);
  return chunks;
}

constexpr int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }
constexpr int whole_warps(int threads) { return ceil_div(threads, 32) * 32; }

constexpr int power_of_two_from(int n) {
  int p = 1;
  while (p < n) p *= 2;
  return p;
}

// Threads in a block. 512 leave 128 registers to each, of which operands may take 64; more of them leave no room. (The
// additional chunks of shifted operands, up to 96, do fit; they are gone after the sum.)
constexpr int max_threads(int chunks, int vectors, bool twice, bool gated) {
  bool many = 4 * chunks * vectors > 64, few = vectors <= 3 && !twice && !(gated && vectors == 2);
  return few || many ? 256 : kMostThreads;
}

constexpr int kShortRowThreads = 128;      // of a block of short rows with gaps between them
constexpr int kMostShortRowThreads = 256;  // without gaps: at most (threads_for_short_rows)

constexpr int kMostFoldedThreads = 128;  // of the widest row that is folded (half_the_threads)

// Shared memory of a block whose late chunks are staged; never more than what every GPU with clusters grants.
constexpr int kMostStage = 96 << 10;
constexpr int stage_bytes(int late_chunks, int vectors, int threads) { return 16 * late_chunks * vectors * threads; }

// Of the 8 vectors that a thread of a cluster has of one operand, those that wait for the sum in shared memory: in
// registers they leave room for half as many blocks (H200, forward, 196608 0.99 of the roof for 0.94, 262144 0.98 for
// 0.95, 327680 0.98 for 0.83). Not of two operands, of which as many bytes on their way at a time are more than this
// memory likes (131072, backward, 0.90 for 0.98).
constexpr int parked_vectors(Sharing sharing, int vectors, Chunks chunks) {
  return sharing == Sharing::Blocks && vectors == 8 && chunks.all == 1 && !chunks.in_bytes ? 4 : 0;
}

constexpr bool parks(const LaunchPlan& plan, Chunks chunks) {
  return plan.cluster > 1 && parked_vectors(Sharing::Blocks, plan.vectors, chunks) > 0;
}

constexpr int parked_bytes(Chunks chunks, int vectors, int threads) {
  return 16 * parked_vectors(Sharing::Blocks, vectors, chunks) * threads;
}

// In clusters, chunks that the sum does not need are staged in shared memory.
constexpr int max_cluster_threads(Chunks chunks, int vectors) {
  int most = max_threads(chunks.all - chunks.late, vectors, false, chunks.gated);
  return chunks.late == 0 ? most : std::min(most, kMostStage / stage_bytes(chunks.late, vectors, 1));
}

// A part of a warp. A vector a thread up to 32 of them, but two where a quarter of the places would be empty (forward:
// dim 128 1.00 with 16 x 1, 0.98 with 8 x 2; dim 100 0.93 with 16 x 1, 1.00 with 8 x 2); from there 32 x 2 or 32 x 3,
// or 16 x 3 where a quarter would be empty. Rows that are no whole vectors are never taken 32 x 1 (H200, dim 225, with
// residual 0.90 of the roof, 0.99 with 16 x 2).
constexpr LaunchPlan plan_in_warp(LaunchPlan plan, int64_t dim, int vectors) {
  int p = power_of_two_from(vectors);
  bool filled = 4 * vectors > 3 * p;
  if (dim % plan.vector_elements != 0 && p == 32) filled = false;
  plan.vectors = p <= 32 ? (filled || p < 4 ? 1 : 2) : (filled ? 2 : 3);
  plan.threads_per_row = plan.vectors == 3 ? p / 4 : p / plan.vectors;
  plan.rows_per_block = 128 / plan.threads_per_row;
  return plan;
}

// A row that is no whole vectors and so short that its edges would take most of the time. H200, of the roof, forward /
// with residual / with sum for what a warp makes of it: bf16, 57 0.99 / 1.00 / 1.00 for 0.83 / 0.87 / 0.84, 97 0.97 /
// 0.96 / 1.00 for 0.92 / 0.97 / 0.84, 127 0.95 / 0.97 / 1.00 for 0.96 / 0.98 / 0.96; of those that begin and end at 8
// bytes 60 0.99 / 0.99 / 1.00 for 0.96 / 0.98 / 0.98, 68 0.95 / 0.97 / 0.98 for 0.99 / 1.00 / 0.98; float, 17 0.99 /
// 0.99 / 0.99 for 0.86 / 0.90 / 0.85, 63 0.99 / 1.00 / 1.00 for 0.99 / 0.96 / 0.98. Where there is more to do for an
// element: gated 57 0.91 for 0.80, 65 0.82 for 0.86, float 57 with silu 0.98 for 0.88; backward 55 0.93, 63 0.94 for
// 0.98. What has the norm's sum has its plan: fp8 57 0.42 for 0.38, 65 0.36 for 0.43, rstd alone 0.50 for 0.47 and 0.43
// for 0.53.
constexpr bool is_short(int64_t dim, int64_t vectors, int element_size, Chunks chunks) {
  if (vectors <= 3 || element_size == 8) return vectors <= 3;
  bool at_8_bytes = dim * element_size % 8 == 0;
  if (chunks.backward) return element_size == 2 && vectors <= 6 && !at_8_bytes;
  return vectors <= (element_size == 4 ? 15 : at_8_bytes || chunks.gated ? 7 : 13);
}

// Threads of a block of short rows without gaps, a chunk each: as many rows as a chunk has elements are as many chunks
// as a row has elements. 128 are best (dim 9, forward, 0.81 of the roof; with 96 and 256 0.80 and 0.78), unless more
// than a ninth of them would be idle (33 0.73 with 128, 0.76 with 256); where so many are, whatever there is, those of
// which the fewest are (65 0.92 with 224, 0.87 with 256).
constexpr int threads_for_short_rows(int dim) {
  auto busy = [&](int threads) { return 1000 * ((threads - 1) / dim * dim) / threads; };
  int most = kMostShortRowThreads;
  for (int threads : {128, 96, 160, 192, 224, kMostShortRowThreads}) {
    if (busy(threads) >= 890) return threads;
    if (busy(threads) > busy(most)) most = threads;
  }
  return most;
}

// A thread for every chunk of 16 bytes, of which a row may have so many a part, wherever it begins. Where rows follow
// each other without gaps, a block has as many rows as begin and end at a chunk, if the first one does; choose_launch
// has the others.
constexpr LaunchPlan plan_in_chunks(LaunchPlan plan, int dim) {
  plan.vectors = 0;
  plan.threads_per_row = ceil_div(dim + plan.vector_elements - 1, plan.vector_elements);
  plan.rows_per_block = (threads_for_short_rows(dim) - 1) / dim * plan.vector_elements;
  return plan;
}

// Whole warps: as few threads as hold the row with 2, 4 or 8 vectors each. On an H200 a thread with one vector waits
// more than it moves (dim 2048: 0.81 / 0.91 / 0.98 of the roof with 256 x 1, 1.00 / 1.00 / 0.99 with 128 x 2), on an
// H100 it does as well. dim 4096: 256 x 2 as 128 x 4 for many rows, for 64 rows 2.20 / 2.53 us for 2.24 / 2.73. dim
// 16384: 512 x 4 1.007 / 1.001, 256 x 8 1.001 / 1.001. Backward differs by 0.3 % at most and, where float stands beside
// 16 bits, likes few threads: 12288 384 x 4 0.962, 192 x 8 0.999, 16384 512 x 4 0.948, 256 x 8 0.980. But with a
// gradient of the sum an H200 wants 4 vectors up to 1280: 8704 0.994 for 0.886, 10240 0.995 for 0.944, beside float
// 10240 444 us for 442 (an H100 has not been asked).
constexpr LaunchPlan plan_in_block(LaunchPlan plan, int vectors, Chunks chunks) {
  bool gated_forward = chunks.gated && !chunks.backward;
  plan.vectors = vectors <= (gated_forward ? 1024 : 512)               ? 2
                 : vectors <= (chunks.backward ? 1280 : kBlockVectors) ? 4
                                                                       : 8;
  plan.vectors = std::min(plan.vectors, most_vectors(chunks));
  plan.threads_per_row = whole_warps(ceil_div(vectors, plan.vectors));
  return plan;
}

// Blocks of up to 768 vectors; more where the largest cluster is not enough. That many small blocks serve a single row
// as well as many: dim 65536, forward, one row 2.2 us with 128 x 4 in clusters of 16, 2.7 with 256 x 8 in 4, 4.8 with
// 512 x 16 in one block. 8 vectors a thread are better for many rows where float stands beside 16 bits (backward
// 65536 1.00 for 0.96, 131072 0.98 for 0.94; else within 1 %) and cost one row 0.2 us of forward, none of backward.
// Rows that are no whole vectors, whose edges each block waits for, have 8 vectors a thread in forward as well, and
// half as many blocks (H200, 50257, forward 0.98 for 0.91, backward 0.98 for 0.94).
constexpr LaunchPlan plan_in_cluster(LaunchPlan plan, int64_t vectors, bool whole, Chunks chunks, int max_cluster) {
  bool eight = chunks.backward || !whole || vectors > int64_t{4} * max_cluster * 128;
  plan.vectors = eight ? most_vectors(chunks) : 4;
  int in_block = !whole && plan.vectors == 8 ? 1536 : 768;
  plan.cluster = std::clamp(power_of_two_from(ceil_div(vectors, in_block)), 2, max_cluster);
  plan.threads_per_row =
      std::min(max_cluster_threads(chunks, plan.vectors), whole_warps(ceil_div(vectors, plan.cluster * plan.vectors)));
  return plan;
}

// Whether rows of whole vectors are cut from their begin on where they are not aligned, whatever is made of them: edges
// would be a large part of short ones. H200, one element off, forward / with residual / backward: 64 0.97 / 0.93 / 0.94
// of the roof for 0.90 / 0.75 / 0.86, 128 0.98 / 0.99 / 0.99 for 0.89 / 0.77 / 0.86. Longer ones of one operand would
// gain too, the norm of 1024 to 4096 10 to 12 % and of 16384 10 %, but rstd alone, which has the norm's plan, would
// lose 17 % at 4096 in bfloat16 and 35 % in float.
constexpr bool cut_from_begin(Sharing sharing) { return sharing == Sharing::Lanes; }

// Such a row has no edges. With half the threads and two vectors each, which adds in the same order: to shift one
// vector takes longer than the memory does (H200, one element off, 256, with residual 1.00 of the roof for 0.92). Bytes
// are read twice instead.
constexpr LaunchPlan plan_from_begin(LaunchPlan plan, Chunks chunks) {
  plan.shifted = true;
  plan.edges = false;
  if (plan.vectors > 1 || plan.threads_per_row == 1 || chunks.in_bytes) return plan;
  plan.vectors = 2;
  plan.threads_per_row /= 2;
  plan.rows_per_block *= 2;
  return plan;
}

// Vectors that one block holds, where there are no clusters.
constexpr int in_one_block(Chunks chunks) {
  int vectors = most_vectors(chunks);
  return vectors * max_threads(chunks.all, vectors, false, chunks.gated);
}

// The widest row that one block takes where there are clusters. With a gate half of that: 4 vectors a thread and what
// is made of their gates leave room for one block of 512 threads on a multiprocessor (dim 16384, forward, 0.93 of the
// roof; backward on an H200 0.89, in clusters 1.01).
constexpr int block_vectors(bool gated) { return gated ? 2 * kMostThreads : kBlockVectors; }

// Whether a row is wider.
template <class Operands>
constexpr bool is_wide(int64_t dim, int element_size) {
  return dim / (16 / element_size) > block_vectors(Operands::kGated);
}

// The sum of a row is taken thread by thread in the order of its vectors, then over the threads: threads_per_row and
// cluster decide its bits, and unless it is cut from its begin on, where the first operand lies in 16 bytes, which says
// what is a vector and what is before and behind them; of a short row that and dim alone. What decides bits follows
// from dim and dtypes, never from the number of rows or the strides, nor from how other operands and results lie (half
// the threads of plan_from_begin add as all would): a row that begins or ends inside a vector has no more whole ones
// than dim has room for. Of the GPU, it depends on the largest cluster alone.
constexpr LaunchPlan plan_launch(int64_t dim, int element_size, Chunks chunks, Alignment alignment, const Gpu& gpu) {
  LaunchPlan plan{16 / element_size, 0, 1, 0, 1, false, alignment == Alignment::Any, alignment != Alignment::Whole};
  bool whole = dim % plan.vector_elements == 0;
  if (!whole) plan.edges = true;
  int64_t vectors = std::min(dim / plan.vector_elements, kWidest);
  if (!whole && is_short(dim, vectors, element_size, chunks)) return plan_in_chunks(plan, static_cast<int>(dim));
  if (vectors <= 96)
    plan = plan_in_warp(plan, dim, static_cast<int>(vectors));
  else if (vectors <= block_vectors(chunks.gated) || (gpu.largest_cluster == 1 && vectors <= in_one_block(chunks)))
    plan = plan_in_block(plan, static_cast<int>(vectors), chunks);
  else if (gpu.largest_cluster > 1)
    plan = plan_in_cluster(plan, vectors, whole, chunks, gpu.largest_cluster);
  else
    plan.threads_per_row = kMostThreads;
  if (whole && plan.edges && cut_from_begin(sharing_of(plan.cluster, plan.threads_per_row)))
    plan = plan_from_begin(plan, chunks);
  bool fits = int64_t{1} * plan.threads_per_row * plan.cluster * plan.vectors >= vectors;
  if (!fits || (plan.shifted && (plan.cluster > 1 || plan.vectors > 4))) {
    plan.twice = plan.shifted = plan.edges = true;
    plan.vectors = kTwiceVectors;
  }
  return plan;
}

}  // namespace srmsnorm
