#include "kernel.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>

#include <algorithm>

#include "instruction_sets.h"

namespace srmsnorm::cpu {
namespace {

// torch's own choice, so that ATEN_CPU_CAPABILITY=default|avx2|avx512 means here what it means there.
const Sweeps& sweeps() {
  static const Sweeps& chosen = []() -> const Sweeps& {
#if defined(__x86_64__)
    auto capability = at::get_cpu_capability();
    if (capability.starts_with("AVX512")) return kAvx512;
    if (capability == "AVX2") return kAvx2;
#endif
    return kPortable;
  }();
  return chosen;
}

// A row is never split, so its bits know nothing of threads. A task is worth a thread from 32768 elements on
// (at::internal's grain size).
template <class Args>
void in_parallel(Sweep<Args> sweep, const Args& args) {
  auto grain = std::max<int64_t>(1, 32768 / args.space.dim);
  at::parallel_for(0, args.space.rows, grain, [&](int64_t first, int64_t last) { sweep(args, first, last); });
}

}  // namespace

void forward(const ForwardArgs& args) { in_parallel(sweeps().forward(args), args); }
void backward(const BackwardArgs& args) { in_parallel(sweeps().backward(args), args); }

}  // namespace srmsnorm::cpu
