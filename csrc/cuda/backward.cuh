// dh = r (g - y mean(y g)) (+ the gradient of the sum), rounded once to each gradient's type.
#pragma once
#include "row_kernel.cuh"

namespace srmsnorm {

// S: the residual's type; has_sum: whether there is a gradient of the sum, which has that type.
template <class T, class S, bool has_sum>
struct Backward {
  using Element = T;
  using Accumulator = accumulate_t<T>;
  using Args = KernelArgs<6, Accumulator>;
  static constexpr bool kMixed = !std::is_same_v<T, S>;  // else both inputs get the one gradient
  static constexpr int kElements = 16 / sizeof(T), kBesideSize = sizeof(S);
  static constexpr Chunks kChunks = backward_chunks(sizeof(T), has_sum ? sizeof(S) : 0);

  template <int N, bool shifted>
  struct Pieces {
    Vector<T, N, shifted> grad_output;
    Vector<T, N> output;
    Vector<std::conditional_t<has_sum, S, void>, N, shifted> grad_sum;
  };

  const T *grad_output, *output;
  const S* grad_sum;
  T* grad_input;
  S* grad_residual;
  const Accumulator* rstd;
  bool writes_input = true, writes_residual = true;  // not every call needs both
  Accumulator r, mean;

  static Args args(const BackwardArgs& call, int ahead) {
    return kernel_args<Accumulator>(call.space, 0, ahead, call.grad_output, call.output, call.rstd, call.grad_sum,
                                    call.grad_input, call.grad_residual);
  }

  __device__ __forceinline__ Backward(const Args& args, int64_t row) {
    RowOffsets<Args, 0, 4> offset(args, row);
    grad_output = offset.template in<const T>(args, 0);
    output = offset.template in<const T>(args, 1);
    rstd = offset.template in<const Accumulator>(args, 2);
    if constexpr (has_sum) grad_sum = offset.template in<const S>(args, 3);
  }

  __device__ __forceinline__ void open_results(const Args& args, int64_t row) {
    RowOffsets<Args, 4, 6> offset(args, row);
    grad_input = offset.template in<T>(args, 4);
    if constexpr (kMixed) {
      grad_residual = offset.template in<S>(args, 5);
      writes_input = args.of[4].data;
      writes_residual = args.of[5].data;
    }
  }

  __device__ __forceinline__ void load_row() { r = *rstd; }

  __device__ __forceinline__ const T* begin() const { return output; }

  template <int N, bool shifted, class F>
  __device__ __forceinline__ void each(Pieces<N, shifted>& held, F f) const {
    f(held.grad_output, grad_output);
    f(held.output, output);
  }

  template <int N, bool shifted, class F>
  __device__ __forceinline__ void each_late(Pieces<N, shifted>& held, F f) const {
    if constexpr (has_sum) f(held.grad_sum, grad_sum);
  }

  template <int N, bool shifted>
  __device__ __forceinline__ Accumulator term(const Pieces<N, shifted>& held) const {
    Accumulator g[N], y[N];
    held.grad_output.widened(g);
    held.output.widened(y);
    return dot(y, g);
  }

  __device__ __forceinline__ void finish(Accumulator total, const Args& args) { mean = total * args.inverse_dim; }

  __device__ __forceinline__ void store_row() const {}

  template <int N, bool shifted, class F>
  __device__ __forceinline__ void store(const Pieces<N, shifted>& held, F f) const {
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
      if (writes_residual) f(out, grad_residual);
      if (!writes_input) return;
    }
    Vector<T, N> out;
    out.set(g);
    f(out, grad_input);
  }
};

}  // namespace srmsnorm
