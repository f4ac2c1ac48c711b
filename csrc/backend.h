// A backend's kernels for all operators, from its Backend::run of each of the lists of tensors in ops.h. It may get no
// rows. Whoever launches looks; Meta could not, where only the data tells how many there are. Operators that are called
// by a list (listed.h) have theirs by that, the others here by name.
#pragma once
#include "gated.h"
#include "listed.h"
#include "quantized.h"
#include "registration.h"

namespace srmsnorm {

template <class Backend>
struct OwnKernels {
  template <class Tensors>
  static Tensors run(Tensors tensors) {
    Backend::run(tensors);
    return tensors;
  }

  static Tensor srms_norm(auto... args) { return run(prepare_forward({}, args...)).output; }

  static std::tuple<Tensor, Tensor> add_srms_norm(auto... args) {
    auto done = run(prepare_forward({.sum = true}, args...));
    return {done.output, done.sum};
  }

  static void add_srms_norm_(const Tensor& input, const Tensor& residual, MaybeDouble eps) {
    finish_in_place(run(prepare_in_place(input, residual, eps)), input, residual);
  }

  static std::tuple<Tensor, Tensor> _srms_norm(auto... args) {
    auto done = run(prepare_forward({.rstd = true}, args...));
    return {done.output, done.rstd};
  }

  static std::tuple<Tensor, Tensor, Tensor> _add_srms_norm(auto... args) {
    auto done = run(prepare_forward({.sum = true, .rstd = true}, args...));
    return {done.output, done.sum, done.rstd};
  }

  // Where there is one: a float32 gradient beside 16 bits is grad_residual, whosever it is.
  static Tensor gradient(const BackwardTensors& t) { return t.grad_input.defined() ? t.grad_input : t.grad_residual; }

  static Tensor _srms_norm_backward_input(auto... args) {
    return gradient(run(prepare_backward({.input = true}, args...)));
  }

  static Tensor _srms_norm_backward_residual(auto... args) {
    return gradient(run(prepare_backward({.residual = true}, args...)));
  }

  static std::tuple<Tensor, Tensor> _srms_norm_backward_pair(auto... args) {
    auto done = run(prepare_backward({.input = true, .residual = true}, args...));
    return {done.grad_input, done.grad_residual};
  }

  static Tensor rstd(auto... args) { return run(prepare_forward({.rstd = true, .output = false}, args...)).rstd; }

  static Tensor _scale_rows(auto... args) { return run(prepare_scale(args...)).output; }

  static std::tuple<Tensor, Tensor> srms_norm_quantized(const Tensor& input, const MaybeTensor& residual,
                                                        const MaybeTensor& scale, auto... options) {
    auto done = run(prepare_quantized(input, residual, scale, {options...}, /*sum=*/false));
    return {done.output, done.scale};
  }

  static std::tuple<Tensor, Tensor, Tensor> add_srms_norm_quantized(const Tensor& input, const Tensor& residual,
                                                                    const MaybeTensor& scale, auto... options) {
    auto done = run(prepare_quantized(input, residual, scale, {options...}, /*sum=*/true));
    return {done.output, done.scale, done.sum};
  }

  static std::tuple<Tensor, Tensor> add_srms_norm_quantized_(const Tensor& input, const Tensor& residual,
                                                             const MaybeTensor& scale, auto... options) {
    auto done = run(prepare_quantized_in_place(input, residual, scale, {options...}));
    finish_quantized_in_place(done, residual);
    return {done.output, done.scale};
  }
};

template <auto op, class Backend, class Signature>
struct ListedKernel;

template <auto op, class Backend, class Result, class... Args>
struct ListedKernel<op, Backend, Result(Args...)> {
  static Result call(Args... args) { return returned<op>(OwnKernels<Backend>::run(prepared<op>(args...))); }
};

template <class Backend>
struct Kernels : OwnKernels<Backend> {
#define SRMSNORM_KERNEL(name, schema, ...)                              \
  if constexpr (kIsListed<op::name>)                                    \
    m.impl(#name, &ListedKernel<op::name, Backend, __VA_ARGS__>::call); \
  else                                                                  \
    m.impl(#name, static_cast<std::add_pointer_t<__VA_ARGS__>>(&Kernels::name));
  static void add_to(torch::Library& m) { SRMSNORM_EVERY_OPERATOR(SRMSNORM_KERNEL) }
#undef SRMSNORM_KERNEL
};

}  // namespace srmsnorm
