// The CPU key: rows in parallel, each by one thread, in vectors of the widest instruction set there is.
#include <ATen/Parallel.h>
#include <ATen/Version.h>

#include <algorithm>

#include "../backend.h"
#include "../layout.h"
#include "instruction_sets.h"

namespace srmsnorm {
namespace {

// torch's own choice, so that ATEN_CPU_CAPABILITY=default|avx2|avx512 means here what it means there.
const cpu::Sweeps& sweeps() {
  static const cpu::Sweeps& chosen = []() -> const cpu::Sweeps& {
#if defined(__x86_64__)
    auto capability = at::get_cpu_capability();
    if (capability.starts_with("AVX512")) return cpu::kAvx512;
    if (capability == "AVX2") return cpu::kAvx2;
#endif
    return cpu::kPortable;
  }();
  return chosen;
}

// A row is never split, so its bits know nothing of threads. A task is worth a thread from 32768 elements on
// (at::internal's grain size).
template <class Args>
void in_parallel(cpu::Sweep<Args> sweep, const Args& args) {
  auto grain = std::max<int64_t>(1, 32768 / args.space.dim);
  at::parallel_for(0, args.space.rows, grain, [&](int64_t first, int64_t last) { sweep(args, first, last); });
}

struct Cpu {
  template <class Tensors>
  static void run(const Tensors& tensors) {
    using Args = typename Tensors::Args;
    if constexpr (requires { write_given_scale(tensors); }) write_given_scale(tensors);
    over_rows(tensors, [](const Args& args) { in_parallel(std::get<cpu::Select<Args>>(sweeps())(args), args); });
  }
};

}  // namespace

SRMSNORM_KERNELS(CPU, m) { Kernels<Cpu>::add_to(m); }

}  // namespace srmsnorm
