// y = h r, r = (mean(h^2) + eps)^-1/2, h = input (+ residual); h is summed once in the accumulation type.
#pragma once
#include "row_kernel.cuh"

namespace srmsnorm {

__device__ __forceinline__ double reciprocal_root(double x) { return 1 / sqrt(x); }

// One step of Newton's method with an exact x r brings the hardware's 2 ulp to within a hair of correct rounding; 1 /
// sqrt(x) rounds twice, which is 1 ulp of y more. 0 and infinity have no step to take.
__device__ __forceinline__ float reciprocal_root(float x) {
  float r = rsqrtf(x), xr = __fmul_rn(x, r);
  float error = fmaf(-fmaf(x, r, -xr), r, fmaf(-xr, r, 1.f));
  return isfinite(error) ? fmaf(.5f * r, error, r) : r;
}

// R: the residual's type; void where there is none.
template <class T, class R>
struct Forward {
  using Element = T;
  using Accumulator = accumulate_t<T>;
  static constexpr bool kResidual = !std::is_void_v<R>;
  using Call = ForwardArgs;
  using Operands = join<OperandList<&Call::input>, OperandIf<kResidual, &Call::residual>, OperandList<&Call::output>,
                        OperandIf<kResidual, &Call::sum>, OperandList<&Call::rstd>>;
  static constexpr int kInput = Operands::index(&Call::input), kBeside = Operands::index(&Call::residual),
                       kOutput = Operands::index(&Call::output), kSum = Operands::index(&Call::sum),
                       kRstd = Operands::index(&Call::rstd);
  template <bool flat>
  using Args = KernelArgs<flat, Operands, kOutput, Accumulator>;
  using Residual = std::conditional_t<kResidual, R, T>;
  static constexpr int kElements = 16 / sizeof(T), kBesideSize = sizeof(Residual);
  static constexpr bool kCombines = true;  // to h: 64 x 16384 takes 3.46 us, made of input twice 3.56
  static constexpr Chunks kChunks = forward_chunks(sizeof(T), kResidual ? sizeof(Residual) : 0);

  template <int N, bool shifted, bool first>
  struct Held {
    Vector<T, N, first> input;
    Vector<R, N, shifted> residual;
    Accumulator h[N];
  };

  const T* input;
  const Residual* residual;
  T* output;
  Residual* sum;
  bool writes_sum = false;
  Accumulator mean, r;

  template <class Args>
  __device__ __forceinline__ Forward(const Args& args, int64_t row) {
    RowOffsets<Args, 0, kOutput> offset(args, row);
    input = offset.template in<const T>(args, kInput);
    if constexpr (kResidual) residual = offset.template in<const Residual>(args, kBeside);
  }

  template <class Args>
  __device__ __forceinline__ void open_rest(const Args& args, int64_t row) {
    RowOffsets<Args, kOutput, kRstd> offset(args, row);
    output = offset.template in<T>(args, kOutput);
    if constexpr (kResidual) {
      sum = offset.template in<Residual>(args, kSum);
      writes_sum = args.of(kSum).data;
    }
  }

  __device__ __forceinline__ const T* begin() const { return input; }

  template <int N, bool shifted, bool first, class F>
  __device__ __forceinline__ void each(Held<N, shifted, first>& held, F f) const {
    f(held.input, input);
    if constexpr (kResidual) f(held.residual, residual);
  }

  template <int N, bool shifted, bool first, class F>
  __device__ __forceinline__ void each_late(Held<N, shifted, first>&, F) const {}

  template <int N, bool shifted, bool first>
  __device__ __forceinline__ void combine(Held<N, shifted, first>& held) const {
    held.input.widened(held.h);
    if constexpr (kResidual) {
      Accumulator other[N];
      held.residual.widened(other);
#pragma unroll
      for (int i = 0; i < N; i++) held.h[i] += other[i];
    }
  }

  template <int N, bool shifted, bool first>
  __device__ __forceinline__ Accumulator term(const Held<N, shifted, first>& held) const {
    return dot(held.h, held.h);
  }

  template <class Args>
  __device__ __forceinline__ void finish(Accumulator total, const Args& args) {
    mean = fma(total, args.inverse_dim, args.eps);
    if constexpr (sizeof(T) == 2)
      r = rsqrtf(mean);  // 2 ulp of float are nothing in 16 bits: 64 x 16384 with residual 4.58 us, with the step 4.75
    else
      r = reciprocal_root(mean);
  }

  template <class Args>
  __device__ __forceinline__ void store_row(const Args& args, int64_t row) const {
    if (!args.of(kRstd).data) return;
    RowOffsets<Args, kRstd, kRstd + 1> offset(args, row);
    *offset.template in<Accumulator>(args, kRstd) = reciprocal_root(mean);
  }

  // In one pass: with the sum in one and y in another, dim 262144 took 5 % longer.
  template <int pass, int N, bool shifted, bool first, class F>
  __device__ __forceinline__ void store(const Held<N, shifted, first>& held, F f) const {
    if constexpr (pass == 0) {
      if constexpr (kResidual) {
        Vector<Residual, N> out;
        out.set(held.h);
        if (writes_sum) f(out, sum);
      }
      Accumulator y[N];
#pragma unroll
      for (int i = 0; i < N; i++) y[i] = held.h[i] * r;
      Vector<T, N> out;
      out.set(y);
      f(out, output);
    }
  }
};

}  // namespace srmsnorm
