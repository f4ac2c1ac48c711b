// What the kernel is handed: a call's operands as raw pointers and strides.
#pragma once
#include <type_traits>

#include "../row_args.h"

namespace srmsnorm {

// The size of a level. Indices of rows in several levels have 32 bits (layout.cpp), for which a multiplication by the
// reciprocal is exact.
struct LevelSize {
  uint64_t reciprocal;  // 2^64 / value, rounded up
  uint32_t value;       // at least 2 where there are several levels
};

// Of flat rows: in one level, beginning and ending at 16 bytes. The arguments of a launch are never in the constant
// cache yet, where a line has 64 bytes: the first one has what the first loads need, and what the sum waits for is in a
// line that was asked for before (1 x 4096 1.30 us, eps alone in the second line 1.33). first: operands loaded first.
template <int first, int operands, class Accumulator>
struct FlatArgs {
  static constexpr bool kFlat = true;
  static constexpr int kFirstOfRest = first;
  struct Operand {
    void* data;      // null: absent
    int64_t stride;  // of level 0
  };

  int64_t rows, dim;
  Operand loaded_first[first];
  Accumulator eps, inverse_dim;
  int ahead;  // clusters start a prefetch of the row that many further on
  Operand others[operands - first];

  __host__ __device__ Operand& of(int i) { return i < first ? loaded_first[i] : others[i - first]; }
  __host__ __device__ const Operand& of(int i) const { return i < first ? loaded_first[i] : others[i - first]; }
};

// Of rows that may lie anywhere.
template <int first, int operands, class Accumulator>
struct GeneralArgs : FlatArgs<first, operands, Accumulator> {
  static constexpr bool kFlat = false;
  int levels;
  LevelSize sizes[kMaxLevels];
  int64_t strides[kMaxLevels][operands];
};

template <bool flat, int first, int operands, class Accumulator>
using KernelArgs =
    std::conditional_t<flat, FlatArgs<first, operands, Accumulator>, GeneralArgs<first, operands, Accumulator>>;

template <class Args, class... Operands>
Args kernel_args(const RowSpace& space, double eps, int ahead, const Operands&... operands) {
  Args args{};
  args.rows = space.rows;
  args.dim = space.dim;
  args.ahead = ahead;
  args.eps = static_cast<decltype(args.eps)>(eps);
  args.inverse_dim = static_cast<decltype(args.eps)>(1. / static_cast<double>(space.dim));
  int i = 0;
  ((args.of(i++) = {operands.data, operands.strides[0]}), ...);
  if constexpr (!Args::kFlat) {
    args.levels = space.levels;
    for (int level = 0; level < space.levels; level++) {
      auto size = static_cast<uint64_t>(space.sizes[level]);
      args.sizes[level] = {UINT64_MAX / size + 1, static_cast<uint32_t>(size)};
      i = 0;
      ((args.strides[level][i++] = operands.strides[level]), ...);
    }
  }
  return args;
}

}  // namespace srmsnorm
