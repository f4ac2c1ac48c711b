// dh = r (g - y mean(y g)) (+ the gradient of the sum), rounded once to each gradient's type.
#pragma once
#include "row_kernel.cuh"

namespace srmsnorm {

// What backward does not do: nothing is held in place of what was read, and a row has no number of its own. Wide, y and
// the gradient would take twice the registers.
struct BackwardOp {
  static constexpr bool kCombines = false;
  static constexpr int kPasses = 1;

  template <class Held, class F>
  __device__ __forceinline__ void each_late(Held&, F) const {}

  template <class Held>
  __device__ __forceinline__ void combine(Held&) const {}

  template <class Args>
  __device__ __forceinline__ void store_row(const Args&, int64_t) const {}
};

// S: the residual's type; has_sum: whether there is a gradient of the sum, which has that type.
template <class T, class S, bool has_sum>
struct Backward : BackwardOp {
  using Element = T;
  using Accumulator = accumulate_t<T>;
  using Total = Accumulator;
  static constexpr bool kMixed = !std::is_same_v<T, S>;  // else both inputs get the one gradient
  static constexpr int kPasses = kMixed ? 2 : 1;
  using Call = BackwardArgs;
  using Operands =
      join<OperandList<&Call::grad_output, &Call::output, &Call::rstd>, OperandIf<has_sum, &Call::grad_sum>,
           OperandList<&Call::grad_input>, OperandIf<kMixed, &Call::grad_residual>>;
  static constexpr int kGradOutput = Operands::index(&Call::grad_output), kOutput = Operands::index(&Call::output),
                       kRstd = Operands::index(&Call::rstd), kGradSum = Operands::index(&Call::grad_sum),
                       kGradInput = Operands::index(&Call::grad_input),
                       kGradResidual = Operands::index(&Call::grad_residual);
  template <bool flat>
  using Args = KernelArgs<flat, Operands, kRstd, Accumulator>;
  static constexpr int kElements = 16 / sizeof(T), kBesideSize = sizeof(S);
  static constexpr Chunks kChunks = chunks_of(
      BackwardOperands<int>{.grad_output = sizeof(T), .output = sizeof(T), .grad_sum = has_sum ? sizeof(S) : 0});

  template <int N, bool shifted, bool first>
  struct Held {
    Vector<T, N, shifted> grad_output;
    Vector<T, N, first> output;
    Vector<std::conditional_t<has_sum, S, void>, N, shifted> grad_sum;
  };

  const T *grad_output, *output;
  const S* grad_sum;
  T* grad_input;
  S* grad_residual;
  bool writes_input = true, writes_residual = true;  // not every call needs both
  Accumulator r, mean;

  template <class Args>
  __device__ __forceinline__ Backward(const Args& args, int64_t row) {
    RowOffsets<Args, 0, kGradInput> offset(args, row);
    grad_output = offset.template in<const T>(args, kGradOutput);
    output = offset.template in<const T>(args, kOutput);
    if constexpr (has_sum) grad_sum = offset.template in<const S>(args, kGradSum);
  }

  template <class Args>
  __device__ __forceinline__ void open_rest(const Args& args, int64_t row) {
    RowOffsets<Args, kRstd, Operands::kCount> offset(args, row);
    r = *offset.template in<const Accumulator>(args, kRstd);
    grad_input = offset.template in<T>(args, kGradInput);
    if constexpr (kMixed) {
      grad_residual = offset.template in<S>(args, kGradResidual);
      writes_input = args.of(kGradInput).data;
      writes_residual = args.of(kGradResidual).data;
    }
  }

  __device__ __forceinline__ const T* begin() const { return output; }

  template <int N, bool shifted, bool first, class F>
  __device__ __forceinline__ void each(Held<N, shifted, first>& held, F f) const {
    f(held.grad_output, grad_output);
    f(held.output, output);
  }

  template <int N, bool shifted, bool first, class F>
  __device__ __forceinline__ void each_late(Held<N, shifted, first>& held, F f) const {
    if constexpr (has_sum) f(held.grad_sum, grad_sum);
  }

  template <int N, bool shifted, bool first>
  __device__ __forceinline__ Accumulator add_term(Accumulator before, const Held<N, shifted, first>& held) const {
    Accumulator g[N], y[N];
    held.grad_output.widened(g);
    held.output.widened(y);
    return dot(y, g, before);
  }

  template <class Args>
  __device__ __forceinline__ void finish(Accumulator total, const Args& args) {
    mean = total * args.inverse_dim;
  }

  struct Scalars {
    Accumulator r, mean;
  };
  __device__ __forceinline__ Scalars scalars() const { return {r, mean}; }
  __device__ __forceinline__ void take(const Scalars& scalars) { r = scalars.r, mean = scalars.mean; }

  // dh, in the accumulation type.
  template <int N, bool shifted, bool first>
  __device__ __forceinline__ void gradient(const Held<N, shifted, first>& held, Accumulator (&g)[N]) const {
    Accumulator y[N];
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
  }

  // Of two sizes the residual's gradient in one pass and the input's in another: dim 262144 938 us for 956.
  template <int pass, int N, bool shifted, bool first, class F>
  __device__ __forceinline__ void store(const Held<N, shifted, first>& held, F f) const {
    if constexpr (pass == 0 || kMixed) {
      Accumulator dh[N];
      gradient(held, dh);
      if constexpr (kMixed && pass == 0) {
        Vector<S, N> out;
        out.set(dh);
        store_if(writes_residual, f, out, grad_residual);
      } else {
        Vector<T, N> out;
        out.set(dh);
        store_if(writes_input, f, out, grad_input);
      }
    }
  }
};

}  // namespace srmsnorm
