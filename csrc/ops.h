// The operators as C++ functions, called through the dispatcher; their argument checks and output allocation, once for
// all backends.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <tuple>

#include "operators.h"
#include "row_args.h"

namespace srmsnorm {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;
using MaybeDouble = std::optional<double>;
using MaybeDtype = std::optional<at::ScalarType>;
using MaybeName = std::optional<c10::string_view>;
using MaybeInt = std::optional<int64_t>;

// ---- handles of the operators

#define SRMSNORM_HANDLE(name, schema, ...)                                                           \
  inline const c10::TypedOperatorHandle<__VA_ARGS__>& name() {                                       \
    static const auto handle =                                                                       \
        c10::Dispatcher::singleton().findSchemaOrThrow("srmsnorm::" #name, "").typed<__VA_ARGS__>(); \
    return handle;                                                                                   \
  }

namespace op {
SRMSNORM_EVERY_OPERATOR(SRMSNORM_HANDLE)
}  // namespace op
#undef SRMSNORM_HANDLE

// What an operator is called by: Template<op::name, its signature>, to be specialized on Result(Arguments...).
template <auto op, template <auto, class> class Template, class Handle = std::decay_t<decltype(op())>>
struct BySignature;
template <auto op, template <auto, class> class Template, class Signature>
struct BySignature<op, Template, c10::TypedOperatorHandle<Signature>> : Template<op, Signature> {};

// The operator that has a dtype for an argument, as the choice between those of a gradient each. Graphs hold these: the
// number of a ScalarType in an exported graph is not c10's, and AOTInductor of torch 2.11 takes it for another dtype.
Tensor _srms_norm_backward(const Tensor& grad_output, const Tensor& output, const Tensor& rstd,
                           const MaybeTensor& grad_sum, MaybeDtype dtype);

// ---- what a call reads and writes; an undefined tensor is absent

// Args: what a kernel is handed of it.
template <template <class> class Operands>
struct CallTensors : Operands<Tensor>, Operands<Tensor>::Options {
  using Args = CallArgs<Operands>;
};

// ForwardTensors of ForwardOperands, and so on.
#define SRMSNORM_TENSORS(name) using name##Tensors = CallTensors<name##Operands>;
SRMSNORM_EVERY_LIST(SRMSNORM_TENSORS)
#undef SRMSNORM_TENSORS

struct ForwardOutputs {
  bool sum = false, rstd = false, output = true;
};

struct Gradients {
  bool input = false, residual = false;
};

// float64 for float64, float32 for the other three; an error for any other dtype.
at::ScalarType accumulation_dtype(at::ScalarType dtype);

// Whether the sizes are equal. Those that only the data tells are taken to be, and asserted where the traced code runs.
bool expect_same(at::SymIntArrayRef sizes, at::SymIntArrayRef others);

// An error for arguments that the operator does not take; eps as it is used. For shapes as the user sees them, where
// the tensors that are computed with have others.
double check_forward(const Tensor& input, const MaybeTensor& residual, MaybeDouble eps);
double check_forward(const Tensor& input, const Tensor& residual, MaybeDouble eps);
double check_in_place(const Tensor& input, const Tensor& residual, MaybeDouble eps);
void check_backward(const Tensor& grad_output, const Tensor& output, const Tensor& rstd, const MaybeTensor& grad_sum,
                    Gradients gradients);
void check_scale(const Tensor& input, const MaybeTensor& residual, const Tensor& scale, const MaybeTensor& factor);

// Each checks its arguments, then allocates what the call writes. A last dimension whose own stride is not 1 is copied
// here, the only copy there is.
ForwardTensors prepare_forward(ForwardOutputs outputs, const Tensor& input, const MaybeTensor& residual,
                               MaybeDouble eps, MaybeName dtype = {});
ForwardTensors prepare_scale(const Tensor& input, const MaybeTensor& residual, const Tensor& scale,
                             const MaybeTensor& factor, MaybeName dtype);
// In place, lazily negated operands are resolved into copies, which finish_in_place brings back.
ForwardTensors prepare_in_place(const Tensor& input, const Tensor& residual, MaybeDouble eps);
void finish_in_place(const ForwardTensors& done, const Tensor& input, const Tensor& residual);
// dtype: of the input's gradient.
BackwardTensors prepare_backward(Gradients gradients, const Tensor& grad_output, const Tensor& output,
                                 const Tensor& rstd, const MaybeTensor& grad_sum, MaybeName dtype = {});

// As listed.h says.
void check(const WideBackwardTensors& t);
WideBackwardOperands<Tensor> formula(const WideBackwardTensors& t);

}  // namespace srmsnorm
