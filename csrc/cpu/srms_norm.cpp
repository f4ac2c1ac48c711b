// The CPU key.
#include "../backend.h"
#include "../layout.h"
#include "kernel.h"

namespace srmsnorm {
namespace {

struct Cpu {
  static void forward(const ForwardTensors& tensors) { over_rows(tensors, cpu::forward); }
  static void backward(const BackwardTensors& tensors) { over_rows(tensors, cpu::backward); }
};

}  // namespace

SRMSNORM_KERNELS(CPU, m) { Kernels<Cpu>::add_to(m); }

}  // namespace srmsnorm
