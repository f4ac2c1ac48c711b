// The Python face of srmsnorm_out, for code that a compiler makes: _out_name, of all arguments by position.
#pragma once
#include <vector>

#include "face.h"
#include "out.h"

namespace srmsnorm {

template <class Signature, class Places>
struct OutSignature;
template <class Results, class... Args, size_t... i>
struct OutSignature<Results(Args...), std::index_sequence<i...>> {
  template <size_t>
  using Result = const Tensor&;
  using Type = void(Args..., Result<i>...);
};

template <class Results, class... Args>
constexpr size_t result_count(Results (*)(Args...)) {
  return kResults<Results>;
}

// Named: a class with the operator's name, and what Python calls it.
template <class Named, class Signature>
struct OutFace {
  static constexpr auto kName = Named::kName;
  static constexpr size_t kCount = result_count(static_cast<Signature*>(nullptr));
  using Type = OutSignature<Signature, std::make_index_sequence<kCount>>::Type;

  template <class... Args>
  static void run(const Args&... args) {
    static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(Named::kOperator, "").template typed<Type>();
    op.call(args...);
  }

  static void add_to(std::vector<PyMethodDef>& methods) {
    if constexpr (kCount > 0 && is_functional(Named::kOperator)) {
      auto function = reinterpret_cast<void (*)()>(&Face<OutFace, Type>::function);
      methods.push_back({kName, reinterpret_cast<PyCFunction>(function), METH_FASTCALL, nullptr});
    }
  }
};

#define SRMSNORM_OUT_NAMED(name, ...)                         \
  struct out_##name {                                         \
    static constexpr auto kName = "_out_" #name;              \
    static constexpr auto kOperator = "srmsnorm_out::" #name; \
  };
SRMSNORM_OUT_OPERATORS(SRMSNORM_OUT_NAMED)
#undef SRMSNORM_OUT_NAMED

// They live as long as the process.
inline PyMethodDef* out_methods() {
  static auto methods = [] {
    std::vector<PyMethodDef> found;
#define SRMSNORM_OUT_METHOD(name, schema, ...) OutFace<out_##name, __VA_ARGS__>::add_to(found);
    SRMSNORM_OUT_OPERATORS(SRMSNORM_OUT_METHOD)
#undef SRMSNORM_OUT_METHOD
    found.push_back({});
    return found;
  }();
  return methods.data();
}

}  // namespace srmsnorm
