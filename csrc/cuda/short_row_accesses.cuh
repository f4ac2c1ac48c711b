// What the kernel of short rows does with each operand of an Op and with each of its results, chunk by chunk. Types
// with a name, as those of accesses.cuh are: a lambda of ShortRows is another type for each Spacing.
#pragma once
#include "accesses.cuh"
#include "short_row_chunk.cuh"

namespace srmsnorm {

// As the f of an Op's each: calls f(what is held, the operand's elements in the chunk, pointer to the row), one operand
// after the other.
template <int N, class F>
struct EachOperand {
  Chunk<N>& loaded;
  int& operand;
  const F& f;

  template <class Held, class E>
  __device__ __forceinline__ void operator()(Held& held, const E* row) const {
    f(held, loaded.template elements<E>(operand++), row);
  }
};

// As the f of an Op's store: calls f(result, its elements in the chunk, pointer to the row, whether it is wanted).
template <int N, class F>
struct EachResult {
  Chunk<N>& results;
  int& result;
  const F& f;

  template <class Result, class E>
  __device__ __forceinline__ void operator()(const Result& of, E* row, bool wanted) const {
    f(of, results.template elements<E>(result++), row, wanted);
  }
};

// f of every operand.
template <int N, class Op, class Held, class F>
__device__ __forceinline__ void each_operand(const Op& op, Held& held, Chunk<N>& loaded, const F& f) {
  int operand = 0;
  const EachOperand<N, F> next{loaded, operand, f};
  op.each(held, next);
  op.each_late(held, next);
}

// f of every result.
template <int N, class Op, class Held, class F>
__device__ __forceinline__ void each_result(const Op& op, const Held& held, Chunk<N>& results, const F& f) {
  int result = 0;
  store_all(op, held, EachResult<N, F>{results, result, f});
}

struct OrAddresses {
  uintptr_t& addresses;
  int start;

  template <class Held, class E>
  __device__ __forceinline__ void operator()(Held&, E*, const E* row) const {
    addresses |= reinterpret_cast<uintptr_t>(row + start);
  }
};

template <int N>
struct CopyPieces {
  int start;

  template <class Held, class E>
  __device__ __forceinline__ void operator()(Held&, E* to, const E* row) const {
    copy_pieces<N * sizeof(E)>(to, row + start);
  }
};

template <int N>
struct CopyAcross {
  int start;

  template <class Held, class E>
  __device__ __forceinline__ void operator()(Held&, E* to, const E* row) const {
    copy_across<N * sizeof(E)>(to, row + start);
  }
};

template <int N>
struct KeepSome {
  int first, last;

  template <class Held, class E>
  __device__ __forceinline__ void operator()(Held&, E* elements, const E*) const {
    keep_some<N>(elements, first, last);
  }
};

template <int N>
struct StayPackedChunk {
  template <class Held, class E>
  __device__ __forceinline__ void operator()(Held&, E* elements, const E*) const {
    stay_packed<N * sizeof(E)>(elements);
  }

  template <class Result, class E>
  __device__ __forceinline__ void operator()(const Result&, E* elements, E*, bool) const {
    stay_packed<N * sizeof(E)>(elements);
  }
};

struct WidenElement {
  int j;

  template <class Held, class E>
  __device__ __forceinline__ void operator()(Held& to, const E* elements, const E*) const {
    to.element[0] = widened(elements, j);
  }
};

struct PrefetchElements {
  int64_t from;
  int count;

  template <class Held, class E>
  __device__ __forceinline__ void operator()(Held&, const E*, const E* row) const {
    prefetch_bytes(row + from, int64_t{count} * sizeof(E));
  }
};

struct SetElement {
  int j;

  template <class Result, class E>
  __device__ __forceinline__ void operator()(const Result& from, E* elements, E*, bool) const {
    from.store(elements + j);
  }
};

struct AnyWanted {
  bool& any;

  template <class Result, class E>
  __device__ __forceinline__ void operator()(const Result&, E*, E*, bool wanted) const {
    any |= wanted;
  }
};

}  // namespace srmsnorm
