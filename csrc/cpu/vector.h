// Vectors of W elements: load, store, fold. Compiled once per instruction set: the including file defines
// SRMSNORM_TARGET, the attribute that admits its instructions, and SRMSNORM_VECTOR_BYTES (16 stands for any processor,
// more for x86-64). All of it is the compilers' vector extension but some conversions, which they do badly or not at
// all.
#pragma once
#include <cstdint>
#include <type_traits>
#include <utility>
#if SRMSNORM_VECTOR_BYTES > 16
#include <immintrin.h>
#endif

#define SRMSNORM_SIMD SRMSNORM_TARGET __attribute__((always_inline)) inline

namespace srmsnorm::cpu {
namespace {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class T>
constexpr bool kIs16Bit = std::is_same_v<T, Half> || std::is_same_v<T, BFloat16>;

template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T, int W>
struct VecOf {
  typedef T type __attribute__((vector_size(W * sizeof(T))));
};
template <class T>
struct VecOf<T, 1> {
  using type = T;
};
template <class T, int W>
using Vec = typename VecOf<T, W>::type;

template <class A>
constexpr int kWidth = SRMSNORM_VECTOR_BYTES / sizeof(A);

template <class To, class From>
SRMSNORM_SIMD To bit_cast(From from) {
  return __builtin_bit_cast(To, from);
}

template <class To, int W, class From>
SRMSNORM_SIMD Vec<To, W> convert(From from) {
  if constexpr (W == 1) {
    return static_cast<To>(from);
  } else {
    return __builtin_convertvector(from, Vec<To, W>);
  }
}

#if SRMSNORM_VECTOR_BYTES > 16

template <int W>
SRMSNORM_SIMD Vec<uint32_t, W> widen(Vec<uint16_t, W> bits) {
  if constexpr (W == 16) {
    return bit_cast<Vec<uint32_t, W>>(_mm512_maskz_cvtepu16_epi32(0xffff, bit_cast<__m256i>(bits)));
  } else if constexpr (W == 8) {
    return bit_cast<Vec<uint32_t, W>>(_mm256_cvtepu16_epi32(bit_cast<__m128i>(bits)));
  } else {
    return convert<uint32_t, W>(bits);
  }
}

template <int W>
SRMSNORM_SIMD Vec<float, W> from_half(Vec<uint16_t, W> bits) {
  if constexpr (W == 16) {
    return bit_cast<Vec<float, W>>(_mm512_maskz_cvtph_ps(0xffff, bit_cast<__m256i>(bits)));
  } else if constexpr (W == 8) {
    return bit_cast<Vec<float, W>>(_mm256_cvtph_ps(bit_cast<__m128i>(bits)));
  } else {
    __m128i padded = {};
    __builtin_memcpy(&padded, &bits, sizeof bits);
    __m128 wide = _mm_cvtph_ps(padded);
    Vec<float, W> value;
    __builtin_memcpy(&value, &wide, sizeof value);
    return value;
  }
}

template <int W>
SRMSNORM_SIMD Vec<uint16_t, W> to_half(Vec<float, W> value) {
  constexpr int kNearestEven = _MM_FROUND_TO_NEAREST_INT;
  if constexpr (W == 16) {
    return bit_cast<Vec<uint16_t, W>>(_mm512_maskz_cvtps_ph(0xffff, bit_cast<__m512>(value), kNearestEven));
  } else if constexpr (W == 8) {
    return bit_cast<Vec<uint16_t, W>>(_mm256_cvtps_ph(bit_cast<__m256>(value), kNearestEven));
  } else {
    __m128 padded = {};
    __builtin_memcpy(&padded, &value, sizeof value);
    __m128i narrow = _mm_cvtps_ph(padded, kNearestEven);
    Vec<uint16_t, W> bits;
    __builtin_memcpy(&bits, &narrow, sizeof bits);
    return bits;
  }
}

#else

template <int W>
SRMSNORM_SIMD Vec<uint32_t, W> widen(Vec<uint16_t, W> bits) {
  return convert<uint32_t, W>(bits);
}

template <int W>
SRMSNORM_SIMD Vec<float, W> from_half(Vec<uint16_t, W> bits) {
  auto all = widen<W>(bits);
  auto magnitude = all & 0x7fff;
  auto normal = (magnitude << 13) + ((127 - 15) << 23);
  auto inf_or_nan = (magnitude << 13) + ((255 - 31) << 23);
  auto subnormal = bit_cast<Vec<uint32_t, W>>(convert<float, W>(magnitude) * 0x1p-24f);
  auto finite = magnitude < 0x400 ? subnormal : normal;
  return bit_cast<Vec<float, W>>((magnitude < 0x7c00 ? finite : inf_or_nan) | ((all & 0x8000) << 16));
}

template <int W>
SRMSNORM_SIMD Vec<uint16_t, W> to_half(Vec<float, W> value) {
  auto all = bit_cast<Vec<uint32_t, W>>(value);
  auto magnitude = all & 0x7fffffff;
  auto normal = (magnitude - ((127 - 15) << 23) + (0xfff + ((magnitude >> 13) & 1))) >> 13;  // to nearest even
  auto on_half = bit_cast<Vec<float, W>>(magnitude) + 0.5f;  // whose last place is the smallest subnormal
  auto subnormal = bit_cast<Vec<uint32_t, W>>(on_half) - 0x3f000000;
  auto finite = magnitude < (127 - 14) << 23 ? subnormal : normal;
  auto inf_or_nan = magnitude > 0x7f800000 ? (magnitude & 0) | 0x7e00 : (magnitude & 0) | 0x7c00;
  auto rounded = magnitude < (127 + 16) << 23 ? finite : inf_or_nan;
  return convert<uint16_t, W>(rounded | ((all >> 16) & 0x8000));
}

#endif

template <std::size_t... I>
SRMSNORM_SIMD auto odd_elements(Vec<uint16_t, 2 * sizeof...(I)> v, std::index_sequence<I...>) {
  return __builtin_shufflevector(v, v, (2 * I + 1)...);
}

template <int W>
SRMSNORM_SIMD Vec<uint16_t, W> high_halves(Vec<uint32_t, W> words) {
  if constexpr (W == 16) {  // one permutation, where a shift and a conversion take three instructions
    return odd_elements(bit_cast<Vec<uint16_t, 2 * W>>(words), std::make_index_sequence<W>());
  } else {
    return convert<uint16_t, W>(words >> 16);
  }
}

template <int W>
SRMSNORM_SIMD Vec<float, W> from_bfloat16(Vec<uint16_t, W> bits) {
  return bit_cast<Vec<float, W>>(widen<W>(bits) << 16);
}

template <int W>
SRMSNORM_SIMD Vec<uint16_t, W> to_bfloat16(Vec<float, W> value) {
  auto bits = bit_cast<Vec<uint32_t, W>>(value);
  auto rounded = bits + (0x7fff + ((bits >> 16) & 1));     // to nearest even; overflow carries into inf
  return high_halves<W>(value == value ? rounded : bits);  // a NaN that arithmetic made is quiet: its high half is one
}

template <int W, class T>
SRMSNORM_SIMD Vec<Accumulator<T>, W> load(const T* from) {
  if constexpr (kIs16Bit<T>) {
    Vec<uint16_t, W> bits;
    __builtin_memcpy(&bits, from, sizeof bits);
    if constexpr (std::is_same_v<T, Half>)
      return from_half<W>(bits);
    else
      return from_bfloat16<W>(bits);
  } else {
    Vec<T, W> value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
  }
}

template <int W, class T>
SRMSNORM_SIMD void store(T* to, Vec<Accumulator<T>, W> value) {
  if constexpr (kIs16Bit<T>) {
    Vec<uint16_t, W> bits;
    if constexpr (std::is_same_v<T, Half>)
      bits = to_half<W>(value);
    else
      bits = to_bfloat16<W>(value);
    __builtin_memcpy(to, &bits, sizeof bits);
  } else {
    __builtin_memcpy(to, &value, sizeof value);
  }
}

template <class A, int W, std::size_t... I>
SRMSNORM_SIMD Vec<A, W / 2> add_halves(Vec<A, W> v, std::index_sequence<I...>) {
  return __builtin_shufflevector(v, v, I...) + __builtin_shufflevector(v, v, (I + W / 2)...);
}

// The sum of a vector's lower and upper half.
template <class A, int W>
SRMSNORM_SIMD Vec<A, W / 2> fold(Vec<A, W> v) {
  if constexpr (W == 2) {
    return v[0] + v[1];
  } else {
    return add_halves<A, W>(v, std::make_index_sequence<W / 2>());
  }
}

}  // namespace
}  // namespace srmsnorm::cpu
