// Division of many elements by one number, in fewer instructions than a division takes. tests/division.cu has all
// mantissas of both, for elements of 16 bits.
#pragma once
#include "convert.cuh"

namespace srmsnorm {

// A quotient that is off by a last place, made the nearest one to a / b: inverse is 1 / b, correctly rounded
// (Markstein, 1990). By the negative rest, which keeps -0.
__device__ __forceinline__ float corrected(float quotient, float a, float b, float inverse) {
  return fmaf(fmaf(quotient, b, -a), -inverse, quotient);
}

// The approximation of the hardware and its error.
__device__ __forceinline__ float2 near_inverse(float b) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(b));
  return {r, fmaf(-b, r, 1.f)};
}

// What divides elements of T by a number of float, rounded as IEEE asks where no step leaves the range of normal
// numbers; an element so tiny that one does is 0 as a byte.
template <class T>
struct Divisor {
  float value, inverse;

  Divisor() = default;
  explicit __device__ __forceinline__ Divisor(float value) : value(value) {
    auto [r, error] = near_inverse(value);
    inverse = fmaf(r, error, r);
  }

  // Another lane's; by all lanes of the warp.
  __device__ __forceinline__ Divisor of_lane(int lane) const {
    Divisor other;
    other.value = __shfl_sync(~0u, value, lane);
    other.inverse = __shfl_sync(~0u, inverse, lane);
    return other;
  }

  __device__ __forceinline__ float divide(float a) const {
    float once = corrected(__fmul_rn(a, inverse), a, value, inverse);
    return corrected(once, a, value, inverse);
  }
};

// Of 16 bits: by the inverse in two parts, neither of which is negative, so that -0 stays. All of their mantissas with
// all of a divisor's show that what this rounds otherwise than IEEE is rounded to the same byte.
template <class T>
  requires kIs16Bit<T>
struct Divisor<T> {
  float value, inverse, rest;

  Divisor() = default;
  explicit __device__ __forceinline__ Divisor(float value) : value(value) {
    auto [r, near] = near_inverse(value);
    inverse = __fmaf_rd(r, near, r);
    float error = fmaf(-value, inverse, 1.f);
    rest = __fmul_rn(__fmaf_ru(error, error, error), inverse);
  }

  __device__ __forceinline__ Divisor of_lane(int lane) const {
    Divisor other;
    other.value = __shfl_sync(~0u, value, lane);
    other.inverse = __shfl_sync(~0u, inverse, lane);
    other.rest = __shfl_sync(~0u, rest, lane);
    return other;
  }

  __device__ __forceinline__ float divide(float a) const { return fmaf(a, inverse, __fmul_rn(a, rest)); }
};

}  // namespace srmsnorm
