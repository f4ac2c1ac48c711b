// What a backend is handed: raw pointers, sizes and strides. No torch, no device code: the kernels include this file.
#pragma once
#include <cstdint>
#include <tuple>

#include "operands.h"

namespace srmsnorm {

enum class DType : int8_t { Half, BFloat16, Float, Double, Byte };  // Byte: quantised results, of whatever type

constexpr bool is_16_bit(DType dtype) { return dtype == DType::Half || dtype == DType::BFloat16; }
constexpr int size_of(DType dtype) {
  return dtype == DType::Double ? 8 : dtype == DType::Float ? 4 : dtype == DType::Byte ? 1 : 2;
}

// f with an element of that dtype; those of 16 bits are the device's own types.
template <class Half, class BFloat16, class F>
auto with_type(DType dtype, F f) {
  switch (dtype) {
    case DType::Half:
      return f(Half());
    case DType::BFloat16:
      return f(BFloat16());
    case DType::Float:
      return f(float());
    case DType::Double:
      return f(double());
    case DType::Byte:
      break;
  }
  __builtin_unreachable();
}

// Leading dimensions are merged as far as every operand allows; what is left after this many is looped over by the
// caller.
constexpr int kMaxLevels = 4;

// The rows that all operands of a call have in common. Level 0 is the innermost. In several levels there are fewer than
// 2^32 rows.
struct RowSpace {
  int64_t rows = 0;
  int64_t dim = 0;  // elements in a row, at least 1
  int levels = 1;   // 1 ... kMaxLevels
  int64_t sizes[kMaxLevels] = {};
};

// One tensor seen as rows: element strides by level; the elements of a row are next to each other.
struct Rows {
  void* data = nullptr;  // null: absent
  DType dtype = DType::Float;
  int64_t strides[kMaxLevels] = {};
};

// What a kernel is handed of a call.
template <template <class> class Operands>
struct CallArgs : Operands<Rows>, Operands<Rows>::Options {
  RowSpace space;
};

// Accumulation in double for double, in float for the rest: the dtype of rstd, scale and factor. residual and sum share
// a dtype: input's, or float beside a 16-bit input. output has any, but double beside double and there alone. Absent
// may be: residual, sum (and is without a residual), rstd, output where rstd is not, scale and factor. In place, output
// is input and sum is residual, stride by stride; other operands do not overlap what is written.
using ForwardArgs = CallArgs<ForwardOperands>;

// Each gradient is rounded once to its own dtype. grad_output and output share a dtype; grad_sum has that one, or float
// beside 16 bits; grad_input has that one, or 16 bits beside float; grad_residual is float where another has 16 bits.
// Absent may be: grad_sum, and one of the gradients.
using BackwardArgs = CallArgs<BackwardOperands>;

// grad_output is float, input and grad_input have 16 bits.
using WideBackwardArgs = CallArgs<WideBackwardOperands>;

// Accumulation as in ForwardArgs. output has the dtype of input; gate that, or float beside 16 bits. Absent may be
// rstd.
using GatedForwardArgs = CallArgs<GatedForwardOperands>;

// grad_output and grad_input have the dtype of input, grad_gate that of gate: input's, or float beside 16 bits. Absent
// may be one of the gradients.
using GatedBackwardArgs = CallArgs<GatedBackwardOperands>;

// output is of bytes, by rows without gaps; the other operands as in ForwardArgs, but that nothing is of double. Absent
// may be: residual, sum (in place it is residual), given, and scale where it is given.
using QuantizedArgs = CallArgs<QuantizedOperands>;

// One of each.
template <template <class> class Each>
using EveryCall = std::tuple<Each<ForwardArgs>, Each<BackwardArgs>, Each<WideBackwardArgs>, Each<GatedForwardArgs>,
                             Each<GatedBackwardArgs>, Each<QuantizedArgs>>;

}  // namespace srmsnorm
