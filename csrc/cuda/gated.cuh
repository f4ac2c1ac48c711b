// The gated norm: the activation of a gate and its slope, the source that has the gate beside the input, and backward.
#pragma once
#include "backward.cuh"
#include "convert.cuh"
#include "forward.cuh"

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

// h = input, and y is multiplied by a; or h = input * a. G: the gate's type.
template <class T, class G>
struct GatedSource {
  template <class Args>
  using OwnArgs = GatedArgs<Args>;
  using Element = T;
  using Accumulator = accumulate_t<T>;
  using Residual = T;
  static constexpr bool kResidual = false;
  static constexpr int kElements = 16 / sizeof(T), kBesideSize = sizeof(G);
  static constexpr bool kCombines = true;  // the gate to a: made twice, it takes more time than the memory (dim 6144
                                           // 0.77 of the roof for 0.91, the gate first)
  static constexpr Chunks kChunks = chunks_of(GatedForwardOperands<int>{.input = sizeof(T), .gate = sizeof(G)});
  using Call = GatedForwardArgs;
  using Operands = OperandList<&Call::input, &Call::gate>;
  using Sum = OperandList<>;

  template <int N, bool shifted, bool first>
  struct Held {
    Vector<T, N, first> input;
    Vector<G, N, shifted> gate;
    Accumulator a[N];
  };

  const T* input;
  const G* gate;
  Gating gating;

  template <class Args>
  __device__ __forceinline__ GatedSource(const Args& args, int64_t row) : gating(args.gating) {
    RowOffsets<Args, 0, Operands::kCount> offset(args, row);
    input = offset.template in<const T>(args, 0);
    gate = offset.template in<const G>(args, 1);
  }

  __device__ __forceinline__ const T* begin() const { return input; }

  template <int N, bool shifted, bool first, class F>
  __device__ __forceinline__ void each(Held<N, shifted, first>& held, F f) const {
    f(held.input, input);
    f(held.gate, gate);
  }

  template <int N, bool shifted, bool first>
  __device__ __forceinline__ void combine(Held<N, shifted, first>& held) const {
    held.gate.widened(held.a);
#pragma unroll
    for (int i = 0; i < N; i++) held.a[i] = activated<G>(held.a[i], gating.activation).value;
  }

  template <int N, bool shifted, bool first, class F>
  __device__ __forceinline__ auto for_reduction(const Held<N, shifted, first>& held, F f) const {
    Accumulator h[N];
    held.input.widened(h);
#pragma unroll
    for (int i = 0; i < N; i++) h[i] *= gating.norm_first ? 1 : held.a[i];
    return f(h);
  }

  template <class Held, class F>
  __device__ __forceinline__ void for_result(const Held& held, F f) const {
    for_reduction(held, [&](const auto& h) {
      f(h, [&]<int N>(Accumulator(&y)[N]) {
#pragma unroll
        for (int i = 0; i < N; i++) y[i] *= gating.norm_first ? held.a[i] : 1;
      });
    });
  }
};

template <class T, class G>
using GatedForward = ForwardOp<GatedSource<T, G>, Normalized<GatedSource<T, G>>>;

// With y = x r:  dx = r (a g - y mean(y a g)), dgate = g y a'. With t = x a, z = t r:  dt = r (g - z mean(z g)), dx =
// dt a, dgate = dt x a'. Each rounded once to its own type.
template <class T, class G>
struct GatedBackward : BackwardOp {
  using Element = T;
  using Accumulator = accumulate_t<T>;
  using Total = Accumulator;
  using Call = GatedBackwardArgs;
  using Operands =
      OperandList<&Call::grad_output, &Call::input, &Call::gate, &Call::rstd, &Call::grad_input, &Call::grad_gate>;
  static constexpr int kGradOutput = 0, kInput = 1, kGate = 2, kRstd = 3, kGradInput = 4, kGradGate = 5;
  template <bool flat>
  using Args = GatedArgs<KernelArgs<flat, Operands, kRstd, Accumulator>>;
  static constexpr int kElements = 16 / sizeof(T), kBesideSize = sizeof(G);
  static constexpr Chunks kChunks =
      chunks_of(GatedBackwardOperands<int>{.grad_output = sizeof(T), .input = sizeof(T), .gate = sizeof(G)});

  template <int N, bool shifted, bool first>
  struct Held {
    Vector<T, N, shifted> grad_output;
    Vector<T, N, first> input;
    Vector<G, N, shifted> gate;
  };

  const T *grad_output, *input;
  const G* gate;
  T* grad_input;
  G* grad_gate;
  Gating gating;
  bool writes_input, writes_gate;  // not every call needs both
  Accumulator r, mean;

  template <class Args>
  __device__ __forceinline__ GatedBackward(const Args& args, int64_t row) : gating(args.gating) {
    RowOffsets<Args, 0, kRstd> offset(args, row);
    grad_output = offset.template in<const T>(args, kGradOutput);
    input = offset.template in<const T>(args, kInput);
    gate = offset.template in<const G>(args, kGate);
  }

  template <class Args>
  __device__ __forceinline__ void open_rest(const Args& args, int64_t row) {
    RowOffsets<Args, kRstd, Operands::kCount> offset(args, row);
    r = *offset.template in<const Accumulator>(args, kRstd);
    grad_input = offset.template in<T>(args, kGradInput);
    grad_gate = offset.template in<G>(args, kGradGate);
    writes_input = args.of(kGradInput).data;
    writes_gate = args.of(kGradGate).data;
  }

  __device__ __forceinline__ const T* begin() const { return input; }

  template <int N, bool shifted, bool first, class F>
  __device__ __forceinline__ void each(Held<N, shifted, first>& held, F f) const {
    f(held.grad_output, grad_output);
    f(held.input, input);
    f(held.gate, gate);
  }

  template <int N, bool shifted, bool first>
  __device__ __forceinline__ Accumulator term(const Held<N, shifted, first>& held) const {
    Accumulator g[N], x[N], by_gate[N];
    held.grad_output.widened(g);
    held.input.widened(x);
    held.gate.widened(by_gate);
#pragma unroll
    for (int i = 0; i < N; i++) x[i] *= activated<G>(by_gate[i], gating.activation).value;
    return dot(x, g);
  }

  template <class Args>
  __device__ __forceinline__ void finish(Accumulator total, const Args& args) {
    mean = total * args.inverse_dim * r;
  }

  template <int pass, int N, bool shifted, bool first, class F>
  __device__ __forceinline__ void store(const Held<N, shifted, first>& held, F f) const {
    if constexpr (pass == 0) {
      Accumulator g[N], x[N], by_gate[N];
      held.grad_output.widened(g);
      held.input.widened(x);
      held.gate.widened(by_gate);
#pragma unroll
      for (int i = 0; i < N; i++) {
        auto [a, slope] = activated<G>(by_gate[i], gating.activation);
        gradients(g[i], x[i], a, slope);
        by_gate[i] = slope;
      }
      Vector<T, N> to_input;
      to_input.set(x);
      if (writes_input) f(to_input, grad_input);
      Vector<G, N> to_gate;
      to_gate.set(by_gate);
      if (writes_gate) f(to_gate, grad_gate);
    }
  }

 private:
  // x becomes dx, and slope dgate. p multiplies the gradient of what is normalized, q what is normalized.
  __device__ __forceinline__ void gradients(Accumulator g, Accumulator& x, Accumulator a, Accumulator& slope) const {
    Accumulator p = gating.norm_first ? a : 1, q = gating.norm_first ? 1 : a;
    Accumulator dh = r * fma(-(x * q * r), mean, g * p);
    slope *= x * (gating.norm_first ? g * r : dh);
    x = dh * q;
  }
};

}  // namespace srmsnorm
