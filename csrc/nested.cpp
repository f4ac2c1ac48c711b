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

// The buffer of an argument that is nested as `like`, the first one, is; anything else but tensors as it is.
Tensor values(const Tensor& tensor, const std::string& name, const Tensor& like) {
  TORCH_CHECK(
      tensor.layout() == at::kJagged && like.layout() == at::kJagged,
      "srmsnorm: nested tensors must have layout torch.jagged, and be all tensors of a call or none, got layout ",
      tensor.layout(), " of ", name, " beside ", like.layout(), " of input");
  TORCH_CHECK(tensor.sym_sizes().equals(like.sym_sizes()), "srmsnorm: ", name,
              " must have the shape of input (no broadcasting), and be nested by the same offsets, got ",
              tensor.sym_sizes(), " beside ", like.sym_sizes());
  TORCH_CHECK(at::_nested_get_ragged_idx(tensor) != tensor.dim() - 1,
              "srmsnorm: the last dimension must not be the ragged one, got shape ", tensor.sym_sizes());
  return at::_nested_get_values(tensor);
}

// A scale that is one element is every row's, and nested nowhere.
bool is_one_element(const Tensor& tensor, const std::string& name) {
  return name == "scale" && tensor.layout() != at::kJagged && tensor.numel() == 1;
}

MaybeTensor values(const MaybeTensor& tensor, const std::string& name, const Tensor& like) {
  if (tensor && tensor->defined() && is_one_element(*tensor, name)) return tensor;
  return tensor && tensor->defined() ? MaybeTensor(values(*tensor, name, like)) : std::nullopt;
}

template <class T>
T values(const T& other, const std::string&, const Tensor&) {
  return other;
}

// name: the result's. A scale that is one element of no row stays as it is.
Tensor nested(const Tensor& values, const std::string& name, const Tensor& like) {
  if (name == "scale_used" && values.dim() == 1) return values;
  return at::_nested_view_from_jagged(values, at::_nested_get_offsets(like), /*dummy=*/like,
                                      maybe(at::_nested_get_lengths(like)), at::_nested_get_ragged_idx(like),
                                      maybe(at::_nested_get_min_seqlen(like)), maybe(at::_nested_get_max_seqlen(like)));
}

Tensor nested(const Tensor& values, const c10::FunctionSchema& schema, const Tensor& like) {
  return nested(values, schema.returns()[0].name(), like);
}

template <class... Tensors>
std::tuple<Tensors...> nested(const std::tuple<Tensors...>& all, const c10::FunctionSchema& schema,
                              const Tensor& like) {
  auto result = schema.returns().begin();
  return std::apply([&](const auto&... each) { return std::tuple{nested(each, result++->name(), like)...}; }, all);
}

template <auto op, class Signature>
struct Rule;

template <auto op, class Result, class... Args>
struct Rule<op, Result(const Tensor&, Args...)> {
  static Result call(const Tensor& input, Args... args) {
    auto name = op().schema().arguments().begin();
    auto call = [&](const auto&... buffers) { return op().call(buffers...); };
    // In braces, as these are evaluated from left to right.
    std::tuple buffers{values(input, name++->name(), input), values(args, name++->name(), input)...};
    if constexpr (std::is_void_v<Result>)
      std::apply(call, buffers);
    else
      return nested(std::apply(call, buffers), op().schema(), input);
  }
};

void add_to(torch::Library& m) {
#define SRMSNORM_RULE(name, ...) m.impl(#name, &BySignature<op::name, Rule>::call);
  SRMSNORM_PUBLIC_OPERATORS(SRMSNORM_RULE)
}

}  // namespace

// Above autograd, which sees the buffers. In inference mode, where no Autograd key is reached, nested tensors look for
// the other key themselves.
SRMSNORM_KERNELS(AutogradNestedTensor, m) { add_to(m); }
SRMSNORM_KERNELS(CompositeImplicitAutogradNestedTensor, m) { add_to(m); }

}  // namespace srmsnorm
