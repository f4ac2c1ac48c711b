#include "layout.h"

#include <algorithm>
#include <array>
#include <numeric>

namespace srmsnorm {
namespace {

using Operands = c10::ArrayRef<TensorRows>;

constexpr int kMaxDims = 64;

// Leading dimensions, innermost first: their sizes and, by operand, their element strides; 0 of those that there are
// not.
struct Levels {
  using Strides = std::array<int64_t, kMaxOperands>;

  int count = 0;
  std::array<int64_t, kMaxDims> sizes;
  std::array<Strides, kMaxDims> strides;

  // One level more, or a larger last one where the rows go on as they are.
  void add(int64_t size, const Strides& stride) {
    int last = count - 1;
    bool merges = last >= 0;
    for (size_t k = 0; merges && k < kMaxOperands; k++) merges = stride[k] == strides[last][k] * sizes[last];
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

// One element is every row's.
int64_t stride_of(const TensorRows& operand, int64_t dim) {
  return operand.tensor->numel() == 1 ? 0 : operand.tensor->stride(dim);
}

Levels merge(Operands operands, at::IntArrayRef leading) {
  Levels levels;
  for (int64_t dim = static_cast<int64_t>(leading.size()) - 1; dim >= 0; dim--) {
    if (leading[dim] == 1) continue;
    Levels::Strides strides{};
    for (size_t k = 0; k < operands.size(); k++) strides[k] = operands[k].rows->data ? stride_of(operands[k], dim) : 0;
    levels.add(leading[dim], strides);
  }
  levels.sort();
  return levels;
}

// As many as there is room for; several only where the rows' indices have 31 bits, which the kernels divide.
int levels_of_a_launch(int count, const int64_t* sizes) {
  int64_t rows = 1;
  for (int i = 0; i < std::min(count, kMaxLevels); i++) {
    rows *= sizes[i];
    if (i > 0 && rows > INT32_MAX) return i;
  }
  return std::min(count, kMaxLevels);
}

}  // namespace

DType to_dtype(at::ScalarType dtype) {
  switch (dtype) {
    case at::kHalf:
      return DType::Half;
    case at::kBFloat16:
      return DType::BFloat16;
    case at::kFloat:
      return DType::Float;
    case at::kDouble:
      return DType::Double;
    case at::kFloat8_e4m3fn:
    case at::kFloat8_e5m2:
    case at::kChar:
      return DType::Byte;
    default:
      TORCH_INTERNAL_ASSERT(false, "no kernel takes ", dtype);
  }
}

Rows rows_of(const Tensor& tensor, Use use) {
  void* data = use.written ? tensor.mutable_data_ptr() : const_cast<void*>(tensor.const_data_ptr());
  return {data, to_dtype(tensor.scalar_type())};
}

void for_each_block(RowSpace& space, Operands operands, const Tensor& shape, c10::function_ref<void()> launch) {
  auto levels = merge(operands, shape.sizes().slice(0, shape.dim() - 1));
  space.dim = shape.size(-1);
  space.levels = std::max(levels_of_a_launch(levels.count, levels.sizes.data()), 1);
  space.sizes[0] = space.rows = 1;
  for (int i = 0; i < std::min(levels.count, space.levels); i++) {
    space.rows *= space.sizes[i] = levels.sizes[i];
    for (size_t k = 0; k < operands.size(); k++) operands[k].rows->strides[i] = levels.strides[i][k];
  }
  auto loop = [&](auto& self, int level) -> void {
    if (level < space.levels) return launch();
    std::array<void*, kMaxOperands> start;
    for (size_t k = 0; k < operands.size(); k++) start[k] = operands[k].rows->data;
    for (int64_t i = 0; i < levels.sizes[level]; i++) {
      for (size_t k = 0; k < operands.size(); k++)
        if (start[k])
          operands[k].rows->data =
              static_cast<char*>(start[k]) + i * levels.strides[level][k] * operands[k].tensor->itemsize();
      self(self, level - 1);
    }
  };
  loop(loop, levels.count - 1);
}

}  // namespace srmsnorm
