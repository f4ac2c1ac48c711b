// x86-64 with the AVX-512 of servers since 2017.
#if defined(__x86_64__)
#define SRMSNORM_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#define SRMSNORM_VECTOR_BYTES 64
#include "sweep.h"

namespace srmsnorm::cpu {
const Sweeps kAvx512 = kSweeps;
}
#endif
