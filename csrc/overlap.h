// Whether tensors that are written share memory.
#pragma once
#include <ATen/core/Tensor.h>

namespace srmsnorm {

// An error where elements of one tensor share memory, or elements of the two do. Both have a last dimension of
// stride 1. Views side by side pass, such as q and k of a packed qkv; layouts whose dimensions do not nest are refused
// unseen.
void check_no_overlap(const at::Tensor& input, const at::Tensor& residual);

}  // namespace srmsnorm
