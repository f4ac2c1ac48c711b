// A backend's kernels for all operators, from its Backend::run of each of the lists of tensors in ops.h. It may get no
// rows. Whoever launches looks; Meta could not, where only the data tells how many there are.
#pragma once
#include "ops.h"
#include "quantized.h"
#include "registration.h"

namespace srmsnorm {

template <class Backend>
struct Kernels {
  template <class Tensors>
  static Tensors run(Tensors tensors) {
    Backend::run(tensors);
    return tensors;
  }

  static Tensor srms_norm(const Tensor& input, const MaybeTensor& residual, MaybeDouble eps, MaybeName dtype) {
    return run(prepare_forward(input, residual, eps, dtype, {})).output;
  }

  static std::tuple<Tensor, Tensor> add_srms_norm(const Tensor& input, const Tensor& residual, MaybeDouble eps,
                                                  MaybeName dtype) {
    auto done = run(prepare_forward(input, residual, eps, dtype, {.sum = true}));
    return {done.output, done.sum};
  }

  static void add_srms_norm_(const Tensor& input, const Tensor& residual, MaybeDouble eps) {
    finish_in_place(run(prepare_in_place(input, residual, eps)), input, residual);
  }

  static std::tuple<Tensor, Tensor> _srms_norm(const Tensor& input, const MaybeTensor& residual, MaybeDouble eps,
                                               MaybeName dtype) {
    auto done = run(prepare_forward(input, residual, eps, dtype, {.rstd = true}));
    return {done.output, done.rstd};
  }

  static std::tuple<Tensor, Tensor, Tensor> _add_srms_norm(const Tensor& input, const Tensor& residual, MaybeDouble eps,
                                                           MaybeName dtype) {
    auto done = run(prepare_forward(input, residual, eps, dtype, {.sum = true, .rstd = true}));
    return {done.output, done.sum, done.rstd};
  }

  static Tensor _srms_norm_backward_input(const Tensor& grad_output, const Tensor& output, const Tensor& rstd,
                                          const MaybeTensor& grad_sum, MaybeName dtype) {
    return run(prepare_backward(grad_output, output, rstd, grad_sum, dtype, {.input = true})).gradient();
  }

  static Tensor _srms_norm_backward_residual(const Tensor& grad_output, const Tensor& output, const Tensor& rstd,
                                             const MaybeTensor& grad_sum) {
    return run(prepare_backward(grad_output, output, rstd, grad_sum, {}, {.residual = true})).gradient();
  }

  static std::tuple<Tensor, Tensor> _srms_norm_backward_pair(const Tensor& grad_output, const Tensor& output,
                                                             const Tensor& rstd, const MaybeTensor& grad_sum,
                                                             MaybeName dtype) {
    auto done = run(prepare_backward(grad_output, output, rstd, grad_sum, dtype, {.input = true, .residual = true}));
    return {done.grad_input, done.grad_residual};
  }

  static Tensor _srms_norm_backward_of_input(const Tensor& grad_output, const Tensor& input, const Tensor& rstd) {
    return run(prepare_wide_backward(grad_output, input, rstd)).grad_input;
  }

  static Tensor rstd(const Tensor& input, const MaybeTensor& residual, MaybeDouble eps) {
    return run(prepare_forward(input, residual, eps, {}, {.rstd = true, .output = false})).rstd;
  }

  static Tensor _scale_rows(const Tensor& input, const MaybeTensor& residual, const Tensor& scale,
                            const MaybeTensor& factor, MaybeName dtype) {
    return run(prepare_scale(input, residual, scale, factor, dtype)).output;
  }

  static Tensor gated_srms_norm(const Tensor& input, const Tensor& gate, MaybeName activation, bool norm_first,
                                MaybeDouble eps) {
    return run(prepare_gated(input, gate, activation, norm_first, eps, {})).output;
  }

  static std::tuple<Tensor, Tensor> _gated_srms_norm(const Tensor& input, const Tensor& gate, MaybeName activation,
                                                     bool norm_first, MaybeDouble eps) {
    auto done = run(prepare_gated(input, gate, activation, norm_first, eps, {.rstd = true}));
    return {done.output, done.rstd};
  }

  static std::tuple<Tensor, Tensor> _gated_srms_norm_backward(const Tensor& grad_output, const Tensor& input,
                                                              const Tensor& gate, const Tensor& rstd,
                                                              MaybeName activation, bool norm_first) {
    auto done = run(
        prepare_gated_backward(grad_output, input, gate, rstd, activation, norm_first, {.input = true, .gate = true}));
    return {done.grad_input, done.grad_gate};
  }

  static Tensor _gated_srms_norm_backward_input(const Tensor& grad_output, const Tensor& input, const Tensor& gate,
                                                const Tensor& rstd, MaybeName activation, bool norm_first) {
    return run(prepare_gated_backward(grad_output, input, gate, rstd, activation, norm_first, {.input = true}))
        .grad_input;
  }

  static Tensor _gated_srms_norm_backward_gate(const Tensor& grad_output, const Tensor& input, const Tensor& gate,
                                               const Tensor& rstd, MaybeName activation, bool norm_first) {
    return run(prepare_gated_backward(grad_output, input, gate, rstd, activation, norm_first, {.gate = true}))
        .grad_gate;
  }

  static std::tuple<Tensor, Tensor> srms_norm_quantized(const Tensor& input, const MaybeTensor& residual,
                                                        const MaybeTensor& scale, c10::string_view dtype,
                                                        MaybeDouble value, MaybeName name, MaybeInt group_size,
                                                        bool power_of_two, MaybeDouble scale_ub, MaybeDouble eps) {
    QuantizationOptions options{dtype, value, name, group_size, power_of_two, scale_ub, eps};
    auto done = run(prepare_quantized(input, residual, scale, options, /*sum=*/false));
    return {done.output, done.scale};
  }

  static std::tuple<Tensor, Tensor, Tensor> add_srms_norm_quantized(const Tensor& input, const Tensor& residual,
                                                                    const MaybeTensor& scale, c10::string_view dtype,
                                                                    MaybeDouble value, MaybeName name,
                                                                    MaybeInt group_size, bool power_of_two,
                                                                    MaybeDouble scale_ub, MaybeDouble eps) {
    QuantizationOptions options{dtype, value, name, group_size, power_of_two, scale_ub, eps};
    auto done = run(prepare_quantized(input, residual, scale, options, /*sum=*/true));
    return {done.output, done.scale, done.sum};
  }

  static std::tuple<Tensor, Tensor> add_srms_norm_quantized_(const Tensor& input, const Tensor& residual,
                                                             const MaybeTensor& scale, c10::string_view dtype,
                                                             MaybeDouble value, MaybeName name, MaybeInt group_size,
                                                             bool power_of_two, MaybeDouble scale_ub, MaybeDouble eps) {
    QuantizationOptions options{dtype, value, name, group_size, power_of_two, scale_ub, eps};
    auto done = run(prepare_quantized_in_place(input, residual, scale, options));
    finish_quantized_in_place(done, residual);
    return {done.output, done.scale};
  }

  static void add_to(torch::Library& m) { SRMSNORM_EVERY_OPERATOR(SRMSNORM_BY_ITS_NAME) }
};

}  // namespace srmsnorm
