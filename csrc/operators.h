// The operators, in one table: a row is a name and a signature. What is said of every operator expands from it: handles
// (ops.h), registration by key, the stubs of a build without CUDA, vmap's and nested tensors' rules, the Python face.
// ops.cpp has their schemas.
#pragma once

// What users call.
#define SRMSNORM_PUBLIC_OPERATORS(row)                                                          \
  row(srms_norm, Tensor(const Tensor&, const MaybeTensor&, MaybeDouble))                        \
      row(add_srms_norm, std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, MaybeDouble)) \
          row(add_srms_norm_, void(const Tensor&, const Tensor&, MaybeDouble))

// What gradients go through: the public ones call them where a gradient may be asked for.
#define SRMSNORM_INTERNAL_OPERATORS(row)                                                                               \
  row(_srms_norm, std::tuple<Tensor, Tensor>(const Tensor&, const MaybeTensor&, MaybeDouble))                          \
      row(_add_srms_norm, std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, MaybeDouble))               \
          row(_srms_norm_backward_input, Tensor(const Tensor&, const Tensor&, const Tensor&, const MaybeTensor&)) row( \
              _srms_norm_backward_residual, Tensor(const Tensor&, const Tensor&, const Tensor&, const MaybeTensor&))   \
              row(_srms_norm_backward_pair,                                                                            \
                  std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const MaybeTensor&))

#define SRMSNORM_EVERY_OPERATOR(row) SRMSNORM_PUBLIC_OPERATORS(row) SRMSNORM_INTERNAL_OPERATORS(row)
