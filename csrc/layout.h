// Tensors seen as rows: leading dimensions merged as far as all operands of a call allow.
#pragma once
#include <c10/util/FunctionRef.h>

#include "ops.h"
#include "row_args.h"

namespace srmsnorm {

// Calls launch for the whole call, in one piece but for operands with more leading dimensions that do not merge than
// kMaxLevels, or with 2^32 rows or more in several: what is left is looped over from outside.
void over_rows(const ForwardTensors& tensors, c10::function_ref<void(const ForwardArgs&)> launch);
void over_rows(const BackwardTensors& tensors, c10::function_ref<void(const BackwardArgs&)> launch);

}  // namespace srmsnorm
