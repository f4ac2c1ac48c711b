// What the kernel is handed: a call's operands as raw pointers and strides.
#pragma once
#include "../row_args.h"

namespace srmsnorm {

// The size of a level. Indices of rows in several levels have 32 bits (layout.cpp), for which a multiplication by the
// reciprocal is exact.
struct LevelSize {
  uint64_t reciprocal;  // 2^64 / value, rounded up
  uint32_t value;       // at least 2 where there are several levels
};

// The arguments of a launch are never in the constant cache yet, where a line has 64 bytes: what the first load needs
// is in the first one, what only rows in several levels need is last.
template <int operands, class Accumulator>
struct KernelArgs {
  struct Operand {
    void* data;      // null: absent
    int64_t stride;  // of level 0
  };

  int64_t rows, dim;
  int levels;
  int ahead;  // clusters start a prefetch of the row that many further on
  Operand of[operands];
  Accumulator eps, inverse_dim;
  LevelSize sizes[kMaxLevels];
  int64_t strides[kMaxLevels][operands];
};

template <class Accumulator, class... Operands>
KernelArgs<sizeof...(Operands), Accumulator> kernel_args(const RowSpace& space, double eps, int ahead,
                                                         const Operands&... operands) {
  KernelArgs<sizeof...(Operands), Accumulator> args{};
  args.rows = space.rows;
  args.dim = space.dim;
  args.levels = space.levels;
  args.ahead = ahead;
  args.eps = static_cast<Accumulator>(eps);
  args.inverse_dim = static_cast<Accumulator>(1. / static_cast<double>(space.dim));
  int i = 0;
  ((args.of[i++] = {operands.data, operands.strides[0]}), ...);
  for (int level = 0; level < space.levels; level++) {
    auto size = static_cast<uint64_t>(space.sizes[level]);
    args.sizes[level] = {UINT64_MAX / size + 1, static_cast<uint32_t>(size)};
    i = 0;
    ((args.strides[level][i++] = operands.strides[level]), ...);
  }
  return args;
}

}  // namespace srmsnorm
