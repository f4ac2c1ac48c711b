// The operators, in one table: a row is a name and a signature. What is said of every operator expands from it: handles
// (ops.h), registration by key, the stubs of a build without CUDA, vmap's and nested tensors' rules, the Python face.
// schemas.cpp has their schemas.
#pragma once

// By family. outer: what users call; inner: what gradients go through, called by the others where one may be asked for.
// clang-format off
#define SRMSNORM_NORM_OPERATORS(outer, inner) \
  outer(srms_norm, Tensor(const Tensor&, const MaybeTensor&, MaybeDouble)) \
  outer(add_srms_norm, std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, MaybeDouble)) \
  outer(add_srms_norm_, void(const Tensor&, const Tensor&, MaybeDouble)) \
  inner(_srms_norm, std::tuple<Tensor, Tensor>(const Tensor&, const MaybeTensor&, MaybeDouble)) \
  inner(_add_srms_norm, std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, MaybeDouble)) \
  inner(_srms_norm_backward_input, Tensor(const Tensor&, const Tensor&, const Tensor&, const MaybeTensor&)) \
  inner(_srms_norm_backward_residual, Tensor(const Tensor&, const Tensor&, const Tensor&, const MaybeTensor&)) \
  inner(_srms_norm_backward_pair, \
        std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const MaybeTensor&))

#define SRMSNORM_GATED_OPERATORS(outer, inner) \
  outer(gated_srms_norm, Tensor(const Tensor&, const Tensor&, MaybeName, bool, MaybeDouble)) \
  inner(_gated_srms_norm, std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, MaybeName, bool, MaybeDouble)) \
  inner(_gated_srms_norm_backward, \
        std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&, MaybeName, bool)) \
  inner(_gated_srms_norm_backward_input, \
        Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, MaybeName, bool)) \
  inner(_gated_srms_norm_backward_gate, \
        Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, MaybeName, bool))
// clang-format on

#define SRMSNORM_EVERY_OPERATOR(row) SRMSNORM_NORM_OPERATORS(row, row) SRMSNORM_GATED_OPERATORS(row, row)

#define SRMSNORM_NO_ROW(...)
#define SRMSNORM_PUBLIC_OPERATORS(row) \
  SRMSNORM_NORM_OPERATORS(row, SRMSNORM_NO_ROW) SRMSNORM_GATED_OPERATORS(row, SRMSNORM_NO_ROW)
