// The sweep over rows: one reduction, then one write, for forward and backward alike. Compiled once per instruction
// set, as vector.h says.
#pragma once
#include <algorithm>
#include <cmath>

#include "gated.h"
#include "instruction_sets.h"
#include "quantized.h"
#include "rows.h"

namespace srmsnorm::cpu {
namespace {

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
  if constexpr (Row::kTwoResults) {
    int64_t past = reinterpret_cast<uintptr_t>(row.result()) / sizeof(*row.result()) % W;
    return past == 0 || dim < 32 * W ? 0 : W - past;
  } else {
    return 0;
  }
}

template <class Row>
SRMSNORM_SIMD void write(const Row& row, int64_t i, int64_t end) {
  constexpr int W = kWidth<typename Row::A>;
#pragma GCC unroll 4
  for (; i + W <= end; i += W) row.template write<W>(i);
  if (i < end) write_tail<W / 2>(row, i, end);
}

// The dtype is asked for once a row. By each vector, rstd alone at dim 128 took 1.4 to 2.3 times as long, float32 y of
// bfloat16 up to 1.36 times as long as torch.compile's code.
template <class Row>
SRMSNORM_SIMD void write_typed(const Row& row, int64_t dim) {
  if (!row.any()) return write(Typed<Row, Absent>{row}, 0, dim);
  with_type<Half, BFloat16>(row.any().rows->dtype, [&]<class T>(T) SRMSNORM_TARGET {
    if constexpr (std::is_same_v<Accumulator<T>, typename Row::A>) write(Typed<Row, T>{row}, 0, dim);
  });
}

template <class Row>
SRMSNORM_SIMD void write(const Row& row, int64_t dim) {
  constexpr int W = kWidth<typename Row::A>;
  if constexpr (requires { row.any(); }) {
    write_typed(row, dim);
  } else {
    int64_t i = first_vector<W>(row, dim);
    if (i > 0) write_tail<W / 2>(row, 0, i);
    write(row, i, dim);
  }
}

// The elements of one scale after those of the other.
template <class T, class Residual, class Sum>
SRMSNORM_SIMD void write(QuantizedRow<T, Residual, Sum>& row, int64_t dim) {
  int64_t count = row.elements_of_a_scale(dim), group = 0;
  for (int64_t i = 0; i < dim; i += count, ++group) {
    int32_t most = row.quantization.given ? 0 : largest_magnitude<kWidth<float>>(row, i, i + count);
    row.open_scale(bit_cast<float>(most), group);
    write(row, i, i + count);
  }
}

template <class Row>
constexpr bool kReduces = requires(Row row) { row.reduced(0.); };

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
      if constexpr (kReduces<Row>) row.reduced(reduce(row, space.dim) * per_element);
      write(row, space.dim);
      Args::zip([](Use, auto& cursor) { cursor.next(); }, row);
    }
  }
}

// Calls f with an element of an operand that is absent, T, or float beside a T of 16 bits.
template <class T, class F>
auto with_type_beside(const Rows& rows, DType dtype, F f) {
  if (!rows.data) return f(Absent());
  if constexpr (kIs16Bit<T>) {
    if (rows.dtype != dtype) return f(float());
  }
  return f(T());
}

Sweep<ForwardArgs> select(const ForwardArgs& args) {
  return with_type<Half, BFloat16>(args.main().dtype, [&]<class T>(T) {
    return with_type_beside<T>(args.residual, args.input.dtype, [&]<class R>(R) -> Sweep<ForwardArgs> {
      using A = Accumulator<T>;
      if (args.scale.data) return sweep<Scaled<Source<T, R>>>;
      if (!args.output.data || args.output.dtype != args.input.dtype) {
        if (kPresent<R> && args.sum.data) return sweep<Forward<Source<T, R>, Converted<R, A>>>;
        return sweep<Forward<Source<T, R>, Converted<Absent, A>>>;
      }
      if (kPresent<R> && args.sum.data) return sweep<Forward<Source<T, R>, Normalized<T, R>>>;
      return sweep<Forward<Source<T, R>, Normalized<T, Absent>>>;
    });
  });
}

Sweep<BackwardArgs> select(const BackwardArgs& args) {
  return with_type<Half, BFloat16>(args.main().dtype, [&]<class T>(T) {
    return with_type_beside<T>(args.grad_sum, args.output.dtype, [&]<class G>(G) {
      return with_type_beside<T>(args.grad_residual, args.output.dtype, [&]<class R>(R) -> Sweep<BackwardArgs> {
        if constexpr (kPresent<R>) {
          if (!args.grad_input.data) return sweep<Backward<T, G, Absent, R>>;
        }
        if constexpr (std::is_same_v<T, float>)
          if (args.grad_input.dtype != args.output.dtype) return sweep<Backward<T, G, AnyElement, R>>;
        return sweep<Backward<T, G, T, R>>;
      });
    });
  });
}

Sweep<WideBackwardArgs> select(const WideBackwardArgs& args) {
  return with_type<Half, BFloat16>(args.main().dtype, []<class T>(T) -> Sweep<WideBackwardArgs> {
    if constexpr (kIs16Bit<T>) return sweep<WideBackward<T>>;
    return nullptr;
  });
}

// Of the input's type and the gate's.
template <template <class, class> class Row, class Args>
Sweep<Args> select_gated(const Args& args) {
  return with_type<Half, BFloat16>(args.main().dtype, [&]<class T>(T) {
    return with_type_beside<T>(args.gate, args.main().dtype, []<class G>(G) -> Sweep<Args> {
      if constexpr (kPresent<G>) return sweep<Row<T, G>>;
      return nullptr;
    });
  });
}

Sweep<GatedForwardArgs> select(const GatedForwardArgs& args) { return select_gated<GatedForward>(args); }
Sweep<GatedBackwardArgs> select(const GatedBackwardArgs& args) { return select_gated<GatedBackward>(args); }

Sweep<QuantizedArgs> select(const QuantizedArgs& args) {
  return with_type<Half, BFloat16>(args.main().dtype, [&]<class T>(T) {
    return with_type_beside<T>(args.residual, args.main().dtype, [&]<class R>(R) -> Sweep<QuantizedArgs> {
      if constexpr (std::is_same_v<T, double>) {
        return nullptr;
      } else {
        if (kPresent<R> && args.sum.data) return sweep<QuantizedRow<T, R, R>>;
        return sweep<QuantizedRow<T, R, Absent>>;
      }
    });
  });
}

template <class... Args>
constexpr std::tuple<Select<Args>...> selects(std::tuple<Select<Args>...>*) {
  return {static_cast<Select<Args>>(select)...};
}

constexpr Sweeps kSweeps = selects(static_cast<Sweeps*>(nullptr));

}  // namespace
}  // namespace srmsnorm::cpu
