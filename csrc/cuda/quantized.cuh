// The epilogue that makes bytes of y, and the scales that give it back.
#pragma once
#include "bytes.cuh"
#include "divisor.cuh"
#include "forward.cuh"

namespace srmsnorm {

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

// The largest of the groups, of 64 or 128 elements, that a thread's vectors of N belong to: each lane is left with that
// of one vector, the one of its own place among as many lanes. While lanes have several, two of them exchange what the
// other one keeps. By all lanes of the warp: groups are of rows that are cut from their begin on, the lanes of one are
// neighbours and share a row.
template <int N, class T, int count>
__device__ __forceinline__ Magnitude<T> largest_of_groups(Magnitude<T> (&largest)[count], int group) {
  constexpr int kLanes = 64 / N;  // of a group of 64
  static_assert(count <= kLanes, "there is a lane for each");
#pragma unroll
  for (int bit = 1; bit < count; bit *= 2) {
    bool odd = lane_in_row() & bit;
#pragma unroll
    for (int i = 0; i < count; i += 2 * bit) {
      auto given = odd ? largest[i] : largest[i + bit];
      if (odd) largest[i] = largest[i + bit];
      largest[i].or_of(given.of_lane(bit));
    }
  }
#pragma unroll
  for (int bit = count; bit < kLanes; bit *= 2) largest[0].or_of(largest[0].of_lane(bit));
  if (group > 64) largest[0].or_of(largest[0].of_lane(kLanes));
  return largest[0];
}

template <class Source>
struct Bytes : SumBeside<Source, Source::Operands::kCount + 1> {
  using T = typename Source::Element;
  using Call = typename Source::Call;
  using Total = SumAndLargest<float>;
  using Operands = join<typename Source::Operands, OperandList<&Call::output>, typename Source::Sum,
                        OperandList<&Call::scale, &Call::given>>;
  template <class Args>
  using OwnArgs = Args;
  static constexpr int kOutput = Source::Operands::kCount, kScale = Operands::index(&Call::scale);

  using Scale = Divisor<T>;  // of y, which a given scale's inverse multiplies instead
  static constexpr bool kSums = Source::kResidual || !kIs16Bit<T>;  // h is not the input's own 16 bits

  Quantization how;
  uint8_t* output;
  float* scales;
  Scale scale;  // the row's; where groups have one, that of a vector that this lane makes it for
  Magnitude<std::conditional_t<kSums, float, T>> largest_in_group;
  bool aligned;  // bytes of a vector lie at a multiple of their number

  // Whether the row has a scale that is made of it.
  __device__ __forceinline__ bool of_whole_row() const { return !how.given && how.group == 0; }

  // A NaN is left to the sum, and so to r. By halves, as one after the other each waits for the one before.
  template <int N>
  static __device__ __forceinline__ float largest(const float (&h)[N]) {
    if constexpr (N == 1) {
      return fabsf(h[0]);
    } else {
      float most[N / 2];
#pragma unroll
      for (int i = 0; i < N / 2; i++) most[i] = fmaxf(fabsf(h[i]), fabsf(h[i + N / 2]));
      return largest(most);
    }
  }

  template <int N>
  __device__ __forceinline__ Total add_term(Total before, const float (&h)[N]) const {
    return {dot(h, h, before.sum), larger(before.largest, of_whole_row() ? largest(h) : 0)};
  }

  static __device__ __forceinline__ float squares(Total total) { return total.sum; }
  __device__ __forceinline__ void reduced(Total total, float r) {
    if (!of_whole_row()) return;
    scale = scale_of(rounded(total.largest * r));
  }

  struct Scalars {
    Scale scale;
  };
  __device__ __forceinline__ Scalars scalars() const { return {scale}; }
  __device__ __forceinline__ void take(const Scalars& scalars) { scale = scalars.scale; }

  // The largest of this lane's group, of |h| or of the input as it lies: found before r is known.
  template <class Held, int vectors>
  __device__ __forceinline__ void survey(const Held (&held)[vectors]) {
    if (how.group == 0) return;
    decltype(largest_in_group) largest[power_of_two_from(vectors)];
#pragma unroll
    for (int i = 0; i < vectors; i++) {
      if constexpr (kSums)
        largest[i] = largest_of(held[i].h);
      else
        largest[i] = largest_of(held[i].input);
    }
    largest_in_group = largest_of_groups<Source::kElements>(largest, how.group);
  }

  template <class Args>
  __device__ __forceinline__ void open_rest(const Args& args, int64_t row) {
    RowOffsets<Args, kOutput, Operands::kCount> offset(args, row);
    output = offset.template in<uint8_t>(args, kOutput);
    scales = offset.template in<float>(args, kScale);
    this->open_sum(offset, args);
    aligned = Args::kFlat;
    if (how.given) {
      float value = args.of(kScale + 1).data ? *offset.template in<const float>(args, kScale + 1) : how.value;
      scale.value = value;
      scale.inverse = __frcp_rn(value);
    }
  }

  // Of a row or a group, by its largest |y|. Where that is not finite (a NaN or an infinity in the row; a root of 0) so
  // is no scale: then it is NaN. Of each type's `most` all mantissas show that one correction is enough.
  __device__ __forceinline__ Scale scale_of(float y) const {
    float bounded = fminf(y, how.upper), near = __fmul_rn(bounded, how.inverse_of_most);
    float value = fmaxf(corrected(near, bounded, how.most, how.inverse_of_most), how.least);
    if (how.power_of_two) value = __uint_as_float((__float_as_uint(value) + 0x7fffff) & 0x7f800000);
    return Scale(value + (y - y));
  }

  // h r and the rounding of it are monotone and odd: of the largest |h| it is the largest |y|.
  static __device__ __forceinline__ float rounded(float y) {
    float one[1] = {y};
    round(one);
    return one[0];
  }

  // To the input's type, as which it is returned.
  template <int N>
  static __device__ __forceinline__ void round(float (&y)[N]) {
    Vector<T, N> rounded;
    rounded.set(y);
    rounded.widened(y);
  }

  template <int pass, int N, class Finish, class F>
  __device__ __forceinline__ void store_rows(const float (&h)[N], float r, Finish, F f) const {
    if constexpr (pass == 0) {
      this->store_sum(h, f);
      float y[N];
#pragma unroll
      for (int i = 0; i < N; i++) y[i] = h[i] * r;
      round(y);
      if (how.given) {
#pragma unroll
        for (int i = 0; i < N; i++) y[i] = __fmul_rn(y[i], scale.inverse);
      } else {
#pragma unroll
        for (int i = 0; i < N; i++) y[i] = scale.divide(y[i]);
      }
      if constexpr (kAsksWhether<F>) {
        auto convert = [this]<int all>(const float (&from)[all], auto give) {
          auto bytes = bytes_of<typename QuantizedVector<all>::Word>(from, how.type);
          give(reinterpret_cast<const uint8_t (&)[all]>(bytes), output);
        };
        f(Number<float, decltype(convert)>{y[0], convert}, static_cast<float*>(nullptr), true);
      } else {
        QuantizedVector<N> out;
        out.set(y, how.type);
        if constexpr (N > 1) out.belong_to(how, scale.value, scales, output, aligned);
        f(out, output);
      }
    }
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

  __device__ __forceinline__ void scale_groups() {
    if (this->how.group > 0) this->scale = this->scale_of(this->rounded(this->largest_in_group.value() * this->r));
  }

  // With the scale of a vector's group in place of the lane's own.
  template <int vectors>
  __device__ __forceinline__ ForwardInBytes of_vector(int i) const {
    ForwardInBytes op = *this;
    constexpr int kOwners = power_of_two_from(vectors);
    if (kOwners > 1 && this->how.group > 0) op.scale = this->scale.of_lane(lane_in_warp() / kOwners * kOwners + i);
    return op;
  }

  template <class Args>
  __device__ __forceinline__ void store_row(const Args& args, int64_t row) const {
    if (this->how.group > 0 || !args.of(Base::kScale).data || (this->how.one_for_all && row > 0)) return;
    *this->scales = this->scale.value;
  }
};

}  // namespace srmsnorm
