// Division of indices by one number, in two instructions.
#pragma once
#include <cstdint>

namespace srmsnorm {

// By a number of 2 to 2^31 - 1, of indices of 31 bits, for which a multiplication by 32 bits of its reciprocal is exact
// (Granlund and Montgomery, 1994).
struct IndexDivisor {
  uint32_t reciprocal = 0;  // 2^(32 + shift) / number, rounded up
  int shift = 0;            // the number is more than 2^shift, and no more than twice as much

  constexpr IndexDivisor() = default;
  constexpr explicit IndexDivisor(uint32_t number) {
    while (uint64_t{2} << shift < number) shift++;
    reciprocal = static_cast<uint32_t>(((uint64_t{1} << (32 + shift)) + number - 1) / number);
  }

  __host__ __device__ constexpr uint32_t quotient(uint32_t index) const {
    return static_cast<uint32_t>(uint64_t{index} * reciprocal >> 32) >> shift;
  }
};

}  // namespace srmsnorm
