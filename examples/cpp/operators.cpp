// Calls the operators from C++ and trains one step through autograd.
//   operators <srmsnorm.library_path> [cpu|cuda]
//   linked [cpu|cuda], the same program linked with the operators
#include <torch/torch.h>

#include <cstdio>
#include <optional>
#include <tuple>

#include "load.h"

using torch::Tensor;
using MaybeTensor = std::optional<Tensor>;
using MaybeDouble = std::optional<double>;
using MaybeName = std::optional<c10::string_view>;

// An operator by name. The type is that of its schema; a wrong one is an error here, not a crash later.
template <class Function>
auto find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Function>();
}

Tensor srms_norm(const Tensor& input, const MaybeTensor& residual = {}, MaybeDouble eps = {}, MaybeName dtype = {}) {
  static auto op = find<Tensor(const Tensor&, const MaybeTensor&, MaybeDouble, MaybeName)>("srmsnorm::srms_norm");
  return op.call(input, residual, eps, dtype);
}

std::tuple<Tensor, Tensor> add_srms_norm(const Tensor& input, const Tensor& residual, MaybeDouble eps = {},
                                         MaybeName dtype = {}) {
  static auto op =
      find<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, MaybeDouble, MaybeName)>("srmsnorm::add_srms_norm");
  return op.call(input, residual, eps, dtype);
}

void add_srms_norm_(const Tensor& input, const Tensor& residual, MaybeDouble eps = {}) {
  static auto op = find<void(const Tensor&, const Tensor&, MaybeDouble)>("srmsnorm::add_srms_norm_");
  op.call(input, residual, eps);
}

constexpr double kEps = 1e-6;

Tensor formula(const Tensor& h) { return h * torch::rsqrt(h.square().mean(-1, /*keepdim=*/true) + kEps); }

void require(bool condition, const char* what) {
  if (!condition) throw std::runtime_error(std::string("wrong: ") + what);
}

void call_each(torch::Device device) {
  auto x = torch::randn({8, 64}, device), stream = torch::randn({8, 64}, device);
  auto [y, sum] = add_srms_norm(x, stream, kEps);
  require(torch::allclose(srms_norm(x, {}, kEps), formula(x)), "srms_norm");
  require(torch::equal(sum, x + stream), "the sum");
  require(torch::allclose(y, formula(sum)), "add_srms_norm");
  add_srms_norm_(x, stream, kEps);
  require(torch::equal(x, y) && torch::equal(stream, sum), "add_srms_norm_");
}

// Two pre-norm blocks and a head.
struct Model : torch::nn::Module {
  torch::nn::Linear first{64, 64}, second{64, 64}, head{64, 1};

  Model() {
    register_module("first", first);
    register_module("second", second);
    register_module("head", head);
  }

  Tensor forward(const Tensor& input) {
    auto x = first(srms_norm(input, {}, kEps)).relu();
    auto [y, stream] = add_srms_norm(x, input, kEps);
    return head(srms_norm(second(y).relu(), stream, kEps));
  }
};

void train_one_step(torch::Device device) {
  Model model;
  model.to(device);
  torch::optim::SGD optimizer(model.parameters(), /*lr=*/0.01);
  auto input = torch::randn({32, 64}, device).requires_grad_(), target = torch::randn({32, 1}, device);
  auto loss = [&] { return torch::mse_loss(model.forward(input), target); };

  auto before = loss();
  before.backward();
  for (const auto& parameter : model.parameters()) require(parameter.grad().defined(), "a parameter has no gradient");
  optimizer.step();
  auto after = loss();
  std::printf("loss %.6f, after one step %.6f\n", before.item<double>(), after.item<double>());
  require(after.item<double>() < before.item<double>(), "the loss did not fall");

  // The gradient, and the gradient of its square, as by the formula.
  auto x = torch::randn({4, 64}, torch::dtype(torch::kDouble).device(device)).requires_grad_();
  auto derivatives = [&](const Tensor& y) {
    auto gradient = torch::autograd::grad({y.pow(3).sum()}, {x}, {}, {}, /*create_graph=*/true)[0];
    return torch::stack({gradient, torch::autograd::grad({gradient.square().sum()}, {x})[0]});
  };
  require(torch::allclose(derivatives(srms_norm(x, {}, kEps)), derivatives(formula(x))), "a derivative");
}

int main(int count, char** arguments) try {
#ifndef SRMSNORM_LINKED
  if (count < 2) throw std::runtime_error("usage: operators <srmsnorm.library_path> [cpu|cuda]");
  load_operators(arguments[1]);
  ++arguments, --count;
#endif
  torch::Device device(count > 1 ? arguments[1] : "cpu");
  torch::manual_seed(0);
  call_each(device);
  train_one_step(device);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
