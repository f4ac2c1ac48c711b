// What is asked of arguments one by one, and the tensors that are made of them.
#include "checks.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <limits>

namespace srmsnorm {

bool expect_same(at::SymIntArrayRef sizes, at::SymIntArrayRef others) {
  if (sizes.size() != others.size()) return false;
  for (size_t i = 0; i < sizes.size(); i++)
    if (!sizes[i].sym_eq(others[i]).expect_true(__FILE__, __LINE__)) return false;
  return true;
}

at::ScalarType accumulation_dtype(at::ScalarType dtype) {
  if (dtype == at::kDouble) return at::kDouble;
  TORCH_CHECK(is_16_bit(dtype) || dtype == at::kFloat, "srmsnorm: expected float16, bfloat16, float32 or float64, got ",
              dtype);
  return at::kFloat;
}

at::ScalarType dtype_of(MaybeName name, at::ScalarType beside) {
  if (!name) return beside;
  for (auto dtype : {at::kHalf, at::kBFloat16, at::kFloat, at::kDouble})
    if (*name == name_of(dtype) && (dtype == at::kDouble) == (beside == at::kDouble)) return dtype;
  TORCH_CHECK(false,
              "srmsnorm: dtype must be float16, bfloat16 or float32, or float64 beside float64 and there alone, ",
              "got ", *name, " beside ", name_of(beside));
}

const char* name_of(at::ScalarType dtype) {
  switch (accumulation_dtype(dtype), dtype) {
    case at::kHalf:
      return "float16";
    case at::kBFloat16:
      return "bfloat16";
    case at::kFloat:
      return "float32";
    default:
      return "float64";
  }
}

bool is_16_bit(at::ScalarType dtype) { return dtype == at::kHalf || dtype == at::kBFloat16; }

bool fits_beside(at::ScalarType dtype, at::ScalarType other) {
  return other == dtype || (is_16_bit(dtype) && other == at::kFloat);
}

void check_dense(const Tensor& tensor, const char* name) {
  TORCH_CHECK(tensor.defined(), "srmsnorm: ", name, " must be a tensor, got None");
  TORCH_CHECK(tensor.layout() == at::kStrided, "srmsnorm: ", name, " must be a dense tensor, got layout ",
              tensor.layout());
}

void check_same_shape(const Tensor& tensor, const char* name, const Tensor& like, const char* like_name) {
  TORCH_CHECK(expect_same(tensor.sym_sizes(), like.sym_sizes()), "srmsnorm: ", name, " must have the shape of ",
              like_name, " (no broadcasting), got ", tensor.sym_sizes(), " beside ", like.sym_sizes());
}

void check_same_device(const Tensor& tensor, const char* name, const Tensor& like, const char* like_name) {
  TORCH_CHECK(tensor.device() == like.device(), "srmsnorm: ", name, " must be on the device of ", like_name, ", got ",
              tensor.device(), " beside ", like.device());
}

void check_rows(const Tensor& tensor, const char* name) {
  check_dense(tensor, name);
  TORCH_CHECK(tensor.dim() > 0, "srmsnorm: ", name, " must have at least one dimension, got a scalar tensor");
  accumulation_dtype(tensor.scalar_type());
  TORCH_SYM_CHECK(tensor.sym_size(-1).sym_gt(0), "srmsnorm: the last dimension of ", name,
                  " must not be empty, got shape ", tensor.sym_sizes());
}

void check_beside(const Tensor& tensor, const char* name, const Tensor& like, const char* like_name) {
  check_dense(tensor, name);
  check_same_shape(tensor, name, like, like_name);
  check_same_device(tensor, name, like, like_name);
  auto dtype = tensor.scalar_type(), other = like.scalar_type();
  TORCH_CHECK(!(other == at::kFloat && is_16_bit(dtype)), "srmsnorm: ", name, " must have the dtype of ", like_name,
              ", got ", dtype, " beside ", other, ": cast ", like_name, " to ", dtype, ", or ", name, " to ", other);
  TORCH_CHECK(fits_beside(other, dtype), "srmsnorm: ", name, " must have the dtype of ", like_name,
              ", or be float32 beside a 16-bit one, got ", dtype, " beside ", other);
}

double resolve_eps(MaybeDouble eps, at::ScalarType dtype) {
  bool wide = dtype == at::kDouble;
  if (!eps) return wide ? std::numeric_limits<double>::epsilon() : std::numeric_limits<float>::epsilon();
  TORCH_CHECK(*eps >= 0, "srmsnorm: eps must not be negative or NaN, got ", *eps);
  return wide ? *eps : static_cast<float>(*eps);
}

void check_gradient(const Tensor& grad_output, const Tensor& rstd, const Tensor& like, const char* like_name) {
  auto dtype = like.scalar_type();
  check_dense(grad_output, "grad_output");
  check_same_shape(grad_output, "grad_output", like, like_name);
  check_same_device(grad_output, "grad_output", like, like_name);
  TORCH_CHECK(grad_output.scalar_type() == dtype, "srmsnorm: grad_output must have the dtype of ", like_name, ", got ",
              grad_output.scalar_type(), " beside ", dtype);
  check_numbers(rstd, "rstd", like, like_name);
}

void check_numbers(const Tensor& numbers, const char* name, const Tensor& like, const char* like_name) {
  check_dense(numbers, name);
  auto sizes = like.sym_sizes();
  auto dtype = like.scalar_type(), wanted = accumulation_dtype(dtype);
  TORCH_CHECK(expect_same(numbers.sym_sizes(), sizes.slice(0, sizes.size() - 1)), "srmsnorm: ", name,
              " must have one element a row, got ", numbers.sym_sizes(), " beside an ", like_name, " of ", sizes);
  check_same_device(numbers, name, like, like_name);
  TORCH_CHECK(numbers.scalar_type() == wanted, "srmsnorm: ", name, " must be ", wanted, " beside a ", dtype, " ",
              like_name, ", got ", numbers.scalar_type());
}

bool has_unit_stride(const Tensor& tensor) {
  return TORCH_GUARD_OR_FALSE(tensor.sym_stride(-1).sym_eq(1).sym_or(tensor.sym_size(-1).sym_eq(1)));
}

Tensor with_unit_stride(const Tensor& tensor) { return has_unit_stride(tensor) ? tensor : tensor.contiguous(); }

Tensor with_unit_stride(const MaybeTensor& tensor) {
  return tensor && tensor->defined() ? with_unit_stride(*tensor) : Tensor();
}

bool has_addresses(const Tensor& tensor) {
  return !tensor.is_meta() && tensor.has_storage() && tensor.storage().data() != nullptr;
}

Tensor empty_rows_like(const Tensor& tensor, at::ScalarType dtype) {
  auto options = tensor.options().dtype(dtype);
  auto output = at::empty_like(tensor, options);
  return has_unit_stride(output) ? output : at::empty_like(tensor, options, at::MemoryFormat::Contiguous);
}

Tensor empty_rstd(const Tensor& input) {
  auto sizes = input.sym_sizes();
  return at::empty_symint(sizes.slice(0, sizes.size() - 1),
                          input.options().dtype(accumulation_dtype(input.scalar_type())));
}

Tensor resolve_negation(const Tensor& tensor) { return tensor.is_neg() ? tensor.resolve_neg() : tensor; }

}  // namespace srmsnorm
