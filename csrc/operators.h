// The operators, in one table: a row is a name, a schema and its C++ signature. What is said of every operator expands
// from it: schemas, handles (ops.h), registration by key, the stubs of a build without CUDA, vmap's and nested tensors'
// rules, the Python face.
#pragma once

// By family. outer: what users call; inner: what gradients go through, called by the others where one may be asked for.
// clang-format off
#define SRMSNORM_NORM_OPERATORS(outer, inner) \
  outer(srms_norm, \
        "(Tensor input, Tensor? residual=None, *, float? eps=None, str? dtype=None) -> Tensor", \
        Tensor(const Tensor&, const MaybeTensor&, MaybeDouble, MaybeName)) \
  outer(add_srms_norm, \
        "(Tensor input, Tensor residual, *, float? eps=None, str? dtype=None) -> (Tensor, Tensor)", \
        std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, MaybeDouble, MaybeName)) \
  outer(add_srms_norm_, \
        "(Tensor(a!) input, Tensor(b!) residual, *, float? eps=None) -> ()", \
        void(const Tensor&, const Tensor&, MaybeDouble)) \
  inner(_srms_norm, \
        "(Tensor input, Tensor? residual, float? eps, *, str? dtype=None) -> (Tensor output, Tensor rstd)", \
        std::tuple<Tensor, Tensor>(const Tensor&, const MaybeTensor&, MaybeDouble, MaybeName)) \
  inner(_add_srms_norm, \
        "(Tensor input, Tensor residual, float? eps, *, str? dtype=None) " \
        "-> (Tensor output, Tensor sum, Tensor rstd)", \
        std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, MaybeDouble, MaybeName)) \
  inner(_srms_norm_backward_input, \
        "(Tensor grad_output, Tensor output, Tensor rstd, Tensor? grad_sum=None, *, str? dtype=None) -> Tensor", \
        Tensor(const Tensor&, const Tensor&, const Tensor&, const MaybeTensor&, MaybeName)) \
  inner(_srms_norm_backward_residual, \
        "(Tensor grad_output, Tensor output, Tensor rstd, Tensor? grad_sum=None) -> Tensor", \
        Tensor(const Tensor&, const Tensor&, const Tensor&, const MaybeTensor&)) \
  inner(_srms_norm_backward_pair, \
        "(Tensor grad_output, Tensor output, Tensor rstd, Tensor? grad_sum=None, *, str? dtype=None) " \
        "-> (Tensor grad_input, Tensor grad_residual)", \
        std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const MaybeTensor&, MaybeName)) \
  inner(_srms_norm_backward_of_input, \
        "(Tensor grad_output, Tensor input, Tensor rstd) -> Tensor", \
        Tensor(const Tensor&, const Tensor&, const Tensor&))

#define SRMSNORM_RSTD_OPERATORS(outer, inner) \
  outer(rstd, \
        "(Tensor input, Tensor? residual=None, *, float? eps=None) -> Tensor", \
        Tensor(const Tensor&, const MaybeTensor&, MaybeDouble)) \
  inner(_scale_rows, \
        "(Tensor input, Tensor? residual, Tensor scale, Tensor? factor=None, *, str? dtype=None) -> Tensor", \
        Tensor(const Tensor&, const MaybeTensor&, const Tensor&, const MaybeTensor&, MaybeName))

#define SRMSNORM_GATED_OPERATORS(outer, inner) \
  outer(gated_srms_norm, \
        "(Tensor input, Tensor gate, *, str? activation=None, bool norm_before_gate=True, float? eps=None) " \
        "-> Tensor", \
        Tensor(const Tensor&, const Tensor&, MaybeName, bool, MaybeDouble)) \
  inner(_gated_srms_norm, \
        "(Tensor input, Tensor gate, *, str? activation=None, bool norm_before_gate=True, float? eps=None) " \
        "-> (Tensor output, Tensor rstd)", \
        std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, MaybeName, bool, MaybeDouble)) \
  inner(_gated_srms_norm_backward, \
        "(Tensor grad_output, Tensor input, Tensor gate, Tensor rstd, *, str? activation=None, " \
        "bool norm_before_gate=True) -> (Tensor grad_input, Tensor grad_gate)", \
        std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&, MaybeName, bool)) \
  inner(_gated_srms_norm_backward_input, \
        "(Tensor grad_output, Tensor input, Tensor gate, Tensor rstd, *, str? activation=None, " \
        "bool norm_before_gate=True) -> Tensor", \
        Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, MaybeName, bool)) \
  inner(_gated_srms_norm_backward_gate, \
        "(Tensor grad_output, Tensor input, Tensor gate, Tensor rstd, *, str? activation=None, " \
        "bool norm_before_gate=True) -> Tensor", \
        Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, MaybeName, bool))

// The scale: a tensor, a number, a name ("bound"), or none of them.
#define SRMSNORM_QUANTIZATION \
  "str dtype=\"float8_e4m3fn\", float? scale_value=None, str? scale_name=None, int? group_size=None, " \
  "bool power_of_two=False, float? scale_ub=None, float? eps=None"
#define SRMSNORM_QUANTIZATION_TYPES \
  c10::string_view, MaybeDouble, MaybeName, MaybeInt, bool, MaybeDouble, MaybeDouble

#define SRMSNORM_QUANTIZED_OPERATORS(outer, inner) \
  outer(srms_norm_quantized, \
        "(Tensor input, Tensor? residual=None, Tensor? scale=None, *, " SRMSNORM_QUANTIZATION ") " \
        "-> (Tensor output, Tensor scale_used)", \
        std::tuple<Tensor, Tensor>(const Tensor&, const MaybeTensor&, const MaybeTensor&, \
                                   SRMSNORM_QUANTIZATION_TYPES)) \
  outer(add_srms_norm_quantized, \
        "(Tensor input, Tensor residual, Tensor? scale=None, *, " SRMSNORM_QUANTIZATION ") " \
        "-> (Tensor output, Tensor scale_used, Tensor sum)", \
        std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const MaybeTensor&, \
                                           SRMSNORM_QUANTIZATION_TYPES)) \
  outer(add_srms_norm_quantized_, \
        "(Tensor input, Tensor(a!) residual, Tensor? scale=None, *, " SRMSNORM_QUANTIZATION ") " \
        "-> (Tensor output, Tensor scale_used)", \
        std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const MaybeTensor&, SRMSNORM_QUANTIZATION_TYPES))

#define SRMSNORM_UNQUANTIZED_OPERATORS(outer, inner) \
  SRMSNORM_NORM_OPERATORS(outer, inner) \
  SRMSNORM_RSTD_OPERATORS(outer, inner) \
  SRMSNORM_GATED_OPERATORS(outer, inner)
#define SRMSNORM_OPERATORS(outer, inner) \
  SRMSNORM_UNQUANTIZED_OPERATORS(outer, inner) \
  SRMSNORM_QUANTIZED_OPERATORS(outer, inner)
// clang-format on

#define SRMSNORM_NO_ROW(...)
#define SRMSNORM_EVERY_OPERATOR(row) SRMSNORM_OPERATORS(row, row)
#define SRMSNORM_PUBLIC_OPERATORS(row) SRMSNORM_OPERATORS(row, SRMSNORM_NO_ROW)
