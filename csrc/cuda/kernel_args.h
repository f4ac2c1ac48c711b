// What the kernel is handed: a call's operands as raw pointers and strides.
#pragma once
#include <type_traits>

#include "../row_args.h"
#include "call.h"
#include "index_divisor.cuh"

namespace srmsnorm {

// The operands of a kernel, by their names in a call, in the order of its arguments.
template <auto... members>
struct OperandList {
  static constexpr int kCount = sizeof...(members);

  // Where it stands among them; kCount if it does not.
  template <class Member>
  static constexpr int index(Member member) {
    int index = 0;
    static_cast<void>(((member == members || (++index, false)) || ...));
    return index;
  }

  // f(operand of the call, its index) for each.
  template <class Call, class F>
  static constexpr void each(const Call& call, F f) {
    int index = 0;
    (f(call.*members, index++), ...);
  }
};

// One after the other.
template <class... Lists>
struct Join;
template <auto... members>
struct Join<OperandList<members...>> {
  using type = OperandList<members...>;
};
template <auto... a, auto... b, class... Lists>
struct Join<OperandList<a...>, OperandList<b...>, Lists...> : Join<OperandList<a..., b...>, Lists...> {};
template <class... Lists>
using join = typename Join<Lists...>::type;

template <bool present, auto member>
using OperandIf = std::conditional_t<present, OperandList<member>, OperandList<>>;

// The end of a level that has others around it: a row's index divided by the level's size says how often it came before
// that row. Indices of rows in several levels have 31 bits (layout.cpp).
template <int operands>
struct LevelEnd {
  IndexDivisor size;
  int64_t steps[operands];  // elements from where the level would go on to where it begins again
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
  int ahead, tail;  // as LaunchHints has them
  Operand others[operands - first];

  // Of a row, in an operand.
  __device__ int64_t offset(int i, int64_t row) const { return row * of(i).stride; }

  __host__ __device__ Operand& of(int i) { return i < first ? loaded_first[i] : others[i - first]; }
  __host__ __device__ const Operand& of(int i) const { return i < first ? loaded_first[i] : others[i - first]; }
};

// How short rows lie: with gaps in some operand; one after the other, alike in 16 bytes in all of them (but for results
// narrower than the main operand, which may lie anywhere); one after the other, and otherwise in some than in others.
enum class Spacing { Apart, InPhase, Shifted };

// Of short rows that are no whole vectors, the rows of a block.
struct BlockOfShortRows {
  int rows, last_rows;  // of every block, and of the last one
  Spacing spacing;
  // Where they are apart:
  int places;  // of a row, for its chunks
  // Where they are not:
  int elements, last_elements;  // of those rows
  int phase;                    // elements of the main operand past 16 bytes
  int ahead;                    // blocks, as LaunchHints has it in rows
  uint32_t inverse_dim;         // 2^31 / dim, rounded up
  uint32_t multiples;           // of dim, below 16: by bits
};

// Of rows that may lie anywhere.
template <int first, int operands, class Accumulator>
struct GeneralArgs : FlatArgs<first, operands, Accumulator> {
  static constexpr bool kFlat = false;
  BlockOfShortRows block;
  bool followed;  // behind the end of every row but the last lies another one of the same operand
  bool edges;     // as LaunchPlan has it
  int levels;
  LevelEnd<operands> ends[kMaxLevels - 1];
};

// first: how many of the operands are loaded first.
template <bool flat, class Operands, int first, class Accumulator>
using KernelArgs = std::conditional_t<flat, FlatArgs<first, Operands::kCount, Accumulator>,
                                      GeneralArgs<first, Operands::kCount, Accumulator>>;

template <class Args>
struct GatedArgs : Args {
  Gating gating;
};

inline DType dtype_written(const ForwardArgs& call) { return call.output.dtype; }
inline DType dtype_written(const BackwardArgs& call) { return call.grad_input.dtype; }
template <class Args>
struct WithQuantization : Args {
  Quantization quantization;
};

template <class Call>
BlockOfShortRows block_of_short_rows(const Call& call, const LaunchPlan& plan, const LaunchHints& hints) {
  const RowSpace& space = call.space;
  BlockOfShortRows block{};
  block.rows = plan.rows_per_block;
  block.last_rows = static_cast<int>((space.rows - 1) % block.rows + 1);
  block.elements = block.rows * static_cast<int>(space.dim);
  block.last_elements = block.last_rows * static_cast<int>(space.dim);
  block.places = plan.threads_per_row;
  block.phase = static_cast<int>(reinterpret_cast<uintptr_t>(call.main().data) % 16) * plan.vector_elements / 16;
  block.ahead = ceil_div(hints.ahead, block.rows);
  block.inverse_dim = static_cast<uint32_t>(((int64_t{1} << 31) + space.dim - 1) / space.dim);
  for (int64_t i = 0; i < 16; i += space.dim) block.multiples |= 1u << i;
  block.spacing = !is_gapless(call) ? Spacing::Apart : plan.shifted ? Spacing::Shifted : Spacing::InPhase;
  return block;
}

template <class Operands, class Args, class Call>
Args kernel_args(const Call& call, const LaunchPlan& plan, const LaunchHints& hints) {
  const RowSpace& space = call.space;
  Args args{};
  args.rows = space.rows;
  args.dim = space.dim;
  args.ahead = hints.ahead;
  args.tail = hints.tail;
  if constexpr (requires { call.eps; }) args.eps = static_cast<decltype(args.eps)>(call.eps);
  if constexpr (requires { args.gating; }) args.gating = call.gating;
  if constexpr (requires { args.written; }) {
    args.written = dtype_written(call);
    args.streams = hints.streamed;
  }
  if constexpr (requires { args.quantization; }) args.quantization = call.quantization;
  args.inverse_dim = static_cast<decltype(args.eps)>(1. / static_cast<double>(space.dim));
  Operands::each(call, [&](const Rows& rows, int i) { args.of(i) = {rows.data, rows.strides[0]}; });
  if constexpr (!Args::kFlat) {
    if (reading_of(plan) == Reading::InParts) args.block = block_of_short_rows(call, plan, hints);
    args.followed = are_followed(call);
    args.edges = plan.edges;
    args.levels = space.levels;
    for (int level = 0; level + 1 < space.levels; level++) {
      auto& end = args.ends[level];
      end.size = IndexDivisor(static_cast<uint32_t>(space.sizes[level]));
      Operands::each(call, [&](const Rows& rows, int i) {
        end.steps[i] = rows.strides[level + 1] - space.sizes[level] * rows.strides[level];
      });
    }
  }
  return args;
}

}  // namespace srmsnorm
