// What a call launches, from what it is given: the plan as the launcher takes it, and the hints. Host only, no torch,
// no device code: the launcher and launch_plan ask the same functions.
#pragma once
#include <type_traits>

#include "../row_args.h"
#include "hints.h"
#include "instances.h"

namespace srmsnorm {

// ---- what a call moves, and where it lies

// Whether neighbouring rows of an operand are the same memory.
inline bool repeats(const RowSpace& space, const Rows& rows) {
  return rows.data && space.sizes[0] > 1 && rows.strides[0] == 0;
}

template <class Call>
Traffic traffic_of(const Call& call) {
  Traffic traffic{call.space.rows, 0, 0, false, false};
  if constexpr (std::is_same_v<Call, QuantizedArgs>) traffic.in_bytes = !call.residual.data;
  Call::zip(
      [&](Use use, const Rows& rows) {
        if (!rows.data || !use.whole_row) return;
        (use.written ? traffic.written : traffic.read) += call.space.dim * size_of(rows.dtype);
        if (!use.written) traffic.repeats |= repeats(call.space, rows);
      },
      call);
  return traffic;
}

// Whether an operand is 16-byte aligned at the same elements of all rows as the first one; with first null, at all
// rows' begin.
inline bool in_phase(const RowSpace& space, const Rows& rows, const Rows* first) {
  if (!rows.data) return true;
  int64_t size = size_of(rows.dtype);
  auto elements = [](const Rows* rows) {
    return rows ? reinterpret_cast<intptr_t>(rows->data) / size_of(rows->dtype) : 0;
  };
  bool yes = (elements(&rows) - elements(first)) * size % 16 == 0;
  for (int i = 0; i < space.levels; i++)
    yes = yes && (space.sizes[i] == 1 || (rows.strides[i] - (first ? first->strides[i] : 0)) * size % 16 == 0);
  return yes;
}

// Whether that holds of every operand that has whole rows, but for results narrower than the main operand, which are
// stored at any address.
template <class Call, class Holds>
bool of_all_rows(const Call& call, Holds holds) {
  bool all = true;
  Call::zip(
      [&](Use use, const Rows& rows) {
        bool counts = use.whole_row && !(use.written && size_of(rows.dtype) < size_of(call.main().dtype));
        if (counts) all = all && holds(rows);
      },
      call);
  return all;
}

template <class Call>
Alignment alignment_of(const Call& call) {
  if (of_all_rows(call, [&](const Rows& rows) { return in_phase(call.space, rows, nullptr); })) return Alignment::Whole;
  bool together = of_all_rows(call, [&](const Rows& rows) { return in_phase(call.space, rows, &call.main()); });
  return together ? Alignment::InPhase : Alignment::Any;
}

// Whether the rows of all operands follow each other without gaps.
template <class Call>
bool is_gapless(const Call& call) {
  bool gapless = call.space.levels == 1;
  Call::zip(
      [&](Use use, const Rows& rows) {
        if (use.whole_row && rows.data) gapless &= rows.strides[0] == call.space.dim || call.space.rows == 1;
      },
      call);
  return gapless;
}

// Whether in all operands that are read there is another row behind the end of every one but the last: there, the end
// of a row may be read with what is behind it.
template <class Call>
bool are_followed(const Call& call) {
  const RowSpace& space = call.space;
  bool all = true;
  Call::zip(
      [&](Use use, const Rows& rows) {
        if (use.written || !use.whole_row || !rows.data) return;
        for (int i = 0; i < space.levels; i++) all &= space.sizes[i] == 1 || rows.strides[i] >= space.dim;
      },
      call);
  return all;
}

// ---- which Op of the row kernel takes it

// Those of converted.cuh: results of another dtype than the main operand's, and numbers that are given.
constexpr bool is_converted(const ForwardArgs& call) {
  return !call.output.data || call.output.dtype != call.input.dtype || call.scale.data;
}
constexpr bool is_converted(const BackwardArgs& call) {
  return call.grad_input.data && call.grad_input.dtype != call.output.dtype;
}
constexpr bool is_converted(const WideBackwardArgs&) { return true; }

// Whether it writes a y wider than what it reads, the only result that is ever streamed.
template <class Call>
constexpr bool writes_wide(const Call&) {
  return false;
}
constexpr bool writes_wide(const ForwardArgs& call) {
  return call.output.data && size_of(call.output.dtype) > size_of(call.input.dtype);
}

// Of the Op that the launcher has.
template <class Op>
constexpr OpTraits traits_of() {
  int size = sizeof(typename Op::Element);
  return {size, Op::kChunks, !Op::kChunks.few && Op::kBesideSize > size};
}

template <template <class> class Operands>
constexpr Operands<int> sizes_of(const Operands<Rows>& call) {
  Operands<int> sizes{};
  Operands<int>::zip([](Use, int& size, const Rows& rows) { size = rows.data ? size_of(rows.dtype) : 0; }, sizes, call);
  return sizes;
}

// The same of the Op that a call gets, without its code. tests/test_cuda_headers.py holds the two together.
template <class Call>
constexpr OpTraits traits_of(const Call& call) {
  auto sizes = sizes_of(call);
  OpTraits op{sizes.main(), chunks_of(sizes), false};
  if constexpr (std::is_same_v<Call, QuantizedArgs>) op.chunks = chunks_in_bytes(op.chunks);
  if constexpr (requires { is_converted(call); })
    if (is_converted(call)) op.chunks = with_few_instances(op.chunks);
  sizes.zip([&](Use use, int size) { op.mixed |= !op.chunks.few && use.whole_row && size > op.element_size; }, sizes);
  return op;
}

// ---- what it launches

struct Launch {
  LaunchPlan plan;
  bool flat;          // one level of rows that begin and end at 16 bytes
  bool folded;        // read so
  LaunchHints hints;  // that it takes
};

// Of a call that moves more than any L2 holds.
constexpr Resident resident_blocks(Apart apart, const Gpu& gpu, int64_t dim, const LaunchPlan& plan, const OpTraits& op,
                                   const Traffic& traffic) {
  int vectors = ceil_div(std::min<int64_t>(dim / plan.vector_elements, INT32_MAX), plan.cluster);
  return resident_blocks(apart, gpu, plan, op, vectors, traffic.read * plan.rows_per_block / plan.cluster);
}

// Whether it writes at most half of what it reads: bytes of one operand, or rstd alone. Such a call is over before what
// is done once for each of its threads is.
constexpr bool writes_little(const QuantizedArgs& call) { return !call.residual.data; }
constexpr bool writes_little(const ForwardArgs& call) { return !call.output.data && !call.residual.data; }
template <class Call>
constexpr bool writes_little(const Call&) {
  return false;
}

// Elements of a row whose lanes must be neighbours: those that share a scale. A group as long as the row is the row's
// (quantized.cpp), a shorter one fits half of it.
constexpr int elements_together(const QuantizedArgs& call) { return call.quantization.group; }
template <class Call>
constexpr int elements_together(const Call&) {
  return 0;
}

// A row of such a call with fewer threads, of which each holds what two or four of the plan's would. These are threads
// whose sums the plan's would add first, so that no bit depends on it. H100, of the roof: fp8 64 0.98 for 0.83, 128
// 0.99 for 0.83, 256 1.00 for 0.83; rstd 64 0.95 for 0.90, 128 0.96 for 0.92, 256 0.98 for 0.93. H200, with four
// vectors for two: fp8 1024 0.93 for 0.87, 4096 0.97 for 0.86; rstd 1024 0.99 for 0.80.
struct Threads {
  int of_row, vectors;  // 0: as the plan has it
  bool folded;          // as Reading::Folded
};

constexpr Threads kQuarterOfAWarp{8, 4, true};

constexpr Threads half_the_threads(const LaunchPlan& plan) {
  int threads = plan.threads_per_row;
  if (plan.vectors == 1 && threads > 1) return {threads / 2, 2, false};
  if (plan.vectors == 2 && (threads == 32 || threads % 64 == 0)) return {threads / 2, 4, true};
  return {};
}

template <class Call>
constexpr Threads fewer_threads(const Call& call, const LaunchPlan& plan) {
  if (!writes_little(call) || plan.cluster > 1) return {};
  auto together = [&](Threads threads) {
    return std::min(threads.of_row, threads.folded ? 16 : 32) * plan.vector_elements >= elements_together(call);
  };
  auto half = half_the_threads(plan);
  if (plan.vectors == 1 && plan.threads_per_row == 32 && together(kQuarterOfAWarp)) return kQuarterOfAWarp;
  return together(half) ? half : Threads{};
}

constexpr LaunchPlan with_threads(LaunchPlan plan, const Threads& threads) {
  plan.vectors = threads.vectors;
  plan.threads_per_row = threads.of_row;
  plan.rows_per_block = threads.of_row > 32 ? 1 : 128 / threads.of_row;
  return plan;
}

// Whether every row that may be folded has an instance, and no more threads than it allows.
constexpr bool every_folded_row_has_an_instance(Chunks chunks) {
  if (!includes(Of::Little, chunks)) return true;
  auto fits = [&](const LaunchPlan& plan, Threads threads) {
    auto reading = threads.folded ? Reading::Folded : Reading::Once;
    return plan.twice || !threads.vectors ||
           (has_instance(with_threads(plan, threads), reading, true, chunks) &&
            (!threads.folded || threads.of_row <= kMostFoldedThreads));
  };
  for (int64_t elements = 1; elements < 1 << 20; elements += std::max<int64_t>(1, elements / 16)) {
    auto plan = plan_launch(elements, /*element_size=*/8, chunks, Alignment::Whole, Gpu());
    if (!fits(plan, half_the_threads(plan)) || !fits(plan, kQuarterOfAWarp)) return false;
  }
  return true;
}

// A row of bytes that many blocks share over half of them, as what each thread adds up of the others is much beside
// what little it moves. Of powers of two of threads, which are added in the same order then, so that no bit depends on
// it. fp8 65536 0.96 for 0.93, groups 0.88 for 0.84, 131072 0.93 for 0.91; H200, 32768 0.78 for 0.76, 65536 0.77 for
// 0.70, 131072 0.73 for 0.71.
constexpr LaunchPlan over_fewer_blocks(LaunchPlan plan, Chunks chunks) {
  bool even = (plan.threads_per_row & (plan.threads_per_row - 1)) == 0;
  bool fits = 2 * plan.threads_per_row <= max_cluster_threads(chunks, plan.vectors);
  if (plan.cluster < 8 || plan.twice || !even || !fits) return plan;
  plan.cluster /= 2;
  plan.threads_per_row *= 2;
  return plan;
}

// Who reads a chunk late, has a gate or few instances, or rows that lie anywhere, gains nothing from being kept or from
// blocks apart (but parked vectors leave room for more blocks than all cards want).
template <class Call>
Launch choose_launch(const Call& call, const OpTraits& op, const Gpu& gpu, const GpuClass& row) {
  const Chunks& chunks = op.chunks;
  auto plan = plan_launch(call.space.dim, op.element_size, chunks, alignment_of(call), gpu);
  auto traffic = traffic_of(call);
  auto hints = launch_hints(gpu, row, plan, traffic);
  bool flat = !plan.edges && call.space.levels == 1 && has_instance(plan, reading_of(plan), true, chunks);
  bool gains = flat && !chunks.late && !chunks.gated && !chunks.few;
  if (!flat) plan = general_plan(plan, chunks);
  bool in_parts = reading_of(plan) == Reading::InParts, gapless = in_parts && is_gapless(call);
  if (in_parts && !gapless) plan.rows_per_block = kShortRowThreads / plan.threads_per_row;
  auto threads = flat ? fewer_threads(call, plan) : Threads{};
  if (threads.vectors)
    plan = with_threads(plan, threads);
  else if (flat && chunks.in_bytes)
    plan = over_fewer_blocks(plan, chunks);
  hints.kept = gains && hints.kept && has_instance(plan, Reading::Kept, true, chunks);
  if ((gains || parks(plan, chunks)) && is_large(traffic) && !traffic.repeats)
    hints.apart = resident_blocks(row.apart, gpu, call.space.dim, plan, op, traffic);
  hints.streamed = hints.streamed && writes_wide(call);
  hints.tail = hints.kept ? hints.tail : 0;
  if (!prefetches(sharing_of(plan.cluster, plan.threads_per_row), flat, reading_of(plan), chunks)) hints.ahead = 0;
  if (gapless) hints.ahead = rows_ahead_of_short(row.ahead, op, traffic);
  return {plan, flat, threads.folded, hints};
}

}  // namespace srmsnorm
