// Quantised results: what a call of these operators is given, its checks and its outputs.
#pragma once
#include "ops.h"

namespace srmsnorm {

// The operators' arguments that are no tensors.
struct QuantizationOptions {
  c10::string_view dtype;
  MaybeDouble scale_value;
  MaybeName scale_name;
  MaybeInt group_size;
  bool power_of_two;
  MaybeDouble scale_ub, eps;
};

// The scale that was given, for those who do not write it with the rows.
void write_given_scale(const QuantizedTensors& t);

at::ScalarType dtype_of(Quantized type);

// Residual: a tensor, or maybe one. Each checks all arguments; eps as it is used.
template <class Residual>
double check_quantized(const Tensor& input, const Residual& residual, const MaybeTensor& scale,
                       const QuantizationOptions& options);
double check_quantized_in_place(const Tensor& input, const Tensor& residual, const MaybeTensor& scale,
                                const QuantizationOptions& options);

template <class Residual>
QuantizedTensors prepare_quantized(const Tensor& input, const Residual& residual, const MaybeTensor& scale,
                                   const QuantizationOptions& options, bool sum);
// The residual becomes the sum. A lazily negated one is resolved into a copy, which finish_quantized_in_place brings
// back.
QuantizedTensors prepare_quantized_in_place(const Tensor& input, const Tensor& residual, const MaybeTensor& scale,
                                            const QuantizationOptions& options);
void finish_quantized_in_place(const QuantizedTensors& done, const Tensor& residual);

}  // namespace srmsnorm
