// Loads the operators into this process: from then on the dispatcher knows them by name.
#pragma once
#include <dlfcn.h>

#include <stdexcept>

inline void load_operators(const char* library) {
  if (!dlopen(library, RTLD_NOW | RTLD_GLOBAL)) throw std::runtime_error(dlerror());
}
