// Operators that are called by a list of operands: their tensors are what the list reads, in its order, and what they
// return are results of it. Their kernels, vmap's checks and derivatives by a formula follow from kListed. A family of
// them has for each list
//
//   check(tensors, options ...)  an error for what the operators do not take; sets the list's options
//   formula(tensors)             the results in the accumulation type, in PyTorch's operators
#pragma once
#include <array>
#include <type_traits>

#include "checks.h"

namespace srmsnorm {

template <template <class> class Operands, size_t count>
struct Listed {
  using Tensors = CallTensors<Operands>;
  std::array<Tensor Operands<Tensor>::*, count> results;
};

// What an operator returns, by name.
template <template <class> class Operands, class... Members>
constexpr Listed<Operands, 1 + sizeof...(Members)> results(Tensor Operands<Tensor>::* first, Members... others) {
  return {{first, others...}};
}

// Results of the list; nullptr: the operator is called in a way of its own. To be asked where the header of the
// operator's family is included, which has it.
template <auto op>
constexpr auto kListed = nullptr;
template <auto op>
constexpr bool kIsListed = !std::is_same_v<decltype(kListed<op>), const std::nullptr_t>;

template <>
constexpr auto kListed<op::_srms_norm_backward_of_input> = results(&WideBackwardTensors::grad_input);

// What an operator is given.
template <auto op, class... Args>
auto checked(const Args&... args) {
  typename decltype(kListed<op>)::Tensors tensors;
  constexpr size_t kReads = operand_count<decltype(tensors)>(/*results=*/false);
  std::tuple<const Args&...> all(args...);
  [&]<size_t... i>(std::index_sequence<i...>) {
    std::array<const Tensor*, kReads> given{&std::get<i>(all)...};
    auto next = given.begin();
    tensors.zip(
        [&](Use use, Tensor& tensor) {
          if (!use.written) tensor = **next++;
        },
        tensors);
  }(std::make_index_sequence<kReads>());
  [&]<size_t... i>(std::index_sequence<i...>) {
    check(tensors, std::get<kReads + i>(all)...);
  }(std::make_index_sequence<sizeof...(Args) - kReads>());
  return tensors;
}

// The same for a kernel: with memory for the results, each like the operand that the list says.
template <auto op, class... Args>
auto prepared(const Args&... args) {
  auto tensors = checked<op>(args...);
  tensors.zip(
      [](Use use, Tensor& tensor) {
        if (use.whole_row && !use.written && !has_unit_stride(tensor)) tensor = with_unit_stride(tensor);
      },
      tensors);
  tensors.each_result(
      [&](Use use, Tensor& result, const Tensor& like) {
        auto wanted = [&](auto... members) { return ((&(tensors.*members) == &result) || ...); };
        if (std::apply(wanted, kListed<op>.results))
          result = use.whole_row ? empty_rows_like(like, like.scalar_type()) : empty_rstd(like);
      },
      tensors);
  return tensors;
}

// What it returns of them: a tensor, or a tuple.
template <auto op, class Tensors>
auto returned(Tensors&& tensors) {
  constexpr auto members = kListed<op>.results;
  if constexpr (members.size() == 1)
    return std::move(tensors.*members[0]);
  else
    return std::apply([&](auto... each) { return std::make_tuple(std::move(tensors.*each)...); }, members);
}

// The same by the formula, which PyTorch derives.
template <auto op, class... Args>
auto by_formula(const Args&... args) {
  auto tensors = checked<op>(args...);
  auto found = formula(tensors);
  tensors.zip(
      [](Use use, Tensor& tensor, Tensor& value) {
        if (use.written) tensor = value;
      },
      tensors, found);
  tensors.each_result(
      [](Use use, Tensor& result, const Tensor& like) {
        if (use.whole_row) result = result.to(like.scalar_type());
      },
      tensors);
  return returned<op>(std::move(tensors));
}

}  // namespace srmsnorm
