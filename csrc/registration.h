// Registering with the dispatcher, once in a process: where another copy of the library, of this version or another,
// has registered the operators, this one registers nothing. A second registration of a schema throws, and an exception
// out of a static initializer ends the process.
#pragma once
#include <torch/library.h>

namespace srmsnorm {

// Whether this copy is the one that registers. Hidden: a second copy must not find the first one's function.
__attribute__((visibility("hidden"))) bool registers();

}  // namespace srmsnorm

#define SRMSNORM_WHERE_IT_REGISTERS(kind, function, m) \
  static void function(torch::Library&);               \
  kind {                                               \
    if (::srmsnorm::registers()) function(m);          \
  }                                                    \
  static void function(torch::Library& m)

// Schemas: TORCH_LIBRARY, which throws as soon as it finds its namespace taken, as a fragment.
#define SRMSNORM_SCHEMAS(m) SRMSNORM_WHERE_IT_REGISTERS(TORCH_LIBRARY_FRAGMENT(srmsnorm, m), register_schemas, m)

// Kernels of a dispatch key.
#define SRMSNORM_KERNELS(key, m) SRMSNORM_WHERE_IT_REGISTERS(TORCH_LIBRARY_IMPL(srmsnorm, key, m), register_##key, m)

// A row of a table in operators.h: the function of the operator's name in this scope is its kernel, in a library m.
#define SRMSNORM_BY_ITS_NAME(name, ...) m.impl(#name, &name);
