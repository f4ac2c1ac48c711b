// The schemas of srmsnorm_out, what is asked of the tensors that are given, and the keys above all devices.
#include "out.h"

#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/variable.h>

#include "checks.h"

namespace srmsnorm {
namespace {

thread_local GivenResults* innermost = nullptr;

void check_memory(const GivenResults::Tensors& results, const GivenResults::Tensors& operands) {
  for (const auto* result : results) {
    TORCH_CHECK(result->defined() && !result->is_neg() && !result->_is_zerotensor(),
                "srmsnorm: a result is written to memory of its own, but got ",
                !result->defined() ? "an undefined tensor"
                : result->is_neg() ? "a lazily negated one"
                                   : "a ZeroTensor");
    if (!has_addresses(*result)) return;
    result->mutable_data_ptr();  // lazy clones share their memory until one is asked for an address to write to
  }
  check_no_overlap_of_results(results, operands);
}

}  // namespace

GivenResults::GivenResults(const Tensors& results, const Tensors& operands) : results(results), before(innermost) {
  check_memory(results, operands);
  innermost = this;
}

GivenResults::~GivenResults() { innermost = before; }

void GivenResults::check_all_taken() const { TORCH_INTERNAL_ASSERT(taken == results.size()); }

const Tensor* GivenResults::next(const c10::SymIntArrayRef& sizes, const at::TensorOptions& options) {
  if (!innermost || innermost->taken == innermost->results.size()) return nullptr;
  const Tensor& result = *innermost->results[innermost->taken++];
  auto place = innermost->taken;
  TORCH_CHECK(expect_same(result.sym_sizes(), sizes), "srmsnorm: result ", place, " must have the shape ", sizes,
              ", got ", result.sym_sizes());
  TORCH_CHECK(result.scalar_type() == c10::typeMetaToScalarType(options.dtype()), "srmsnorm: result ", place,
              " must be ", options.dtype(), ", got ", result.dtype());
  TORCH_CHECK(result.layout() == at::kStrided && result.device() == options.device(), "srmsnorm: result ", place,
              " must be dense and on ", options.device(), ", got ", result.layout(), " on ", result.device());
  TORCH_CHECK(result.dim() == 0 || has_unit_stride(result), "srmsnorm: result ", place,
              " must have a last dimension of stride 1, got strides ", result.sym_strides());
  return &result;
}

namespace {

// Of an operator with the results' names behind its arguments; of one without a name "out", of several "out0", "out1".
std::string out_schema(const std::string& name, const std::string& schema) {
  auto results = torch::schema((name + schema).c_str()).returns();
  auto arguments = schema.substr(0, schema.rfind(") -> "));
  auto text = name + arguments + (arguments.find("*, ") == std::string::npos ? ", *" : "");
  for (size_t i = 0; i < results.size(); i++) {
    auto unnamed = results.size() == 1 ? "out" : "out" + std::to_string(i);
    text += std::string(", Tensor(") + static_cast<char>('a' + i) + "!) " +
            (results[i].name().empty() ? unnamed : results[i].name());
  }
  return text + ") -> ()";
}

// f of a call's operands and of its results, which are at the end of the stack.
template <class Operand, class Result>
void over_tensors(const c10::OperatorHandle& op, const torch::jit::Stack& stack, Operand operand, Result result) {
  const auto& arguments = op.schema().arguments();
  for (size_t i = 0; i < arguments.size(); i++) {
    const auto& value = torch::jit::peek(stack, i, arguments.size());
    if (!value.isTensor()) continue;
    arguments[i].alias_info() ? result(value.toTensor()) : operand(value.toTensor());
  }
}

void refuse_gradients(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  auto check = [&](const Tensor& tensor) {
    TORCH_CHECK(!torch::autograd::compute_requires_grad(tensor), "srmsnorm: ", op.schema().name(),
                " is not differentiable, and a tensor requires grad: use the operator that makes its results, or "
                "torch.no_grad()");
    TORCH_CHECK(!torch::autograd::isFwGradDefined(tensor), "srmsnorm: ", op.schema().name(),
                " is not differentiable, and a tensor carries a forward gradient: use the operator that makes its "
                "results");
  };
  over_tensors(op, *stack, check, check);
  at::AutoDispatchBelowAutograd guard;
  op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
}

void bump_results(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  c10::SmallVector<Tensor, 3> results;
  over_tensors(op, *stack, [](const Tensor&) {}, [&](const Tensor& result) { results.push_back(result); });
  for (const auto& result : results)
    TORCH_CHECK(c10::InferenceMode::is_enabled() || !result.is_inference(), "srmsnorm: ", op.schema().name(),
                " got an inference tensor to write to outside InferenceMode: clone it first");
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
  }
  for (const auto& result : results) torch::autograd::impl::bump_version(result);
}

template <auto* boxed>
void add_boxed(torch::Library& m) {
#define SRMSNORM_BOXED(name, ...) \
  if (is_functional(#name)) m.impl(#name, torch::CppFunction::makeFromBoxedFunction<boxed>());
  SRMSNORM_OUT_OPERATORS(SRMSNORM_BOXED)
#undef SRMSNORM_BOXED
}

}  // namespace

SRMSNORM_OUT_SCHEMAS(m) {
#define SRMSNORM_OUT_SCHEMA(name, text, ...) \
  if (is_functional(#name)) m.def(torch::schema(out_schema("srmsnorm_out::" #name, text).c_str()));
  SRMSNORM_OUT_OPERATORS(SRMSNORM_OUT_SCHEMA)
}

SRMSNORM_OUT_KERNELS(Autograd, m) { add_boxed<&refuse_gradients>(m); }
SRMSNORM_OUT_KERNELS(ADInplaceOrView, m) { add_boxed<&bump_results>(m); }

}  // namespace srmsnorm
