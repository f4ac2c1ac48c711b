// dh = r (g - y mean(y g)) (+ the gradient of the sum), rounded once to each gradient's type.
#include "kernels.h"
#include "launcher.cuh"

namespace srmsnorm {
namespace {

// S: the residual's type; has_sum: whether there is a gradient of the sum, which has that type.
template <class T, class S, bool has_sum>
struct Backward {
  using Args = BackwardArgs;
  using Element = T;
  using Accumulator = accumulate_t<T>;
  static constexpr bool kMixed = !std::is_same_v<T, S>;  // else both inputs get the one gradient
  static constexpr int kElements = 16 / sizeof(T);
  static constexpr int kChunks = backward_held(sizeof(T), has_sum ? sizeof(S) : 0).chunks;

  struct Vectors {
    Vector<T, kElements> grad_output, output;
    Vector<std::conditional_t<has_sum, S, void>, kElements> grad_sum;
  };

  const T *grad_output, *output;
  const S* grad_sum;
  T* grad_input;
  S* grad_residual;
  Accumulator r, mean;

  __device__ __forceinline__ Backward(const Args& args, int64_t row) {
    RowIndex index(args.space, row);
    int levels = args.space.levels;
    grad_output = index.in<const T>(args.grad_output, levels);
    output = index.in<const T>(args.output, levels);
    r = *index.in<const Accumulator>(args.rstd, levels);
    grad_input = args.grad_input.data ? index.in<T>(args.grad_input, levels) : nullptr;
    if constexpr (has_sum) grad_sum = index.in<const S>(args.grad_sum, levels);
    if constexpr (kMixed) grad_residual = args.grad_residual.data ? index.in<S>(args.grad_residual, levels) : nullptr;
  }

  __device__ __forceinline__ const T* begin() const { return output; }

  __device__ __forceinline__ bool in_phase(int before) const {
    bool yes = is_aligned(grad_output - before) && (!grad_input || is_aligned(grad_input - before));
    if constexpr (has_sum) yes = yes && is_aligned(grad_sum - before);
    if constexpr (kMixed) yes = yes && (!grad_residual || is_aligned(grad_residual - before));
    return yes;
  }

  template <class F>
  __device__ __forceinline__ void each(Vectors& held, F f) const {
    f(held.grad_output, grad_output);
    f(held.output, output);
    if constexpr (has_sum) f(held.grad_sum, grad_sum);
  }

  __device__ __forceinline__ Accumulator term(const Vectors& held) const {
    Accumulator g[kElements], y[kElements];
    held.grad_output.widened(g);
    held.output.widened(y);
    return dot(y, g);
  }

  __device__ __forceinline__ void finish(Accumulator total, const Args& args) {
    mean = total / static_cast<Accumulator>(args.space.dim);
  }

  __device__ __forceinline__ void store_row() const {}

  template <class F>
  __device__ __forceinline__ void store(const Vectors& held, F f) const {
    Accumulator g[kElements], y[kElements];
    held.grad_output.widened(g);
    held.output.widened(y);
#pragma unroll
    for (int i = 0; i < kElements; i++) g[i] = fma(-y[i], mean, g[i]);
    if constexpr (has_sum) {
      Accumulator s[kElements];
      held.grad_sum.widened(s);
#pragma unroll
      for (int i = 0; i < kElements; i++) g[i] = fma(r, g[i], s[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kElements; i++) g[i] *= r;
    }
    if constexpr (kMixed) {
      Vector<S, kElements> out;
      out.set(g);
      if (grad_residual) f(out, grad_residual);
      if (!grad_input) return;
    }
    Vector<T, kElements> out;
    out.set(g);
    f(out, grad_input);
  }
};

template <class T, class S>
cudaError_t launch_beside(const BackwardArgs& args, bool clusters, cudaStream_t stream) {
  bool aligned =
      rows_are_aligned(args.space, args.grad_output, args.output, args.grad_sum, args.grad_input, args.grad_residual);
  return args.grad_sum.data ? launch<Backward<T, S, true>>(args, aligned, clusters, stream)
                            : launch<Backward<T, S, false>>(args, aligned, clusters, stream);
}

template <class T>
cudaError_t launch_backward(const BackwardArgs& args, bool clusters, cudaStream_t stream) {
  if constexpr (sizeof(T) == 2)
    if (args.grad_residual.data || (args.grad_sum.data && args.grad_sum.dtype == DType::Float))
      return launch_beside<T, float>(args, clusters, stream);
  return launch_beside<T, T>(args, clusters, stream);
}

}  // namespace

cudaError_t cuda::backward(const BackwardArgs& args, bool clusters, cudaStream_t stream) {
  switch (args.output.dtype) {
    case DType::Half:
      return launch_backward<half>(args, clusters, stream);
    case DType::BFloat16:
      return launch_backward<bfloat16>(args, clusters, stream);
    case DType::Float:
      return launch_backward<float>(args, clusters, stream);
    default:
      return launch_backward<double>(args, clusters, stream);
  }
}

}  // namespace srmsnorm
