// What makes a launch faster and changes no result: plain values from plain values, as the plan, which it does not
// touch. Host only, no torch, no device code.
//
// What wins on one card can lose on another, so the hints are a table by class of GPU, and a card that nobody has
// measured gets the row that costs nothing. Fractions of the roof: 2^28 bf16 elements, forward / with residual / with
// sum / backward.
#pragma once
#include "plan.h"

namespace srmsnorm {

// Of which calls what is read stays in the L2 until the row is written. Balanced: those that write as much as they
// read, where a row takes whole warps.
enum class Keep { Nothing, Balanced, All };

struct GpuClass {
  int capability;
  int bandwidth;  // of a multiprocessor, MB/s: what its threads have to keep on their way
  Keep keep;
  bool apart;     // blocks are kept apart (resident_blocks)
  bool streamed;  // a float y beside 16 bits is stored as what the L2 need not keep
  bool far;       // clusters whose rows become bytes prefetch farther ahead
};

// H100 (HBM3): both win 0.4 to 2 %. H200: the same multiprocessors want 1.47 times as much on its way, and lose by what
// keeps it back: dim 4096 .96 / .93 / 1.00 / .93 with the H100's row, 1.01 / .96 / 1.01 / .96 with blocks not apart,
// .98 / .99 / .98 / .99 with nothing kept either; 6144 .98 / .88 / .97 / .88, 1.00 / .97 / 1.01 / .97 and .98 / .99 /
// .99 / .99. Parts of a warp lose even where balanced: 96 .97 / .92 / .96 / .91 kept, 1.01 / 1.00 / 1.01 / .99 not.
// A float y of 16-bit rows, two thirds of what is moved: H100, dims 64 to 131072, streamed .97 to .99 of the roof, else
// .84 to .96; H200, no difference.
// Bytes, 4 MB ahead for 2: H100, fp8 28672 .97 for .93, 32768 1.02 for .98, 65536 1.01 for .96, 131072 .97 for .93,
// groups 65536 .93 for .90; beside a residual 2 MB are better (65536 1.006 for .997). H200: not measured.
constexpr GpuClass kMeasured[] = {{90, 25400, Keep::All, true, true, true},
                                  {90, 37250, Keep::Balanced, false, false, false}};
constexpr GpuClass kUnmeasured{0, 0, Keep::Nothing, false, false, false};

// Measured is what is within 5 % of a row: no other product is so near to either.
constexpr const GpuClass& class_of(const Gpu& gpu) {
  int64_t own = gpu.bandwidth / (int64_t{1000000} * std::max(1, gpu.multiprocessors));
  for (const auto& row : kMeasured) {
    int64_t off = own < row.bandwidth ? row.bandwidth - own : own - row.bandwidth;
    if (row.capability == gpu.capability && 20 * off < row.bandwidth) return row;
  }
  return kUnmeasured;
}

// Blocks at a time on a multiprocessor where rows do not fit the L2, by the vectors of a row that a block has; 0: any.
// Fewer than fit are better by 0.4 to 1.3 % (with residual: dim 3000 522 us for 529, 4096 522 for 527, 32768 525 for
// 530), and where float stands beside 16 bits by up to 6 % (3000: backward 0.999 of the roof for 0.956, forward with
// sum 1.009 for 0.953). The numbers are the vectors that want to be on their way on a multiprocessor, from what was
// best at dims 2304 to 262144. Not so beside a gate, whose activation wants more threads (forward, dim 65536 0.995 for
// 0.953, 16384 1.005 for 0.996, with blocks not apart): the launcher does not ask; nor where one operand is quantised
// (8192 1.00 for 0.95, groups of 128 0.90 for 0.82; 16384 1.01 for 1.00).
constexpr int resident_blocks(int vectors, bool clustered, Chunks chunks, bool mixed) {
  if (clustered) return chunks.all == 1 || vectors > 768 ? 0 : ceil_div(mixed ? 1350 : 1800, vectors);
  if (vectors <= (chunks.all == 1 ? 384 : 256) || (chunks.in_bytes && chunks.all == 1)) return 0;
  if (mixed) return ceil_div(1100, vectors);
  if (chunks.all == 1) return ceil_div(2800, vectors);
  return std::max(vectors < kBlockVectors ? 2 : 1, ceil_div(1400, vectors));
}

// What a call moves.
struct Traffic {
  int64_t rows, read, written;  // bytes of a row
  bool repeats;                 // neighbouring rows of an operand are the same memory
  bool in_bytes;                // one operand, which becomes bytes
};

struct LaunchHints {
  int ahead;  // clusters start a prefetch of the row that many further on
  bool kept, apart, streamed;

  template <class F>
  void each(F f) const {
    f("kept", kept), f("apart", apart), f("streamed", streamed), f("ahead", ahead);
  }
};

// Ahead by 2 MB of what is read, 4 MB beside few writes, bytes as GpuClass says (measured with other values here). dim
// 65536: 1.007 / 1.001 / 1.002 with 2 MB, 0.997 / 0.992 / 0.994 with 4 MB, 0.995 / 0.997 / 0.999 with none; with a
// gradient of the sum 0.990, 0.992, 0.985; dim 28672 to 262144 alike. The others are for calls that move more than any
// L2 holds.
constexpr LaunchHints launch_hints(const GpuClass& row, const LaunchPlan& plan, const Traffic& traffic) {
  bool far = traffic.read > 2 * traffic.written || (row.far && traffic.in_bytes);
  int64_t ahead = (far ? 4 : 2) << 20;
  LaunchHints hints{static_cast<int>(std::max<int64_t>(1, ahead / traffic.read)), false, false, false};
  if (traffic.repeats || traffic.rows * (traffic.read + traffic.written) <= int64_t{128} << 20) return hints;
  bool balanced = traffic.read == traffic.written && sharing_of(plan.cluster, plan.threads_per_row) != Sharing::Lanes;
  hints.kept = row.keep == Keep::All || (row.keep == Keep::Balanced && balanced);
  hints.apart = row.apart;
  hints.streamed = row.streamed;
  return hints;
}

constexpr LaunchHints launch_hints(const Gpu& gpu, const LaunchPlan& plan, const Traffic& traffic) {
  return launch_hints(class_of(gpu), plan, traffic);
}

}  // namespace srmsnorm
