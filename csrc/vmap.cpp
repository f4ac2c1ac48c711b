// FuncTorchBatched: the batch dimension goes to the front and the operator is called again, so that vmap keeps the
// fused kernel. A rule peels the current level only; nested vmaps come back here by the dispatcher.
#include <ATen/functorch/BatchedTensorImpl.h>
#include <ATen/functorch/DynamicLayer.h>

#include "backend.h"  // for every family's checks

namespace srmsnorm {

// On the tensors as the user sees them: with a batch dimension in front a scalar would pass for a row, and errors would
// tell of a shape that nobody has. Found by the types of the arguments, but for those of operators that are called by a
// list.
template <class... Dtype>
static void check(const Tensor& input, const MaybeTensor& residual, MaybeDouble eps, const Dtype&...) {
  check_forward(input, residual, eps);
}
template <class... Dtype>
static void check(const Tensor& input, const Tensor& residual, MaybeDouble eps, const Dtype&...) {
  check_forward(input, residual, eps);
}
template <class... Dtype>
static void check(const Tensor& grad_output, const Tensor& output, const Tensor& rstd, const MaybeTensor& grad_sum,
                  const Dtype&...) {
  check_backward(grad_output, output, rstd, grad_sum, {});
}
static void check(const Tensor& input, const MaybeTensor& residual, const Tensor& scale, const MaybeTensor& factor,
                  MaybeName) {
  check_scale(input, residual, scale, factor);
}

namespace {

namespace ft = at::functorch;

class Level {
 public:
  // The level is that of the current layer: in nests the highest level among the arguments can be another one.
  Level() {
    auto layer = ft::maybeCurrentDynamicLayer();
    TORCH_CHECK(layer.has_value(), "srmsnorm: a tensor has left the vmap that it belongs to");
    level_ = layer->layerId();
  }

  const ft::BatchedTensorImpl* batched(const Tensor& tensor) const {
    auto* impl = ft::maybeGetBatchedImpl(tensor);
    return impl && impl->level() == level_ ? impl : nullptr;
  }

  // First for every argument: the size of the batch.
  void learn(const Tensor& tensor) {
    if (auto* impl = batched(tensor)) size_ = impl->value().sym_size(impl->bdim());
  }
  void learn(const MaybeTensor& tensor) {
    if (tensor) learn(*tensor);
  }
  template <class T>
  void learn(const T&) {}

  // Then for every argument: the batch dimension in front, expanded where there is none.
  Tensor in(const Tensor& tensor) const {
    if (auto* impl = batched(tensor)) return impl->value().movedim(impl->bdim(), 0);
    if (!tensor.defined() || !size_) return tensor;
    auto sizes = tensor.sym_sizes().vec();
    sizes.insert(sizes.begin(), *size_);
    return tensor.expand_symint(sizes);
  }
  MaybeTensor in(const MaybeTensor& tensor) const { return tensor ? MaybeTensor(in(*tensor)) : tensor; }
  template <class T>
  T in(const T& other) const {
    return other;
  }

  Tensor out(Tensor tensor) const { return size_ ? ft::makeBatched(std::move(tensor), 0, level_) : tensor; }
  template <class... Tensors>
  std::tuple<Tensors...> out(const std::tuple<Tensors...>& tensors) const {
    return std::apply([&](const auto&... each) { return std::make_tuple(out(each)...); }, tensors);
  }

  const std::optional<c10::SymInt>& size() const { return size_; }

 private:
  c10::impl::ExcludeDispatchKeyGuard guard_{c10::DispatchKey::FuncTorchBatched};
  int64_t level_;
  std::optional<c10::SymInt> size_;
};

template <auto op, class Signature>
struct Rule;

template <auto op, class Result, class... Args>
struct Rule<op, Result(const Tensor&, Args...)> {
  static Result call(const Tensor& first, Args... args) {
    if constexpr (kIsListed<op>)
      checked<op>(first, args...);
    else
      check(first, args...);
    Level level;
    level.learn(first);
    (level.learn(args), ...);
    return level.out(op().call(level.in(first), level.in(args)...));
  }
};

template <>
struct Rule<op::add_srms_norm_, void(const Tensor&, const Tensor&, MaybeDouble)> {
  static void call(const Tensor& input, const Tensor& residual, MaybeDouble eps) {
    check_in_place(input, residual, eps);
    Level level;
    TORCH_CHECK(!level.batched(input) == !level.batched(residual),
                "srmsnorm: add_srms_norm_ under vmap overwrites both operands, so both or none must be batched");
    op::add_srms_norm_().call(level.in(input), level.in(residual), eps);
  }
};

// A scale that is given: one element for all, or one of each of the batch, which every row of it gets; or one for each
// row of every one of the batch.
MaybeTensor in_rows(const Level& level, const MaybeTensor& scale, const Tensor& input) {
  if (!scale) return scale;
  if (!level.batched(*scale)) return scale->sym_numel() == 1 ? scale : level.in(scale);
  auto values = level.in(*scale);
  std::vector<c10::SymInt> sizes(input.dim(), 1);
  sizes[0] = values.sym_size(0);
  if (values.sym_numel() == sizes[0]) values = values.reshape_symint(sizes);
  sizes = input.sym_sizes().vec();
  sizes.back() = 1;
  return values.expand_symint(sizes);
}

template <auto op>
constexpr bool kOverwritesResidual = false;
template <>
constexpr bool kOverwritesResidual<op::add_srms_norm_quantized_> = true;

// Of quantised results, alone in having the name of a dtype there.
template <auto op, class Result, class Residual, class... Options>
struct Rule<op, Result(const Tensor&, Residual, const MaybeTensor&, c10::string_view, Options...)> {
  static constexpr bool kInPlace = kOverwritesResidual<op>;

  static Result call(const Tensor& input, Residual residual, const MaybeTensor& scale, c10::string_view dtype,
                     Options... options) {
    if constexpr (kInPlace)
      check_quantized_in_place(input, residual, scale, {dtype, options...});
    else
      check_quantized(input, residual, scale, {dtype, options...});
    Level level;
    level.learn(input);
    level.learn(residual);
    level.learn(scale);
    if constexpr (kInPlace)
      TORCH_CHECK(level.batched(residual) || !level.size(),
                  "srmsnorm: add_srms_norm_quantized_ under vmap overwrites its residual, which must be batched where "
                  "another operand is");
    auto rows = level.in(input);
    auto given = in_rows(level, scale, rows);
    auto results = op().call(rows, level.in(residual), given, dtype, options...);
    auto batched = level.out(results);
    auto& used = std::get<1>(results);
    if (used.dim() < rows.dim()) std::get<1>(batched) = used;  // one element of the whole batch
    return batched;
  }
};

}  // namespace

SRMSNORM_KERNELS(FuncTorchBatched, m) {
#define SRMSNORM_RULE(name, ...) m.impl(#name, &BySignature<op::name, Rule>::call);
  SRMSNORM_EVERY_OPERATOR(SRMSNORM_RULE)
  m.impl("_srms_norm_backward", &_srms_norm_backward);  // functorch does not look for composite kernels itself
}

}  // namespace srmsnorm
