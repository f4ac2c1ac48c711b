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
// 2^31 rows.
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

// ForwardArgs of ForwardOperands, and so on.
#define SRMSNORM_ARGS(name) using name##Args = CallArgs<name##Operands>;
SRMSNORM_EVERY_LIST(SRMSNORM_ARGS)
#undef SRMSNORM_ARGS

// One of each.
#define SRMSNORM_ONE(name) std::tuple<Each<name##Args>>(),
template <template <class> class Each>
using EveryCall = decltype(std::tuple_cat(SRMSNORM_EVERY_LIST(SRMSNORM_ONE) std::tuple<>()));
#undef SRMSNORM_ONE

}  // namespace srmsnorm
