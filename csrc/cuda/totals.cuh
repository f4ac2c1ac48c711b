// What a row is reduced to: one number, or several, each with a zero, a sum and a way to another lane.
#pragma once

namespace srmsnorm {

__device__ __forceinline__ float from_lane_xor(float value, int lanes) { return __shfl_xor_sync(~0u, value, lanes); }
__device__ __forceinline__ double from_lane_xor(double value, int lanes) { return __shfl_xor_sync(~0u, value, lanes); }

__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double larger(double a, double b) { return fmax(a, b); }

// A sum, in the order that it has alone, and the largest of something that is not negative: what a scale of quantised
// results is made of. A NaN is the sum's alone.
template <class A>
struct SumAndLargest {
  A sum, largest;

  __device__ __forceinline__ SumAndLargest operator+(const SumAndLargest& other) const {
    return {sum + other.sum, larger(largest, other.largest)};
  }
  __device__ __forceinline__ SumAndLargest& operator+=(const SumAndLargest& other) { return *this = *this + other; }
};

template <class A>
__device__ __forceinline__ SumAndLargest<A> from_lane_xor(SumAndLargest<A> value, int lanes) {
  return {from_lane_xor(value.sum, lanes), from_lane_xor(value.largest, lanes)};
}

}  // namespace srmsnorm
