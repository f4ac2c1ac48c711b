// The activation of a gate and its slope.
#pragma once
#include "../operands.h"
#include "convert.cuh"

namespace srmsnorm {

// e^-g for g >= 0. Of 16 bits, by the hardware's approximation: 2 ulp of float are nothing there.
template <class Gate>
__device__ __forceinline__ float falling_exponential(float g) {
  return kIs16Bit<Gate> ? __expf(-g) : expf(-g);
}

// Once in a kernel, as it is long.
template <class Gate>
__device__ __noinline__ double falling_exponential(double g) {
  return exp(-g);
}

// Of 1 to 2: the hardware's, which errs by an ulp, and for what is not rounded to 16 bits a step of Newton's method.
template <class Gate>
__device__ __forceinline__ float reciprocal(float x) {
  float r = __fdividef(1, x);
  return kIs16Bit<Gate> ? r : fmaf(r, fmaf(-x, r, 1), r);
}

template <class Gate>
__device__ __forceinline__ double reciprocal(double x) {
  return 1 / x;
}

template <class A>
struct Activated {
  A value, slope;
};

// Gate: the type that it has in memory. By an exponential that cannot overflow; s (1 - s) would lose what 1 - s loses.
// Chosen by selects, as a branch for each activation is three times the code.
template <class Gate, class A>
__device__ __forceinline__ Activated<A> activated(A g, Activation activation) {
  bool none = activation == Activation::None, linear = activation != Activation::Sigmoid;
  A e = falling_exponential<Gate>(fabs(g)), p = reciprocal<Gate>(1 + e);
  A s = none ? 1 : g > 0 ? p : e * p, of_s = e * p * p, factor = linear ? g : 1;
  return {factor * s, none ? 1 : fma(factor, of_s, linear ? s : 0)};
}

}  // namespace srmsnorm
