// Which launch a row gets: plain integers from plain integers. Host only, no torch, no device code.
//
// Thresholds are in vectors of 16 bytes of the input's dtype, so that they hold for all dtypes. Measured at 2^28 bf16
// elements on an H100 (benchmarks/tune.cu), as fractions of the best launch of that shape, unless told otherwise.
#pragma once
#include <algorithm>
#include <cstdint>

namespace srmsnorm {

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

// What a thread reads for one vector of a row: pieces of 16 bytes, and how many of them the sum does not need. Operands
// beside the input have as many elements as 16 bytes of the input's dtype; a size of 0 is an operand that there is not.
struct Chunks {
  int all, late;
};

constexpr Chunks forward_chunks(int element_size, int residual_size) { return {1 + residual_size / element_size, 0}; }
constexpr Chunks backward_chunks(int element_size, int grad_sum_size) {
  return {2 + grad_sum_size / element_size, grad_sum_size / element_size};
}

constexpr int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }
constexpr int whole_warps(int threads) { return ceil_div(threads, 32) * 32; }

constexpr int power_of_two_from(int n) {
  int p = 1;
  while (p < n) p *= 2;
  return p;
}

// Threads in a block. 512 leave 128 registers to each, of which operands may take 64; more of them leave no room.
constexpr int max_threads(int chunks, int vectors, bool twice) {
  bool many = 4 * chunks * vectors > 64;
  return (vectors <= 3 && !twice) || many ? 256 : kMostThreads;
}

// What a thread of a wide row holds: of one block, and of a cluster, whose threads are few enough that two blocks or
// more fit a multiprocessor. In clusters, chunks that the sum does not need are staged in shared memory.
constexpr int block_vectors(int chunks) { return chunks == 1 ? 16 : chunks == 2 ? 8 : 4; }
constexpr int cluster_vectors(int chunks) { return chunks == 1 ? 16 : chunks <= 3 ? 8 : 4; }
constexpr int cluster_threads(int chunks) { return chunks == 3 ? 128 : 256; }

// Shared memory of a block whose late chunks are staged; never more than what every GPU with clusters grants.
constexpr int kMostStage = 96 << 10;
constexpr int stage_bytes(int late_chunks, int vectors, int threads) { return 16 * late_chunks * vectors * threads; }

constexpr int most_cluster_threads(Chunks chunks) {
  int held = chunks.all - chunks.late, vectors = cluster_vectors(held), most = max_threads(held, vectors, false);
  return chunks.late == 0 ? most : std::min(most, kMostStage / stage_bytes(chunks.late, vectors, 1));
}

// A part of a warp. A vector a thread up to 32 of them, but two where a quarter of the places would be empty (forward:
// dim 128 1.00 with 16 x 1, 0.98 with 8 x 2; dim 100 0.93 with 16 x 1, 1.00 with 8 x 2); from there 32 x 2 or 32 x 3,
// or 16 x 3 where a quarter would be empty.
constexpr LaunchPlan plan_in_warp(LaunchPlan plan, int vectors) {
  int p = power_of_two_from(vectors);
  bool filled = 4 * vectors > 3 * p;
  plan.vectors = p <= 32 ? (filled || p < 4 ? 1 : 2) : (filled ? 2 : 3);
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
  plan.vectors = std::min(fit, block_vectors(chunks));
  plan.threads_per_row = whole_warps(ceil_div(vectors, plan.vectors));
  plan.rows_per_block = std::max(1, (plan.vectors >= 4 ? 256 : 128) / plan.threads_per_row);
  return plan;
}

// As few blocks as hold the row with their usual number of threads, more threads where the largest cluster is not
// enough. dim 131072 with residual: 1.00 with 256 x 8 in clusters of 8, 0.99 with 128 x 8 in 16, 0.97 with 512 x 8
// in 4.
constexpr LaunchPlan plan_in_cluster(LaunchPlan plan, int64_t vectors, Chunks chunks, int max_cluster) {
  int held = chunks.all - chunks.late;
  plan.vectors = cluster_vectors(held);
  int blocks = ceil_div(vectors, int64_t{1} * cluster_threads(held) * plan.vectors);
  plan.cluster = std::clamp(power_of_two_from(blocks), 2, max_cluster);
  plan.threads_per_row =
      std::min(most_cluster_threads(chunks), whole_warps(ceil_div(vectors, plan.cluster * plan.vectors)));
  return plan;
}

// The sum of a row is taken thread by thread in the order of its vectors, then over the threads: threads_per_row and
// cluster alone decide its bits. They follow from dim and dtypes, never from the number of rows or the strides, and not
// from the alignment either: a row that begins or ends inside a vector has no more whole ones than dim has room for.
// max_cluster: 1 for a GPU without clusters.
constexpr LaunchPlan plan_launch(int64_t dim, int element_size, Chunks chunks, Alignment alignment, int max_cluster) {
  LaunchPlan plan{16 / element_size, 0, 1, 0, 1, alignment == Alignment::Any, alignment != Alignment::Whole};
  if (dim % plan.vector_elements != 0) plan.edges = true;
  int64_t vectors = dim / plan.vector_elements;
  if (vectors <= 96)
    plan = plan_in_warp(plan, static_cast<int>(vectors));
  else if (vectors <= kMostThreads * block_vectors(chunks.all))
    plan = plan_in_block(plan, static_cast<int>(vectors), chunks.all);
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

// How many rows ahead a cluster starts a prefetch: as many as the memory reads in about 3 us beside its writes. dim
// 131072 with residual: 550 us without, 535 with 8 MB, 554 with 16 MB; forward alone: 376 without, 364 with 4 MB, 386
// with 8 MB (the roofs: 530 and 362).
constexpr int rows_ahead(int64_t read_bytes, int64_t written_bytes) {
  int64_t ahead = (read_bytes > written_bytes ? 7 : 4) << 20;
  return static_cast<int>(std::max<int64_t>(1, ahead / read_bytes));
}

}  // namespace srmsnorm
