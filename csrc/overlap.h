// Whether tensors that are written share memory.
#pragma once
#include <ATen/core/Tensor.h>

namespace srmsnorm {

// An error where elements of one tensor share bytes, or elements of the two do. Exact for all that slicing, transposing
// and packing make, of elements of equal size or not; where telling would take long, an error too, which says so.
void check_no_overlap(const at::Tensor& input, const at::Tensor& residual);

// The same of a residual that the operator of that name overwrites, and what it reads, whose own elements may share.
void check_no_overlap_of_written(const at::Tensor& residual, const at::Tensor& read, const char* name);

}  // namespace srmsnorm
