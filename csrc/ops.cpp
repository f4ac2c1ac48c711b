// Argument checks and output allocation.
#include "ops.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <limits>

#include "overlap.h"

namespace srmsnorm {
namespace {

bool is_16_bit(at::ScalarType dtype) { return dtype == at::kHalf || dtype == at::kBFloat16; }

// The stream beside a tensor: of its dtype, or float32 beside 16 bits.
bool fits_beside(at::ScalarType dtype, at::ScalarType other) {
  return other == dtype || (is_16_bit(dtype) && other == at::kFloat);
}

// None comes as an undefined tensor where an operator is called by its schema.
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

// Rounded to the accumulation type, so that it is the same number on every device.
double resolve_eps(MaybeDouble eps, at::ScalarType dtype) {
  bool wide = dtype == at::kDouble;
  if (!eps) return wide ? std::numeric_limits<double>::epsilon() : std::numeric_limits<float>::epsilon();
  TORCH_CHECK(*eps >= 0, "srmsnorm: eps must not be negative or NaN, got ", *eps);
  return wide ? *eps : static_cast<float>(*eps);
}

// A gradient of what has that shape and dtype, and its rstd.
void check_gradient(const Tensor& grad_output, const Tensor& rstd, const Tensor& like, const char* like_name) {
  auto dtype = like.scalar_type();
  check_dense(grad_output, "grad_output");
  check_same_shape(grad_output, "grad_output", like, like_name);
  check_same_device(grad_output, "grad_output", like, like_name);
  TORCH_CHECK(grad_output.scalar_type() == dtype, "srmsnorm: grad_output must have the dtype of ", like_name, ", got ",
              grad_output.scalar_type(), " beside ", dtype);
  check_dense(rstd, "rstd");
  auto sizes = like.sym_sizes();
  TORCH_CHECK(expect_same(rstd.sym_sizes(), sizes.slice(0, sizes.size() - 1)),
              "srmsnorm: rstd must have one element a row, got ", rstd.sym_sizes(), " beside an ", like_name, " of ",
              sizes);
  check_same_device(rstd, "rstd", like, like_name);
  TORCH_CHECK(rstd.scalar_type() == accumulation_dtype(dtype), "srmsnorm: rstd must be ", accumulation_dtype(dtype),
              " beside a ", dtype, " ", like_name, ", got ", rstd.scalar_type());
}

// The kernels walk along a row element by element.
bool has_unit_stride(const Tensor& tensor) {
  return TORCH_GUARD_OR_FALSE(tensor.sym_stride(-1).sym_eq(1).sym_or(tensor.sym_size(-1).sym_eq(1)));
}

Tensor with_unit_stride(const Tensor& tensor) { return has_unit_stride(tensor) ? tensor : tensor.contiguous(); }

Tensor with_unit_stride(const MaybeTensor& tensor) {
  return tensor && tensor->defined() ? with_unit_stride(*tensor) : Tensor();
}

// Not so meta tensors, nor those of some devices.
bool has_addresses(const Tensor& tensor) {
  return !tensor.is_meta() && tensor.has_storage() && tensor.storage().data() != nullptr;
}

// empty_like, but for overlapping inputs whose order of dimensions it cannot tell.
Tensor empty_rows_like(const Tensor& tensor, at::ScalarType dtype) {
  auto options = tensor.options().dtype(dtype);
  auto output = at::empty_like(tensor, options);
  return has_unit_stride(output) ? output : at::empty_like(tensor, options, at::MemoryFormat::Contiguous);
}

// One number a row: the leading dimensions.
Tensor empty_rstd(const Tensor& input) {
  auto sizes = input.sym_sizes();
  return at::empty_symint(sizes.slice(0, sizes.size() - 1),
                          input.options().dtype(accumulation_dtype(input.scalar_type())));
}

// The value of a lazily negated tensor, whose memory holds the negatives.
Tensor resolve_negation(const Tensor& tensor) { return tensor.is_neg() ? tensor.resolve_neg() : tensor; }

}  // namespace

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

double check_forward(const Tensor& input, const MaybeTensor& residual, MaybeDouble eps) {
  if (residual && residual->defined()) return check_forward(input, *residual, eps);
  check_rows(input, "input");
  return resolve_eps(eps, input.scalar_type());
}

double check_forward(const Tensor& input, const Tensor& residual, MaybeDouble eps) {
  check_rows(input, "input");
  check_beside(residual, "residual", input, "input");
  return resolve_eps(eps, input.scalar_type());
}

double check_in_place(const Tensor& input, const Tensor& residual, MaybeDouble eps) {
  double value = check_forward(input, residual, eps);
  TORCH_CHECK(!input._is_zerotensor() && !residual._is_zerotensor(),
              "srmsnorm: add_srms_norm_ overwrites its operands, but got a ZeroTensor, which has no memory: clone it "
              "first");
  TORCH_CHECK(has_unit_stride(input) && has_unit_stride(residual),
              "srmsnorm: add_srms_norm_ needs a last dimension of stride 1, got strides ", input.sym_strides(), " and ",
              residual.sym_strides());
  return value;
}

void check_backward(const Tensor& grad_output, const Tensor& output, const Tensor& rstd, const MaybeTensor& grad_sum,
                    Gradients gradients) {
  check_rows(output, "output");
  check_gradient(grad_output, rstd, output, "output");
  auto dtype = output.scalar_type();
  TORCH_CHECK(is_16_bit(dtype) || !gradients.residual, "srmsnorm: a gradient in float32 needs a 16-bit output, got ",
              dtype);
  if (grad_sum && grad_sum->defined()) {
    check_beside(*grad_sum, "grad_sum", output, "output");
    TORCH_CHECK(!gradients.residual || grad_sum->scalar_type() == at::kFloat,
                "srmsnorm: grad_sum must be float32 where the residual's gradient is, got ", grad_sum->scalar_type());
  }
}

Gating check_gating(MaybeName activation, bool norm_first) {
  if (!activation) return {Activation::None, norm_first};
  if (*activation == "silu" || *activation == "swish") return {Activation::SiLU, norm_first};
  if (*activation == "sigmoid") return {Activation::Sigmoid, norm_first};
  TORCH_CHECK(false, "srmsnorm: activation must be None, 'silu', 'swish' or 'sigmoid', got '", *activation, "'");
}

double check_gated(const Tensor& input, const Tensor& gate, MaybeName activation, MaybeDouble eps) {
  check_rows(input, "input");
  check_beside(gate, "gate", input, "input");
  check_gating(activation, true);
  return resolve_eps(eps, input.scalar_type());
}

void check_gated_backward(const Tensor& grad_output, const Tensor& input, const Tensor& gate, const Tensor& rstd,
                          MaybeName activation) {
  check_rows(input, "input");
  check_beside(gate, "gate", input, "input");
  check_gating(activation, true);
  check_gradient(grad_output, rstd, input, "input");
}

ForwardTensors prepare_forward(const Tensor& input, const MaybeTensor& residual, MaybeDouble eps,
                               ForwardOutputs outputs) {
  ForwardTensors tensors;
  tensors.eps = outputs.sum ? check_forward(input, *residual, eps) : check_forward(input, residual, eps);
  tensors.input = with_unit_stride(input);
  tensors.residual = with_unit_stride(residual);
  tensors.output = empty_rows_like(tensors.input, input.scalar_type());
  if (outputs.sum) tensors.sum = empty_rows_like(tensors.residual, tensors.residual.scalar_type());
  if (outputs.rstd) tensors.rstd = empty_rstd(tensors.input);
  return tensors;
}

ForwardTensors prepare_in_place(const Tensor& input, const Tensor& residual, MaybeDouble eps) {
  double value = check_in_place(input, residual, eps);
  if (has_addresses(input) && has_addresses(residual)) {
    residual.mutable_data_ptr();  // lazy clones share their memory until one is asked for an address to write to
    check_no_overlap(input, residual);
  }
  auto y = resolve_negation(input), sum = resolve_negation(residual);
  return {{.input = y, .residual = sum, .output = y, .sum = sum}, value};
}

void finish_in_place(const ForwardTensors& done, const Tensor& input, const Tensor& residual) {
  if (input.is_neg()) input.copy_(done.output);
  if (residual.is_neg()) residual.copy_(done.sum);
}

BackwardTensors prepare_backward(const Tensor& grad_output, const Tensor& output, const Tensor& rstd,
                                 const MaybeTensor& grad_sum, Gradients gradients) {
  check_backward(grad_output, output, rstd, grad_sum, gradients);
  auto dtype = output.scalar_type();
  BackwardTensors tensors{
      {with_unit_stride(grad_output), with_unit_stride(output), rstd, with_unit_stride(grad_sum), {}, {}}};
  if (gradients.input) tensors.grad_input = empty_rows_like(tensors.output, dtype);
  if (gradients.residual) tensors.grad_residual = empty_rows_like(tensors.output, at::kFloat);
  return tensors;
}

GatedForwardTensors prepare_gated(const Tensor& input, const Tensor& gate, MaybeName activation, bool norm_first,
                                  MaybeDouble eps, ForwardOutputs outputs) {
  GatedForwardTensors tensors;
  tensors.eps = check_gated(input, gate, activation, eps);
  tensors.gating = check_gating(activation, norm_first);
  tensors.input = with_unit_stride(input);
  tensors.gate = with_unit_stride(gate);
  tensors.output = empty_rows_like(tensors.input, input.scalar_type());
  if (outputs.rstd) tensors.rstd = empty_rstd(tensors.input);
  return tensors;
}

GatedBackwardTensors prepare_gated_backward(const Tensor& grad_output, const Tensor& input, const Tensor& gate,
                                            const Tensor& rstd, MaybeName activation, bool norm_first,
                                            Gradients gradients) {
  check_gated_backward(grad_output, input, gate, rstd, activation);
  GatedBackwardTensors tensors;
  tensors.gating = check_gating(activation, norm_first);
  tensors.grad_output = with_unit_stride(grad_output);
  tensors.input = with_unit_stride(input);
  tensors.gate = with_unit_stride(gate);
  tensors.rstd = rstd;
  if (gradients.input) tensors.grad_input = empty_rows_like(tensors.input, input.scalar_type());
  if (gradients.gate) tensors.grad_gate = empty_rows_like(tensors.gate, gate.scalar_type());
  return tensors;
}

Tensor _srms_norm_backward(const Tensor& grad_output, const Tensor& output, const Tensor& rstd,
                           const MaybeTensor& grad_sum, MaybeDtype dtype) {
  auto wanted = dtype.value_or(output.scalar_type());
  TORCH_CHECK(wanted == output.scalar_type() || wanted == at::kFloat, "srmsnorm: dtype must be that of output (",
              output.scalar_type(), ") or float32, got ", wanted);
  const auto& backward =
      wanted == output.scalar_type() ? op::_srms_norm_backward_input() : op::_srms_norm_backward_residual();
  return backward.call(grad_output, output, rstd, grad_sum);
}

}  // namespace srmsnorm
