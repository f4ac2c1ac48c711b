#include "layout.h"

#include <algorithm>
#include <array>
#include <numeric>

namespace srmsnorm {
namespace {

struct Operand {
  Rows* rows;
  const Tensor* tensor;
};

constexpr int kMaxDims = 64;

// Leading dimensions, innermost first: their sizes and, by operand, their element strides.
template <size_t N>
struct Levels {
  using Strides = std::array<int64_t, N>;

  int count = 0;
  std::array<int64_t, kMaxDims> sizes;
  std::array<Strides, kMaxDims> strides;

  // One level more, or a larger last one where the rows go on as they are.
  void add(int64_t size, const Strides& stride) {
    int last = count - 1;
    bool merges = last >= 0;
    for (size_t k = 0; merges && k < N; k++) merges = stride[k] == strides[last][k] * sizes[last];
    if (merges) {
      sizes[last] *= size;
      return;
    }
    TORCH_CHECK(count < kMaxDims, "srmsnorm: more than ", kMaxDims, " dimensions that do not merge");
    sizes[count] = size;
    strides[count++] = stride;
  }

  // By the strides in all operands together, so that neighbouring rows are neighbours in memory, whatever order the
  // tensors' dimensions have. What merges then has not merged before.
  void sort() {
    auto total = [](const Strides& level) { return std::accumulate(level.begin(), level.end(), int64_t{0}); };
    auto smaller = [&](const Strides& a, const Strides& b) { return total(a) < total(b); };
    if (std::is_sorted(strides.begin(), strides.begin() + count, smaller)) return;
    std::array<int, kMaxDims> order;
    std::iota(order.begin(), order.begin() + count, 0);
    std::stable_sort(order.begin(), order.begin() + count,
                     [&](int a, int b) { return smaller(strides[a], strides[b]); });
    Levels sorted;
    for (int i = 0; i < count; i++) sorted.add(sizes[order[i]], strides[order[i]]);
    *this = sorted;
  }
};

template <size_t N>
Levels<N> merge(const std::array<Operand, N>& operands, at::IntArrayRef leading) {
  Levels<N> levels;
  for (int64_t dim = static_cast<int64_t>(leading.size()) - 1; dim >= 0; dim--) {
    if (leading[dim] == 1) continue;
    typename Levels<N>::Strides strides;
    for (size_t k = 0; k < N; k++) strides[k] = operands[k].rows->data ? operands[k].tensor->stride(dim) : 0;
    levels.add(leading[dim], strides);
  }
  levels.sort();
  return levels;
}

// As many as there is room for; several only where the rows' indices have 32 bits, which the kernels divide.
int levels_of_a_launch(int count, const int64_t* sizes) {
  int64_t rows = 1;
  for (int i = 0; i < std::min(count, kMaxLevels); i++) {
    rows *= sizes[i];
    if (i > 0 && rows > UINT32_MAX) return i;
  }
  return std::min(count, kMaxLevels);
}

template <size_t N>
void for_each_block(RowSpace& space, const std::array<Operand, N>& operands, const Tensor& shape,
                    c10::function_ref<void()> launch) {
  auto levels = merge(operands, shape.sizes().slice(0, shape.dim() - 1));
  space.dim = shape.size(-1);
  space.levels = std::max(levels_of_a_launch(levels.count, levels.sizes.data()), 1);
  space.sizes[0] = space.rows = 1;
  for (int i = 0; i < std::min(levels.count, space.levels); i++) {
    space.rows *= space.sizes[i] = levels.sizes[i];
    for (size_t k = 0; k < N; k++) operands[k].rows->strides[i] = levels.strides[i][k];
  }
  auto loop = [&](auto& self, int level) -> void {
    if (level < space.levels) return launch();
    std::array<void*, N> start;
    for (size_t k = 0; k < N; k++) start[k] = operands[k].rows->data;
    for (int64_t i = 0; i < levels.sizes[level]; i++) {
      for (size_t k = 0; k < N; k++)
        if (start[k])
          operands[k].rows->data =
              static_cast<char*>(start[k]) + i * levels.strides[level][k] * operands[k].tensor->itemsize();
      self(self, level - 1);
    }
    for (size_t k = 0; k < N; k++) operands[k].rows->data = start[k];
  };
  loop(loop, levels.count - 1);
}

DType to_dtype(at::ScalarType dtype) {
  switch (dtype) {
    case at::kHalf:
      return DType::Half;
    case at::kBFloat16:
      return DType::BFloat16;
    case at::kFloat:
      return DType::Float;
    default:
      return DType::Double;
  }
}

Operand read(Rows& rows, const Tensor& tensor) {
  if (tensor.defined()) rows = {const_cast<void*>(tensor.const_data_ptr()), to_dtype(tensor.scalar_type())};
  return {&rows, &tensor};
}

Operand written(Rows& rows, const Tensor& tensor) {
  if (tensor.defined()) rows = {tensor.mutable_data_ptr(), to_dtype(tensor.scalar_type())};
  return {&rows, &tensor};
}

}  // namespace

void over_rows(const ForwardTensors& t, c10::function_ref<void(const ForwardArgs&)> launch) {
  if (t.input.numel() == 0) return;
  ForwardArgs args;
  args.eps = t.eps;
  // What is written comes first: in place, a copy-on-write storage must be its own before its address is read.
  auto output = written(args.output, t.output), sum = written(args.sum, t.sum), rstd = written(args.rstd, t.rstd);
  auto input = read(args.input, t.input), residual = read(args.residual, t.residual);
  for_each_block<5>(args.space, {input, residual, output, sum, rstd}, t.input, [&] { launch(args); });
}

void over_rows(const BackwardTensors& t, c10::function_ref<void(const BackwardArgs&)> launch) {
  if (t.output.numel() == 0) return;
  BackwardArgs args;
  auto grad_output = read(args.grad_output, t.grad_output), output = read(args.output, t.output);
  auto rstd = read(args.rstd, t.rstd), grad_sum = read(args.grad_sum, t.grad_sum);
  auto grad_input = written(args.grad_input, t.grad_input);
  auto grad_residual = written(args.grad_residual, t.grad_residual);
  for_each_block<6>(args.space, {grad_output, output, rstd, grad_sum, grad_input, grad_residual}, t.output,
                    [&] { launch(args); });
}

}  // namespace srmsnorm
