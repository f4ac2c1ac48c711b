// What a file per instruction set offers: for the operands of a call, the function that sweeps over its rows.
#pragma once
#include <tuple>

#include "../row_args.h"

namespace srmsnorm::cpu {

template <class Args>
using Sweep = void (*)(const Args& args, int64_t first_row, int64_t last_row);

template <class Args>
using Select = Sweep<Args> (*)(const Args&);

using Sweeps = EveryCall<Select>;

extern const Sweeps kPortable;
#if defined(__x86_64__)
extern const Sweeps kAvx2, kAvx512;
#endif

}  // namespace srmsnorm::cpu
