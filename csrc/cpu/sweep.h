// The sweep over rows: one reduction, then one write, for forward and backward alike. Compiled once per instruction
// set, as vector.h says.
#pragma once
#include <algorithm>
#include <cmath>

#include "instruction_sets.h"
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

template <>
struct Cursor<Absent> {
  void open(const Rows&) {}
  void seek(const int64_t*, int) {}
  void next() {}
};

template <class T>
constexpr bool kPresent = !std::is_same_v<std::remove_const_t<T>, Absent>;

template <class T, class Residual, class Sum>
struct Forward {
  using A = Accumulator<T>;
  Cursor<const T> input;
  Cursor<const Residual> residual;
  Cursor<T> output;
  Cursor<Sum> sum;
  Cursor<A> rstd;
  double eps;
  A r = 0;

  explicit Forward(const ForwardArgs& args) : eps(args.eps) {}

  template <int W>
  SRMSNORM_SIMD Vec<A, W> h(int64_t i) const {
    auto value = load<W>(input.row + i);
    if constexpr (kPresent<Residual>) value += load<W>(residual.row + i);
    return value;
  }

  template <int W>
  SRMSNORM_SIMD Vec<A, W> accumulate(Vec<A, W> total, int64_t i) const {
    auto value = h<W>(i);
    return total + value * value;
  }

  void reduced(double mean) {
    r = static_cast<A>(1 / std::sqrt(mean + eps));
    if (rstd) *rstd.row = r;
  }

  static constexpr bool kTwoResults = kPresent<Sum>;
  const T* result() const { return output.row; }

  template <int W>
  SRMSNORM_SIMD void write(int64_t i) const {
    auto value = h<W>(i);
    store<W>(output.row + i, value * r);
    if constexpr (kPresent<Sum>) store<W>(sum.row + i, value);
  }
};

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

  static constexpr bool kTwoResults = kPresent<GradInput> && kPresent<GradResidual>;
  auto result() const {
    if constexpr (kPresent<GradInput>)
      return grad_input.row;
    else
      return grad_residual.row;
  }

  template <int W>
  SRMSNORM_SIMD void write(int64_t i) const {
    auto grad = r * (load<W>(grad_output.row + i) - load<W>(output.row + i) * mean);
    if constexpr (kPresent<GradSum>) grad += load<W>(grad_sum.row + i);
    if constexpr (kPresent<GradInput>) store<W>(grad_input.row + i, grad);
    if constexpr (kPresent<GradResidual>) store<W>(grad_residual.row + i, grad);
  }
};

// Folds a vector to one number, and on the way takes the elements that do not fill a vector: W / 2 of them, W / 4, ...
template <int W, class Row>
SRMSNORM_SIMD double fold_with_tail(const Row& row, Vec<typename Row::A, W> total, int64_t i, int64_t end) {
  if constexpr (W == 1) {
    return total;
  } else {
    auto half = fold<typename Row::A, W>(total);
    if (i + W / 2 <= end) {
      half = row.template accumulate<W / 2>(half, i);
      i += W / 2;
    }
    return fold_with_tail<W / 2>(row, half, i, end);
  }
}

template <class Row>
SRMSNORM_SIMD double reduce_block(const Row& row, int64_t i, int64_t end) {
  using A = typename Row::A;
  constexpr int W = kWidth<A>;
  Vec<A, W> total[4] = {};
  for (; i + 4 * W <= end; i += 4 * W) {
    total[0] = row.template accumulate<W>(total[0], i);
    total[1] = row.template accumulate<W>(total[1], i + W);
    total[2] = row.template accumulate<W>(total[2], i + 2 * W);
    total[3] = row.template accumulate<W>(total[3], i + 3 * W);
  }
  for (; i + W <= end; i += W) total[0] = row.template accumulate<W>(total[0], i);
  return fold_with_tail<W>(row, (total[0] + total[1]) + (total[2] + total[3]), i, end);
}

// A row is summed in blocks of 16 terms to an accumulator, and the blocks with compensation: dim adds no error.
template <class Row>
constexpr int64_t kBlock = 16 * 4 * kWidth<typename Row::A>;

// Out of line, so that it costs short rows no registers (15 % of a float32 backward at dim 64).
template <class Row>
SRMSNORM_TARGET __attribute__((noinline)) double reduce_blocks(Row row, int64_t dim) {
  double total = 0, lost = 0;
  for (int64_t i = 0; i < dim; i += kBlock<Row>) {
    double term = reduce_block(row, i, std::min(i + kBlock<Row>, dim));
    double next = total + term, taken = next - total;
    lost += (total - (next - taken)) + (term - taken);
    total = next;
  }
  return std::isfinite(lost) ? total + lost : total;  // an infinite total makes lost a NaN
}

template <class Row>
SRMSNORM_SIMD double reduce(const Row& row, int64_t dim) {
  return dim <= kBlock<Row> ? reduce_block(row, 0, dim) : reduce_blocks(row, dim);
}

template <int W, class Row>
SRMSNORM_SIMD void write_tail(const Row& row, int64_t i, int64_t end) {
  if (i + W <= end) {
    row.template write<W>(i);
    i += W;
  }
  if constexpr (W > 1) write_tail<W / 2>(row, i, end);
}

// Where a long row of two results starts to be written in whole vectors: at their alignment, since a store across two
// cache lines costs two (float32 forward with sum at dims 1001 and 3001: 0.8 of the time; backward, with one result,
// lost 30 % at 1001).
template <int W, class Row>
SRMSNORM_SIMD int64_t first_vector(const Row& row, int64_t dim) {
  if (!Row::kTwoResults || dim < 32 * W) return 0;
  int64_t past = reinterpret_cast<uintptr_t>(row.result()) / sizeof(*row.result()) % W;
  return past == 0 ? 0 : W - past;
}

template <class Row>
SRMSNORM_SIMD void write(const Row& row, int64_t dim) {
  constexpr int W = kWidth<typename Row::A>;
  int64_t i = first_vector<W>(row, dim);
  if (i > 0) write_tail<W / 2>(row, 0, i);
#pragma GCC unroll 4
  for (; i + W <= dim; i += W) row.template write<W>(i);
  if (i < dim) write_tail<W / 2>(row, i, dim);
}

template <class Row, class Args>
SRMSNORM_TARGET void sweep(const Args& args, int64_t first_row, int64_t last_row) {
  const auto space = args.space;  // a copy: what a row writes may not alias it
  const double per_element = 1.0 / space.dim;
  Row row(args);
  Args::zip([](Use, auto& cursor, const Rows& rows) { cursor.open(rows); }, row, args);
  while (first_row < last_row) {
    int64_t index[kMaxLevels], rest = first_row;
    for (int level = 0; level < space.levels; ++level) {
      index[level] = rest % space.sizes[level];
      rest /= space.sizes[level];
    }
    Args::zip([&](Use, auto& cursor) { cursor.seek(index, space.levels); }, row);
    auto run = std::min(last_row - first_row, space.sizes[0] - index[0]);
    for (first_row += run; run > 0; --run) {
      row.reduced(reduce(row, space.dim) * per_element);
      write(row, space.dim);
      Args::zip([](Use, auto& cursor) { cursor.next(); }, row);
    }
  }
}

// Calls f with an element type for each dtype.
template <class F>
auto with_type(DType dtype, F f) {
  switch (dtype) {
    case DType::Half:
      return f(Half());
    case DType::BFloat16:
      return f(BFloat16());
    case DType::Float:
      return f(float());
    case DType::Double:
      return f(double());
  }
  __builtin_unreachable();
}

// The same for an operand that is absent, T, or float beside a T of 16 bits.
template <class T, class F>
auto with_type_beside(const Rows& rows, DType dtype, F f) {
  if (!rows.data) return f(Absent());
  if constexpr (kIs16Bit<T>) {
    if (rows.dtype != dtype) return f(float());
  }
  return f(T());
}

Sweep<ForwardArgs> select_forward(const ForwardArgs& args) {
  return with_type(args.input.dtype, [&]<class T>(T) {
    return with_type_beside<T>(args.residual, args.input.dtype, [&]<class R>(R) -> Sweep<ForwardArgs> {
      if (kPresent<R> && args.sum.data) return sweep<Forward<T, R, R>>;
      return sweep<Forward<T, R, Absent>>;
    });
  });
}

Sweep<BackwardArgs> select_backward(const BackwardArgs& args) {
  return with_type(args.output.dtype, [&]<class T>(T) {
    return with_type_beside<T>(args.grad_sum, args.output.dtype, [&]<class G>(G) {
      return with_type_beside<T>(args.grad_residual, args.output.dtype, [&]<class R>(R) -> Sweep<BackwardArgs> {
        if constexpr (kPresent<R>) {
          if (!args.grad_input.data) return sweep<Backward<T, G, Absent, R>>;
        }
        return sweep<Backward<T, G, T, R>>;
      });
    });
  });
}

}  // namespace
}  // namespace srmsnorm::cpu
