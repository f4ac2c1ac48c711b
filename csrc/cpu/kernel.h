// The operator on the CPU: rows in parallel, each row by one thread, in vectors of the widest instruction set there is.
#pragma once
#include "../row_args.h"

namespace srmsnorm::cpu {

void forward(const ForwardArgs& args);
void backward(const BackwardArgs& args);

}  // namespace srmsnorm::cpu
