// What a thread does with a row: forward (what h is, and what is made of it) and backward. Compiled once per
// instruction set, as vector.h says.
#pragma once
#include <cmath>

#include "../row_args.h"
#include "vector.h"

namespace srmsnorm::cpu {
namespace {

struct Absent {};

// An operand's pointer to the row at hand.
template <class T>
struct Cursor {
  T* row = nullptr;
  const Rows* rows = nullptr;

  void open(const Rows& operand) { rows = &operand; }
  explicit operator bool() const { return rows->data; }

  void seek(const int64_t* index, int levels) {
    row = static_cast<T*>(rows->data);
    for (int level = 0; level < levels; ++level) row += index[level] * rows->strides[level];
  }
  void next() { row += rows->strides[0]; }
};

// An element whose dtype the call says. A row asks for it once, in `Typed`.
struct AnyElement {};

template <>
struct Cursor<AnyElement> {
  char* row = nullptr;
  const Rows* rows = nullptr;

  void open(const Rows& operand) { rows = &operand; }
  explicit operator bool() const { return rows->data; }

  void seek(const int64_t* index, int levels) {
    row = static_cast<char*>(rows->data);
    for (int level = 0; level < levels; ++level) row += index[level] * rows->strides[level] * size_of(rows->dtype);
  }
  void next() { row += rows->strides[0] * size_of(rows->dtype); }
};

template <>
struct Cursor<Absent> {
  void open(const Rows&) {}
  void seek(const int64_t*, int) {}
  void next() {}
};

template <class T>
constexpr bool kPresent = !std::is_same_v<std::remove_const_t<T>, Absent>;

// A row as its results are written: those of AnyElement as T, or none of Absent.
template <class Row, class T>
struct Typed {
  using A = typename Row::A;
  static constexpr bool kTwoResults = false;
  const Row& row;

  template <int W>
  SRMSNORM_SIMD void write(int64_t i) const {
    row.template write<W, T>(i);
  }
};

template <int W, class T>
SRMSNORM_SIMD void store_as(const Cursor<AnyElement>& to, int64_t i, Vec<Accumulator<T>, W> value) {
  store<W>(reinterpret_cast<T*>(to.row) + i, value);
}

// What h is: input, with or without a residual.
template <class T, class Residual>
struct Source {
  using A = Accumulator<T>;
  Cursor<const T> input;
  Cursor<const Residual> residual;

  template <class Args>
  explicit Source(const Args&) {}

  template <int W>
  SRMSNORM_SIMD Vec<A, W> h(int64_t i) const {
    auto value = load<W>(input.row + i);
    if constexpr (kPresent<Residual>) value += load<W>(residual.row + i);
    return value;
  }

  // The same once the row is reduced.
  template <int W>
  SRMSNORM_SIMD Vec<A, W> h_again(int64_t i) const {
    return h<W>(i);
  }

  // What is made of y before it is rounded.
  template <int W>
  SRMSNORM_SIMD Vec<A, W> finished(Vec<A, W> y, int64_t) const {
    return y;
  }
};

// What is made of it: y, and the sum where it is asked for.
template <class T, class Sum>
struct Normalized {
  using A = Accumulator<T>;
  Cursor<T> output;
  Cursor<Sum> sum;
  Cursor<Absent> scale, factor;

  static constexpr bool kTwoResults = kPresent<Sum>;
  const T* result() const { return output.row; }

  template <int W, class>
  SRMSNORM_SIMD void write_made(Vec<A, W> h, Vec<A, W> y, int64_t i) const {
    store<W>(output.row + i, y);
    if constexpr (kPresent<Sum>) store<W>(sum.row + i, h);
  }
};

// y in any dtype, or not at all.
template <class Sum, class Accumulator>
struct Converted {
  using A = Accumulator;
  Cursor<AnyElement> output;
  Cursor<Sum> sum;
  Cursor<Absent> scale, factor;

  static constexpr bool kTwoResults = false;
  const Cursor<AnyElement>& any() const { return output; }

  template <int W, class T>
  SRMSNORM_SIMD void write_made(Vec<A, W> h, Vec<A, W> y, int64_t i) const {
    if constexpr (kPresent<T>) store_as<W, T>(output, i, y);
    if constexpr (kPresent<Sum>) store<W>(sum.row + i, h);
  }
};

template <class Source, class Epilogue>
struct Forward : Source, Epilogue {
  using A = typename Source::A;
  Cursor<A> rstd;
  double eps;
  A r = 0;

  template <class Args>
  explicit Forward(const Args& args) : Source(args), eps(args.eps) {}

  template <int W>
  SRMSNORM_SIMD Vec<A, W> accumulate(Vec<A, W> total, int64_t i) const {
    auto value = Source::template h<W>(i);
    return total + value * value;
  }

  void reduced(double mean) {
    r = static_cast<A>(1 / std::sqrt(mean + eps));
    if (rstd) *rstd.row = r;
  }

  template <int W, class T = Absent>
  SRMSNORM_SIMD void write(int64_t i) const {
    auto h = Source::template h_again<W>(i);
    Epilogue::template write_made<W, T>(h, Source::template finished<W>(h * r, i), i);
  }
};

// h times numbers that are given.
template <class Source>
struct Scaled : Source, Converted<Absent, typename Source::A> {
  using A = typename Source::A;
  Cursor<Absent> rstd;
  Cursor<const A> scale, factor;

  template <class Args>
  explicit Scaled(const Args& args) : Source(args) {}

  template <int W, class T>
  SRMSNORM_SIMD void write(int64_t i) const {
    auto y = Source::template h<W>(i) * *scale.row;
    Scaled::template write_made<W, T>(y, factor ? y * *factor.row : y, i);
  }
};

// Backward that keeps the input: y = input * rstd.
template <class T>
struct BackwardOfInput {
  using A = Accumulator<T>;
  Cursor<const T> input;
  Cursor<const A> rstd;
  Cursor<T> grad_input;
  A r = 0, mean = 0;  // mean: of y and its gradient

  void reduced(double row_mean) {
    r = *rstd.row;
    mean = static_cast<A>(row_mean * r);
  }

  static constexpr bool kTwoResults = false;
};

// Of an output wider than the input.
template <class T>
struct WideBackward : BackwardOfInput<T> {
  using typename BackwardOfInput<T>::A;
  Cursor<const A> grad_output;

  explicit WideBackward(const WideBackwardArgs&) {}

  template <int W>
  SRMSNORM_SIMD Vec<A, W> accumulate(Vec<A, W> total, int64_t i) const {
    return total + load<W>(this->input.row + i) * load<W>(grad_output.row + i);
  }

  template <int W>
  SRMSNORM_SIMD void write(int64_t i) const {
    auto y = load<W>(this->input.row + i) * this->r;
    store<W>(this->grad_input.row + i, this->r * (load<W>(grad_output.row + i) - y * this->mean));
  }
};

// GradInput: the output's type, Absent, or beside float AnyElement.
template <class T, class GradSum, class GradInput, class GradResidual>
struct Backward {
  using A = Accumulator<T>;
  Cursor<const T> grad_output, output;
  Cursor<const A> rstd;
  Cursor<const GradSum> grad_sum;
  Cursor<GradInput> grad_input;
  Cursor<GradResidual> grad_residual;
  A r = 0, mean = 0;

  explicit Backward(const BackwardArgs&) {}

  template <int W>
  SRMSNORM_SIMD Vec<A, W> accumulate(Vec<A, W> total, int64_t i) const {
    return total + load<W>(output.row + i) * load<W>(grad_output.row + i);
  }

  void reduced(double row_mean) {
    r = *rstd.row;
    mean = static_cast<A>(row_mean);
  }

  static constexpr bool kAny = std::is_same_v<GradInput, AnyElement>;
  const Cursor<AnyElement>& any() const
    requires kAny
  {
    return grad_input;
  }
  static constexpr bool kTwoResults = !kAny && kPresent<GradInput> && kPresent<GradResidual>;
  auto result() const {
    if constexpr (kPresent<GradInput>)
      return grad_input.row;
    else
      return grad_residual.row;
  }

  template <int W, class Any = Absent>
  SRMSNORM_SIMD void write(int64_t i) const {
    auto grad = r * (load<W>(grad_output.row + i) - load<W>(output.row + i) * mean);
    if constexpr (kPresent<GradSum>) grad += load<W>(grad_sum.row + i);
    if constexpr (kAny && kPresent<Any>)
      store_as<W, Any>(grad_input, i, grad);
    else if constexpr (kPresent<GradInput> && !kAny)
      store<W>(grad_input.row + i, grad);
    if constexpr (kPresent<GradResidual>) store<W>(grad_residual.row + i, grad);
  }
};

}  // namespace
}  // namespace srmsnorm::cpu
