// srmsnorm_out::name is srmsnorm::name with its results written into tensors that it is given, so that a compiler can
// plan where they lie. Of every operator that is functional.
#pragma once
#include <c10/util/SmallVector.h>

#include "ops.h"
#include "overlap.h"
#include "registration.h"

#define SRMSNORM_OUT_SCHEMAS(m) \
  SRMSNORM_WHERE_IT_REGISTERS(TORCH_LIBRARY_FRAGMENT(srmsnorm_out, m), register_out_schemas, m)
#define SRMSNORM_OUT_KERNELS(key, m) \
  SRMSNORM_WHERE_IT_REGISTERS(TORCH_LIBRARY_IMPL(srmsnorm_out, key, m), register_out_##key, m)

namespace srmsnorm {

// While it lives, what an operator's function in this thread would make for its results are these tensors, one after
// the other: the functions that make them (empty_rows_like, empty_rstd) ask for the next one.
class GivenResults {
 public:
  using Tensors = c10::SmallVector<const Tensor*, 8>;
  GivenResults(const Tensors& results, const Tensors& operands);
  ~GivenResults();
  GivenResults(const GivenResults&) = delete;
  GivenResults& operator=(const GivenResults&) = delete;
  void check_all_taken() const;

  // Null where none is given; an error where it is not what was to be made.
  static const Tensor* next(const c10::SymIntArrayRef& sizes, const at::TensorOptions& options);

 private:
  const Tensors& results;
  size_t taken = 0;
  GivenResults* before;
};

inline void add_operand(GivenResults::Tensors& operands, const Tensor& operand) { operands.push_back(&operand); }
inline void add_operand(GivenResults::Tensors& operands, const MaybeTensor& operand) {
  if (operand) operands.push_back(&*operand);
}
template <class Other>
void add_operand(GivenResults::Tensors&, const Other&) {}

template <class Results>
constexpr size_t kResults = std::tuple_size_v<Results>;
template <>
inline constexpr size_t kResults<Tensor> = 1;
template <>
inline constexpr size_t kResults<void> = 0;

// function: an operator's.
template <auto function, class Signature, class Places>
struct Into;
template <auto function, class Results, class... Args, size_t... i>
struct Into<function, Results (*)(Args...), std::index_sequence<i...>> {
  template <size_t>
  using Result = const Tensor&;

  static void run(Args... args, Result<i>... results) {
    GivenResults::Tensors written{&results...}, operands;
    (add_operand(operands, args), ...);
    GivenResults given(written, operands);
    function(args...);
    given.check_all_taken();
  }
};

constexpr bool is_functional(c10::string_view name) { return name.back() != '_'; }

template <auto function, class Results, class... Args>
void add_out(torch::Library& m, const char* name, Results (*)(Args...)) {
  if constexpr (kResults<Results> > 0)
    if (is_functional(name))
      m.impl(name, &Into<function, Results (*)(Args...), std::make_index_sequence<kResults<Results>>>::run);
}

// Not of the quantised ones, whose scales have strides of their own.
#define SRMSNORM_OUT_OPERATORS(row) \
  SRMSNORM_NORM_OPERATORS(row, row) \
  SRMSNORM_RSTD_OPERATORS(row, row) \
  SRMSNORM_GATED_OPERATORS(row, row)

// Of a backend's kernels.
template <class Kernels>
struct OutKernels {
  static void add_to(torch::Library& m) {
#define SRMSNORM_INTO(name, schema, ...) \
  add_out<static_cast<std::add_pointer_t<__VA_ARGS__>>(&Kernels::name)>(m, #name, std::add_pointer_t<__VA_ARGS__>());
    SRMSNORM_OUT_OPERATORS(SRMSNORM_INTO)
#undef SRMSNORM_INTO
  }
};

}  // namespace srmsnorm
