// The instances of the row kernel, in one table: the launcher expands it, and a plan without an instance does not
// compile. Host only, no torch, no device code.
#pragma once
#include "plan.h"

namespace srmsnorm {

// How a row is read: into registers, all operands cut as the main one is; the same, and kept in the L2 until the row is
// written; into registers, operands lying anywhere; or once for the reduction and again for the result, lying anywhere.
enum class Reading { Once, Kept, Shifted, Twice };

constexpr Reading reading_of(const LaunchPlan& plan) {
  return plan.twice ? Reading::Twice : plan.shifted ? Reading::Shifted : Reading::Once;
}

// The kernels that have an instance: of all operators, of forward ones, of those whose operands the reduction needs, or
// of those of them that read several chunks.
enum class Of { None, All, Forward, Unstaged, Several };

constexpr bool are(Of kernels, Chunks chunks) {
  switch (kernels) {
    case Of::None:
      return false;
    case Of::All:
      return true;
    case Of::Forward:
      return !chunks.backward;
    case Of::Unstaged:
      return chunks.late == 0;
    case Of::Several:
      return chunks.late == 0 && chunks.all > 1;
  }
  return false;
}

// By who shares a row and the vectors that a thread holds. Read once, there is one for rows that begin and end at 16
// bytes and one for all others; kept are the former, shifted and read twice the latter. Being kept gains dim 64 to 256
// of backward 1.0 to 1.2 %, nothing where one chunk is read in 1, 3 or 8 vectors; a cluster's reads are prefetched
// instead.
struct Instance {
  Sharing sharing;
  int vectors;
  Of once, kept, shifted, twice;

  constexpr Of kernels(Reading reading) const {
    return reading == Reading::Once      ? once
           : reading == Reading::Kept    ? kept
           : reading == Reading::Shifted ? shifted
                                         : twice;
  }
};

constexpr Instance kInstances[] = {
    {Sharing::Lanes, 1, Of::All, Of::Several, Of::All, Of::None},
    {Sharing::Lanes, 2, Of::All, Of::Unstaged, Of::All, Of::None},
    {Sharing::Lanes, 3, Of::All, Of::Several, Of::All, Of::None},
    {Sharing::Warps, 2, Of::All, Of::Unstaged, Of::All, Of::All},
    {Sharing::Warps, 4, Of::All, Of::Unstaged, Of::All, Of::None},
    {Sharing::Warps, 8, Of::All, Of::Several, Of::None, Of::None},
    {Sharing::Blocks, 2, Of::None, Of::None, Of::None, Of::All},
    {Sharing::Blocks, 4, Of::Forward, Of::None, Of::None, Of::None},
    {Sharing::Blocks, 8, Of::All, Of::None, Of::None, Of::None},
};

constexpr bool holds(const Instance& instance, const LaunchPlan& plan) {
  return instance.sharing == sharing_of(plan.cluster, plan.threads_per_row) && instance.vectors == plan.vectors;
}

constexpr bool has_instance(const LaunchPlan& plan, Reading reading, Chunks chunks) {
  for (const auto& instance : kInstances)
    if (holds(instance, plan)) return are(instance.kernels(reading), chunks);
  return false;
}

// Whether every plan there can be has one: for rows of 2 vectors, of 1 and a part of another, of a part of one, ...
constexpr bool every_plan_has_an_instance(Chunks chunks) {
  for (int64_t elements = 1; elements < int64_t{1} << 24; elements += std::max<int64_t>(1, elements / 64))
    for (auto alignment : {Alignment::Whole, Alignment::InPhase, Alignment::Any})
      for (int cluster = 1; cluster <= kMaxCluster; cluster *= 2) {
        Gpu gpu;
        gpu.largest_cluster = cluster;
        auto plan = plan_launch(elements, /*element_size=*/8, chunks, alignment, gpu);
        if (!has_instance(plan, reading_of(plan), chunks)) return false;
      }
  return true;
}

}  // namespace srmsnorm
