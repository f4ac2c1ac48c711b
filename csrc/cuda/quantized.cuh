// The epilogue that makes bytes of y, and the scales that give it back.
#pragma once
#include "bytes.cuh"
#include "forward.cuh"

namespace srmsnorm {

// a / b, rounded as IEEE asks, where no step of it leaves the range of normal numbers or a is tiny. inverse: of b,
// correctly rounded, so that the second step is correct for any two numbers (Markstein, 1990); for an `a` of 16 bits
// the first one is, which all of their mantissas with all of a divisor's show. By the negative rest, which keeps -0.
template <class T>
__device__ __forceinline__ float divided(float a, float b, float inverse) {
  float q = __fmul_rn(a, inverse);
  q = fmaf(fmaf(q, b, -a), -inverse, q);
  if constexpr (!kIs16Bit<T>) q = fmaf(fmaf(q, b, -a), -inverse, q);
  return q;
}

// 1 / b, correctly rounded where both are normal numbers: what the compiler makes of __frcp_rn but for its other cases.
__device__ __forceinline__ float reciprocal(float b) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(b));
  return fmaf(r, fmaf(-b, r, 1.f), r);
}

// As forward's, whose order of the sum it has, with an epilogue's own arguments and fewer instances.
template <class T, class R>
struct QuantizedSource : Source<T, R> {
  using Source<T, R>::Source, Source<T, R>::kResidual;
  template <class Args>
  using OwnArgs = WithQuantization<Args>;
  using Call = QuantizedArgs;
  using Operands = join<OperandList<&Call::input>, OperandIf<kResidual, &Call::residual>>;
  using Sum = OperandIf<kResidual, &Call::sum>;
  static constexpr Chunks kChunks = chunks_in_bytes(Source<T, R>::kChunks);
};

template <class Source>
struct Bytes {
  using T = typename Source::Element;
  using Residual = typename Source::Residual;
  using Call = typename Source::Call;
  using Total = SumAndLargest<float>;
  using Operands = join<typename Source::Operands, OperandList<&Call::output>, typename Source::Sum,
                        OperandList<&Call::scale, &Call::given>>;
  template <class Args>
  using OwnArgs = Args;
  static constexpr int kOutput = Source::Operands::kCount, kSum = kOutput + 1, kScale = Operands::index(&Call::scale);

  // What y is divided by, or, of what is given, multiplied by the inverse of.
  struct Scale {
    float value, inverse;
  };

  Quantization how;
  uint8_t* output;
  Residual* sum;
  float* scales;
  Scale of_row;
  bool writes_sum = false, aligned;  // aligned: bytes of a vector lie at a multiple of their number

  // A NaN is left to the sum, and so to r.
  template <int N>
  static __device__ __forceinline__ float largest(const float (&h)[N]) {
    float most = 0;
#pragma unroll
    for (int i = 0; i < N; i++) most = fmaxf(most, fabsf(h[i]));
    return most;
  }

  template <int N>
  static __device__ __forceinline__ Total term(const float (&h)[N]) {
    return {dot(h, h), largest(h)};
  }

  static __device__ __forceinline__ float squares(Total total) { return total.sum; }
  __device__ __forceinline__ void reduced(Total total, float r) {
    if (!how.given && how.group == 0) of_row = scale_of(total.largest, r);
  }

  template <class Args>
  __device__ __forceinline__ void open_rest(const Args& args, int64_t row) {
    RowOffsets<Args, kOutput, Operands::kCount> offset(args, row);
    output = offset.template in<uint8_t>(args, kOutput);
    scales = offset.template in<float>(args, kScale);
    if constexpr (Source::kResidual) {
      sum = offset.template in<Residual>(args, kSum);
      writes_sum = args.of(kSum).data;
    }
    aligned = Args::kFlat;
    if (how.given) {
      float value = args.of(kScale + 1).data ? *offset.template in<const float>(args, kScale + 1) : how.value;
      of_row = {value, __frcp_rn(value)};
    }
  }

  // Of a row or a group. Its largest |h| makes its largest |y|: h r and the rounding of it are monotone and odd. Where
  // that is not finite (a NaN or an infinity in the row; a root of 0) so is no scale: then it is NaN.
  __device__ __forceinline__ Scale scale_of(float largest_h, float r) const {
    float y[1] = {largest_h * r};
    round(y);
    float value = fmaxf(divided<float>(fminf(y[0], how.upper), how.most, how.inverse_of_most), how.least);
    if (how.power_of_two) value = __uint_as_float((__float_as_uint(value) + 0x7fffff) & 0x7f800000);
    value += y[0] - y[0];
    return {value, reciprocal(value)};
  }

  // To the input's type.
  template <int N>
  static __device__ __forceinline__ void round(float (&y)[N]) {
    if constexpr (kIs16Bit<T>) {
      Vector<T, N> narrow;
      narrow.set(y);
      narrow.widened(y);
    }
  }

  template <int pass, int N, class Finish, class F>
  __device__ __forceinline__ void store_rows(const float (&h)[N], float r, Finish, F f) const {
    if constexpr (pass == 0) {
      if constexpr (Source::kResidual) {
        Vector<Residual, N> out;
        out.set(h);
        if (writes_sum) f(out, sum);
      }
      Scale scale = of_row;
      if constexpr (N > 1)
        if (how.group > 0) scale = scale_of(largest_of_group(h), r);
      float y[N];
#pragma unroll
      for (int i = 0; i < N; i++) y[i] = h[i] * r;
      round(y);
#pragma unroll
      for (int i = 0; i < N; i++) {
        float quotient = divided<T>(y[i], scale.value, scale.inverse);
        y[i] = how.given ? __fmul_rn(y[i], scale.inverse) : quotient;  // a select: less code than a branch
      }
      QuantizedVector<N> out;
      out.set(y, how.type);
      if constexpr (N > 1) out.belong_to(how, scale.value, scales, output, aligned);
      f(out, output);
    }
  }

 private:
  // By all lanes of the warp. Groups of rows that are cut from their begin on: the lanes of one are neighbours, and
  // share a row. By the bits, of which a NaN's are the largest: no r carries it where the rows are normalized already.
  template <int N>
  __device__ __forceinline__ float largest_of_group(const float (&h)[N]) const {
    float largest = 0;
#pragma unroll
    for (int i = 0; i < N; i++) largest = larger_or_nan(largest, fabsf(h[i]));
    int most = __float_as_int(largest);
    constexpr int kHalf = 64 / (2 * N);  // of a group of 64
    if (how.group > 64) most = max(most, __shfl_xor_sync(~0u, most, 2 * kHalf));
#pragma unroll
    for (int lanes = kHalf; lanes > 0; lanes /= 2) most = max(most, __shfl_xor_sync(~0u, most, lanes));
    return __int_as_float(most);
  }

  // Of two that are not negative.
  static __device__ __forceinline__ float larger_or_nan(float a, float b) {
#if __CUDA_ARCH__ >= 800
    float most;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(most) : "f"(a), "f"(b));
    return most;
#else
    return __int_as_float(max(__float_as_int(a), __float_as_int(b)));
#endif
  }
};

template <class T, class R>
struct ForwardInBytes : ForwardOp<QuantizedSource<T, R>, Bytes<QuantizedSource<T, R>>> {
  using Base = ForwardOp<QuantizedSource<T, R>, Bytes<QuantizedSource<T, R>>>;

  // How: here, where it stays what the kernel was handed, and takes no registers.
  template <class Args>
  __device__ __forceinline__ ForwardInBytes(const Args& args, int64_t row) : Base(args, row) {
    this->how = args.quantization;
  }

  // Of what is normalized already.
  template <class Args>
  __device__ __forceinline__ void finish(typename Base::Total total, const Args& args) {
    Base::finish(total, args);
    if (this->how.normalized) this->r = 1;
  }

  template <class Args>
  __device__ __forceinline__ void store_row(const Args& args, int64_t row) const {
    if (this->how.group > 0 || !args.of(Base::kScale).data || (this->how.one_for_all && row > 0)) return;
    *this->scales = this->of_row.value;
  }
};

}  // namespace srmsnorm
