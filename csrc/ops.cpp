// The operators' argument checks and output allocation.
#include "checks.h"
#include "overlap.h"

namespace srmsnorm {

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
  if (grad_sum && grad_sum->defined()) {
    check_beside(*grad_sum, "grad_sum", output, "output");
    TORCH_CHECK(!gradients.residual || grad_sum->scalar_type() == at::kFloat,
                "srmsnorm: grad_sum must be float32 where the residual's gradient is, got ", grad_sum->scalar_type());
  }
}

void check(const WideBackwardTensors& t) {
  const auto &grad_output = t.grad_output, &input = t.input;
  check_rows(input, "input");
  TORCH_CHECK(is_16_bit(input.scalar_type()), "srmsnorm: the input of a wider output must be float16 or bfloat16, got ",
              input.scalar_type());
  check_dense(grad_output, "grad_output");
  check_same_shape(grad_output, "grad_output", input, "input");
  check_same_device(grad_output, "grad_output", input, "input");
  TORCH_CHECK(grad_output.scalar_type() == at::kFloat, "srmsnorm: grad_output must be float32 beside the input of a ",
              "wider output, got ", grad_output.scalar_type());
  check_numbers(t.rstd, "rstd", input, "input");
}

void check_scale(const Tensor& input, const MaybeTensor& residual, const Tensor& scale, const MaybeTensor& factor) {
  check_forward(input, residual, 0.);
  check_numbers(scale, "scale", input, "input");
  if (factor && factor->defined()) check_numbers(*factor, "factor", input, "input");
}

ForwardTensors prepare_forward(ForwardOutputs outputs, const Tensor& input, const MaybeTensor& residual,
                               MaybeDouble eps, MaybeName dtype) {
  ForwardTensors tensors;
  tensors.eps = outputs.sum ? check_forward(input, *residual, eps) : check_forward(input, residual, eps);
  auto of_output = dtype_of(dtype, input.scalar_type());
  tensors.input = with_unit_stride(input);
  tensors.residual = with_unit_stride(residual);
  if (outputs.output) tensors.output = empty_rows_like(tensors.input, of_output);
  if (outputs.sum) tensors.sum = empty_rows_like(tensors.residual, tensors.residual.scalar_type());
  if (outputs.rstd) tensors.rstd = empty_rstd(tensors.input);
  return tensors;
}

ForwardTensors prepare_scale(const Tensor& input, const MaybeTensor& residual, const Tensor& scale,
                             const MaybeTensor& factor, MaybeName dtype) {
  check_scale(input, residual, scale, factor);
  auto of_output = dtype_of(dtype, input.scalar_type());
  ForwardTensors tensors;
  tensors.input = with_unit_stride(input);
  tensors.residual = with_unit_stride(residual);
  tensors.output = empty_rows_like(tensors.input, of_output);
  tensors.scale = scale;
  if (factor) tensors.factor = *factor;
  return tensors;
}

ForwardTensors prepare_in_place(const Tensor& input, const Tensor& residual, MaybeDouble eps) {
  double value = check_in_place(input, residual, eps);
  if (has_addresses(input) && has_addresses(residual)) {
    residual.mutable_data_ptr();  // lazy clones share their memory until one is asked for an address to write to
    check_no_overlap(input, residual);
  }
  auto y = resolve_negation(input), sum = resolve_negation(residual);
  return {{.input = y, .residual = sum, .output = y, .sum = sum}, {value}};
}

void finish_in_place(const ForwardTensors& done, const Tensor& input, const Tensor& residual) {
  if (input.is_neg()) input.copy_(done.output);
  if (residual.is_neg()) residual.copy_(done.sum);
}

BackwardTensors prepare_backward(Gradients gradients, const Tensor& grad_output, const Tensor& output,
                                 const Tensor& rstd, const MaybeTensor& grad_sum, MaybeName dtype) {
  check_backward(grad_output, output, rstd, grad_sum, gradients);
  auto of_output = output.scalar_type(), of_input = dtype_of(dtype, of_output);
  TORCH_CHECK(of_input == of_output || of_input == at::kFloat || of_output == at::kFloat,
              "srmsnorm: dtype must be that of output (", of_output, "), or one of both float32, got ", of_input);
  TORCH_CHECK(!gradients.residual || is_16_bit(of_output) || (gradients.input && is_16_bit(of_input)),
              "srmsnorm: a gradient in float32 needs a 16-bit output, got ", of_output);
  TORCH_CHECK(!(gradients.input && gradients.residual && of_input == at::kFloat),
              "srmsnorm: a pair of gradients is one of 16 bits and one in float32, got dtype ", name_of(of_input));
  bool wide = gradients.input && of_input == at::kFloat && is_16_bit(of_output);
  BackwardTensors tensors{{.grad_output = with_unit_stride(grad_output),
                           .output = with_unit_stride(output),
                           .rstd = rstd,
                           .grad_sum = with_unit_stride(grad_sum)}};
  if (gradients.input && !wide) tensors.grad_input = empty_rows_like(tensors.output, of_input);
  if (gradients.residual || wide) tensors.grad_residual = empty_rows_like(tensors.output, at::kFloat);
  return tensors;
}

Tensor _srms_norm_backward(const Tensor& grad_output, const Tensor& output, const Tensor& rstd,
                           const MaybeTensor& grad_sum, MaybeDtype dtype) {
  auto wanted = dtype.value_or(output.scalar_type());
  TORCH_CHECK(wanted == output.scalar_type() || wanted == at::kFloat, "srmsnorm: dtype must be that of output (",
              output.scalar_type(), ") or float32, got ", wanted);
  if (wanted == output.scalar_type())
    return op::_srms_norm_backward_input().call(grad_output, output, rstd, grad_sum, {});
  return op::_srms_norm_backward_residual().call(grad_output, output, rstd, grad_sum);
}

}  // namespace srmsnorm
