// Any processor: vectors of 16 bytes, which the compiler maps to what there is (SSE2, NEON) or to scalars.
#define SRMSNORM_TARGET
#define SRMSNORM_VECTOR_BYTES 16
#include "sweep.h"

namespace srmsnorm::cpu {
const Sweeps kPortable = kSweeps;
}
