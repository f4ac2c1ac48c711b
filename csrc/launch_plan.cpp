// launch_plan by an operator's name: its arguments made up from its schema, its function called for Meta.
#include "launch_plan.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <string>

#include "checks.h"
#include "registration.h"

namespace srmsnorm {

LaunchQuestion*& launch_question() {
  static thread_local LaunchQuestion* question = nullptr;
  return question;
}

namespace {

using c10::IValue;

// What launch_plan is asked for besides the operator, as in its schema below.
struct Asked {
  int64_t dim;
  at::ScalarType dtype;  // the input's
  MaybeDtype residual_dtype, gate_dtype, out_dtype;
  bool grad_sum;
};

c10::OperatorHandle find_operator(const std::string& name) {
  std::string known;
  bool found = false;
#define SRMSNORM_KNOWN(operator, ...) \
  found |= name == #operator;         \
  known += known.empty() ? #operator: ", " #operator;
  SRMSNORM_EVERY_OPERATOR(SRMSNORM_KNOWN)
  TORCH_CHECK_VALUE(found, "srmsnorm: operator must be one of ", known, ", got '", name, "'");
  return c10::Dispatcher::singleton().findSchemaOrThrow(("srmsnorm::" + name).c_str(), "");
}

// ---- arguments of an operator, by the names that schemas have

const c10::Argument* find_argument(const c10::FunctionSchema& schema, const char* name) {
  auto index = schema.argumentIndexWithName(name);
  return index ? &schema.arguments()[*index] : nullptr;
}

bool is_optional(const c10::Argument& argument) { return argument.type()->kind() == c10::TypeKind::OptionalType; }

bool is_tensor(const c10::Argument& argument) {
  return argument.type()->isSubtypeOf(*c10::OptionalType::create(c10::TensorType::get()));
}

bool is_number(const std::string& name) { return name == "rstd" || name == "scale" || name == "factor"; }

// Of a tensor; none where it is not given.
MaybeDtype dtype_of(const c10::Argument& argument, const Asked& asked) {
  const auto& name = argument.name();
  auto y = asked.out_dtype.value_or(asked.dtype);
  if (name == "input") return asked.dtype;
  if (name == "output" || name == "grad_output") return y;
  if (name == "gate") return asked.gate_dtype.value_or(asked.dtype);
  if (name == "residual" && !is_optional(argument)) return asked.residual_dtype.value_or(asked.dtype);
  if (name == "residual") return asked.residual_dtype;
  if (name == "grad_sum" && asked.grad_sum) return is_16_bit(y) ? asked.residual_dtype.value_or(y) : y;
  if (is_optional(argument)) return {};
  TORCH_INTERNAL_ASSERT(is_number(name), "launch_plan knows no operand of the name ", name);
  return accumulation_dtype(y);
}

IValue tensor_for(const c10::Argument& argument, const Asked& asked) {
  auto dtype = dtype_of(argument, asked);
  if (!dtype) return {};
  auto options = at::TensorOptions().device(at::kMeta).dtype(*dtype);
  if (is_number(argument.name())) return at::empty({1}, options);
  return at::empty({1, asked.dim}, options);
}

// The name of a result's dtype: y's, or in backward the gradient's of the input.
IValue name_for(const c10::FunctionSchema& schema, const Asked& asked) {
  if (!asked.out_dtype) return {};
  return std::string(name_of(find_argument(schema, "output") ? asked.dtype : *asked.out_dtype));
}

torch::jit::Stack arguments_for(const c10::FunctionSchema& schema, const Asked& asked) {
  torch::jit::Stack stack;
  for (const auto& argument : schema.arguments())
    if (is_tensor(argument))
      stack.push_back(tensor_for(argument, asked));
    else if (argument.name() == "dtype" && is_optional(argument))
      stack.push_back(name_for(schema, asked));
    else
      stack.push_back(argument.default_value().value_or(IValue()));
  return stack;
}

// An error for what the operator has no use for.
void check_taken(const c10::FunctionSchema& schema, const Asked& asked) {
  auto has = [&](const char* name) { return find_argument(schema, name) != nullptr; };
  auto check = [&](bool given, bool taken, const char* option) {
    TORCH_CHECK_VALUE(!given || taken, "srmsnorm: ", schema.name().substr(sizeof("srmsnorm::") - 1), " takes no ",
                      option);
  };
  bool named = has("dtype") && is_optional(*find_argument(schema, "dtype"));
  bool backward_of_wide = has("grad_output") && !has("output") && !has("gate");
  check(asked.residual_dtype.has_value(), has("residual") || has("grad_sum"), "residual_dtype");
  check(asked.gate_dtype.has_value(), has("gate"), "gate_dtype");
  check(asked.out_dtype.has_value(), named || backward_of_wide, "out_dtype");
  check(asked.grad_sum, has("grad_sum"), "grad_sum");
}

// ---- the GPU, as srmsnorm.Gpu has it

constexpr int kGpuFields = 6;

Gpu gpu_of(const std::vector<int64_t>& fields) {
  TORCH_CHECK_VALUE(fields.size() == kGpuFields && *std::min_element(fields.begin(), fields.end()) >= 0,
                    "srmsnorm: a GPU has ", kGpuFields, " numbers, none negative, got ", fields);
  check_cluster(fields[5], "largest_cluster");
  TORCH_CHECK_VALUE(fields[5] == 1 || fields[0] >= 90, "srmsnorm: a GPU of compute capability below 90 has no ",
                    "clusters, got capability ", fields[0], " and largest_cluster ", fields[5]);
  auto number = [&](int i) { return static_cast<int>(fields[i]); };
  return {0, number(0), number(1), number(2), fields[3], fields[4], number(5)};
}

// So many as move more than any L2 holds.
int64_t many_rows(int64_t dim) { return ceil_div(int64_t{1} << 30, dim); }

int64_t checked_rows(int64_t dim, MaybeInt rows) {
  check_dim(dim);
  TORCH_CHECK_VALUE(!rows || *rows > 0, "srmsnorm: rows must be at least 1, got ", *rows);
  constexpr int64_t kMostElements = int64_t{1} << 56;  // in bytes of all operands an int64_t
  TORCH_CHECK_VALUE(dim <= kMostElements / rows.value_or(1), "srmsnorm: rows x dim must be at most 2^56, got ",
                    rows.value_or(1), " x ", dim);
  return rows.value_or(many_rows(dim));
}

// ---- the answer

struct Asking {
  explicit Asking(LaunchQuestion& question) { launch_question() = &question; }
  ~Asking() { launch_question() = nullptr; }
};

c10::impl::GenericDict to_dict(const Launch& launch, bool with_hints) {
  c10::impl::GenericDict dict(c10::StringType::get(), c10::AnyType::get());
  auto set = [&](const char* name, auto value) { dict.insert(name, value); };
  launch.plan.each(set);
  if (with_hints) launch.hints.each(set);
  return dict;
}

void launch_plan(const c10::OperatorHandle&, c10::DispatchKeySet, torch::jit::Stack* stack) {
  auto arguments = torch::jit::pop(*stack, 12);
  auto next = arguments.begin();
  auto op = find_operator((next++)->toStringRef());
  int64_t dim = (next++)->toInt();
  auto dtype = (next++)->toScalarType();
  MaybeDtype dtypes[3];
  for (auto& each : dtypes) each = (next++)->toOptional<at::ScalarType>();
  Asked asked{dim, dtype, dtypes[0], dtypes[1], dtypes[2], (next++)->toBool()};
  bool aligned = (next++)->toBool(), in_phase = (next++)->toBool();
  int64_t rows = checked_rows(dim, (next++)->toOptional<int64_t>());
  auto max_cluster = (next++)->toOptional<int64_t>();
  bool with_hints = !next->isNone();
  Gpu gpu;
  gpu.largest_cluster = kMaxCluster;
  if (with_hints) gpu = gpu_of(next->toIntVector());
  if (max_cluster) check_cluster(*max_cluster, "max_cluster");
  if (max_cluster) gpu.largest_cluster = static_cast<int>(*max_cluster);

  check_taken(op.schema(), asked);
  LaunchQuestion question{gpu, rows, aligned, in_phase};
  auto operands = arguments_for(op.schema(), asked);
  {
    Asking asking(question);
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::Meta), &operands);
  }
  torch::jit::push(*stack, IValue(to_dict(question.answer.value(), with_hints)));
}

}  // namespace

SRMSNORM_SCHEMAS(m) {
  m.def(
      "_launch_plan(str operator, int dim, ScalarType dtype, ScalarType? residual_dtype, ScalarType? gate_dtype, "
      "ScalarType? out_dtype, bool grad_sum, bool aligned, bool in_phase, int? rows, int? max_cluster, int[]? gpu) "
      "-> Dict(str, Any)",
      torch::CppFunction::makeFromBoxedFunction<&launch_plan>());
}

}  // namespace srmsnorm
