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
//                                         const Wanted<operands>& wanted)
template <class Self, size_t operands, size_t saved_tensors, bool saves_outputs>
struct SavedNode : torch::autograd::Node {
  using variable_list = torch::autograd::variable_list;

  std::array<torch::autograd::SavedVariable, saved_tensors> saved;

  void save(std::initializer_list<at::Tensor> tensors) {
    size_t i = 0;
    for (const auto& tensor : tensors) saved[i++] = torch::autograd::SavedVariable(tensor, saves_outputs);
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    return Self::backward(grads, unpack(), wanted());
  }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& variable : saved) variable.reset_data();
  }

  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    // Not what is wanted: the edges' dtypes and the nodes that the task reaches are in the cache's key already.
    for (auto& variable : saved) args.collect(variable, saves_outputs);
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
    const auto& compiler = compiled::getPyCompilerInterface();
    static const std::string function =
        compiler->bind_function(swap.get_py_compiler(), "srmsnorm_" + name(),
                                [](const variable_list& grads, const std::vector<c10::IValue>& packed) {
                                  compiled::PackedArgs args(packed);
                                  auto tensors = args.unpack<std::vector<at::Tensor>>();
                                  auto dtypes = args.unpack<Dtypes>();
                                  Wanted<operands> wanted;
                                  std::copy_n(dtypes.begin(), operands, wanted.begin());
                                  return Self::backward(grads, tensors, wanted);
                                },
                                {compiled::IValuePacker<std::vector<at::Tensor>>::packed_type(),
                                 compiled::IValuePacker<Dtypes>::packed_type()});
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
    for (auto& variable : saved) tensors.push_back(saves_outputs ? variable.unpack(self()) : variable.unpack());
    return tensors;
  }

  auto self() { return pointer_to(static_cast<torch::autograd::Node&>(*this)); }
};

}  // namespace srmsnorm
