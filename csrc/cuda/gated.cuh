// The gated norm: the activation of a gate and its slope, the source that has the gate beside the input, and backward.
#pragma once
#include "beside.cuh"
#include "convert.cuh"

namespace srmsnorm {

__device__ __forceinline__ float approximate_exp2(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

__device__ __forceinline__ float approximate_reciprocal(float x) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
  return inverse;
}

// Once in a kernel, as it is long.
__device__ __noinline__ double exponential(double x) { return exp(x); }

// 1 / (1 + e^-g) and what it is short of 1. s (1 - s) would lose what 1 - s loses.
template <class A>
struct Sigmoid {
  A value, rest;
};

// Rounded: what is made of it in the end. By an exponential that cannot overflow.
template <class Rounded>
__device__ __forceinline__ Sigmoid<float> sigmoid(float g) {
  float e = expf(-fabsf(g)), q = 1 + e, p = approximate_reciprocal(q);
  p = fmaf(p, fmaf(-q, p, 1.f), p);  // a step of Newton's method: the hardware's errs by an ulp
  return g > 0 ? Sigmoid<float>{p, e * p} : Sigmoid<float>{e * p, p};
}

// By the hardware's approximations alone, as 2 ulp of float are nothing in 16 bits. Below -87.3, where it would be
// subnormal, it is 0.
template <class Rounded>
  requires kIs16Bit<Rounded>
__device__ __forceinline__ Sigmoid<float> sigmoid(float g) {
  float e = approximate_exp2(-1.44269504f * g), s = approximate_reciprocal(1 + e);
  return {s, fminf(e, 0x1p126f) * s};
}

template <class Rounded>
__device__ __forceinline__ Sigmoid<double> sigmoid(double g) {
  double e = exponential(-fabs(g)), p = 1 / (1 + e);
  return g > 0 ? Sigmoid<double>{p, e * p} : Sigmoid<double>{e * p, p};
}

// Gates to their activations. A branch for all of them, so that none costs nothing.
template <class Rounded, class A, int N>
__device__ __forceinline__ void activate(A (&gate)[N], Activation activation) {
  if (activation == Activation::None) return;
  bool linear = activation == Activation::SiLU;
#pragma unroll
  for (int i = 0; i < N; i++) {
    A s = sigmoid<Rounded>(gate[i]).value;
    gate[i] = linear ? gate[i] * s : s;
  }
}

// And the slopes there.
template <class Rounded, class A, int N>
__device__ __forceinline__ void activate(A (&gate)[N], A (&slope)[N], Activation activation) {
  if (activation == Activation::None) {
#pragma unroll
    for (int i = 0; i < N; i++) slope[i] = 1;
    return;
  }
  bool linear = activation == Activation::SiLU;
#pragma unroll
  for (int i = 0; i < N; i++) {
    auto [s, rest] = sigmoid<Rounded>(gate[i]);
    A factor = linear ? gate[i] : 1;
    slope[i] = fma(factor, s * rest, linear ? s : 0);
    gate[i] = factor * s;
  }
}

// h = input, and y is multiplied by a; or h = input * a. G: the gate's type.
template <class T, class G>
struct GatedSource : SourceBeside<T, G, GatedForwardOperands> {
  using Base = SourceBeside<T, G, GatedForwardOperands>;
  using typename Base::Accumulator;
  template <class Args>
  using OwnArgs = GatedArgs<Args>;
  static constexpr bool kCombines = true;  // the gate to a: made twice, it takes more time than the memory (dim 6144
                                           // 0.77 of the roof for 0.91, the gate first)

  template <int N, bool shifted, bool first>
  struct Held : Base::template Held<N, shifted, first> {
    Accumulator a[N];
  };

  Gating gating;

  template <class Args>
  __device__ __forceinline__ GatedSource(const Args& args, int64_t row) : Base(args, row), gating(args.gating) {}

  template <int N, bool shifted, bool first>
  __device__ __forceinline__ void combine(Held<N, shifted, first>& held) const {
    held.gate.widened(held.a);
    activate<T>(held.a, gating.activation);
  }

  template <int N, bool shifted, bool first, class F>
  __device__ __forceinline__ auto for_reduction(const Held<N, shifted, first>& held, F f) const {
    return Base::for_reduction(held, [&](auto& h) {
      if (!gating.norm_first) {
#pragma unroll
        for (int i = 0; i < N; i++) h[i] *= held.a[i];
      }
      return f(h);
    });
  }

  template <class Held, class F>
  __device__ __forceinline__ void for_result(const Held& held, F f) const {
    for_reduction(held, [&](const auto& h) {
      f(h, [&]<int N>(Accumulator(&y)[N]) {
        if (!gating.norm_first) return;
#pragma unroll
        for (int i = 0; i < N; i++) y[i] *= held.a[i];
      });
    });
  }
};

template <class T, class G>
using GatedForward = ForwardOp<GatedSource<T, G>, Normalized<GatedSource<T, G>>>;

struct HasGating {
  Gating gating;
};

// With y = x r:  dx = r (a g - y mean(y a g)), dgate = g y a'. With t = x a, z = t r:  dt = r (g - z mean(z g)), dx =
// dt a, dgate = dt x a'. Each rounded once to its own type.
template <class T, class G>
struct GatedBackward : HasGating, BackwardBeside<T, G, GatedBackwardOperands> {
  using Base = BackwardBeside<T, G, GatedBackwardOperands>;
  using Base::r;
  using typename Base::Accumulator;
  template <bool flat>
  using Args = GatedArgs<typename Base::template Args<flat>>;
  template <int N, bool shifted, bool first>
  using Held = typename Base::template Held<N, shifted, first>;

  Accumulator mean_times_r;  // mean: of the product of what is normalized and its gradient

  template <class Args>
  __device__ __forceinline__ GatedBackward(const Args& args, int64_t row) : HasGating{args.gating}, Base(args, row) {}

  template <int N, bool shifted, bool first>
  __device__ __forceinline__ Accumulator add_term(Accumulator before, const Held<N, shifted, first>& held) const {
    Accumulator g[N], x[N], by_gate[N];
    held.widened(g, x, by_gate);
    activate<G>(by_gate, gating.activation);
#pragma unroll
    for (int i = 0; i < N; i++) x[i] *= by_gate[i];
    return dot(x, g, before);
  }

  template <class Args>
  __device__ __forceinline__ void finish(Accumulator total, const Args& args) {
    mean_times_r = total * args.inverse_dim * r * r;
  }

  struct Scalars {
    Accumulator r, mean_times_r;
  };
  __device__ __forceinline__ Scalars scalars() const { return {r, mean_times_r}; }
  __device__ __forceinline__ void take(const Scalars& scalars) { r = scalars.r, mean_times_r = scalars.mean_times_r; }

  template <int pass, int N, bool shifted, bool first, class F>
  __device__ __forceinline__ void store(const Held<N, shifted, first>& held, F f) const {
    if constexpr (pass == 0) {
      Accumulator g[N], x[N], a[N], slope[N];
      held.widened(g, x, a);
      activate<G>(a, slope, gating.activation);
      if (gating.norm_first)
        gradients_norm_first(g, x, a, slope);
      else
        gradients_gate_first(g, x, a, slope);
      this->write(f, x, slope);
    }
  }

 private:
  // x becomes dx, and slope dgate.
  template <int N>
  using Elements = Accumulator (&)[N];

  template <int N>
  __device__ __forceinline__ void gradients_norm_first(Elements<N> g, Elements<N> x, Elements<N> a,
                                                       Elements<N> slope) const {
#pragma unroll
    for (int i = 0; i < N; i++) {
      slope[i] *= x[i] * (g[i] * r);
      x[i] = r * fma(-x[i], mean_times_r, g[i] * a[i]);
    }
  }

  template <int N>
  __device__ __forceinline__ void gradients_gate_first(Elements<N> g, Elements<N> x, Elements<N> a,
                                                       Elements<N> slope) const {
#pragma unroll
    for (int i = 0; i < N; i++) {
      Accumulator dt = r * fma(-(x[i] * a[i]), mean_times_r, g[i]);
      slope[i] *= x[i] * dt;
      x[i] = dt * a[i];
    }
  }
};

}  // namespace srmsnorm
