// What is asked of arguments one by one, and the tensors that are made of them. An error begins with "srmsnorm: " and
// says what was got.
#pragma once
#include "ops.h"

namespace srmsnorm {

// ---- dtypes

bool is_16_bit(at::ScalarType dtype);

// The stream beside a tensor: of its dtype, or float32 beside 16 bits.
bool fits_beside(at::ScalarType dtype, at::ScalarType other);

// A dtype by its name in PyTorch, as schemas hold it: float64 beside float64 and there alone.
at::ScalarType dtype_of(MaybeName name, at::ScalarType beside);
const char* name_of(at::ScalarType dtype);

// ---- checks

// None comes as an undefined tensor where an operator is called by its schema.
void check_dense(const Tensor& tensor, const char* name);
void check_same_shape(const Tensor& tensor, const char* name, const Tensor& like, const char* like_name);
void check_same_device(const Tensor& tensor, const char* name, const Tensor& like, const char* like_name);

// Rows: dense, of a dtype that is taken, with a last dimension that is not empty.
void check_rows(const Tensor& tensor, const char* name);

// A stream beside rows.
void check_beside(const Tensor& tensor, const char* name, const Tensor& like, const char* like_name);

// One number a row, in the accumulation type.
void check_numbers(const Tensor& numbers, const char* name, const Tensor& like, const char* like_name);

// A gradient of what has that shape and dtype, and its rstd.
void check_gradient(const Tensor& grad_output, const Tensor& rstd, const Tensor& like, const char* like_name);

// Rounded to the accumulation type, so that it is the same number on every device.
double resolve_eps(MaybeDouble eps, at::ScalarType dtype);

// ---- tensors

// The kernels walk along a row element by element: a last dimension whose own stride is not 1 is copied.
bool has_unit_stride(const Tensor& tensor);
Tensor with_unit_stride(const Tensor& tensor);
Tensor with_unit_stride(const MaybeTensor& tensor);

// Not so meta tensors, nor those of some devices.
bool has_addresses(const Tensor& tensor);

// empty_like, but for overlapping inputs whose order of dimensions it cannot tell.
Tensor empty_rows_like(const Tensor& tensor, at::ScalarType dtype);

// One number a row: the leading dimensions.
Tensor empty_rstd(const Tensor& input);

// The value of a lazily negated tensor, whose memory holds the negatives.
Tensor resolve_negation(const Tensor& tensor);

}  // namespace srmsnorm
