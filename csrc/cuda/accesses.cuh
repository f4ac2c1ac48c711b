// What the kernel does with each operand of an Op and with each of its results: the f of its each and store.
//
// Types with a name, of as few parameters as they need. A lambda is another type in each instance of the kernel, and
// what an Op does with it other functions, which the compiler makes, optimizes and inlines one by one. (What few
// instances have stays a lambda where it is used.)
#pragma once
#include "row_cut.cuh"
#include "vector.cuh"

namespace srmsnorm {

// f of all results of an Op, pass by pass.
template <class Op, class Held, class F>
__device__ __forceinline__ void store_all(const Op& op, const Held& held, const F& f) {
  op.template store<0>(held, f);
  if constexpr (Op::kPasses > 1) op.template store<1>(held, f);
}

struct Clear {
  template <class Vector, class E>
  __device__ __forceinline__ void operator()(Vector& vector, const E*) const {
    vector.clear();
  }
};

struct StayPacked {
  template <class Vector, class E>
  __device__ __forceinline__ void operator()(Vector& vector, const E*) const {
    vector.stay_packed();
  }
};

template <class Index>
struct LoadElement {
  Index i;

  template <class Element, class E>
  __device__ __forceinline__ void operator()(Element& to, const E* row) const {
    to.load(row + i);
  }
};

template <class Index>
struct StoreElement {
  Index i;

  template <class Element, class E>
  __device__ __forceinline__ void operator()(const Element& from, E* row) const {
    __builtin_assume(__isGlobal(row));
    from.store(row + i);
  }
};

template <class Cut>
__device__ __forceinline__ Place<typename Cut::Index> place_of(const Cut& cut, typename Cut::Index vector) {
  return {cut.vectors - vector, min(static_cast<int>(blockDim.x), 32), cut.goes_on};
}

// How far an operand's vectors are past 16 bytes follows from where its first one is.
template <class Cut, bool shifted>
struct LoadVector {
  const Cut& cut;
  typename Cut::Index vector;

  template <class Vector, class E>
  __device__ __forceinline__ void operator()(Vector& to, const E* row) const {
    to.load(cut.at(row, vector), shifted ? bytes_past_16(row + cut.head) : 0, place_of(cut, vector));
  }
};

template <class Cut>
struct LoadKeptVector {
  const Cut& cut;
  typename Cut::Index vector;

  template <class Vector, class E>
  __device__ __forceinline__ void operator()(Vector& to, const E* row) const {
    to.load_kept(cut.at(row, vector));
  }
};

template <bool kept, bool shifted, class Cut>
__device__ __forceinline__ auto load_at(const Cut& cut, typename Cut::Index vector) {
  return std::conditional_t<kept, LoadKeptVector<Cut>, LoadVector<Cut, shifted>>{cut, vector};
}

// Whether the warp's rows of an operand lie at 16 bytes, so that none is shifted; asked: else taken for no. By all
// lanes.
template <bool asked>
__device__ __forceinline__ bool all_at_16(int past) {
  return asked && !__any_sync(~0u, past);
}

template <class Cut, bool asks_if_aligned>
struct PutInPlace {
  const Cut& cut;

  template <class Vector, class E>
  __device__ __forceinline__ void operator()(Vector& vector, const E* row) const {
    int past = bytes_past_16(row + cut.head);
    if (!all_at_16<asks_if_aligned>(past)) vector.put_in_place(past);
  }
};

// Whether the row has the vector is asked at the store alone: one predicate instead of a branch.
template <class Cut, bool shifted, bool asks_if_aligned>
struct StoreVector {
  const Cut& cut;
  typename Cut::Index vector;

  template <class Vector, class E>
  __device__ __forceinline__ void operator()(const Vector& from, E* row) const {
    __builtin_assume(__isGlobal(row));
    if constexpr (shifted) {
      int past = bytes_past_16(row + cut.head);
      if (!all_at_16<asks_if_aligned>(past))
        return from.store_shifted(cut.at(row, vector), past, place_of(cut, vector));
    }
    from.store(cut.at(row, vector), place_of(cut, vector));
  }
};

// By a function: made in place, nvcc 13.0 writes each store of a float sum beside 16 bits twice (4 to 8 vectors a
// thread 600 to 1336 instructions for 552 to 1224).
template <bool shifted, bool asks_if_aligned, class Cut>
__device__ __forceinline__ auto store_at(const Cut& cut, typename Cut::Index vector) {
  return StoreVector<Cut, shifted, asks_if_aligned>{cut, vector};
}

}  // namespace srmsnorm
