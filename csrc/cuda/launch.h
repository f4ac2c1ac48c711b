// Which launch a row gets: plain integers from plain integers. Host only, no torch, no device code.
//
// Thresholds are in vectors of 16 bytes of the input's dtype, so that they hold for all dtypes. Measured at 2^28 bf16
// elements on an H100 (benchmarks/tune.cu), as fractions of the best launch of that shape, unless told otherwise.
#pragma once
#include <algorithm>
#include <cstdint>

namespace srmsnorm {

// 16-byte pieces that a thread holds for one vector of a row: of every operand that the sum needs, as many elements as
// 16 bytes of the input's dtype have.
constexpr int forward_chunks(int element_size, int residual_size) { return 1 + residual_size / element_size; }
constexpr int kBackwardChunks = 2;  // grad_output and output

struct LaunchPlan {
  int vector_elements;  // elements of the input's dtype in 16 bytes
  int threads_per_row;  // of one block: a power of two up to 32, else whole warps
  int rows_per_block;
  int vectors;  // that a thread holds at a time
  int cluster;  // blocks that share a row
  bool twice;   // read once for the sum and once for the result, where the row does not fit the group's registers
  bool edges;   // rows may begin or end inside a vector
};

// How the rows of a call lie in memory: all begin and end at multiples of 16 bytes; all operands are as many elements
// past one; anything else, which is read twice.
enum class Alignment { Whole, InPhase, Any };

constexpr int kMaxCluster = 16;
constexpr int kPortableCluster = 8;  // what every GPU with clusters grants without asking
constexpr int kMostThreads = 512;
constexpr int kTwiceVectors = 2;

constexpr int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }
constexpr int whole_warps(int threads) { return ceil_div(threads, 32) * 32; }

constexpr int power_of_two_from(int n) {
  int p = 1;
  while (p < n) p *= 2;
  return p;
}

// Threads in a block, so that its registers have no need to spill: 512 leave 128 to each.
constexpr int max_threads(int vectors, bool twice) { return vectors <= 3 && !twice ? 256 : kMostThreads; }

// What a thread of a wide row holds: 64 registers of operands, so that two blocks of 256 threads fit a multiprocessor.
constexpr int wide_vectors(int chunks) { return chunks == 1 ? 16 : chunks == 2 ? 8 : 4; }

// A part of a warp. A vector a thread up to 32 of them, but two where rows begin inside a vector: a thread's part of the
// edges costs as much as a vector (dim 127: 1.00 / 1.00 / 1.00 forward / with residual / backward with 8 threads x 2,
// under 0.98 with 16 x 1; dim 128: 1.00 / 1.00 / 1.00 with 16 x 1, 0.98 / 0.98 / 0.99 with 8 x 2). From there 32 x 2 or
// 32 x 3, or 16 x 3 where a quarter of the places would be empty.
constexpr LaunchPlan plan_in_warp(LaunchPlan plan, int vectors, bool whole) {
  int p = power_of_two_from(vectors);
  if (p <= 32)
    plan.vectors = whole || p < 4 ? 1 : 2;
  else
    plan.vectors = 4 * vectors > 3 * p ? 2 : 3;
  plan.threads_per_row = plan.vectors == 3 ? p / 4 : p / plan.vectors;
  plan.rows_per_block = 128 / plan.threads_per_row;
  return plan;
}

// Whole warps: as few threads as hold the row with 2, 3, 4, 8 or 16 vectors each. On an H200 a thread with one vector
// waits more than it moves (dim 2048: 0.81 / 0.91 / 0.98 of the roof with 256 x 1, 1.00 / 1.00 / 0.99 with 128 x 2), on
// an H100 it does as well. dim 12288: 0.98 / 1.00 / 1.00 with 192 x 8, 0.99 / 1.00 / 1.00 with 384 x 4; dim 32768:
// 0.99 / 1.00 / 1.00 with 512 x 8, 1.00 / 0.99 / 1.00 with 1024 x 4, 0.96 / 0.98 / 0.99 with clusters; dim 65536,
// forward alone: 1.00 with 512 x 16, 0.97 with clusters.
constexpr LaunchPlan plan_in_block(LaunchPlan plan, int vectors, int chunks) {
  int fit = vectors <= 256 ? 2 : vectors <= 480 ? 3 : vectors <= 1280 ? 4 : vectors <= 8 * kMostThreads ? 8 : 16;
  plan.vectors = std::min(fit, wide_vectors(chunks));
  plan.threads_per_row = whole_warps(ceil_div(vectors, plan.vectors));
  plan.rows_per_block = std::max(1, (plan.vectors >= 4 ? 256 : 128) / plan.threads_per_row);
  return plan;
}

// Blocks of up to 256 threads, and of up to 512 where 256 in the largest cluster are not enough. dim 131072 with
// residual: 1.00 with 256 x 8 in clusters of 8, 0.97 with 512 x 8 in clusters of 4, 0.97 with 512 x 4 in clusters of 8.
constexpr LaunchPlan plan_in_cluster(LaunchPlan plan, int64_t vectors, int chunks, int max_cluster) {
  plan.vectors = wide_vectors(chunks);
  plan.cluster = std::clamp(power_of_two_from(ceil_div(vectors, 256 * plan.vectors)), 2, max_cluster);
  plan.threads_per_row = std::min(kMostThreads, whole_warps(ceil_div(vectors, plan.cluster * plan.vectors)));
  return plan;
}

// The sum of a row is taken thread by thread in the order of its vectors, then over the threads: threads_per_row and
// cluster alone decide its bits. They follow from dim and dtypes, never from the number of rows or the strides, and not
// from the alignment either: a row that begins or ends inside a vector has no more whole ones than dim has room for.
// max_cluster: 1 for a GPU without clusters.
constexpr LaunchPlan plan_launch(int64_t dim, int element_size, int chunks, Alignment alignment, int max_cluster) {
  LaunchPlan plan{16 / element_size, 0, 1, 0, 1, alignment == Alignment::Any, alignment != Alignment::Whole};
  if (dim % plan.vector_elements != 0) plan.edges = true;
  int64_t vectors = dim / plan.vector_elements;
  if (vectors <= 96)
    plan = plan_in_warp(plan, static_cast<int>(vectors), dim % plan.vector_elements == 0);
  else if (vectors <= kMostThreads * wide_vectors(chunks))
    plan = plan_in_block(plan, static_cast<int>(vectors), chunks);
  else if (max_cluster > 1)
    plan = plan_in_cluster(plan, vectors, chunks, max_cluster);
  else
    plan.threads_per_row = kMostThreads;
  if (int64_t{1} * plan.threads_per_row * plan.cluster * plan.vectors < vectors) plan.twice = true;
  if (plan.twice) {
    plan.edges = true;
    plan.vectors = kTwiceVectors;
  }
  return plan;
}

// How many rows ahead a cluster starts a prefetch: as many as hold 8 MB, which the memory reads in 3 us. dim 131072
// with residual: 550 us without, 535 with 8 MB, 554 with 16 MB (the roof: 530).
constexpr int rows_ahead(const LaunchPlan& plan, int64_t row_bytes) {
  constexpr int64_t kAhead = 8 << 20;
  return plan.cluster > 1 ? static_cast<int>(std::max<int64_t>(1, kAhead / row_bytes)) : 0;
}

}  // namespace srmsnorm
