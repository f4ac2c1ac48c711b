// An autograd Node whose backward is a static function of (gradients, saved tensors, one integer): the form that eager
// autograd, double backward and compiled autograd can all call.
#pragma once
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <array>
#include <initializer_list>
#include <memory>
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

// Self has: static variable_list backward(const variable_list& grads, const variable_list& saved, int64_t code)
template <class Self, size_t N, bool saves_outputs>
struct SavedNode : torch::autograd::Node {
  using variable_list = torch::autograd::variable_list;

  std::array<torch::autograd::SavedVariable, N> saved;
  int64_t code = 0;  // what backward needs to know and the saved tensors do not tell

  void save(std::initializer_list<at::Tensor> tensors) {
    size_t i = 0;
    for (const auto& tensor : tensors) saved[i++] = torch::autograd::SavedVariable(tensor, saves_outputs);
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    return Self::backward(grads, unpack(), code);
  }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& variable : saved) variable.reset_data();
  }

  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    for (auto& variable : saved) args.collect(variable, saves_outputs);
    args.collect(code);
  }

  // Compiled autograd: backward is bound once and put into its graph as a call.
  variable_list apply_with_saved(const variable_list& inputs,
                                 torch::dynamo::autograd::SwapSavedVariables& swap) override {
    namespace compiled = torch::dynamo::autograd;
    for (auto& variable : saved) swap.before(variable);
    swap.before(code);
    compiled::PackedArgs args;
    args.pack(unpack());
    args.pack(code);
    const auto& compiler = compiled::getPyCompilerInterface();
    static const std::string function =
        compiler->bind_function(swap.get_py_compiler(), "srmsnorm_" + name(),
                                [](const variable_list& grads, const std::vector<c10::IValue>& packed) {
                                  compiled::PackedArgs args(packed);
                                  auto tensors = args.unpack<std::vector<at::Tensor>>();
                                  auto code = args.unpack<int64_t>();
                                  return Self::backward(grads, tensors, code);
                                },
                                {compiled::IValuePacker<std::vector<at::Tensor>>::packed_type(),
                                 compiled::IValuePacker<int64_t>::packed_type()});
    auto metadata = compiled::IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
        compiled::get_input_metadata(next_edges()));
    auto outputs =
        compiler->call_function(swap.get_py_compiler(), "apply_functional", function, inputs, args.vec(), metadata);
    for (auto& variable : saved) swap.after(variable);
    swap.after(code);
    return outputs;
  }

 private:
  variable_list unpack() {
    variable_list tensors;
    for (auto& variable : saved) tensors.push_back(saves_outputs ? variable.unpack(self()) : variable.unpack());
    return tensors;
  }

  auto self() { return pointer_to(static_cast<torch::autograd::Node&>(*this)); }
};

}  // namespace srmsnorm
