// The operands of each direction, in one list by name. What a call holds of each (a tensor, raw rows, an argument of a
// kernel) and what is asked of all of them (layouts, alignment, the bytes that a row moves) follow from these lists. No
// torch, no device code.
#pragma once
#include <cstdint>

namespace srmsnorm {

struct Use {
  bool written, whole_row;  // else read; else one number a row
  bool late = false;        // what the reduction does not need of what is read
};

constexpr Use kRead{false, true}, kReadLate{false, true, true}, kWritten{true, true};
constexpr Use kNumberRead{false, false}, kNumberWritten{true, false};

// A list is a macro of rows: operand(use, name), and result(use, name, the operand that it is like: in shape, in the
// order of its dimensions, and unless the operator has another one, in dtype; a number a row is like its rows). Made of
// it is list##Operands, an Each by the name of every row, in that order. main: the operand of a call's shape and dtype,
// whose address decides how a row is cut.
// clang-format off
#define SRMSNORM_LIST(list, main_operand, options, backward, gated, rows) \
  template <class Each>                                                   \
  struct list##Operands {                                                 \
    using Options = options;                                              \
    static constexpr bool kBackward = backward, kGated = gated;           \
    rows(SRMSNORM_MEMBER, SRMSNORM_MEMBER)                                \
                                                                          \
    constexpr const Each& main() const { return main_operand; }           \
                                                                          \
    /* f(use, its members of that name ...) for every operand. */         \
    template <class F, class... Lists>                                    \
    static constexpr void zip(F f, Lists&... of) {                        \
      rows(SRMSNORM_ZIPPED, SRMSNORM_ZIPPED)                              \
    }                                                                     \
                                                                          \
    /* f(use, result, what it is like) for every result. */               \
    template <class F, class List>                                        \
    static constexpr void each_result(F f, List& of) {                    \
      rows(SRMSNORM_NO_RESULT, SRMSNORM_RESULT)                           \
    }                                                                     \
  };
#define SRMSNORM_MEMBER(use, name, ...) Each name;
#define SRMSNORM_ZIPPED(use, name, ...) f(use, of.name...);
#define SRMSNORM_RESULT(use, name, like) f(use, of.name, of.like);
#define SRMSNORM_NO_RESULT(use, name)

// What a call is given beside its operands: the Options of a list.
struct NoOptions {};

struct Epsilon {
  double eps = 0;
};

// h = input (+ residual), rstd = (mean(h^2) + eps)^-1/2, output = h * rstd, sum = h. Where a scale is given, output = h
// * scale (* factor), and nothing is reduced.
//
// Accumulation in double for double, in float for the rest: the dtype of rstd, scale and factor. residual and sum share
// a dtype: input's, or float beside a 16-bit input. output has any, but double beside double and there alone. Absent
// may be: residual, sum (and is without a residual), rstd, output where rstd is not, scale and factor. In place, output
// is input and sum is residual, stride by stride; other operands do not overlap what is written.
#define SRMSNORM_FORWARD(operand, result) \
  operand(kRead, input) operand(kRead, residual) \
  result(kWritten, output, input) result(kWritten, sum, residual) result(kNumberWritten, rstd, input) \
  operand(kNumberRead, scale) operand(kNumberRead, factor)
SRMSNORM_LIST(Forward, input, Epsilon, false, false, SRMSNORM_FORWARD)

// dh = rstd * (grad_output - output * mean(output * grad_output)) + grad_sum; the gradients are dh.
//
// Each gradient is rounded once to its own dtype. grad_output and output share a dtype; grad_sum has that one, or float
// beside 16 bits; grad_input has that one, or 16 bits beside float; grad_residual is float where another has 16 bits.
// Absent may be: grad_sum, and one of the gradients.
#define SRMSNORM_BACKWARD(operand, result) \
  operand(kRead, grad_output) operand(kRead, output) operand(kNumberRead, rstd) operand(kReadLate, grad_sum) \
  result(kWritten, grad_input, output) result(kWritten, grad_residual, output)
SRMSNORM_LIST(Backward, output, NoOptions, true, false, SRMSNORM_BACKWARD)

// dh of an output wider than the input, of which the input is kept: output = input * rstd.
//
// grad_output is float, input and grad_input have 16 bits.
#define SRMSNORM_WIDE_BACKWARD(operand, result) \
  operand(kRead, grad_output) operand(kRead, input) operand(kNumberRead, rstd) \
  result(kWritten, grad_input, input)
SRMSNORM_LIST(WideBackward, input, NoOptions, true, false, SRMSNORM_WIDE_BACKWARD)

enum class Activation : int8_t { None, SiLU, Sigmoid };

// a = activation(gate) multiplies what is normalized already, or else what is to be.
struct Gating {
  Activation activation = Activation::None;
  bool norm_first = true;
};

struct GatedOptions {
  double eps = 0;  // of forward
  Gating gating;
};

// output = input * rstd * a, rstd of input; or h = input * a, output = h * rstd, rstd of h.
//
// Accumulation as in forward. output has the dtype of input; gate that, or float beside 16 bits. Absent may be rstd.
#define SRMSNORM_GATED_FORWARD(operand, result) \
  operand(kRead, input) operand(kRead, gate) \
  result(kWritten, output, input) result(kNumberWritten, rstd, input)
SRMSNORM_LIST(GatedForward, input, GatedOptions, false, true, SRMSNORM_GATED_FORWARD)

// Of which the input is kept, not the output.
//
// grad_output and grad_input have the dtype of input, grad_gate that of gate: input's, or float beside 16 bits. Absent
// may be one of the gradients.
#define SRMSNORM_GATED_BACKWARD(operand, result) \
  operand(kRead, grad_output) operand(kRead, input) operand(kRead, gate) operand(kNumberRead, rstd) \
  result(kWritten, grad_input, input) result(kWritten, grad_gate, gate)
SRMSNORM_LIST(GatedBackward, input, GatedOptions, true, true, SRMSNORM_GATED_BACKWARD)

// What a result of a byte is.
enum class Quantized : int8_t { Float8E4M3, Float8E5M2, Int8 };

constexpr float largest(Quantized type) {
  return type == Quantized::Float8E4M3 ? 448 : type == Quantized::Float8E5M2 ? 57344 : 127;
}

// How y becomes bytes, and which scale that takes: q = y * (1 / scale) where one is given; else q = y / scale, scale =
// max(min(largest |y|, upper) / most, least) of a row or a group of its elements.
struct Quantization {
  Quantized type = Quantized::Float8E4M3;
  bool given = false, one_for_all = false;  // given as a number or an operand; which is one element
  bool power_of_two = false;                // else rounded up to one
  bool normalized = false;                  // y is the input
  int group = 0;                            // elements; 0: the row, as where it is as long
  float value = 1, upper = 0;               // value: the number given
  float most, inverse_of_most, least;       // of the type
  int64_t group_stride = 0;                 // from a group's scale to the next one's, in elements

  constexpr Quantization(Quantized type = Quantized::Float8E4M3)
      : type(type),
        most(largest(type)),
        inverse_of_most(1 / most),
        least(type == Quantized::Int8 ? 0x1p-23f : 1 / (512 * most)) {}
};

struct QuantizedOptions {
  double eps = 0;
  Quantization quantization;
};

// As forward; y is rounded to the input's dtype, and written as bytes with the scales that give it back. given: a scale
// for every row. scale: one or several a row.
//
// output is of bytes, by rows without gaps; the other operands as in forward, but that nothing is of double. Absent may
// be: residual, sum (in place it is residual), given, and scale where it is given.
#define SRMSNORM_QUANTIZED(operand, result) \
  operand(kRead, input) operand(kRead, residual) operand(kNumberRead, given) \
  result(kWritten, output, input) result(kWritten, sum, residual) result(kNumberWritten, scale, input)
SRMSNORM_LIST(Quantized, input, QuantizedOptions, false, false, SRMSNORM_QUANTIZED)
// clang-format on

#undef SRMSNORM_MEMBER
#undef SRMSNORM_ZIPPED
#undef SRMSNORM_RESULT
#undef SRMSNORM_NO_RESULT

// The lists, in one table by name. The arguments of a backend, its sweeps and its launchers follow from it.
#define SRMSNORM_EVERY_LIST(row) \
  row(Forward) row(Backward) row(WideBackward) row(GatedForward) row(GatedBackward) row(Quantized)

template <class Operands>
constexpr int operand_count(bool results = true) {
  int count = 0;
  Operands::zip([&](Use use) { count += results || !use.written; });
  return count;
}

}  // namespace srmsnorm
