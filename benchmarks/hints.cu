// Times the rows that the table of hints could have for this GPU (csrc/cuda/hints.h), by the library's own launcher.
// Compiled and run by tune.py, which chooses one of them.
#include "tune.cuh"

namespace srmsnorm {
namespace {

struct Timed {
  GpuClass row;
  std::vector<float> us;
};

// The neutral row, and those that differ from it in what makes a difference to the operation: hint_rows.py says which
// choice is made by which.
std::vector<Timed> rows_to_time(const std::string& op, int64_t dim) {
  std::vector<Timed> rows{{kUnmeasured, {}}};
  auto also = [&](auto change) {
    rows.push_back({kUnmeasured, {}});
    change(rows.back().row);
  };
  bool wide = is_wide<ForwardOperands<int>>(dim, sizeof(T));
  auto ahead = [&](int Ahead::* distance, std::initializer_list<int> megabytes) {
    if (wide)
      for (int each : megabytes) also([&](GpuClass& row) { row.ahead.*distance = each; });
  };
  if (op == "forward,wide") also([](GpuClass& row) { row.streamed = true; });
  if (op == "forward,wide" || op == "forward,bytes") {
    if (!wide) also([](GpuClass& row) { row.ahead.blocks = true; });
  } else if (op != "backward,sum") {
    for (bool kept : {false, true})
      for (auto apart : {Apart::Not, Apart::ByWidth, Apart::BySpeed})
        if (kept || apart != Apart::Not) also([&](GpuClass& row) { row.kept = kept, row.apart = apart; });
  }
  auto short_ahead = [&](int Ahead::* distance) {
    for (int each : {2, 4}) also([&](GpuClass& row) { row.ahead.*distance = each; });
  };
  if (op == "forward") short_ahead(&Ahead::short_forward);
  if (op == "backward") short_ahead(&Ahead::short_backward);
  if (op == "forward") ahead(&Ahead::balanced, {0, 4});
  if (op == "forward,residual") ahead(&Ahead::reading, {0, 4});
  if (op == "backward,sum") ahead(&Ahead::mostly, {0, 2});
  if (op == "forward,bytes") ahead(&Ahead::bytes, {0, 4});
  return rows;
}

template <class Op, class Call>
float time_of(const Call& call, const GpuClass& row) {
  return time_us([&] { return launch<Op>(call, this_gpu(), row, nullptr); });
}

template <class F>
float by_name(const std::string& op, const RowSpace& space, const Buffers& buffers, F f) {
  if (op == "forward,wide") return with_wide_forward(space, buffers, f);
  if (op == "forward,bytes") return with_forward_in_bytes(space, buffers, f);
  return op[0] == 'f' ? with_forward(op, space, buffers, f) : with_backward(op, space, buffers, f);
}

float time_of(const std::string& op, const RowSpace& space, const Buffers& buffers, const GpuClass& row) {
  return by_name(op, space, buffers, [&]<class Op>(const auto& call) { return time_of<Op>(call, row); });
}

// Those whose launch is not the neutral row's, after that one.
std::vector<Timed> different(const std::string& op, const RowSpace& space, const Buffers& buffers,
                             const std::vector<Timed>& rows) {
  auto hints_of = [&](const GpuClass& row) {
    std::vector<int> found;
    auto ask = [&]<class Op>(const auto& call) {
      choose_launch(call, traits_of<Op>(), this_gpu(), row).hints.each([&](auto, int value) {
        found.push_back(value);
      });
      return 0.f;
    };
    by_name(op, space, buffers, ask);
    return found;
  };
  std::vector<Timed> all{rows[0]};
  for (const auto& timed : rows)
    if (hints_of(timed.row) != hints_of(rows[0].row)) all.push_back(timed);
  return all;
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

void print(const GpuClass& row) {
  const Ahead& ahead = row.ahead;
  std::printf("%d,%d,%d,%d,%d,%d,%d,%d,%d,%d", row.kept, static_cast<int>(row.apart), row.streamed, ahead.balanced,
              ahead.reading, ahead.mostly, ahead.bytes, ahead.blocks, ahead.short_forward, ahead.short_backward);
}

// What the table has for this GPU.
void print_present() {
  const Gpu& gpu = this_gpu();
  long long bandwidth = gpu.bandwidth / (int64_t{1000000} * std::max(1, gpu.multiprocessors));
  std::printf("%d,%lld,", gpu.capability, bandwidth);
  print(class_of(gpu));
  std::puts("");
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
  std::puts("op,dim,kept,apart,streamed,balanced,reading,mostly,bytes,blocks,short_forward,short_backward,us");
  for (const auto& op : split(argv[2], ';'))
    for (const auto& text : split(argv[3], ',')) {
      auto space = space_of(elements, std::stoll(text));
      auto rows = different(op, space, buffers, rows_to_time(op, space.dim));
      if (rows.size() == 1) continue;
      time_in_turn(op, space, buffers, rows, std::atoi(argv[4]));
      for (auto& [row, us] : rows) {
        std::printf("\"%s\",%s,", op.c_str(), text.c_str());
        print(row);
        std::printf(",%.2f\n", median(us));
      }
      std::fflush(stdout);
    }
}
