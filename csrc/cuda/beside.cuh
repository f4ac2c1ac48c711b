// Ops of a row with a gate beside it: which operands there are, where they lie and what is held of them. What is made
// of that is said where they are derived from. List: of the operands; G: the gate's type.
#pragma once
#include "backward.cuh"
#include "forward.cuh"

namespace srmsnorm {

// h = input, unless for_reduction makes something of it. combine, for_result and what they need are to be added.
template <class T, class G, template <class> class List>
struct SourceBeside {
  using Element = T;
  using Accumulator = accumulate_t<T>;
  using Residual = T;
  static constexpr bool kResidual = false;
  static constexpr int kElements = 16 / sizeof(T), kBesideSize = sizeof(G);
  static constexpr Chunks kChunks = chunks_of(List<int>{.input = sizeof(T), .gate = sizeof(G)});
  using Call = CallArgs<List>;
  using Operands = OperandList<&Call::input, &Call::gate>;
  using Sum = OperandList<>;

  template <int N, bool shifted, bool first>
  struct Held {
    Vector<T, N, first> input;
    Vector<G, N, shifted> gate;
  };

  const T* input;
  const G* gate;

  template <class Args>
  __device__ __forceinline__ SourceBeside(const Args& args, int64_t row) {
    RowOffsets<Args, 0, Operands::kCount> offset(args, row);
    input = offset.template in<const T>(args, 0);
    gate = offset.template in<const G>(args, 1);
  }

  __device__ __forceinline__ const T* begin() const { return input; }

  template <class Held, class F>
  __device__ __forceinline__ void each(Held& held, F f) const {
    f(held.input, input);
    f(held.gate, gate);
  }

  template <int N, bool shifted, bool first, class F>
  __device__ __forceinline__ auto for_reduction(const Held<N, shifted, first>& held, F f) const {
    Accumulator h[N];
    held.input.widened(h);
    return f(h);
  }
};

// Backward that keeps the input: add_term, finish and store are to be added.
template <class T, class G, template <class> class List>
struct BackwardBeside : BackwardOp {
  using Element = T;
  using Accumulator = accumulate_t<T>;
  using Total = Accumulator;
  using Call = CallArgs<List>;
  using Operands =
      OperandList<&Call::grad_output, &Call::input, &Call::gate, &Call::rstd, &Call::grad_input, &Call::grad_gate>;
  static constexpr int kRstd = 3, kElements = 16 / sizeof(T), kBesideSize = sizeof(G);
  static constexpr Chunks kChunks =
      chunks_of(List<int>{.grad_output = sizeof(T), .input = sizeof(T), .gate = sizeof(G)});
  template <bool flat>
  using Args = KernelArgs<flat, Operands, kRstd, Accumulator>;

  template <int N, bool shifted, bool first>
  struct Held {
    Vector<T, N, shifted> grad_output;
    Vector<T, N, first> input;
    Vector<G, N, shifted> gate;

    __device__ __forceinline__ void widened(Accumulator (&g)[N], Accumulator (&x)[N], Accumulator (&a)[N]) const {
      grad_output.widened(g);
      input.widened(x);
      gate.widened(a);
    }
  };

  const T *grad_output, *input;
  const G* gate;
  T* grad_input;
  G* grad_gate;
  bool writes_input, writes_gate;  // not every call needs both
  Accumulator r;

  template <class Args>
  __device__ __forceinline__ BackwardBeside(const Args& args, int64_t row) {
    RowOffsets<Args, 0, kRstd> offset(args, row);
    grad_output = offset.template in<const T>(args, 0);
    input = offset.template in<const T>(args, 1);
    gate = offset.template in<const G>(args, 2);
  }

  template <class Args>
  __device__ __forceinline__ void open_rest(const Args& args, int64_t row) {
    RowOffsets<Args, kRstd, Operands::kCount> offset(args, row);
    r = *offset.template in<const Accumulator>(args, kRstd);
    grad_input = offset.template in<T>(args, 4);
    grad_gate = offset.template in<G>(args, 5);
    writes_input = args.of(4).data;
    writes_gate = args.of(5).data;
  }

  __device__ __forceinline__ const T* begin() const { return input; }

  template <class Held, class F>
  __device__ __forceinline__ void each(Held& held, F f) const {
    f(held.grad_output, grad_output);
    f(held.input, input);
    f(held.gate, gate);
  }

 protected:
  template <class F, int N>
  __device__ __forceinline__ void write(F f, const Accumulator (&to_input)[N], const Accumulator (&to_gate)[N]) const {
    Vector<T, N> input_gradient;
    input_gradient.set(to_input);
    store_if(writes_input, f, input_gradient, grad_input);
    Vector<G, N> gate_gradient;
    gate_gradient.set(to_gate);
    store_if(writes_gate, f, gate_gradient, grad_gate);
  }
};

}  // namespace srmsnorm
