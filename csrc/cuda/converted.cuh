// y in a dtype that the call says, or no y where rstd alone is asked for, or h times numbers that are given; and
// gradients where y is wider than the input. Fewer instances than of the norm (Chunks::few): they are rarer.
#pragma once
#include "backward.cuh"
#include "forward.cuh"

namespace srmsnorm {

// A kernel's arguments with the dtype of what it writes.
template <class Args>
struct ConvertedArgs : Args {
  DType written;
  bool streams;  // LaunchHints::streamed
};

// f(E()), once, for that dtype. Of the types that go with the accumulation type; the branch is the same in all threads.
template <class A, class F>
__device__ __forceinline__ void with_written(DType dtype, F f) {
  if constexpr (std::is_same_v<A, double>)
    f(double());
  else if (dtype == DType::Half)
    f(half());
  else if (dtype == DType::BFloat16)
    f(bfloat16());
  else
    f(float());
}

// f(vector, row), once, with the numbers in that dtype and the row as one of it.
template <class A, int N, class F>
__device__ __forceinline__ void store_as(DType dtype, bool streams, bool wanted, const A (&numbers)[N], void* row,
                                         F f) {
  if constexpr (kAsksWhether<F>) {
    auto convert = [dtype, row]<int all>(const A(&from)[all], auto give) {
      with_written<A>(dtype, [&]<class E>(E) {
        alignas(16) E elements[all];
        narrow(from, elements);
        give(elements, static_cast<E*>(row));
      });
    };
    f(Number<A, decltype(convert)>{numbers[0], convert}, static_cast<A*>(nullptr), wanted);
  } else if (wanted) {
    with_written<A>(dtype, [&]<class E>(E) {
      auto as = [&](auto out) {
        out.set(numbers);
        f(out, static_cast<E*>(row));
      };
      if constexpr (std::is_same_v<E, float> && N >= 8)  // beside 16 bits, half of what is moved
        if (streams) return as(Streamed<float, N>());
      as(Vector<E, N>());
    });
  }
}

// Where a row of that dtype begins.
template <class Offset, class Args>
__device__ __forceinline__ void* row_of(const Offset& offset, const Args& args, int i, DType dtype) {
  if (dtype == DType::Double) return offset.template in<double>(args, i);
  if (dtype == DType::Float) return offset.template in<float>(args, i);
  return offset.template in<half>(args, i);
}

// The epilogue that writes y in any dtype. Where a scale is given, what has been reduced is not used.
template <class Source>
struct Converted : SumBeside<Source, Source::Operands::kCount + 1> {
  using Accumulator = typename Source::Accumulator;
  using Total = Accumulator;
  using Call = typename Source::Call;
  using Operands = join<typename Source::Operands, OperandList<&Call::output>, typename Source::Sum,
                        OperandList<&Call::rstd, &Call::scale, &Call::factor>>;
  template <class Args>
  using OwnArgs = ConvertedArgs<Args>;
  static constexpr bool kAnyAbsent = true;
  static constexpr int kOutput = Source::Operands::kCount, kRstd = Operands::index(&Call::rstd), kScale = kRstd + 1,
                       kFactor = kRstd + 2;

  void* output;
  DType dtype;
  bool writes_output, streams, scales = false;
  Accumulator scale, factor = 1;

  template <int N>
  static __device__ __forceinline__ Total add_term(Total before, const Accumulator (&h)[N]) {
    return dot(h, h, before);
  }

  static __device__ __forceinline__ Accumulator squares(Total total) { return total; }

  __device__ __forceinline__ void reduced(Total, Accumulator& r) {
    if (scales) r = scale;
  }

  struct Scalars {
    Accumulator factor;
  };
  __device__ __forceinline__ Scalars scalars() const { return {factor}; }
  __device__ __forceinline__ void take(const Scalars& scalars) { factor = scalars.factor; }

  template <class Args>
  __device__ __forceinline__ void open_rest(const Args& args, int64_t row) {
    RowOffsets<Args, kOutput, Operands::kCount> offset(args, row);
    dtype = args.written;
    streams = args.streams;
    output = row_of(offset, args, kOutput, dtype);
    writes_output = args.of(kOutput).data;
    this->open_sum(offset, args);
    if (args.of(kScale).data) {
      scales = true;
      scale = *offset.template in<const Accumulator>(args, kScale);
      if (args.of(kFactor).data) factor = *offset.template in<const Accumulator>(args, kFactor);
    }
  }

  template <int pass, int N, class Finish, class F>
  __device__ __forceinline__ void store_rows(const Accumulator (&h)[N], Accumulator r, Finish finish, F f) const {
    if constexpr (pass == 0) {
      this->store_sum(h, f);
      Accumulator y[N];
#pragma unroll
      for (int i = 0; i < N; i++) y[i] = h[i] * r * factor;
      finish(y);
      store_as(dtype, streams, writes_output, y, output, f);
    }
  }
};

template <class T, class R>
struct ConvertedForward : ForwardOp<Source<T, R>, Converted<Source<T, R>>> {
  using Base = ForwardOp<Source<T, R>, Converted<Source<T, R>>>;
  static constexpr Chunks kChunks = with_few_instances(Base::kChunks);
  using Base::Base;
};

// Of a float y and a 16-bit input, whose gradient has its dtype; the residual's is float.
template <bool has_sum>
struct ConvertedBackward : Backward<float, float, has_sum> {
  using Base = Backward<float, float, has_sum>;
  using Call = BackwardArgs;
  using Operands = join<OperandList<&Call::grad_output, &Call::output, &Call::rstd>,
                        OperandIf<has_sum, &Call::grad_sum>, OperandList<&Call::grad_input, &Call::grad_residual>>;
  static constexpr Chunks kChunks = with_few_instances(Base::kChunks);
  static constexpr int kRstd = 2, kGradInput = Operands::index(&Call::grad_input), kGradResidual = kGradInput + 1;
  template <bool flat>
  using Args = ConvertedArgs<KernelArgs<flat, Operands, kRstd, float>>;

  void* grad_input;
  float* grad_residual;
  DType dtype;
  bool writes_residual;

  template <class Args>
  __device__ __forceinline__ ConvertedBackward(const Args& args, int64_t row) : Base(args, row) {}

  template <class Args>
  __device__ __forceinline__ void open_rest(const Args& args, int64_t row) {
    RowOffsets<Args, kRstd, Operands::kCount> offset(args, row);
    this->r = *offset.template in<const float>(args, kRstd);
    dtype = args.written;
    grad_input = row_of(offset, args, kGradInput, dtype);
    grad_residual = offset.template in<float>(args, kGradResidual);
    writes_residual = args.of(kGradResidual).data;
  }

  template <int pass, int N, bool shifted, bool first, class F>
  __device__ __forceinline__ void store(const typename Base::Held<N, shifted, first>& held, F f) const {
    if constexpr (pass == 0) {
      float dh[N];
      Base::gradient(held, dh);
      Vector<float, N> out;
      out.set(dh);
      store_if(writes_residual, f, out, grad_residual);
      store_as(dtype, false, true, dh, grad_input, f);
    }
  }
};

// dx = r (g - y mean(y g)) of a y wider than x, which is kept: y = x r, and g is float.
template <class T>
struct WideBackward : BackwardOp {
  using Element = T;
  using Accumulator = float;
  using Total = float;
  using Call = WideBackwardArgs;
  using Operands = OperandList<&Call::grad_output, &Call::input, &Call::rstd, &Call::grad_input>;
  static constexpr int kGradOutput = 0, kInput = 1, kRstd = 2, kGradInput = 3;
  template <bool flat>
  using Args = KernelArgs<flat, Operands, kRstd, float>;
  static constexpr int kElements = 16 / sizeof(T), kBesideSize = sizeof(float);
  static constexpr Chunks kChunks =
      with_few_instances(chunks_of(WideBackwardOperands<int>{.grad_output = sizeof(float), .input = sizeof(T)}));

  template <int N, bool shifted, bool first>
  struct Held {
    Vector<float, N, shifted> grad_output;
    Vector<T, N, first> input;
  };

  const float* grad_output;
  const T* input;
  T* grad_input;
  float r, mean;

  template <class Args>
  __device__ __forceinline__ WideBackward(const Args& args, int64_t row) {
    RowOffsets<Args, 0, kRstd> offset(args, row);
    grad_output = offset.template in<const float>(args, kGradOutput);
    input = offset.template in<const T>(args, kInput);
  }

  template <class Args>
  __device__ __forceinline__ void open_rest(const Args& args, int64_t row) {
    RowOffsets<Args, kRstd, Operands::kCount> offset(args, row);
    r = *offset.template in<const float>(args, kRstd);
    grad_input = offset.template in<T>(args, kGradInput);
  }

  __device__ __forceinline__ const T* begin() const { return input; }

  template <int N, bool shifted, bool first, class F>
  __device__ __forceinline__ void each(Held<N, shifted, first>& held, F f) const {
    f(held.grad_output, grad_output);
    f(held.input, input);
  }

  template <int N, bool shifted, bool first>
  __device__ __forceinline__ float add_term(float before, const Held<N, shifted, first>& held) const {
    float g[N], x[N];
    held.grad_output.widened(g);
    held.input.widened(x);
    return dot(x, g, before);
  }

  template <class Args>
  __device__ __forceinline__ void finish(float total, const Args& args) {
    mean = total * args.inverse_dim * r;
  }

  struct Scalars {
    float r, mean;
  };
  __device__ __forceinline__ Scalars scalars() const { return {r, mean}; }
  __device__ __forceinline__ void take(const Scalars& scalars) { r = scalars.r, mean = scalars.mean; }

  template <int pass, int N, bool shifted, bool first, class F>
  __device__ __forceinline__ void store(const Held<N, shifted, first>& held, F f) const {
    if constexpr (pass == 0) {
      float g[N], x[N];
      held.grad_output.widened(g);
      held.input.widened(x);
#pragma unroll
      for (int i = 0; i < N; i++) g[i] = r * fma(-(x[i] * r), mean, g[i]);
      Vector<T, N> out;
      out.set(g);
      store_if(true, f, out, grad_input);
    }
  }
};

}  // namespace srmsnorm
