// An autograd Node whose backward is a static function of (gradients, saved tensors, what is wanted): the form that
// eager autograd, double backward and compiled autograd can all call.
#pragma once
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>

namespace srmsnorm {

// Newer torch holds Nodes by c10::intrusive_ptr, older by std::shared_ptr.
using NodePointer = decltype(torch::autograd::Edge::function);
constexpr bool kSharedNodes = std::is_same_v<NodePointer, std::shared_ptr<torch::autograd::Node>>;

template <class T>
auto make_node() {
  if constexpr (kSharedNodes)
    return std::shared_ptr<T>(new T, [](T* node) { deleteNode(node); });
  else
    return c10::make_intrusive<T>();
}

// A template, so that only the branch that this torch has is looked up.
template <class Node>
auto pointer_to(Node& node) {
  if constexpr (kSharedNodes)
    return node.shared_from_this();
  else
    return c10::intrusive_ptr<Node>::unsafe_reclaim_from_nonowning(&node);
}

template <class T>
using NodeOf = decltype(make_node<T>());

// Of each operand the dtype of its gradient; none where nobody asks for it.
template <size_t operands>
using Wanted = std::array<std::optional<at::ScalarType>, operands>;

// Self has: static variable_list backward(const variable_list& grads, const variable_list& saved,
//                                         const Wanted<operands>& wanted, const Constants&...)
// Of what it saves, the tensors from first_output on are results of the operator, the others its operands.
template <class Self, size_t operands, size_t saved_tensors, size_t first_output, class... Constants>
struct SavedNode : torch::autograd::Node {
  using variable_list = torch::autograd::variable_list;

  std::array<torch::autograd::SavedVariable, saved_tensors> saved;
  std::tuple<Constants...> constants;

  void save(std::initializer_list<at::Tensor> tensors) {
    size_t i = 0;
    for (const auto& tensor : tensors) {
      saved[i] = torch::autograd::SavedVariable(tensor, is_output(i));
      i++;
    }
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    return std::apply([&](const auto&... each) { return Self::backward(grads, unpack(), wanted(), each...); },
                      constants);
  }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& variable : saved) variable.reset_data();
  }

  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    // Not what is wanted: the edges' dtypes and the nodes that the task reaches are in the cache's key already.
    for (size_t i = 0; i < saved_tensors; ++i) args.collect(saved[i], is_output(i));
    std::apply([&](const auto&... each) { (args.collect(each), ...); }, constants);
  }

  // Compiled autograd: backward is bound once and put into its graph as a call.
  variable_list apply_with_saved(const variable_list& inputs,
                                 torch::dynamo::autograd::SwapSavedVariables& swap) override {
    namespace compiled = torch::dynamo::autograd;
    using Dtypes = std::vector<std::optional<at::ScalarType>>;
    for (auto& variable : saved) swap.before(variable);
    compiled::PackedArgs args;
    args.pack(unpack());
    auto dtypes = wanted();
    args.pack(Dtypes(dtypes.begin(), dtypes.end()));
    std::apply([&](const auto&... each) { (args.pack(each), ...); }, constants);
    const auto& compiler = compiled::getPyCompilerInterface();
    static const std::string function = compiler->bind_function(
        swap.get_py_compiler(), "srmsnorm_" + name(),
        [](const variable_list& grads, const std::vector<c10::IValue>& packed) {
          compiled::PackedArgs args(packed);
          auto tensors = args.unpack<std::vector<at::Tensor>>();
          auto dtypes = args.unpack<Dtypes>();
          Wanted<operands> wanted;
          std::copy_n(dtypes.begin(), operands, wanted.begin());
          std::tuple<Constants...> constants{args.unpack<Constants>()...};
          return std::apply([&](const auto&... each) { return Self::backward(grads, tensors, wanted, each...); },
                            constants);
        },
        {compiled::IValuePacker<std::vector<at::Tensor>>::packed_type(), compiled::IValuePacker<Dtypes>::packed_type(),
         compiled::IValuePacker<Constants>::packed_type()...});
    auto metadata = compiled::IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
        compiled::get_input_metadata(next_edges()));
    auto outputs =
        compiler->call_function(swap.get_py_compiler(), "apply_functional", function, inputs, args.vec(), metadata);
    for (auto& variable : saved) swap.after(variable);
    return outputs;
  }

 private:
  // By the task that runs: it may be after some operands' gradients only (autograd.grad with inputs, torch.func).
  Wanted<operands> wanted() const {
    Wanted<operands> dtypes;
    for (size_t i = 0; i < operands; ++i)
      if (task_should_compute_output(i)) {
        const auto& edge = next_edge(i);
        dtypes[i] = edge.function->input_metadata(edge.input_nr).dtype().toScalarType();
      }
    return dtypes;
  }

  variable_list unpack() {
    variable_list tensors;
    for (size_t i = 0; i < saved_tensors; ++i)
      tensors.push_back(is_output(i) ? saved[i].unpack(self()) : saved[i].unpack());
    return tensors;
  }

  static constexpr bool is_output(size_t i) { return i >= first_output; }

  auto self() { return pointer_to(static_cast<torch::autograd::Node&>(*this)); }
};

}  // namespace srmsnorm
