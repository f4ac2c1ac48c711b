// Times launches that the plan could choose: every (threads, rows, vectors, cluster, kept in the L2) that holds a row,
// with as many blocks on a multiprocessor as the launcher allows, as fit, and fewer. Compiled and run by tune.py, which
// says which of them the plan chooses; ELEMENT and BESIDE name the dtypes.
#include "tune.cuh"

namespace srmsnorm {
namespace {

struct Candidate {
  int threads, rows, vectors, cluster;
  bool kept;
  int resident;  // blocks on a multiprocessor at most; 0: as many as fit; kAsLaunched: what the launcher makes of it
  bool launched = false;  // whether the launcher, of this plan, launches just this; known once it is timed
};

constexpr int kAsLaunched = -1;

// ---- instances of the kernel

#ifndef VECTORS  // a test compiles fewer
#define VECTORS 1, 2, 3, 4, 6, 8, 12, 16
#endif

template <class Op, Sharing sharing, bool flat, Reading reading, int... vectors>
Kernel<Op, flat> kernel_with(int wanted) {
  Kernel<Op, flat> found = nullptr;
  ((vectors == wanted ? found = kInstanceFor<Op, vectors, sharing, flat, reading> : nullptr), ...);
  return found;
}

template <class Op, bool flat, Reading reading, int... vectors>
Kernel<Op, flat> candidate_of(const Candidate& c, std::integer_sequence<int, vectors...>) {
  switch (sharing_of(c.cluster, c.threads)) {
    case Sharing::Lanes:
      return kernel_with<Op, Sharing::Lanes, flat, reading, vectors...>(c.vectors);
    case Sharing::Warps:
      return kernel_with<Op, Sharing::Warps, flat, reading, vectors...>(c.vectors);
    default:
      if constexpr (reading == Reading::Once)
        return kernel_with<Op, Sharing::Blocks, flat, reading, vectors...>(c.vectors);
      return nullptr;
  }
}

// Null where there is none: kept in the L2 are flat rows of one block, without operands that the sum does not need.
template <class Op, bool flat>
Kernel<Op, flat> candidate_of(const Candidate& c) {
  std::integer_sequence<int, VECTORS> all;
  if (!c.kept) return candidate_of<Op, flat, Reading::Once>(c, all);
  if constexpr (flat && Op::kChunks.late == 0) return candidate_of<Op, flat, Reading::Kept>(c, all);
  return nullptr;
}

constexpr int kRepeats = 9;

float median_us(const std::function<cudaError_t()>& call) {
  std::vector<float> times;
  for (int i = -1; i < kRepeats; i++) {  // the first is a warm-up
    float us = time_us(call);
    if (us < 0) return -1;
    if (i >= 0) times.push_back(us);
  }
  std::nth_element(times.begin(), times.begin() + kRepeats / 2, times.end());
  return times[kRepeats / 2];
}

// -1 where the launch is not possible.
template <class Op, bool flat, class Call>
float time_of(const Call& call, Candidate& c) {
  auto kernel = candidate_of<Op, flat>(c);
  if (!kernel) return -1;
  // As launch() in launcher.cuh.
  LaunchPlan plan{16 / sizeof(T), c.threads, c.rows, c.vectors, c.cluster, false, false, !flat};
  GpuClass row = class_of(this_gpu());
  bool keeps = row.kept;
  row.kept = true;  // what a candidate keeps it releases, on every GPU
  auto hints = launch_hints(this_gpu(), row, plan, traffic_of(call));
  hints.kept &= keeps;
  if (c.cluster == 1) hints.ahead = 0;
  constexpr bool gains = flat && Op::kChunks.late == 0;
  if ((gains || parks(plan, Op::kChunks)) && c.resident)
    hints.apart = resident_blocks(row.apart, this_gpu(), call.space.dim, plan, traits_of<Op>(), traffic_of(call));
  bool kept = gains && hints.kept && has_instance(plan, Reading::Kept, true, Op::kChunks);
  c.launched = c.resident == kAsLaunched && c.kept == kept;
  bool by_width = row.apart == Apart::ByWidth;
  if (c.resident > 0)
    hints.apart =
        by_width ? Resident{c.resident, shared_bytes_for(c.resident, this_gpu()), 0} : divided(c.resident, this_gpu());
  hints.apart = as_driver_can(hints.apart);
  int shared = shared_bytes<Op>(plan, hints.apart, this_gpu()).of_call;
  auto args = kernel_args<typename Op::Operands, typename Op::template Args<flat>>(call, plan, hints);
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, kernel), "attributes");
  if (c.threads * c.rows > attributes.maxThreadsPerBlock) return -1;
  if (shared && cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared)) {
    cudaGetLastError();
    return -1;
  }
  if (c.cluster > 8) check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "cluster");
  LaunchAttributes launch_attributes(c.cluster, hints.apart, this_gpu());
  cudaLaunchConfig_t config{};
  config.gridDim = dim3((args.rows + c.rows - 1) / c.rows * c.cluster);
  config.blockDim = dim3(c.threads, c.rows);
  config.dynamicSmemBytes = shared;
  config.attrs = launch_attributes.of;
  config.numAttrs = launch_attributes.count;
  float us = median_us([&] { return cudaLaunchKernelEx(&config, kernel, args); });
  cudaGetLastError();  // a launch that is not possible leaves its error behind
  return us;
}

template <class Op, class Call>
float time_of(const Call& call, Candidate& c, bool flat) {
  return flat ? time_of<Op, true>(call, c) : time_of<Op, false>(call, c);
}

float time_of(const std::string& op, const RowSpace& space, const Buffers& buffers, Candidate& c) {
  bool flat = space.dim % (16 / sizeof(T)) == 0;
  auto timed = [&]<class Op>(const auto& args) { return time_of<Op>(args, c, flat); };
  return op[0] == 'f' ? with_forward(op, space, buffers, timed) : with_backward(op, space, buffers, timed);
}

// ---- candidates

int chunks_of(const std::string& op) {
  int beside = sizeof(S) / sizeof(T);
  return op == "forward" ? 1 : op == "backward" ? 2 : op[0] == 'f' ? 1 + beside : 2 + beside;
}

// staged: whether there is an operand that the sum does not need.
std::vector<Candidate> candidates(int64_t dim, int chunks, bool staged) {
  int64_t vectors = std::max<int64_t>(1, dim / (16 / sizeof(T)));
  std::vector<Candidate> all;
  for (int held : {1, 2, 3, 4, 6, 8, 12, 16})
    for (int cluster : {1, 2, 4, 8, 16}) {
      int64_t threads = (vectors + held * cluster - 1) / (held * cluster);
      if (threads > 1024 || held * chunks > 40 || (cluster > 1 && (vectors < 1024 || threads < 32))) continue;
      int per_row = 1;
      while (per_row < threads) per_row *= 2;
      if (threads > 32) per_row = (threads + 31) / 32 * 32;
      for (int block : {0, 64, 128, 256}) {  // 0: one row
        int rows = block ? block / per_row : 1;
        if (rows < 1 || (block && rows == 1) || per_row * rows % 32) continue;
        if (rows > 1 && (per_row > 32 || held > 3 || cluster > 1)) continue;  // the plan takes one row there
        bool flat = dim % (16 / sizeof(T)) == 0;
        all.push_back({per_row, rows, held, cluster, false, kAsLaunched});
        if (flat) all.push_back({per_row, rows, held, cluster, true, kAsLaunched});
        // Who stages in shared memory, and whose rows share a warp, has all the blocks that fit.
        if (flat && (cluster > 1 ? !staged : per_row > 32))
          for (int resident : {0, 1, 2, 3, 4, 5, 6, 8})
            if (resident * per_row < 2048) all.push_back({per_row, rows, held, cluster, cluster == 1, resident});
      }
    }
  return all;
}

}  // namespace
}  // namespace srmsnorm

// tune ELEMENTS OP;OP;... DIM,DIM,...: a CSV on stdout.
int main(int argc, char** argv) {
  using namespace srmsnorm;
  if (argc != 4) return std::fputs("tune ELEMENTS OPS DIMS\n", stderr), 2;
  int64_t elements = std::atoll(argv[1]);
  auto buffers = filled_buffers(elements);
  std::puts("op,dim,threads_per_row,rows_per_block,vectors,cluster,kept,resident,launched,us");
  for (const auto& op : split(argv[2], ';'))
    for (const auto& text : split(argv[3], ',')) {
      auto space = space_of(elements, std::stoll(text));
      if (space.rows == 0) continue;
      for (auto& c : candidates(space.dim, chunks_of(op), op == "backward,sum")) {
        float us = time_of(op, space, buffers, c);
        if (us > 0)
          std::printf("\"%s\",%s,%d,%d,%d,%d,%d,%d,%d,%.2f\n", op.c_str(), text.c_str(), c.threads, c.rows, c.vectors,
                      c.cluster, c.kept, c.resident, c.launched, us);
      }
      std::fflush(stdout);
    }
}
