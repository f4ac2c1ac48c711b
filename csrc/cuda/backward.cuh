// dh = r (g - y mean(y g)) (+ the gradient of the sum), rounded once to each gradient's type.
#pragma once
#include "../row_args.h"
#include "row_kernel.cuh"

namespace srmsnorm {

// S: the residual's type; has_sum: whether there is a gradient of the sum, which has that type.
template <class T, class S, bool has_sum>
struct Backward {
  using Args = BackwardArgs;
  using Element = T;
  using Accumulator = accumulate_t<T>;
  static constexpr bool kMixed = !std::is_same_v<T, S>;  // else both inputs get the one gradient
  static constexpr int kElements = 16 / sizeof(T);
  static constexpr int kChunks = backward_chunks(sizeof(T), has_sum ? sizeof(S) : 0).all;
  static constexpr int kLateChunks = backward_chunks(sizeof(T), has_sum ? sizeof(S) : 0).late;

  template <int N>
  struct Pieces {
    Vector<T, N> grad_output, output;
    Vector<std::conditional_t<has_sum, S, void>, N> grad_sum;
  };

  const T *grad_output, *output;
  const S* grad_sum;
  T* grad_input;
  S* grad_residual;
  Accumulator r, mean;

  __device__ __forceinline__ Backward(const Args& args, int64_t row) {
    RowIndex index(args.space, row);
    int levels = args.space.levels;
    grad_output = index.in<const T>(args.grad_output, levels);
    output = index.in<const T>(args.output, levels);
    r = *index.in<const Accumulator>(args.rstd, levels);
    grad_input = args.grad_input.data ? index.in<T>(args.grad_input, levels) : nullptr;
    if constexpr (has_sum) grad_sum = index.in<const S>(args.grad_sum, levels);
    if constexpr (kMixed) grad_residual = args.grad_residual.data ? index.in<S>(args.grad_residual, levels) : nullptr;
  }

  __device__ __forceinline__ const T* begin() const { return output; }
  __device__ __forceinline__ const T* result() const { return kMixed && !grad_input ? output : grad_input; }

  template <int N, class F>
  __device__ __forceinline__ void each(Pieces<N>& held, F f) const {
    f(held.grad_output, grad_output);
    f(held.output, output);
  }

  template <int N, class F>
  __device__ __forceinline__ void each_late(Pieces<N>& held, F f) const {
    if constexpr (has_sum) f(held.grad_sum, grad_sum);
  }

  template <int N>
  __device__ __forceinline__ Accumulator term(const Pieces<N>& held) const {
    Accumulator g[N], y[N];
    held.grad_output.widened(g);
    held.output.widened(y);
    return dot(y, g);
  }

  __device__ __forceinline__ void finish(Accumulator total, const Args& args) {
    mean = total / static_cast<Accumulator>(args.space.dim);
  }

  __device__ __forceinline__ void store_row() const {}

  template <int N, class F>
  __device__ __forceinline__ void store(const Pieces<N>& held, F f) const {
    Accumulator g[N], y[N];
    held.grad_output.widened(g);
    held.output.widened(y);
#pragma unroll
    for (int i = 0; i < N; i++) g[i] = fma(-y[i], mean, g[i]);
    if constexpr (has_sum) {
      Accumulator s[N];
      held.grad_sum.widened(s);
#pragma unroll
      for (int i = 0; i < N; i++) g[i] = fma(r, g[i], s[i]);
    } else {
#pragma unroll
      for (int i = 0; i < N; i++) g[i] *= r;
    }
    if constexpr (kMixed) {
      Vector<S, N> out;
      out.set(g);
      if (grad_residual) f(out, grad_residual);
      if (!grad_input) return;
    }
    Vector<T, N> out;
    out.set(g);
    f(out, grad_input);
  }
};

}  // namespace srmsnorm
