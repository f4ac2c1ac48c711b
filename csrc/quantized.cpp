#include "quantized.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "checks.h"
#include "overlap.h"

namespace srmsnorm {
namespace {

constexpr const char* kInPlace = "add_srms_norm_quantized_";

bool present(const MaybeTensor& tensor) { return tensor && tensor->defined(); }

Quantized type_of(c10::string_view dtype) {
  if (dtype == "float8_e4m3fn") return Quantized::Float8E4M3;
  if (dtype == "float8_e5m2") return Quantized::Float8E5M2;
  if (dtype == "int8") return Quantized::Int8;
  TORCH_CHECK(false, "srmsnorm: dtype must be float8_e4m3fn, float8_e5m2 or int8, got ", dtype);
}

// One element, or one a row. Its value is the device's to read.
bool is_one(const Tensor& scale) { return TORCH_GUARD_OR_FALSE(scale.sym_numel().sym_eq(1)); }

void check_scale_tensor(const Tensor& scale, const Tensor& input) {
  TORCH_CHECK(scale.layout() == at::kStrided, "srmsnorm: scale must be a dense tensor, got layout ", scale.layout());
  TORCH_CHECK(scale.scalar_type() == at::kFloat, "srmsnorm: a scale must be float32, got ", scale.scalar_type());
  TORCH_CHECK(scale.device() == input.device(), "srmsnorm: scale must be on the device of input, got ", scale.device(),
              " beside ", input.device());
  auto of_rows = input.sym_sizes().vec();
  of_rows.back() = 1;
  TORCH_CHECK(is_one(scale) || expect_same(scale.sym_sizes(), of_rows),
              "srmsnorm: a scale that is given must be one element, or one for each row, got shape ", scale.sym_sizes(),
              " beside an input of ", input.sym_sizes());
}

// A number in float32 that is neither too small nor too large for it.
float positive(double value, const char* name) {
  auto number = static_cast<float>(value);
  TORCH_CHECK(number > 0 && std::isfinite(number), "srmsnorm: ", name, " must be a finite float32 above 0, got ",
              value);
  return number;
}

// What does not depend on the row.
Quantization read(const MaybeTensor& scale, const QuantizationOptions& options) {
  Quantization q(type_of(options.dtype));
  q.given = present(scale) || options.scale_value || options.scale_name;
  TORCH_CHECK(present(scale) + options.scale_value.has_value() + options.scale_name.has_value() <= 1,
              "srmsnorm: a scale is a tensor, a number or a name, got more than one of them");
  TORCH_CHECK(!options.scale_name || *options.scale_name == "bound",
              "srmsnorm: scale must be a number, a tensor, 'bound' or None, got '", options.scale_name.value_or(""),
              "'");
  TORCH_CHECK(!q.given || !(options.group_size || options.power_of_two || options.scale_ub),
              "srmsnorm: beside a scale that is given there is no group_size, power_of_two or scale_ub, got ",
              options.group_size     ? "group_size"
              : options.power_of_two ? "power_of_two"
                                     : "scale_ub");
  if (options.scale_value) q.value = positive(*options.scale_value, "scale");
  q.power_of_two = options.power_of_two;
  q.upper = std::numeric_limits<float>::infinity();
  if (options.scale_ub) q.upper = positive(*options.scale_ub, "scale_ub");
  TORCH_CHECK(!options.group_size || *options.group_size == 64 || *options.group_size == 128,
              "srmsnorm: group_size must be None, 64 or 128, got ", options.group_size.value_or(0));
  q.group = static_cast<int>(options.group_size.value_or(0));
  return q;
}

// The smallest power of two by which no |y| <= sqrt(dim) exceeds the type's largest: the smallest 2^e with 4^e
// largest^2 >= dim.
float scale_of_bound(int64_t dim, Quantized type) {
  auto most = static_cast<__int128>(largest(type)) * static_cast<__int128>(largest(type));
  int e = 0;
  for (; most < dim; e++) most *= 4;
  for (__int128 wanted = dim; most >= 4 * wanted; e--) wanted *= 4;
  return std::ldexp(1.f, e);
}

double check(const Tensor& input, double eps, const MaybeTensor& scale, const QuantizationOptions& options) {
  TORCH_CHECK(input.scalar_type() != at::kDouble,
              "srmsnorm: quantised results need an input of float16, bfloat16 or float32, got ", input.scalar_type());
  auto quantization = read(scale, options);
  if (quantization.group > 0)
    TORCH_SYM_CHECK((input.sym_size(-1) % quantization.group).sym_eq(0), "srmsnorm: group_size ", quantization.group,
                    " must divide the last dimension, got shape ", input.sym_sizes());
  if (present(scale)) check_scale_tensor(*scale, input);
  return eps;
}

// The scales of groups: one group's of all rows after the other's.
Tensor empty_group_scales(const Tensor& input, int group) {
  auto sizes = input.sym_sizes().vec();
  c10::SymInt rows = 1;
  std::vector<c10::SymInt> strides(sizes.size());
  for (auto i = static_cast<int64_t>(sizes.size()) - 2; i >= 0; i--) {
    strides[i] = rows;
    rows = rows * sizes[i].max(1);
  }
  strides.back() = rows;
  sizes.back() = sizes.back() / group;
  return at::empty_strided_symint(sizes, strides, input.options().dtype(at::kFloat));
}

Tensor empty_scale(const Tensor& input, const MaybeTensor& given, const Quantization& quantization) {
  if (quantization.group > 0) return empty_group_scales(input, quantization.group);
  auto sizes = input.sym_sizes().vec();
  sizes.back() = 1;
  if (quantization.given && !(present(given) && !is_one(*given))) sizes = {1};
  return at::empty_symint(sizes, input.options().dtype(at::kFloat));
}

// Operands and results but the sum.
QuantizedTensors prepare(const Tensor& input, const MaybeTensor& scale, const QuantizationOptions& options,
                         double eps) {
  QuantizedTensors tensors;
  tensors.eps = eps;
  auto& quantization = tensors.quantization = read(scale, options);
  tensors.input = with_unit_stride(input);
  if (present(scale)) tensors.given = *scale;
  tensors.output = at::empty_symint(input.sym_sizes(), input.options().dtype(dtype_of(quantization.type)));
  tensors.scale = empty_scale(tensors.input, scale, quantization);
  quantization.one_for_all = quantization.given && is_one(tensors.scale);
  if (!input.unsafeGetTensorImpl()->has_symbolic_sizes_strides()) {    // else nothing runs
    if (quantization.group == input.size(-1)) quantization.group = 0;  // the row, whose largest is found with its sum
    quantization.group_stride = tensors.scale.stride(-1);
    if (options.scale_name) quantization.value = scale_of_bound(input.size(-1), quantization.type);
  }
  return tensors;
}

}  // namespace

at::ScalarType dtype_of(Quantized type) {
  return type == Quantized::Float8E4M3   ? at::kFloat8_e4m3fn
         : type == Quantized::Float8E5M2 ? at::kFloat8_e5m2
                                         : at::kChar;
}

void write_given_scale(const QuantizedTensors& t) {
  if (!t.quantization.given) return;
  if (t.given.defined())
    t.scale.copy_(t.given.view_as(t.scale));
  else
    t.scale.fill_(t.quantization.value);
}

template <class Residual>
double check_quantized(const Tensor& input, const Residual& residual, const MaybeTensor& scale,
                       const QuantizationOptions& options) {
  return check(input, check_forward(input, residual, options.eps), scale, options);
}

double check_quantized_in_place(const Tensor& input, const Tensor& residual, const MaybeTensor& scale,
                                const QuantizationOptions& options) {
  double eps = check_quantized(input, residual, scale, options);
  TORCH_CHECK(!input._is_zerotensor() && !residual._is_zerotensor(), "srmsnorm: ", kInPlace,
              " overwrites its residual, but got a ZeroTensor, which has no memory: clone it first");
  TORCH_CHECK(!present(scale) || !scale->_is_zerotensor(), "srmsnorm: ", kInPlace,
              " reads its scale, but got a ZeroTensor, which has no memory: clone it first");
  TORCH_CHECK(has_unit_stride(residual), "srmsnorm: ", kInPlace,
              " needs a residual whose last dimension has stride 1, got strides ", residual.sym_strides());
  return eps;
}

template <class Residual>
QuantizedTensors prepare_quantized(const Tensor& input, const Residual& residual, const MaybeTensor& scale,
                                   const QuantizationOptions& options, bool sum) {
  auto tensors = prepare(input, scale, options, check_quantized(input, residual, scale, options));
  tensors.residual = with_unit_stride(residual);
  if (sum) tensors.sum = empty_rows_like(tensors.residual, tensors.residual.scalar_type());
  return tensors;
}

QuantizedTensors prepare_quantized_in_place(const Tensor& input, const Tensor& residual, const MaybeTensor& scale,
                                            const QuantizationOptions& options) {
  double eps = check_quantized_in_place(input, residual, scale, options);
  if (has_addresses(input) && has_addresses(residual)) {
    residual.mutable_data_ptr();  // lazy clones share their memory until one is asked for an address to write to
    check_no_overlap_of_written(residual, input, kInPlace);
    if (present(scale)) check_no_overlap_of_written(residual, *scale, kInPlace);
  }
  auto given = present(scale) ? MaybeTensor(resolve_negation(*scale)) : scale;
  auto tensors = prepare(resolve_negation(input), given, options, eps);
  tensors.residual = tensors.sum = resolve_negation(residual);
  return tensors;
}

void finish_quantized_in_place(const QuantizedTensors& done, const Tensor& residual) {
  if (residual.is_neg()) residual.copy_(done.sum);
}

template double check_quantized(const Tensor&, const Tensor&, const MaybeTensor&, const QuantizationOptions&);
template double check_quantized(const Tensor&, const MaybeTensor&, const MaybeTensor&, const QuantizationOptions&);
template QuantizedTensors prepare_quantized(const Tensor&, const Tensor&, const MaybeTensor&,
                                            const QuantizationOptions&, bool);
template QuantizedTensors prepare_quantized(const Tensor&, const MaybeTensor&, const MaybeTensor&,
                                            const QuantizationOptions&, bool);

}  // namespace srmsnorm
