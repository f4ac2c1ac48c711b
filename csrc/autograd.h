// What the derivatives of all operators are written in.
#pragma once
#include <ATen/TensorOperators.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/variable.h>

#include <utility>

#include "listed.h"
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

// Those of a call's arguments that are tensors, or maybe.
template <class... Args>
auto tensors_of(const Args&... args) {
  auto one = []<class T>(const T& arg) {
    if constexpr (std::is_same_v<T, Tensor> || std::is_same_v<T, MaybeTensor>)
      return std::tuple<const T&>(arg);
    else
      return std::tuple<>();
  };
  return std::tuple_cat(one(args)...);
}

template <class... Args>
bool carries_tangent(const Args&... args) {
  return std::apply([](const auto&... tensors) { return (isFwGradDefined(tensors) || ...); }, tensors_of(args...));
}

template <class... Args>
bool needs_derivative(const Args&... args) {
  auto requires_grad = [](const auto&... tensors) { return compute_requires_grad(tensors...); };
  return std::apply(requires_grad, tensors_of(args...)) || carries_tangent(args...);
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

// Of a public operator: where a derivative may be asked for, the internal one, whose first result it returns. That is
// called here, not through the dispatcher, which would come back to this key.
template <auto op, auto internal>
struct FirstOf;

template <auto op, class Results, class... Args, Results (*internal)(c10::DispatchKeySet, Args...)>
struct FirstOf<op, internal> {
  static Tensor call(c10::DispatchKeySet keys, Args... args) {
    if (needs_derivative(args...)) return std::get<0>(internal(keys, args...));
    return below_autograd(op(), keys, args...);
  }
};

// ---- operators with a formula (listed.h)

template <class Results>
variable_list list_of(const Results& results) {
  return std::apply([](const auto&... each) { return variable_list{each...}; }, std::tuple(results));
}

// Where a derivative may be asked for, the formula, which PyTorch derives.
template <auto op, class Signature>
struct ByFormula;

template <auto op, class Result, class... Args>
struct ByFormula<op, Result(Args...)> {
  static Result call(c10::DispatchKeySet keys, Args... args) {
    if (needs_derivative(args...)) return by_formula<op>(args...);
    return below_autograd(op(), keys, args...);
  }
};

// The tangents of results: those of the formula.
template <auto op, class Results, class... Args>
void set_tangents(const Results& results, const Args&... args) {
  if (!carries_tangent(args...)) return;
  auto to = list_of(results), of = list_of(by_formula<op>(args...));
  for (size_t i = 0; i < to.size(); ++i)
    if (auto t = tangent(of[i]); t.defined()) set_tangent(to[i], t);
}

}  // namespace srmsnorm
