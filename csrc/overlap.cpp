#include "overlap.h"

#include <algorithm>
#include <vector>

namespace srmsnorm {
namespace {

using at::Tensor;

struct Dimension {
  int64_t stride, size;  // bytes; places
  bool operator<(const Dimension& other) const { return stride < other.stride; }
};

std::vector<Dimension> dimensions(const Tensor& tensor) {
  std::vector<Dimension> result;
  for (int64_t i = 0; i < tensor.dim(); i++)
    if (tensor.size(i) != 1) result.push_back({tensor.stride(i) * tensor.element_size(), tensor.size(i)});
  return result;
}

// Each dimension steps over all that the smaller ones reach.
bool nest(std::vector<Dimension> dimensions, int64_t element_size) {
  std::sort(dimensions.begin(), dimensions.end());
  int64_t reach = element_size;
  for (const auto& dimension : dimensions) {
    if (dimension.stride < reach) return false;
    reach += dimension.stride * (dimension.size - 1);
  }
  return true;
}

int64_t begin(const Tensor& tensor) { return reinterpret_cast<int64_t>(tensor.const_data_ptr()); }

int64_t end(const Tensor& tensor) {
  int64_t last = begin(tensor) + tensor.element_size();
  for (const auto& dimension : dimensions(tensor)) last += dimension.stride * (dimension.size - 1);
  return last;
}

// Two tensors of one layout, at a distance from each other, are one tensor with a dimension more.
bool apart(const Tensor& a, const Tensor& b) {
  if (end(a) <= begin(b) || end(b) <= begin(a)) return true;
  if (a.element_size() != b.element_size() || a.strides() != b.strides()) return false;
  auto both = dimensions(a);
  both.push_back({std::abs(begin(a) - begin(b)), 2});
  return nest(both, a.element_size());
}

}  // namespace

void check_no_overlap(const Tensor& input, const Tensor& residual) {
  if (input.numel() == 0) return;
  for (const auto* tensor : {&input, &residual})
    TORCH_CHECK(tensor->is_contiguous() || nest(dimensions(*tensor), tensor->element_size()),
                "srmsnorm: add_srms_norm_ overwrites its operands, but elements of one overlap: sizes ",
                tensor->sizes(), ", strides ", tensor->strides());
  TORCH_CHECK(apart(input, residual),
              "srmsnorm: add_srms_norm_ overwrites its operands, but they overlap in memory: strides ", input.strides(),
              " and ", residual.strides(), ", ", begin(residual) - begin(input), " bytes from one to the other");
}

}  // namespace srmsnorm
