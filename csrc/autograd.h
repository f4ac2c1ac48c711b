// What the derivatives of all operators are written in.
#pragma once
#include <ATen/TensorOperators.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/variable.h>

#include <utility>

#include "ops.h"
#include "registration.h"
#include "saved_node.h"

namespace srmsnorm {

using torch::autograd::collect_next_edges;
using torch::autograd::compute_requires_grad;
using torch::autograd::isFwGradDefined;
using torch::autograd::set_history;
using torch::autograd::variable_list;

constexpr uint64_t kFirstLevel = 0;  // of forward AD; functorch nests by wrapping tensors, not by levels

// ---- in the accumulation type (rstd's), from differentiable operators

inline Tensor wide(const Tensor& tensor, const Tensor& rstd) { return tensor.to(rstd.scalar_type()); }
inline Tensor mean(const Tensor& a, const Tensor& b) { return (a * b).mean(-1, /*keepdim=*/true); }
inline at::Scalar dim(const Tensor& tensor) { return tensor.sym_size(-1); }

// In the wider dtype of the two; undefined is zero.
inline Tensor plus(const Tensor& a, const Tensor& b) { return !a.defined() ? b : !b.defined() ? a : a + b; }

// ---- forward mode

inline Tensor tangent(const Tensor& tensor) { return tensor.defined() ? tensor._fw_grad(kFirstLevel) : Tensor(); }
inline Tensor primal(const Tensor& tensor) { return tensor._fw_primal(kFirstLevel); }
inline void set_tangent(const Tensor& tensor, const Tensor& value) {
  tensor._set_fw_grad(value, kFirstLevel, /*is_inplace_op=*/false);
}

// ---- kernels

template <class... Tensors>
bool needs_derivative(const Tensors&... tensors) {
  return compute_requires_grad(tensors...) || (isFwGradDefined(tensors) || ...);
}

// None where no operand requires a gradient.
template <class Node, class... Operands>
NodeOf<Node> node_of(const Operands&... operands) {
  NodeOf<Node> node;
  if (!compute_requires_grad(operands...)) return node;
  node = make_node<Node>();
  node->set_next_edges(collect_next_edges(operands...));
  return node;
}

template <class Operator, class... Args>
auto below_autograd(const Operator& op, c10::DispatchKeySet keys, Args&&... args) {
  at::AutoDispatchBelowADInplaceOrView guard;
  return op.redispatch(keys & c10::after_autograd_keyset, std::forward<Args>(args)...);
}

}  // namespace srmsnorm
