// Rows of which quantised results are made: y as forward makes it, rounded to the input's type, in bytes and scales.
// Compiled once per instruction set, as vector.h says.
#pragma once
#include <algorithm>
#include <cmath>

#include "rows.h"

namespace srmsnorm::cpu {
namespace {

template <class T, int W>
SRMSNORM_SIMD Vec<float, W> rounded(Vec<float, W> value) {
  if constexpr (std::is_same_v<T, Half>)
    return from_half<W>(to_half<W>(value));
  else if constexpr (std::is_same_v<T, BFloat16>)
    return from_bfloat16<W>(to_bfloat16<W>(value));
  else
    return value;
}

// Of a type of a byte with so many bits of mantissa, and of that bias: the bits of a number that it holds, to nearest
// even; of a NaN a NaN.
template <int mantissa, int bias, int W>
SRMSNORM_SIMD Vec<uint32_t, W> float8_bits(Vec<float, W> value) {
  constexpr int kShift = 23 - mantissa;
  constexpr uint32_t kNormal = (127 - bias + 1) << 23;                // the smallest normal number
  constexpr uint32_t kOnLastPlace = (127 - bias + kShift + 1) << 23;  // whose last place is the smallest subnormal
  auto all = bit_cast<Vec<uint32_t, W>>(value);
  auto magnitude = all & 0x7fffffff;
  auto normal =
      (magnitude - ((127 - bias) << 23) + (((1 << (kShift - 1)) - 1) + ((magnitude >> kShift) & 1))) >> kShift;
  auto on_last_place = bit_cast<Vec<float, W>>(magnitude) + bit_cast<float>(kOnLastPlace);
  auto subnormal = bit_cast<Vec<uint32_t, W>>(on_last_place) - kOnLastPlace;
  auto finite = magnitude < kNormal ? subnormal : normal;
  auto nan = (magnitude & 0) | 0x7f;
  return (magnitude > 0x7f800000 ? nan : finite) | ((all >> 24) & 0x80);
}

// To nearest even; NaN is 0.
template <int W>
SRMSNORM_SIMD Vec<uint32_t, W> int8_bits(Vec<float, W> value) {
  auto number = value == value ? value : Vec<float, W>{};
  return bit_cast<Vec<uint32_t, W>>(number + 0x1.8p23f);  // whose last place is 1
}

template <int W>
SRMSNORM_SIMD Vec<uint8_t, W> bytes(Vec<float, W> value, Quantized type) {
  const float most = largest(type);
  auto limit = Vec<float, W>{} + most;
  value = value > limit ? limit : value;
  value = value < -limit ? -limit : value;
  switch (type) {
    case Quantized::Float8E4M3:
      return convert<uint8_t, W>(float8_bits<3, 7, W>(value));
    case Quantized::Float8E5M2:
      return convert<uint8_t, W>(float8_bits<2, 15, W>(value));
    case Quantized::Int8:
      return convert<uint8_t, W>(int8_bits<W>(value) & 0xff);
  }
  __builtin_unreachable();
}

// The epilogue's operands; what is made of them needs the row's r and scale.
template <class Sum>
struct QuantizedResults {
  Cursor<const float> given;
  Cursor<uint8_t> output;
  Cursor<Sum> sum;
  Cursor<float> scale;
};

template <class T, class Residual, class Sum>
struct QuantizedRow : Forward<Source<T, Residual>, QuantizedResults<Sum>> {
  Quantization quantization;
  float divisor = 1, factor = 1;  // of y: the scale, or 1 / scale where that is given

  explicit QuantizedRow(const QuantizedArgs& args)
      : Forward<Source<T, Residual>, QuantizedResults<Sum>>(args), quantization(args.quantization) {}

  void reduced(double mean) { this->r = static_cast<float>(1 / std::sqrt(mean + this->eps)); }

  int64_t elements_of_a_scale(int64_t dim) const { return quantization.group > 0 ? quantization.group : dim; }

  // The largest |h| gives the largest |y|: h r, and its rounding, are monotone and odd.
  SRMSNORM_TARGET void open_scale(float largest_h, int64_t group) {
    if (quantization.given) {
      factor = 1 / (this->given ? *this->given.row : quantization.value);
      return;
    }
    float largest_y = rounded<T, 1>(largest_h * this->r);
    float value = std::max(std::min(largest_y, quantization.upper) / quantization.most, quantization.least);
    if (quantization.power_of_two)
      value = bit_cast<float>((bit_cast<uint32_t>(value) + 0x7fffff) & 0x7f800000);  // the exponent, rounded up
    divisor = std::isfinite(largest_y) ? value : largest_y - largest_y;              // NaN
    this->scale.row[group * quantization.group_stride] = divisor;
  }

  // |h| as bits, in whose order a NaN comes last.
  template <int W>
  SRMSNORM_SIMD Vec<int32_t, W> magnitude(int64_t i) const {
    return bit_cast<Vec<int32_t, W>>(Source<T, Residual>::template h<W>(i)) & 0x7fffffff;
  }

  template <int W>
  SRMSNORM_SIMD void write(int64_t i) const {
    auto h = Source<T, Residual>::template h<W>(i);
    if constexpr (kPresent<Sum>) store<W>(this->sum.row + i, h);
    auto y = rounded<T, W>(h * this->r);
    auto q = bytes<W>(quantization.given ? y * factor : y / divisor, quantization.type);
    __builtin_memcpy(this->output.row + i, &q, sizeof q);
  }
};

template <int W, class Row>
SRMSNORM_SIMD int32_t largest_magnitude(const Row& row, int64_t i, int64_t end) {
  Vec<int32_t, W> most[2] = {};
  auto larger = [](auto a, auto b) SRMSNORM_TARGET { return a > b ? a : b; };
  for (; i + 2 * W <= end; i += 2 * W) {
    most[0] = larger(most[0], row.template magnitude<W>(i));
    most[1] = larger(most[1], row.template magnitude<W>(i + W));
  }
  auto all = larger(most[0], most[1]);
  int32_t result = 0;
  for (int k = 0; k < W; ++k) result = std::max(result, all[k]);
  for (; i < end; ++i) result = std::max(result, row.template magnitude<1>(i));
  return result;
}

}  // namespace
}  // namespace srmsnorm::cpu
