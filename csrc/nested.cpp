// Jagged nested tensors: the operators run on the one buffer that holds the rows of all components, so that nothing is
// padded, no component is a call of its own, and derivatives are those of the operators and of views.
#include <ATen/ops/_nested_get_lengths.h>
#include <ATen/ops/_nested_get_max_seqlen.h>
#include <ATen/ops/_nested_get_min_seqlen.h>
#include <ATen/ops/_nested_get_offsets.h>
#include <ATen/ops/_nested_get_ragged_idx.h>
#include <ATen/ops/_nested_get_values.h>
#include <ATen/ops/_nested_view_from_jagged.h>

#include "ops.h"
#include "registration.h"

namespace srmsnorm {
namespace {

MaybeTensor maybe(const Tensor& tensor) { return tensor.defined() ? MaybeTensor(tensor) : std::nullopt; }

// The buffer of a tensor that is nested as `like` is.
Tensor values(const Tensor& tensor, const Tensor& like) {
  TORCH_CHECK(
      tensor.layout() == at::kJagged && like.layout() == at::kJagged,
      "srmsnorm: nested tensors must have layout torch.jagged, and be both of input and residual or neither, got "
      "layouts ",
      like.layout(), " and ", tensor.layout());
  TORCH_CHECK(tensor.sym_sizes().equals(like.sym_sizes()),
              "srmsnorm: residual must have the shape of input (no broadcasting), and be nested by the same offsets, "
              "got ",
              tensor.sym_sizes(), " beside ", like.sym_sizes());
  TORCH_CHECK(at::_nested_get_ragged_idx(tensor) != tensor.dim() - 1,
              "srmsnorm: the last dimension must not be the ragged one, got shape ", tensor.sym_sizes());
  return at::_nested_get_values(tensor);
}

MaybeTensor values(const MaybeTensor& tensor, const Tensor& like) {
  return tensor && tensor->defined() ? MaybeTensor(values(*tensor, like)) : std::nullopt;
}

Tensor nested(const Tensor& values, const Tensor& like) {
  return at::_nested_view_from_jagged(values, at::_nested_get_offsets(like), /*dummy=*/like,
                                      maybe(at::_nested_get_lengths(like)), at::_nested_get_ragged_idx(like),
                                      maybe(at::_nested_get_min_seqlen(like)), maybe(at::_nested_get_max_seqlen(like)));
}

Tensor srms_norm(const Tensor& input, const MaybeTensor& residual, MaybeDouble eps) {
  return nested(op::srms_norm().call(values(input, input), values(residual, input), eps), input);
}

std::tuple<Tensor, Tensor> add_srms_norm(const Tensor& input, const Tensor& residual, MaybeDouble eps) {
  auto [y, sum] = op::add_srms_norm().call(values(input, input), values(residual, input), eps);
  return {nested(y, input), nested(sum, input)};
}

void add_srms_norm_(const Tensor& input, const Tensor& residual, MaybeDouble eps) {
  op::add_srms_norm_().call(values(input, input), values(residual, input), eps);
}

void add_to(torch::Library& m) {
  m.impl("srms_norm", &srms_norm);
  m.impl("add_srms_norm", &add_srms_norm);
  m.impl("add_srms_norm_", &add_srms_norm_);
}

}  // namespace

// Above autograd, which sees the buffers. In inference mode, where no Autograd key is reached, nested tensors look for
// the other key themselves.
SRMSNORM_KERNELS(AutogradNestedTensor, m) { add_to(m); }
SRMSNORM_KERNELS(CompositeImplicitAutogradNestedTensor, m) { add_to(m); }

}  // namespace srmsnorm
