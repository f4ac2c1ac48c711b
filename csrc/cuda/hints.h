// What makes a launch faster and changes no result: plain values from plain values, as the plan, which it does not
// touch. Host only, no torch, no device code.
//
// What wins on one card can lose on another, so the hints are a table by class of GPU, and a card that nobody has
// measured gets the row that costs nothing. Figures are of 2^28 bf16 elements, fractions of the roof where they have no
// unit.
#pragma once
#include "plan.h"

namespace srmsnorm {

// How far ahead the rows that are still to come start on their way to the L2, in MB of what is read; 0: none does.
struct Ahead {
  int balanced;  // where at least two thirds as much is written as is read
  int reading;   // where less is
  int mostly;    // where less than half is
  int bytes;     // of one operand that becomes bytes, whatever is written; and where no row is
  bool blocks;   // rows of one block as well, where they become bytes or wider; others' are those of clusters alone
  // Of short rows that are no whole vectors: forward of one operand without a gate, other than the norm of 16 bits, and
  // backward of two where all are of 16 bits.
  int short_forward, short_backward;
};

// By what it is chosen how many blocks stand on a multiprocessor at a time, where fewer than fit are faster: nothing,
// the vectors that a block has of a row, or the speed of the memory.
enum class Apart { Not, ByWidth, BySpeed };

struct GpuClass {
  int capability;
  int bandwidth;  // of a multiprocessor, MB/s: what its threads have to keep on their way
  bool kept;      // what is read stays in the L2 until the next rows take its place (LaunchHints::tail)
  Apart apart;    // blocks are kept apart (resident_blocks)
  bool streamed;  // a float y beside 16 bits is stored as what the L2 need not keep
  Ahead ahead;
};

// Kept, H100 (HBM3): 0.4 to 2 % faster. H200, us of nothing and of kept, dim 64 to 16384: forward 255 to 265 and 253 to
// 256, with residual 373 to 377 and 368 to 373, with sum 513 to 528 and 504 to 508, backward 374 to 378 and 369 to 373,
// beside float 648 to 668 and 635 to 645.
// Apart: by width an H100 gains 0.4 to 2 %, and an H200 loses up to 9 % (dim 6144, with residual, 404 us for 371). By
// speed an H200, us as they fit and apart, dims 4096 / 6144 / 8192 / 12288 / 16384: with residual 371 367, 371 368, 372
// 370, 370 372, 372 370; with sum 510 507, 509 507, 511 509, 509 510, 512 513; backward 370 367, 371 368, 371 369, 371
// 372, 374 372. Of two operands in one block it makes of an H100's speed what by width is, or one more or less.
// A float y of 16-bit rows, two thirds of what is moved: H100, dims 64 to 131072, streamed .97 to .99 of the roof, else
// .84 to .96; H200, 1 % slower.
// Ahead, H100, dim 65536, forward / with residual / backward: 1.007 / 1.001 / 1.002 with 2 MB, 0.997 / 0.992 / 0.994
// with 4 MB, 0.995 / 0.997 / 0.999 with none; with a gradient of the sum 0.990, 0.992, 0.985; fp8 28672 .93 with 2 MB,
// .97 with 4, 65536 .96 and 1.01. H200, us with none, 2 MB and 4 MB, dim 131072: forward 284, 266, 262; beside a float
// gradient 658, 656, 646; but backward 375, 384, 384, with a gradient of the sum 501, 519, 518, fp8 297, 264, 259;
// rstd 65536 .86 of the roof with 4 MB, .77 with none.
// In blocks, H200, us with none and with 4 MB: fp8 4096 206 and 199, 12288 246 and 216, a float y 4096 403 and 390;
// H100: no gain.
// Of short rows, H200, of the roof with none, 2 MB and 4 MB: forward 9 .89, .98, .99, 33 .86, .97, .97; with none and 2
// MB: backward 9 .87, .89, 33 .85, .91; but in float32 9 .97, .94, beside float32 31 .93, .89, with residual, in 16
// bits, 31 1.00, .90. With none and 4 MB, 17 / 33 / 65 / 97: rstd .57 .51 .43 .40 and .63 .59 .49 .46, fp8 .46 .43 .36
// .34 and .49 .46 .39 .38, a float y .88 .75 .74 .73 and .89 .75 .82 .82.
constexpr GpuClass kMeasured[] = {{90, 25400, true, Apart::ByWidth, true, {2, 2, 4, 4, false, 0, 0}},
                                  {90, 37250, true, Apart::BySpeed, false, {4, 0, 0, 4, true, 4, 2}}};
constexpr GpuClass kUnmeasured{0, 0, false, Apart::Not, false, {2, 2, 4, 2, false, 0, 0}};

// Bytes that the memory brings to a multiprocessor in a microsecond.
constexpr int64_t bytes_of_a_microsecond(const Gpu& gpu) {
  return gpu.bandwidth / (int64_t{1000000} * std::max(1, gpu.multiprocessors));
}

// Measured is what is within 5 % of a row: no other product is so near to either.
constexpr const GpuClass& class_of(const Gpu& gpu) {
  int64_t own = bytes_of_a_microsecond(gpu);
  for (const auto& row : kMeasured) {
    int64_t off = own < row.bandwidth ? row.bandwidth - own : own - row.bandwidth;
    if (row.capability == gpu.capability && 20 * off < row.bandwidth) return row;
  }
  return kUnmeasured;
}

// What an Op is to its plan and hints: the bytes of an element of the main operand, the chunks that a thread reads, and
// whether an operand beside it is wider (asked of no Op with few instances).
struct OpTraits {
  int element_size;
  Chunks chunks;
  bool mixed;
};

// Blocks at a time on a multiprocessor where rows do not fit the L2, by the vectors of a row that a block has; 0: any.
// Fewer than fit are better by 0.4 to 1.3 % (with residual: dim 3000 522 us for 529, 4096 522 for 527, 32768 525 for
// 530), and where float stands beside 16 bits by up to 6 % (3000: backward 0.999 of the roof for 0.956, forward with
// sum 1.009 for 0.953). The numbers are the vectors that want to be on their way on a multiprocessor, from what was
// best at dims 2304 to 262144. Not so beside a gate, whose activation wants more threads (forward, dim 65536 0.995 for
// 0.953, 16384 1.005 for 0.996, with blocks not apart): the launcher does not ask; nor where one operand is quantised
// (8192 1.00 for 0.95, groups of 128 0.90 for 0.82; 16384 1.01 for 1.00).
constexpr int blocks_by_width(int vectors, bool clustered, Chunks chunks, bool mixed) {
  if (clustered) return chunks.all == 1 || vectors > 768 ? 0 : ceil_div(mixed ? 1350 : 1800, vectors);
  if (vectors <= (chunks.all == 1 ? 384 : 256) || (chunks.in_bytes && chunks.all == 1)) return 0;
  if (mixed) return ceil_div(1100, vectors);
  if (chunks.all == 1) return ceil_div(2800, vectors);
  return std::max(vectors < kBlockVectors ? 2 : 1, ceil_div(1400, vectors));
}

// Of parked vectors, as many blocks as there was room for when they stood in registers, of which a thread took 104:
// what an H100 was measured with.
constexpr int blocks_of_parked(int threads) { return std::max(1, 65536 / (104 * threads)); }

// One that stores what it has, beside as many as read what the memory brings in 1.2 microseconds. H200, with residual,
// of the time of as many as fit: dim 3072 0.99 with 5, 1.01 with 4; 4096 0.99 with 4, 1.02 with 3; 6144 0.99 with 3,
// 1.08 with 2. Blocks so narrow that more than five are wanted gain nothing, nor where one operand is read (dim 16384,
// 258 us for 256); rows of a cluster wait for each other and want all that fit.
constexpr int blocks_by_speed(int64_t block_bytes, bool clustered, Chunks chunks, const Gpu& gpu) {
  int64_t ahead = bytes_of_a_microsecond(gpu) * 6 / 5;  // 0: the driver does not tell
  if (ahead == 0 || clustered || chunks.in_bytes || chunks.all == 1) return 0;
  int blocks = 1 + ceil_div(ahead, block_bytes);
  return blocks <= 5 ? blocks : 0;
}

// So many blocks at a time on a multiprocessor, kept apart by shared memory that they do not use; 0: as many as fit.
struct Resident {
  int blocks;
  int shared_bytes;       // of each
  int of_multiprocessor;  // of its L1, what is to be shared memory; 0: what the driver likes
};

// Blocks that divide 100 KB. With all of the L1 as shared memory 28 KB are left to cache in, and an H200 takes 4 to 10
// % longer. 8 KB stay free: with less, the driver (580) makes more of the L1 shared memory, and more blocks fit.
constexpr Resident divided(int blocks, const Gpu& gpu) {
  int whole = std::min(100 << 10, gpu.shared_bytes), each = (whole - (8 << 10)) / blocks - (1 << 10) - 128;
  return {blocks, std::min(each, shared_bytes_for(1, gpu)), whole};
}

// vectors: of a row that a block has.
constexpr Resident resident_blocks(Apart apart, const Gpu& gpu, const LaunchPlan& plan, const OpTraits& op, int vectors,
                                   int64_t block_bytes) {
  bool clustered = plan.cluster > 1;
  int blocks = 0;
  switch (apart) {
    case Apart::Not:
      return {};
    case Apart::ByWidth:
      if (parks(plan, op.chunks)) return divided(blocks_of_parked(plan.threads_per_row), gpu);
      blocks = blocks_by_width(vectors, clustered, op.chunks, op.mixed);
      return blocks ? Resident{blocks, shared_bytes_for(blocks, gpu), 0} : Resident{};
    case Apart::BySpeed:
      blocks = blocks_by_speed(block_bytes, clustered, op.chunks, gpu);
      return blocks ? divided(blocks, gpu) : Resident{};
  }
  __builtin_unreachable();
}

// What a call moves.
struct Traffic {
  int64_t rows, read, written;  // bytes of a row
  bool repeats;                 // neighbouring rows of an operand are the same memory
  bool in_bytes;                // one operand, which becomes bytes
};

// What a launch takes of it, choose_launch says.
struct LaunchHints {
  int ahead;  // a prefetch of the row that many further on; 0: of none
  int tail;   // rows at the end that release what is kept of them, and of as many rows before
  bool kept, streamed;
  Resident apart;

  template <class F>
  void each(F f) const {
    f("kept", kept), f("tail", tail), f("streamed", streamed), f("ahead", ahead);
    f("apart", apart.blocks), f("shared_bytes", apart.shared_bytes);
  }
};

// Whether a call moves more than any L2 holds.
constexpr bool is_large(const Traffic& traffic) {
  return traffic.rows * (traffic.read + traffic.written) > int64_t{128} << 20;
}

// Rows that are read for so many bytes; at least one.
constexpr int rows_of(int64_t bytes, int64_t of_row) {
  return static_cast<int>(std::clamp<int64_t>(bytes / of_row, 1, INT32_MAX));
}

// Of short rows that are no whole vectors.
constexpr int rows_ahead_of_short(const Ahead& ahead, const OpTraits& op, const Traffic& traffic) {
  int megabytes = 0, operands = op.chunks.all;
  if (op.chunks.backward && operands == 2 && op.element_size == 2 && !op.mixed) megabytes = ahead.short_backward;
  bool forward_of_one = !op.chunks.backward && !op.chunks.gated && operands == 1;
  if (forward_of_one && (is_norm(op.chunks) || op.element_size == 2)) megabytes = ahead.short_forward;
  bool wanted = megabytes && is_large(traffic) && !traffic.repeats;
  return wanted ? rows_of(int64_t{megabytes} << 20, traffic.read) : 0;
}

constexpr int megabytes_ahead(const Ahead& ahead, const Traffic& traffic) {
  if (traffic.in_bytes || traffic.written == 0) return ahead.bytes;
  if (traffic.read > 2 * traffic.written) return ahead.mostly;
  return 2 * traffic.read > 3 * traffic.written ? ahead.reading : ahead.balanced;
}

// All hints but apart. All but the prefetch of clusters are for large calls. The rows that the tail releases are half
// an L2, as it keeps a line for each half of the GPU (an H200's next kernel waits for none).
constexpr LaunchHints launch_hints(const Gpu& gpu, const GpuClass& row, const LaunchPlan& plan,
                                   const Traffic& traffic) {
  LaunchHints hints{};
  bool clustered = plan.cluster > 1, large = is_large(traffic);
  bool other_size = traffic.in_bytes || traffic.written > traffic.read;
  int ahead = megabytes_ahead(row.ahead, traffic);
  if (ahead && (clustered || (row.ahead.blocks && other_size && large)))
    hints.ahead = rows_of(int64_t{ahead} << 20, traffic.read);
  if (traffic.repeats || !large) return hints;
  hints.kept = row.kept;
  hints.tail = row.kept ? rows_of(gpu.l2_bytes / 4, traffic.read) : 0;
  hints.streamed = row.streamed;
  return hints;
}

constexpr LaunchHints launch_hints(const Gpu& gpu, const LaunchPlan& plan, const Traffic& traffic) {
  return launch_hints(gpu, class_of(gpu), plan, traffic);
}

}  // namespace srmsnorm
