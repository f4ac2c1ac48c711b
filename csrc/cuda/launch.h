// Which launch a row gets: plain integers from plain integers. Host only, no torch, no device code.
#pragma once
#include <algorithm>
#include <cstdint>

namespace srmsnorm {

// What a thread holds for one vector of a row: 16 bytes of the input's dtype, and as many elements of each other
// operand.
struct Held {
  int element_size;  // of the input's dtype
  int chunks;        // 16-byte pieces of all operands that are read
};

constexpr Held forward_held(int element_size, int residual_size) {
  return {element_size, 1 + residual_size / element_size};
}

constexpr Held backward_held(int element_size, int grad_sum_size) {
  return {element_size, 2 + grad_sum_size / element_size};
}

struct LaunchPlan {
  int vector_elements;  // elements of the input's dtype in 16 bytes
  int threads_per_row;  // of one block: a power of two up to 32, else whole warps
  int rows_per_block;
  int vectors;  // that a thread holds at a time
  int cluster;  // blocks that share a row
  bool twice;   // the row does not fit the group's registers: read once for the sum, once for the result
  bool edges;   // rows may begin and end inside a vector
};

constexpr int kMaxCluster = 8;  // what every GPU with clusters grants without asking
constexpr int kTwiceVectors = 2;

constexpr int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }
constexpr int whole_warps(int threads) { return ceil_div(threads, 32) * 32; }

constexpr int power_of_two_from(int n) {
  int p = 1;
  while (p < n) p *= 2;
  return p;
}

// Threads in a block such that what they hold and about 32 registers of work fit the 65536 registers of a
// multiprocessor.
constexpr int max_threads(int chunks, int vectors) {
  int held = 4 * chunks * vectors;
  return held <= 32 ? 1024 : held <= 64 ? 512 : 256;
}

// Vectors that a thread of a cluster holds: small blocks with many loads in flight (128 threads x 16 vectors).
constexpr int cluster_vectors(int chunks) { return chunks <= 2 ? 16 : 8; }

// A part of a warp: 2 vectors a thread, or 3 where a quarter of the places would be empty. Measured at 2^28 bf16
// elements on an H200, forward / residual / backward: dim 512 0.98 / 0.99 / 1.00 of the roof with 32 threads x 2, 0.88
// / 0.95 / 1.00 with 64 x 1; dim 768 0.98 / 0.99 / 0.99 with 32 x 3, 0.86 / 0.93 / 1.00 with 96 x 1.
constexpr LaunchPlan plan_in_warp(LaunchPlan plan, int vectors) {
  int p = power_of_two_from(vectors);
  plan.vectors = p < 4 ? 1 : 4 * vectors > 3 * p ? 2 : 3;
  plan.threads_per_row = p < 4 ? p : plan.vectors == 2 ? p / 2 : p / 4;
  plan.rows_per_block = 128 / plan.threads_per_row;
  return plan;
}

// Whole warps: as few threads as hold the row with 2, 3 or 4 vectors each; a thread with one vector waits more than it
// moves (dim 2048: 0.81 / 0.91 / 0.98 with 256 x 1, 1.00 / 1.00 / 0.99 with 128 x 2; dim 3584: 1.01 / 1.00 / 0.99 with
// 160 x 3). 1024 threads leave a multiprocessor idle between two rows: forward alone, which holds least, takes 8
// vectors there (dim 32768: 0.98 with 512 x 8, 0.82 with 1024 x 4).
constexpr LaunchPlan plan_in_block(LaunchPlan plan, int vectors, int chunks) {
  plan.vectors = vectors <= 256 ? 2 : vectors <= 480 ? 3 : chunks == 1 && vectors > 4 * 512 ? 8 : 4;
  plan.threads_per_row = whole_warps(ceil_div(vectors, plan.vectors));
  plan.rows_per_block = std::max(1, (plan.vectors == 4 ? 256 : 128) / plan.threads_per_row);
  return plan;
}

constexpr LaunchPlan plan_in_cluster(LaunchPlan plan, int64_t vectors, int chunks) {
  plan.vectors = cluster_vectors(chunks);
  plan.cluster = std::clamp(power_of_two_from(ceil_div(vectors, 128 * plan.vectors)), 2, kMaxCluster);
  plan.threads_per_row =
      std::min(max_threads(chunks, plan.vectors), whole_warps(ceil_div(vectors, plan.cluster * plan.vectors)));
  return plan;
}

// The sum of a row is taken thread by thread in the order of its vectors, then over the threads: threads_per_row and
// cluster alone decide its bits. They follow from dim and dtypes, never from the number of rows or the strides; where
// misaligned rows need one vector more than there is room for, they are read twice by the same threads.
constexpr LaunchPlan plan_launch(int64_t dim, Held held, bool aligned, bool clusters) {
  LaunchPlan plan{16 / held.element_size, 0, 1, 0, 1, false, !aligned};
  bool whole = dim % plan.vector_elements == 0;
  int64_t most = (dim + 2 * plan.vector_elements - 2) / plan.vector_elements;  // at any alignment
  int64_t vectors = whole ? dim / plan.vector_elements : most;
  if (vectors <= 96)
    plan = plan_in_warp(plan, static_cast<int>(vectors));
  else if (vectors <= 4 * max_threads(held.chunks, 4))
    plan = plan_in_block(plan, static_cast<int>(vectors), held.chunks);
  else if (clusters)
    plan = plan_in_cluster(plan, vectors, held.chunks);
  else
    plan.threads_per_row = max_threads(held.chunks, kTwiceVectors);
  int64_t room = int64_t{1} * plan.threads_per_row * plan.cluster * plan.vectors;
  if (room < (aligned ? vectors : most)) {
    plan.twice = plan.edges = true;
    plan.vectors = kTwiceVectors;
  }
  return plan;
}

}  // namespace srmsnorm
