// x86-64 with AVX2, FMA and F16C.
#if defined(__x86_64__)
#define SRMSNORM_TARGET __attribute__((target("avx2,fma,f16c")))
#define SRMSNORM_VECTOR_BYTES 32
#include "sweep.h"

namespace srmsnorm::cpu {
const Sweeps kAvx2 = kSweeps;
}
#endif
