// What a call would launch on a GPU, for launch_plan: the operator's own function prepares it, on tensors without
// memory, and instead of a launch the launcher's choice is noted.
#pragma once
#include <cstdint>
#include <optional>

#include "cuda/call.h"
#include "layout.h"

namespace srmsnorm {

struct LaunchQuestion {
  Gpu gpu;
  int64_t rows;
  bool aligned, in_phase;  // where rows begin in memory: Alignment
  std::optional<Launch> answer = {};
};

// Of this thread, while it asks; else null.
LaunchQuestion*& launch_question();

// The call as the launcher gets it: rows next to each other, at addresses that nobody follows.
template <class Tensors>
typename Tensors::Args call_without_memory(const Tensors& tensors, const LaunchQuestion& question) {
  constexpr intptr_t kAligned = 1 << 20;
  typename Tensors::Args call;
  call.space = {question.rows, tensors.main().size(-1), 1, {question.rows}};
  Tensors::zip(
      [&](Use use, const Tensor& tensor, Rows& rows) {
        if (!tensor.defined()) return;
        auto dtype = to_dtype(tensor.scalar_type());
        bool with_main = question.in_phase || tensor.is_same(tensors.main());
        bool aligned = with_main ? question.aligned : !question.aligned;
        auto address = kAligned + (aligned ? 0 : size_of(dtype));
        rows = {reinterpret_cast<void*>(address), dtype, {use.whole_row ? call.space.dim : 1}};
      },
      tensors, call);
  return call;
}

template <class Tensors>
void answer_launch_question(const Tensors& tensors) {
  auto* question = launch_question();
  if (!question) [[likely]]
    return;
  auto call = call_without_memory(tensors, *question);
  question->answer = choose_launch(call, traits_of(call), question->gpu, class_of(question->gpu));
}

inline void check_dim(int64_t dim) { TORCH_CHECK(dim > 0, "srmsnorm: dim must be at least 1, got ", dim); }

inline void check_cluster(int64_t cluster, const char* name) {
  TORCH_CHECK(cluster >= 1 && cluster <= kMaxCluster, "srmsnorm: ", name, " must be from 1 to ", kMaxCluster, ", got ",
              cluster);
}

}  // namespace srmsnorm
