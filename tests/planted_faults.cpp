// Calls of the CPU kernels that are wrong in one way each: what a sanitizer must report, and a call that is right, of
// which it must say nothing. tests/sanitize.py links it to the sanitized kernels.
#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <cstdio>
#include <memory>
#include <string>
#include <thread>

#include "../csrc/cpu/instruction_sets.h"

using namespace srmsnorm;

constexpr int64_t kRows = 64, kDim = 4099;  // enough for two threads

Rows rows(void* data, DType dtype, int64_t stride) {
  Rows result;
  result.data = data, result.dtype = dtype, result.strides[0] = stride;
  return result;
}

// As the CPU key does: rows in parallel.
void forward(const ForwardArgs& args) {
  auto sweep = std::get<cpu::Select<ForwardArgs>>(cpu::kPortable)(args);
  at::parallel_for(0, kRows, 1, [&](int64_t first, int64_t last) { sweep(args, first, last); });
}

int main(int, char** argv) {
  std::string fault = argv[1];
  at::set_num_threads(2);
  std::unique_ptr<float[]> input(new float[kRows * kDim]);
  auto short_of_one = fault == "overflow" ? 1 : 0;
  std::unique_ptr<float[]> output(new float[kRows * kDim - short_of_one]);
  for (int64_t i = 0; i < kRows * kDim; ++i) input[i] = 1;

  ForwardArgs args;
  args.space.rows = args.space.sizes[0] = kRows, args.space.dim = kDim;
  args.input = rows(input.get(), DType::Float, kDim);
  args.output = rows(output.get(), DType::Float, fault == "race" ? 0 : kDim);
  std::unique_ptr<char[]> rstd(new char[kRows * sizeof(float) + 1]);
  if (fault == "undefined") args.rstd = rows(rstd.get() + 1, DType::Float, 1);
  if (fault == "callers") {  // two threads of the caller's write one output
    std::thread other([args] { forward(args); });
    forward(args);
    other.join();
  }
  forward(args);
  std::printf("%g\n", output[kDim / 2]);
}
