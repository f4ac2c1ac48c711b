// Times the rows that the table of hints could have for this GPU (csrc/cuda/hints.h), by the library's own launcher.
// Compiled and run by tune.py, which chooses one of them.
#include "tune.cuh"

namespace srmsnorm {
namespace {

const char* name_of(Keep keep) {
  return keep == Keep::Nothing ? "Nothing" : keep == Keep::Balanced ? "Balanced" : "All";
}

struct Timed {
  GpuClass row;
  std::vector<float> us;
};

// Those that differ in the operation: only a wide y can be streamed and only bytes prefetched far, and neither is kept
// or apart.
std::vector<Timed> rows_to_time(const std::string& op) {
  std::vector<Timed> rows;
  if (op == "forward,wide" || op == "forward,bytes") {
    bool wide = op == "forward,wide";
    for (bool on : {false, true}) rows.push_back({{0, 0, Keep::Nothing, false, wide && on, !wide && on}, {}});
    return rows;
  }
  for (auto keep : {Keep::Nothing, Keep::Balanced, Keep::All})
    for (bool apart : {false, true}) rows.push_back({{0, 0, keep, apart, false, false}, {}});
  return rows;
}

template <class Op, class Call>
float time_of(const Call& call, const GpuClass& row) {
  return time_us([&] { return launch<Op>(call, this_gpu(), row, nullptr); });
}

float time_of(const std::string& op, const RowSpace& space, const Buffers& buffers, const GpuClass& row) {
  auto timed = [&]<class Op>(const auto& call) { return time_of<Op>(call, row); };
  if (op == "forward,wide") return with_wide_forward(space, buffers, timed);
  if (op == "forward,bytes") return with_forward_in_bytes(space, buffers, timed);
  return op[0] == 'f' ? with_forward(op, space, buffers, timed) : with_backward(op, space, buffers, timed);
}

// In turn, so that what changes with time changes for all; the first round is a warm-up.
void time_in_turn(const std::string& op, const RowSpace& space, const Buffers& buffers, std::vector<Timed>& rows,
                  int rounds) {
  for (int round = 0; round <= rounds; round++)
    for (auto& timed : rows) {
      float us = time_of(op, space, buffers, timed.row);
      if (us < 0) check(cudaErrorInvalidConfiguration, op.c_str());
      if (round > 0) timed.us.push_back(us);
    }
}

float median(std::vector<float>& times) {
  auto middle = times.begin() + times.size() / 2;
  std::nth_element(times.begin(), middle, times.end());
  return *middle;
}

// What the table has for this GPU.
void print_present() {
  const Gpu& gpu = this_gpu();
  const auto& row = class_of(gpu);
  long long bandwidth = gpu.bandwidth / (int64_t{1000000} * std::max(1, gpu.multiprocessors));
  std::printf("%d,%lld,%s,%d,%d,%d\n", gpu.capability, bandwidth, name_of(row.keep), row.apart, row.streamed, row.far);
}

}  // namespace
}  // namespace srmsnorm

// hints ELEMENTS OP;OP;... DIM,DIM,... ROUNDS: a line of what the table has, then a CSV on stdout.
int main(int argc, char** argv) {
  using namespace srmsnorm;
  if (argc != 5) return std::fputs("hints ELEMENTS OPS DIMS ROUNDS\n", stderr), 2;
  int64_t elements = std::atoll(argv[1]);
  auto buffers = filled_buffers(elements);
  print_present();
  std::puts("op,dim,keep,apart,streamed,far,us");
  for (const auto& op : split(argv[2], ';'))
    for (const auto& text : split(argv[3], ',')) {
      auto rows = rows_to_time(op);
      time_in_turn(op, space_of(elements, std::stoll(text)), buffers, rows, std::atoi(argv[4]));
      for (auto& [row, us] : rows)
        std::printf("\"%s\",%s,%s,%d,%d,%d,%.2f\n", op.c_str(), text.c_str(), name_of(row.keep), row.apart,
                    row.streamed, row.far, median(us));
      std::fflush(stdout);
    }
}
