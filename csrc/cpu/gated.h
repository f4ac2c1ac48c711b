// The gated norm: the activation of a gate and its slope, what h is beside a gate, and backward. Compiled once per
// instruction set, as vector.h says.
#pragma once
#include <iterator>
#include <memory>

#include "rows.h"

namespace srmsnorm::cpu {
namespace {

// What an exponential is made of: its type's bits, and the polynomial of e^x for |x| <= log(2) / 2, from its highest
// coefficient down, which errs by less than half a unit.
template <class A>
struct Exponential;

template <>
struct Exponential<float> {
  using Bits = int32_t;
  static constexpr int kMantissa = 23, kBias = 127;
  static constexpr float kLog2High = 0x1.62e4p-1f, kLog2Low = 0x1.7f7d1cp-20f, kLowest = -104;
  static constexpr float kTerms[] = {1.f / 5040, 1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, .5f, 1, 1};
};

template <>
struct Exponential<double> {
  using Bits = int64_t;
  static constexpr int kMantissa = 52, kBias = 1023;
  static constexpr double kLog2High = 0x1.62e42fee00000p-1, kLog2Low = 0x1.a39ef35793c76p-33, kLowest = -746;
  static constexpr double kTerms[] = {
      1. / 6227020800, 1. / 479001600, 1. / 39916800, 1. / 3628800, 1. / 362880, 1. / 40320, 1. / 5040,
      1. / 720,        1. / 120,       1. / 24,       1. / 6,       .5,          1,          1};
};

template <class A, int W>
SRMSNORM_SIMD Vec<A, W> all(A value) {
  return Vec<A, W>{} + value;
}

// 2^n for whole n from twice the smallest exponent on, in two factors, as the smallest results are subnormal.
template <class A, int W, class Bits>
SRMSNORM_SIMD Vec<A, W> times_power_of_two(Vec<A, W> value, Bits n) {
  using E = Exponential<A>;
  Bits half = n >> 1;
  auto first = bit_cast<Vec<A, W>>((half + E::kBias) << E::kMantissa);
  return value * first * bit_cast<Vec<A, W>>((n - half + E::kBias) << E::kMantissa);
}

// e^x for x <= 0, or NaN.
template <class A, int W>
SRMSNORM_SIMD Vec<A, W> exponential(Vec<A, W> x) {
  using E = Exponential<A>;
  using Bits = Vec<typename E::Bits, W>;
  constexpr A kMagic = 3 * static_cast<A>(int64_t{1} << (E::kMantissa - 1));  // its last place is 1
  x = x < E::kLowest ? all<A, W>(E::kLowest) : x;
  auto shifted = x * static_cast<A>(1.4426950408889634) + kMagic;
  auto whole = shifted - kMagic;
  auto rest = (x - whole * E::kLog2High) - whole * E::kLog2Low;
  auto value = all<A, W>(E::kTerms[0]);
#pragma GCC unroll 16
  for (size_t i = 1; i < std::size(E::kTerms); ++i) value = value * rest + E::kTerms[i];
  return times_power_of_two<A, W>(value, bit_cast<Bits>(shifted) - bit_cast<Bits>(all<A, W>(kMagic)));
}

// a and a' of a gate, by an exponential that cannot overflow; s (1 - s) would lose what 1 - s loses.
template <class A, int W>
struct Activated {
  Vec<A, W> value, slope;
};

template <class A, int W>
SRMSNORM_SIMD Activated<A, W> activated(Vec<A, W> g, Activation activation) {
  if (activation == Activation::None) return {g, all<A, W>(1)};
  auto e = exponential<A, W>(g > 0 ? -g : g), p = 1 / (1 + e);
  auto s = g > 0 ? p : e * p, slope = e * p * p;
  if (activation == Activation::Sigmoid) return {s, slope};
  return {g * s, s + g * slope};
}

// Input and a gate, which multiplies h, or y.
template <class T, class Gate>
struct GatedSource {
  using A = Accumulator<T>;
  Cursor<const T> input;
  Cursor<const Gate> gate;
  Gating gating;

  // Where the gate comes first, h of the row at hand: to write and read it costs less than its activation a second time
  // (silu at dims 128 and 2048: 0.6 to 0.7 of the time). Of a row that a second-level cache holds. A copy of the row
  // object, as reduce_blocks takes one, writes the same memory.
  static constexpr int64_t kLongestKept = 65536;
  std::shared_ptr<A[]> kept;

  explicit GatedSource(const GatedForwardArgs& args) : gating(args.gating) {
    bool twice = !gating.norm_first && gating.activation != Activation::None;
    if (twice && args.space.dim <= kLongestKept) kept.reset(new A[args.space.dim]);
  }

  template <int W>
  SRMSNORM_SIMD Vec<A, W> h(int64_t i) const {
    auto value = load<W>(input.row + i);
    if (gating.norm_first) return value;
    value *= a<W>(i);
    if (kept) store<W>(kept.get() + i, value);
    return value;
  }

  template <int W>
  SRMSNORM_SIMD Vec<A, W> h_again(int64_t i) const {
    return kept ? load<W>(kept.get() + i) : h<W>(i);
  }

  template <int W>
  SRMSNORM_SIMD Vec<A, W> finished(Vec<A, W> y, int64_t i) const {
    return gating.norm_first ? y * a<W>(i) : y;
  }

 private:
  template <int W>
  SRMSNORM_SIMD Vec<A, W> a(int64_t i) const {
    return activated<A, W>(load<W>(gate.row + i), gating.activation).value;
  }
};

template <class T, class Gate>
using GatedForward = Forward<GatedSource<T, Gate>, Normalized<T, Absent>>;

// y = input * rstd (* a where the gate comes first).
template <class T, class Gate>
struct GatedBackward : BackwardOfInput<T> {
  using typename BackwardOfInput<T>::A;
  using BackwardOfInput<T>::input, BackwardOfInput<T>::r, BackwardOfInput<T>::mean;
  Cursor<const T> grad_output;
  Cursor<const Gate> gate;
  Cursor<Gate> grad_gate;
  Gating gating;

  explicit GatedBackward(const GatedBackwardArgs& args) : gating(args.gating) {}

  template <int W>
  SRMSNORM_SIMD Vec<A, W> accumulate(Vec<A, W> total, int64_t i) const {
    auto a = activated<A, W>(load<W>(gate.row + i), gating.activation).value;
    return total + load<W>(input.row + i) * a * load<W>(grad_output.row + i);
  }

  template <int W>
  SRMSNORM_SIMD void write(int64_t i) const {
    auto g = load<W>(grad_output.row + i), x = load<W>(input.row + i);
    auto [a, slope] = activated<A, W>(load<W>(gate.row + i), gating.activation);
    auto y = r * (gating.norm_first ? x : x * a), dh = r * ((gating.norm_first ? g * a : g) - y * mean);
    if (this->grad_input) store<W>(this->grad_input.row + i, gating.norm_first ? dh : dh * a);
    if (grad_gate) store<W>(grad_gate.row + i, (gating.norm_first ? g * y : dh * x) * slope);
  }
};

}  // namespace
}  // namespace srmsnorm::cpu
