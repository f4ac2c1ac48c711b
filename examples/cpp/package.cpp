// Runs an AOTInductor package, made by export.py: a compiled model and its weights.
//   package <srmsnorm.library_path> <model.pt2> [cpu|cuda]
#include <torch/csrc/autograd/generated/variable_factories.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>

#include "load.h"

constexpr int64_t kDim = 64;

int main(int count, char** arguments) try {
  if (count < 3) throw std::runtime_error("usage: package <srmsnorm.library_path> <model.pt2> [cpu|cuda]");
  load_operators(arguments[1]);  // the package calls them by name
  torch::inductor::AOTIModelPackageLoader model(arguments[2]);
  c10::Device device(count > 3 ? arguments[3] : "cpu");
  for (int64_t rows : {2, 5}) {
    auto x = torch::linspace(-1, 1, rows * kDim, device).view({rows, kDim});
    auto output = model.run({x, x.square()})[0].cpu();
    std::printf("%d:", static_cast<int>(rows));
    for (int64_t i = 0; i < rows; i++) std::printf(" %.7g", output[i].item<double>());
    std::printf("\n");
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
