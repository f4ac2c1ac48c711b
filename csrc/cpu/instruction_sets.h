// What a file per instruction set offers: the function that sweeps over rows, for the operands of a call.
#pragma once
#include "../row_args.h"

namespace srmsnorm::cpu {

template <class Args>
using Sweep = void (*)(const Args& args, int64_t first_row, int64_t last_row);

struct Sweeps {
  Sweep<ForwardArgs> (*forward)(const ForwardArgs&);
  Sweep<BackwardArgs> (*backward)(const BackwardArgs&);
};

extern const Sweeps kPortable;
#if defined(__x86_64__)
extern const Sweeps kAvx2, kAvx512;
#endif

}  // namespace srmsnorm::cpu
