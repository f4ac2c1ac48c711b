// y = h r, r = (mean(h^2) + eps)^-1/2: a Source, which says what h is, and an epilogue, which says what is made of it.
#pragma once
#include "source.cuh"

namespace srmsnorm {

__device__ __forceinline__ double reciprocal_root(double x) { return 1 / sqrt(x); }

// One step of Newton's method with an exact x r brings the hardware's 2 ulp to within a hair of correct rounding; 1 /
// sqrt(x) rounds twice, which is 1 ulp of y more. 0 and infinity have no step to take.
__device__ __forceinline__ float reciprocal_root(float x) {
  float r = rsqrtf(x), xr = __fmul_rn(x, r);
  float error = fmaf(-fmaf(x, r, -xr), r, fmaf(-xr, r, 1.f));
  return isfinite(error) ? fmaf(.5f * r, error, r) : r;
}

// What an epilogue has of the sum, which is written beside a residual. index: of the operand.
template <class Source, int index>
struct SumBeside {
  using Residual = typename Source::Residual;
  Residual* sum;
  bool writes_sum = false;

  template <class Offset, class Args>
  __device__ __forceinline__ void open_sum(const Offset& offset, const Args& args) {
    if constexpr (Source::kResidual) {
      sum = offset.template in<Residual>(args, index);
      writes_sum = args.of(index).data;
    }
  }

  template <class Accumulator, int N, class F>
  __device__ __forceinline__ void store_sum(const Accumulator (&h)[N], F f) const {
    if constexpr (Source::kResidual) {
      Vector<Residual, N> out;
      out.set(h);
      store_if(writes_sum, f, out, sum);
    }
  }
};

// The epilogue that writes y, and beside a residual the sum. What an epilogue says:
//   Operands                     all of the call's, the source's first
//   Total, add_term(before, h)   what a row is reduced to: what is before a vector's part of it, and that
//   squares(total)               the sum of squares in it
//   reduced(total, r)            what it keeps of both, or makes of r
//   Scalars, scalars, take       that, as an Op's
//   open_rest, store_rows        as an Op's
//   OwnArgs<Args>                what a kernel is handed for it
template <class Source, class Output = typename Source::Element>
struct Normalized : SumBeside<Source, Source::Operands::kCount + 1> {
  using Accumulator = typename Source::Accumulator;
  using Total = Accumulator;
  using Call = typename Source::Call;
  using Operands =
      join<typename Source::Operands, OperandList<&Call::output>, typename Source::Sum, OperandList<&Call::rstd>>;
  static constexpr int kOutput = Source::Operands::kCount, kRstd = Operands::index(&Call::rstd);

  template <class Args>
  using OwnArgs = Args;

  Output* output;

  template <int N>
  static __device__ __forceinline__ Total add_term(Total before, const Accumulator (&h)[N]) {
    return dot(h, h, before);
  }

  static __device__ __forceinline__ Accumulator squares(Total total) { return total; }
  __device__ __forceinline__ void reduced(Total, Accumulator&) {}

  struct Scalars {};
  __device__ __forceinline__ Scalars scalars() const { return {}; }
  __device__ __forceinline__ void take(Scalars) {}

  template <class Args>
  __device__ __forceinline__ void open_rest(const Args& args, int64_t row) {
    RowOffsets<Args, kOutput, kRstd> offset(args, row);
    output = offset.template in<Output>(args, kOutput);
    this->open_sum(offset, args);
  }

  // In one pass: with the sum in one and y in another, dim 262144 took 5 % longer.
  template <int pass, int N, class Finish, class F>
  __device__ __forceinline__ void store_rows(const Accumulator (&h)[N], Accumulator r, Finish finish, F f) const {
    if constexpr (pass == 0) {
      this->store_sum(h, f);
      Accumulator y[N];
#pragma unroll
      for (int i = 0; i < N; i++) y[i] = h[i] * r;
      finish(y);
      Vector<Output, N> out;
      out.set(y);
      store_if(true, f, out, output);
    }
  }
};

template <class Source, class Epilogue>
struct ForwardOp : Source, Epilogue {
  using T = typename Source::Element;
  using Accumulator = typename Source::Accumulator;
  using Call = typename Source::Call;
  using Operands = typename Epilogue::Operands;
  using Total = typename Epilogue::Total;
  static constexpr int kRstd = Operands::index(&Call::rstd), kPasses = 1;
  template <bool flat>
  using Args = typename Epilogue::template OwnArgs<
      typename Source::template OwnArgs<KernelArgs<flat, Operands, Source::Operands::kCount, Accumulator>>>;
  template <int N, bool shifted, bool first>
  using Held = typename Source::template Held<N, shifted, first>;

  Accumulator mean, r;

  template <class Args>
  __device__ __forceinline__ ForwardOp(const Args& args, int64_t row) : Source(args, row) {}

  template <class Held, class F>
  __device__ __forceinline__ void each_late(Held&, F) const {}

  template <class Held>
  __device__ __forceinline__ Total add_term(Total before, const Held& held) const {
    return Source::for_reduction(held, [&](const auto& h) { return Epilogue::add_term(before, h); });
  }

  template <class Args>
  __device__ __forceinline__ void finish(Total total, const Args& args) {
    mean = fma(Epilogue::squares(total), args.inverse_dim, args.eps);
    if constexpr (kIs16Bit<T>)
      r = rsqrtf(mean);  // 2 ulp of float are nothing in 16 bits: 64 x 16384 with residual 4.58 us, with the step 4.75
    else
      r = reciprocal_root(mean);
    Epilogue::reduced(total, r);
  }

  struct Scalars : Epilogue::Scalars {
    Accumulator r;
  };
  __device__ __forceinline__ Scalars scalars() const { return {Epilogue::scalars(), r}; }
  __device__ __forceinline__ void take(const Scalars& scalars) {
    Epilogue::take(scalars);
    r = scalars.r;
  }

  template <class Args>
  __device__ __forceinline__ void store_row(const Args& args, int64_t row) const {
    if (!args.of(kRstd).data) return;
    RowOffsets<Args, kRstd, kRstd + 1> offset(args, row);
    *offset.template in<Accumulator>(args, kRstd) = reciprocal_root(mean);
  }

  template <int pass, class Held, class F>
  __device__ __forceinline__ void store(const Held& held, F f) const {
    Source::for_result(held, [&](const auto& h, auto finish) { Epilogue::template store_rows<pass>(h, r, finish, f); });
  }
};

// R: the residual's type; void where there is none.
template <class T, class R>
using Forward = ForwardOp<Source<T, R>, Normalized<Source<T, R>>>;

// h of half takes the compiler twice the registers of what it is made of, 60 for 32, so that fewer blocks fit: H200,
// 12288 1.011 of the roof for 0.963 (5120 to 16384 else 0.3 to 0.8 % slower). Not of few rows, which are not kept: 64 x
// 16384 3.56 us beside bfloat16's 3.44; nor of fewer vectors: 128 1.010 for 1.022.
template <>
struct OpOfInstance<Forward<half, void>, Sharing::Warps, 4, Reading::Kept> {
  using HalfAsRead = Source<half, void, false>;
  using type = ForwardOp<HalfAsRead, Normalized<HalfAsRead>>;
};

}  // namespace srmsnorm
