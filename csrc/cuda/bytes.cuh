// Elements to types of a byte, and vectors of them: results narrower than what they are made of.
#pragma once
#include "../operands.h"
#include "vector.cuh"

namespace srmsnorm {

// Of a type of a byte with so many bits of mantissa, and of that bias: to nearest even, clamped to the largest; of a
// NaN a NaN.
template <int mantissa, int bias>
__device__ __forceinline__ uint32_t float8_bits(float value, float most) {
  constexpr int kShift = 23 - mantissa;
  constexpr uint32_t kOnLastPlace = (127 - bias + kShift + 1) << 23;  // whose last place is the smallest subnormal
  uint32_t all = __float_as_uint(value), sign = all >> 24 & 0x80;
  if (value != value) return sign | 0x7f;
  uint32_t magnitude = __float_as_uint(fminf(fabsf(value), most));
  if (magnitude < (127 - bias + 1) << 23)
    return sign | (__float_as_uint(__uint_as_float(magnitude) + __uint_as_float(kOnLastPlace)) - kOnLastPlace);
  uint32_t half_less = (1 << (kShift - 1)) - 1;
  return sign | (magnitude - ((127 - bias) << 23) + half_less + (magnitude >> kShift & 1)) >> kShift;
}

// Two at a time, as the hardware does where it can.
template <Quantized type>
__device__ __forceinline__ uint32_t two_float8(float low, float high) {
  constexpr bool e4m3 = type == Quantized::Float8E4M3;
#if __CUDA_ARCH__ >= 890
  uint16_t two;
  if constexpr (e4m3)
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(two) : "f"(high), "f"(low));
  else
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(two) : "f"(high), "f"(low));
  return two;
#else
  auto one = [](float value) {
    return e4m3 ? float8_bits<3, 7>(value, largest(type)) : float8_bits<2, 15>(value, largest(type));
  };
  return one(low) | one(high) << 8;
#endif
}

// Two int8 in the lower half, and the lower half of those before above. Of a NaN 0.
__device__ __forceinline__ uint32_t two_int8(float low, float high, uint32_t before) {
  int a = max(__float2int_rn(low), -127), b = max(__float2int_rn(high), -127);
  uint32_t packed;
  asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;" : "=r"(packed) : "r"(b), "r"(a), "r"(before));
  return packed;
}

// Four bytes.
template <Quantized type>
__device__ __forceinline__ uint32_t four_bytes(const float* from) {
  if constexpr (type == Quantized::Int8)
    return two_int8(from[0], from[1], two_int8(from[2], from[3], 0));
  else
    return two_float8<type>(from[0], from[1]) | two_float8<type>(from[2], from[3]) << 16;
}

template <Quantized type, class Word>
__device__ __forceinline__ Word bytes_of(const float* from) {
  Word bytes = four_bytes<type>(from);
  if constexpr (sizeof(Word) == 8) bytes |= static_cast<Word>(four_bytes<type>(from + 4)) << 32;
  return bytes;
}

// A word of them: one choice of the type for all of it.
template <class Word>
__device__ __forceinline__ Word bytes_of(const float* from, Quantized type) {
  if (type == Quantized::Float8E4M3) return bytes_of<Quantized::Float8E4M3, Word>(from);
  if (type == Quantized::Float8E5M2) return bytes_of<Quantized::Float8E5M2, Word>(from);
  return bytes_of<Quantized::Int8, Word>(from);
}

// The largest magnitude of elements, two of 16 bits or one float in a word; a NaN is the largest. By their bits, of
// which a NaN's are, where the hardware has no such maximum of two halves.
template <class T>
struct Magnitude {
  static constexpr uint32_t kNoSign = kIs16Bit<T> ? 0x7fff7fff : 0x7fffffff;
  uint32_t word = 0;

  __device__ __forceinline__ void or_of(Magnitude other) {
    if constexpr (!kIs16Bit<T>) {
      word = max(word, other.word);
    } else {
#if __CUDA_ARCH__ >= 800
      if constexpr (std::is_same_v<T, half>)
        asm("max.NaN.f16x2 %0, %0, %1;" : "+r"(word) : "r"(other.word));
      else
        asm("max.NaN.bf16x2 %0, %0, %1;" : "+r"(word) : "r"(other.word));
#else
      word = __vmaxu2(word, other.word);
#endif
    }
  }

  // Of the lane whose number differs in that bit.
  __device__ __forceinline__ Magnitude of_lane(int bit) const { return {__shfl_xor_sync(~0u, word, bit)}; }

  __device__ __forceinline__ float value() const {
    if constexpr (!kIs16Bit<T>) return __uint_as_float(word);
    Magnitude both = *this;
    both.or_of({word << 16 | word >> 16});
    float two[2];
    widen_word<T>(both.word, two);
    return two[0];
  }
};

template <int N>
__device__ __forceinline__ Magnitude<float> largest_of(const float (&of)[N]) {
  Magnitude<float> largest;
#pragma unroll
  for (float value : of) largest.or_of({__float_as_uint(value) & Magnitude<float>::kNoSign});
  return largest;
}

template <class T, int N, bool shifted>
__device__ __forceinline__ Magnitude<T> largest_of(const Vector<T, N, shifted>& of) {
  Magnitude<T> largest;
#pragma unroll
  for (int i = 0; i < Vector<T, N, shifted>::kChunks; i++)
    for (uint32_t word : {of.chunks[i].x, of.chunks[i].y, of.chunks[i].z, of.chunks[i].w})
      largest.or_of({word & Magnitude<T>::kNoSign});
  return largest;
}

// N bytes, made of vectors of N elements.
template <int N>
struct QuantizedVector {
  static_assert(N == 4 || N == 8, "as elements of 4 or 2 bytes are read");
  using Word = std::conditional_t<N == 8, unsigned long long, uint32_t>;
  Word bytes;
  float scale;
  float* scales;  // of the row's groups; null: the row has one
  int64_t scales_stride;
  int group;
  const uint8_t* row;
  bool aligned;

  __device__ __forceinline__ void set(const float (&from)[N], Quantized type) { bytes = bytes_of<Word>(from, type); }

  __device__ __forceinline__ void belong_to(const Quantization& how, float value, float* of_groups,
                                            const uint8_t* of_row, bool is_aligned) {
    scale = value;
    group = how.group;
    scales = how.group > 0 ? of_groups : nullptr;
    scales_stride = how.group_stride;
    row = of_row;
    aligned = is_aligned;
  }

  // By all lanes of the warp. A group's first lane writes its scale.
  template <class Index>
  __device__ __forceinline__ void store(uint8_t* to, const Place<Index>& place) const {
    if (scales && place.left > 0 && (lane_in_row() * N & (group - 1)) == 0) {
      __builtin_assume(__isGlobal(scales));
      scales[(static_cast<Index>(to - row) >> (group == 64 ? 6 : 7)) * scales_stride] = scale;
    }
    if (!aligned)
      store_anywhere(to, place);
    else if (place.left > 0)
      *reinterpret_cast<Word*>(to) = bytes;
  }

  template <class Index>
  __device__ __forceinline__ void store_shifted(uint8_t* to, int, const Place<Index>& place) const {
    store(to, place);
  }

 private:
  // In aligned words out of two lanes' vectors each; what is before the first and behind the last word of a run, one
  // byte a lane. All vectors of a row are as far past a word.
  template <class Index>
  __device__ __forceinline__ void store_anywhere(uint8_t* to, const Place<Index>& place) const {
    int past = reinterpret_cast<uintptr_t>(to) % N, lane = lane_in_row(), first_lane = lane_in_warp() - lane;
    int last = static_cast<int>(min(static_cast<Index>(place.run - 1), lane + place.left - 1));
    Word next = __shfl_sync(~0u, bytes, first_lane + min(lane + 1, place.run - 1));
    Word first_of_run = __shfl_sync(~0u, bytes, first_lane),
         last_of_run = __shfl_sync(~0u, bytes, first_lane + max(last, 0));
    if (last < 0) return;
    if (past == 0) {
      if (lane <= last) *reinterpret_cast<Word*>(to) = bytes;
      return;
    }
    if (lane < last) *reinterpret_cast<Word*>(to + N - past) = bytes >> 8 * (N - past) | next << 8 * past;
    uint8_t* run = to - lane * N;
    for (int i = lane; i < N; i += place.run) {
      bool of_first = i < N - past;
      run[(of_first ? 0 : last * N) + i] = static_cast<uint8_t>((of_first ? first_of_run : last_of_run) >> 8 * i);
    }
  }
};

// One element.
template <>
struct QuantizedVector<1> {
  uint8_t byte;
  __device__ __forceinline__ void set(const float (&from)[1], Quantized type) {
    const float four[4] = {from[0]};
    byte = static_cast<uint8_t>(bytes_of<uint32_t>(four, type));
  }
  __device__ __forceinline__ void store(uint8_t* to) const { *to = byte; }
};

}  // namespace srmsnorm
