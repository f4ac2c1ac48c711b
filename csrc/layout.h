// Tensors seen as rows: leading dimensions merged as far as all operands of a call allow.
#pragma once
#include <c10/util/ArrayRef.h>
#include <c10/util/FunctionRef.h>

#include <array>

#include "ops.h"

namespace srmsnorm {

// An operand: as a tensor, and as rows, whose strides are found.
struct TensorRows {
  const Tensor* tensor;
  Rows* rows;
};

constexpr size_t kMaxOperands = 8;

DType to_dtype(at::ScalarType dtype);
Rows rows_of(const Tensor& tensor, Use use);

// Calls launch for all rows of tensors of that shape, with the rows' pointers and strides set for each call.
void for_each_block(RowSpace& space, c10::ArrayRef<TensorRows> operands, const Tensor& shape,
                    c10::function_ref<void()> launch);

// Calls launch with the arguments of the whole call, in one piece but for operands with more leading dimensions that do
// not merge than kMaxLevels, or with 2^31 rows or more in several: what is left is looped over from outside.
template <class Tensors, class Launch>
void over_rows(const Tensors& tensors, Launch launch) {
  if (tensors.main().numel() == 0) return;
  typename Tensors::Args args;
  static_cast<typename Tensors::Options&>(args) = tensors;
  // What is written comes first: in place, a copy-on-write storage must be its own before its address is read.
  for (bool written : {true, false})
    Tensors::zip(
        [&](Use use, const Tensor& tensor, Rows& rows) {
          if (tensor.defined() && use.written == written) rows = rows_of(tensor, use);
        },
        tensors, args);
  std::array<TensorRows, operand_count<Tensors>()> operands;
  static_assert(operands.size() <= kMaxOperands);
  auto next = operands.begin();
  Tensors::zip([&](Use, const Tensor& tensor, Rows& rows) { *next++ = {&tensor, &rows}; }, tensors, args);
  for_each_block(args.space, operands, tensors.main(), [&] { launch(std::as_const(args)); });
}

}  // namespace srmsnorm
