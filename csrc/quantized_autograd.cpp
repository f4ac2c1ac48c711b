// The Autograd and ADInplaceOrView keys of quantised results, which have no derivative: a rounding has none but 0.
#include <c10/core/InferenceMode.h>

#include "autograd.h"

namespace srmsnorm {
namespace {

template <class... Tensors>
void check_not_differentiated(const char* name, const Tensors&... tensors) {
  const char* recipe =
      ": use torch.no_grad() or detach(), or estimate straight through: y = srms_norm(input); q, scale = "
      "srms_norm_quantized(input.detach()); y + (q.float() * scale - y).detach()";
  TORCH_CHECK(!compute_requires_grad(tensors...), name, " is not differentiable, and an operand requires grad", recipe);
  TORCH_CHECK(!(isFwGradDefined(tensors) || ...), name, " is not differentiable, and an operand carries a forward ",
              "gradient", recipe);
}

template <auto op, class Signature>
struct NotDifferentiable;

template <auto op, class Result, class Residual, class... Options>
struct NotDifferentiable<op, Result(const Tensor&, Residual, const MaybeTensor&, Options...)> {
  static Result call(c10::DispatchKeySet keys, const Tensor& input, Residual residual, const MaybeTensor& scale,
                     Options... options) {
    static const std::string name = "srmsnorm: " + op().schema().name().substr(sizeof("srmsnorm::") - 1);
    check_not_differentiated(name.c_str(), input, residual, scale);
    at::AutoDispatchBelowAutograd guard;  // in place, the version is still to be bumped
    return op().redispatch(keys & c10::after_autograd_keyset, input, residual, scale, options...);
  }
};

template <auto op, class Signature>
struct Bump;

template <auto op, class Result, class... Options>
struct Bump<op, Result(const Tensor&, const Tensor&, Options...)> {
  static Result call(c10::DispatchKeySet keys, const Tensor& input, const Tensor& residual, Options... options) {
    // bump_version says so too, but only once all is written.
    TORCH_CHECK(c10::InferenceMode::is_enabled() || !residual.is_inference(),
                "srmsnorm: add_srms_norm_quantized_ got an inference tensor as residual outside InferenceMode: an "
                "in-place update to it is not allowed; clone it first");
    auto call = [&] {
      at::AutoDispatchBelowADInplaceOrView guard;
      return op().redispatch(keys & c10::after_ADInplaceOrView_keyset, input, residual, options...);
    };
    auto results = call();
    torch::autograd::impl::bump_version(residual);
    return results;
  }
};

}  // namespace

SRMSNORM_KERNELS(Autograd, m) {
#define SRMSNORM_NO_DERIVATIVE(name, ...) m.impl(#name, &BySignature<op::name, NotDifferentiable>::call);
  SRMSNORM_QUANTIZED_OPERATORS(SRMSNORM_NO_DERIVATIVE, SRMSNORM_NO_DERIVATIVE)
}

SRMSNORM_KERNELS(ADInplaceOrView, m) {
  m.impl("add_srms_norm_quantized_", &BySignature<op::add_srms_norm_quantized_, Bump>::call);
}

}  // namespace srmsnorm
