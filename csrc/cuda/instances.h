// The instances of the row kernel, in one table: the launcher expands it, and a plan without an instance does not
// compile. Host only, no torch, no device code.
#pragma once
#include "plan.h"

namespace srmsnorm {

// How a row is read: into registers, all operands cut as the main one is; the same, and kept in the L2 until the next
// rows take its place; as the first, by fewer threads, each of which holds what several would and adds in their order;
// into registers, operands lying anywhere; once for the reduction and again for the result, lying anywhere; or into
// registers, chunk by chunk, of several rows where they are so short (short_row_kernel.cuh, in no instance below).
enum class Reading { Once, Kept, Folded, Shifted, Twice, InParts };

constexpr Reading reading_of(const LaunchPlan& plan) {
  return plan.vectors == 0 ? Reading::InParts
         : plan.twice      ? Reading::Twice
         : plan.shifted    ? Reading::Shifted
                           : Reading::Once;
}

// The operators that have an instance: all; those without a gate; of these the forward ones, or with the gated ones;
// those without a gate whose operands the reduction needs, and of those the ones that read several chunks; and those
// that may write little of what they read: bytes of one operand, or rstd alone.
enum class Of { None, All, Ungated, Forward, ForwardOrGated, Unstaged, Several, Little };

constexpr bool includes(Of operators, Chunks chunks) {
  switch (operators) {
    case Of::None:
      return false;
    case Of::All:
      return true;
    case Of::Forward:
      return !chunks.gated && !chunks.backward;
    case Of::ForwardOrGated:
      return chunks.gated || !chunks.backward;
    case Of::Ungated:
      return !chunks.gated;
    case Of::Unstaged:
      return !chunks.gated && chunks.late == 0;
    case Of::Several:
      return !chunks.gated && chunks.late == 0 && chunks.all > 1;
    case Of::Little:
      return (chunks.in_bytes || chunks.few) && !chunks.backward && chunks.all == 1;
  }
  __builtin_unreachable();
}

// Whose rows are prefetched where the hints say so: clusters', and of one block those of operators that never keep
// them. The others would lose registers by the code alone (forward, 4 vectors a thread, 60 for 50).
constexpr bool prefetches(Sharing sharing, bool flat, Reading reading, Chunks chunks) {
  if (reading == Reading::Twice || sharing == Sharing::Lanes) return false;
  return sharing == Sharing::Blocks || (flat && (chunks.in_bytes || chunks.few));
}

// By who shares a row and the vectors that a thread holds: of flat rows (one level, beginning and ending at 16 bytes)
// read once, or kept; of all others read once, shifted or twice. Being kept gains dim 64 to 256 of backward 1.0 to 1.2
// %, nothing where one chunk is read in 1, 3 or 8 vectors; a cluster's reads are prefetched instead. Gated rows that
// lie anywhere are read twice where whole warps share them, and so are wide ones that are not flat.
struct Instance {
  Sharing sharing;
  int vectors;
  Of flat, kept, folded, general, shifted, twice;

  // Of an operator with few instances none is kept, and where whole warps share them, rows that lie anywhere are read
  // as shifted (parts of a warp would lose by it: dim 100 0.68 of the roof). Quantised rows have these, but for the
  // widest of one block, which there are where there are no clusters; and of parts of a warp those that are shifted are
  // read twice. Forward of three chunks has no such widest rows either (in_one_block). Of double none is kept (H200,
  // forward 1.4 % slower, with residual 1.0, backward 0.5).
  constexpr bool is_for(Chunks chunks, Reading reading, bool is_flat) const {
    bool once = reading == Reading::Once && !is_flat, warps = sharing == Sharing::Warps;
    bool spared = reading == Reading::Kept || (once && warps && includes(shifted, chunks));
    if ((chunks.few || chunks.in_bytes) && spared) return false;
    if (warps && vectors == 8 && (chunks.in_bytes || (!chunks.backward && chunks.all > 2))) return false;
    if (chunks.of_double && reading == Reading::Kept) return false;
    if (chunks.in_bytes && sharing == Sharing::Lanes && !is_flat && reading != Reading::Once)
      return reading == Reading::Twice && vectors == kTwiceVectors;
    return includes(operators(reading, is_flat), chunks);
  }

  constexpr Of operators(Reading reading, bool is_flat) const {
    switch (reading) {
      case Reading::Once:
        return is_flat ? flat : general;
      case Reading::Kept:
        return is_flat ? kept : Of::None;
      case Reading::Folded:
        return is_flat ? folded : Of::None;
      case Reading::Shifted:
        return is_flat ? Of::None : shifted;
      case Reading::Twice:
        return is_flat ? Of::None : twice;
      case Reading::InParts:
        return Of::None;
    }
    __builtin_unreachable();
  }
};

constexpr Instance kInstances[] = {
    {Sharing::Lanes, 1, Of::All, Of::Several, Of::None, Of::All, Of::All, Of::None},
    {Sharing::Lanes, 2, Of::All, Of::Unstaged, Of::None, Of::All, Of::All, Of::None},
    {Sharing::Lanes, 3, Of::All, Of::Several, Of::None, Of::All, Of::All, Of::None},
    {Sharing::Lanes, 4, Of::None, Of::None, Of::Little, Of::None, Of::None, Of::None},
    {Sharing::Warps, 2, Of::All, Of::Unstaged, Of::None, Of::All, Of::Ungated, Of::All},
    {Sharing::Warps, 4, Of::All, Of::Unstaged, Of::Little, Of::All, Of::Ungated, Of::None},
    {Sharing::Warps, 8, Of::Ungated, Of::Several, Of::None, Of::Ungated, Of::None, Of::None},
    {Sharing::Blocks, 2, Of::None, Of::None, Of::None, Of::None, Of::None, Of::All},
    {Sharing::Blocks, 4, Of::ForwardOrGated, Of::None, Of::None, Of::Forward, Of::None, Of::None},
    {Sharing::Blocks, 8, Of::Ungated, Of::None, Of::None, Of::Ungated, Of::None, Of::None},
};

constexpr bool holds(const Instance& instance, const LaunchPlan& plan) {
  return instance.sharing == sharing_of(plan.cluster, plan.threads_per_row) && instance.vectors == plan.vectors;
}

constexpr bool has_instance(const LaunchPlan& plan, Reading reading, bool flat, Chunks chunks) {
  if (reading == Reading::InParts) return !flat;
  for (const auto& instance : kInstances)
    if (holds(instance, plan)) return instance.is_for(chunks, reading, flat);
  return false;
}

// Of rows that are not flat: where their own reading has no instance, one that reads any row, in the same order.
constexpr LaunchPlan general_plan(LaunchPlan plan, Chunks chunks) {
  if (has_instance(plan, reading_of(plan), false, chunks)) return plan;
  plan.shifted = plan.edges = true;
  if (has_instance(plan, reading_of(plan), false, chunks)) return plan;
  plan.twice = true;
  plan.vectors = kTwiceVectors;
  return plan;
}

// Whether every plan there can be has one: no plan is for so few dims that steps of a 16th would pass it by.
constexpr bool every_plan_has_an_instance(Chunks chunks) {
  for (int64_t elements = 1; elements < int64_t{1} << 24; elements += std::max<int64_t>(1, elements / 16))
    for (auto alignment : {Alignment::Whole, Alignment::InPhase, Alignment::Any})
      for (int cluster : {1, 2, 4, 8, kMaxCluster}) {
        Gpu gpu;
        gpu.largest_cluster = cluster;
        auto plan = plan_launch(elements, /*element_size=*/8, chunks, alignment, gpu);
        if (!plan.edges && !chunks.in_bytes && !has_instance(plan, Reading::Once, true, chunks)) return false;
        plan = general_plan(plan, chunks);
        if (!has_instance(plan, reading_of(plan), false, chunks)) return false;
      }
  return true;
}

}  // namespace srmsnorm
