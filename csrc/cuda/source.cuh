// What h is: input, with or without a residual, summed once in the accumulation type.
#pragma once
#include "row_kernel.cuh"

namespace srmsnorm {

// R: the residual's type; void where there is none. combines: whether h is held in place of what it is made of (64 x
// 16384 takes 3.46 us, made of input twice 3.56).
template <class T, class R, bool combines = true>
struct Source {
  template <class Args>
  using OwnArgs = Args;  // what a kernel is handed besides operands and numbers
  using Element = T;
  using Accumulator = accumulate_t<T>;
  static constexpr bool kResidual = !std::is_void_v<R>;
  using Residual = std::conditional_t<kResidual, R, T>;
  static constexpr int kElements = 16 / sizeof(T), kBesideSize = sizeof(Residual);
  static constexpr bool kCombines = combines;
  static constexpr Chunks kChunks =
      chunks_of(ForwardOperands<int>{.input = sizeof(T), .residual = kResidual ? sizeof(Residual) : 0});

  // They come first among the operands of an Op.
  using Call = ForwardArgs;
  using Operands = join<OperandList<&Call::input>, OperandIf<kResidual, &Call::residual>>;
  using Sum = OperandIf<kResidual, &Call::sum>;

  static constexpr int kInput = Operands::index(&Call::input), kBeside = Operands::index(&Call::residual);

  template <int N, bool shifted, bool first>
  struct Held {
    Vector<T, N, first> input;
    Vector<R, N, shifted> residual;
    Accumulator h[N];
  };

  const T* input;
  const Residual* residual;

  template <class Args>
  __device__ __forceinline__ Source(const Args& args, int64_t row) {
    RowOffsets<Args, 0, Operands::kCount> offset(args, row);
    input = offset.template in<const T>(args, kInput);
    if constexpr (kResidual) residual = offset.template in<const Residual>(args, kBeside);
  }

  __device__ __forceinline__ const T* begin() const { return input; }

  // f(h), in the accumulation type.
  template <class Held, class F>
  __device__ __forceinline__ auto for_reduction(const Held& held, F f) const {
    if constexpr (kCombines) {
      return f(held.h);
    } else {
      Accumulator h[std::extent_v<decltype(held.h)>];
      held.input.widened(h);
      return f(h);
    }
  }

  // f(h, what is made of y before it is rounded).
  template <class Held, class F>
  __device__ __forceinline__ void for_result(const Held& held, F f) const {
    for_reduction(held, [&](const auto& h) { f(h, [](auto&) {}); });
  }

  template <int N, bool shifted, bool first, class F>
  __device__ __forceinline__ void each(Held<N, shifted, first>& held, F f) const {
    f(held.input, input);
    if constexpr (kResidual) f(held.residual, residual);
  }

  template <int N, bool shifted, bool first>
  __device__ __forceinline__ void combine(Held<N, shifted, first>& held) const {
    if constexpr (kCombines) held.input.widened(held.h);
    if constexpr (kResidual) {
      Accumulator other[N];
      held.residual.widened(other);
#pragma unroll
      for (int i = 0; i < N; i++) held.h[i] += other[i];
    }
  }
};

}  // namespace srmsnorm
