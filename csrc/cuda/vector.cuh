// Vectors of a row: N elements in chunks of 16 bytes, at any element's address; or one element.
#pragma once
#include "chunk.cuh"
#include "convert.cuh"

namespace srmsnorm {

// Where a vector stands among those of its row. Neighbouring lanes have neighbouring ones, but for lanes 15 and 16
// where a row is folded; a run: those of a warp's lanes that share the row.
template <class Index>
struct Place {
  Index left;    // vectors of the row from this one on; none or fewer: the row does not have it
  int run;       // lanes
  bool goes_on;  // whether there is memory of the operand behind the row's end, which may be read with it
  __device__ __forceinline__ bool ends_run() const { return left == 1 || lane_in_row() == run - 1; }
};

// How a chunk of a result is stored: as any other, or as one that the L2 need not keep.
struct Put {
  __device__ __forceinline__ void operator()(uint4* to, const uint4& chunk) const { *to = chunk; }
};
struct PutStreaming {
  __device__ __forceinline__ void operator()(uint4* to, const uint4& chunk) const { __stcs(to, chunk); }
};

// N elements, as they lie in memory. shifted: at any element's address; the chunks that they lie in are loaded first,
// and put in place when all loads are on their way.
template <class T, int N, bool shifted = false>
struct alignas(16) Vector {
  static constexpr int kChunks = N * sizeof(T) / 16;
  static_assert(kChunks > 0, "of operands that are read; results may be narrower");
  uint4 chunks[kChunks + shifted];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kChunks + shifted; i++) chunks[i] = uint4{0, 0, 0, 0};
  }

  // The compiler must forget what it made of the chunks: else it keeps the widened elements in twice the registers, or
  // spills.
  __device__ __forceinline__ void stay_packed() {
#pragma unroll
    for (int i = 0; i < kChunks; i++)
      asm volatile("" : "+r"(chunks[i].x), "+r"(chunks[i].y), "+r"(chunks[i].z), "+r"(chunks[i].w));
  }

  // past: bytes past 16. Shifted, the first chunk has an element of the vector in it, and unless past is 0 so has the
  // one behind the last, of which only what is in the operand is read.
  template <class Index>
  __device__ __forceinline__ void load(const T* from, int past, const Place<Index>& place) {
    const auto* aligned = reinterpret_cast<const uint4*>(reinterpret_cast<const char*>(from) - past);
#pragma unroll
    for (int i = 0; i < kChunks; i++) chunks[i] = aligned[i];
    if constexpr (shifted) {
      if (past != 0) {
        if (place.left == 1 && !place.goes_on)
          chunks[kChunks] = load_first<sizeof(T)>(aligned + kChunks, past);
        else
          chunks[kChunks] = aligned[kChunks];
      }
    }
  }

  __device__ __forceinline__ void put_in_place(int past) {
    if constexpr (shifted) {
#pragma unroll
      for (int i = 0; i < kChunks; i++) chunks[i] = bytes_from(chunks[i], chunks[i + 1], past);
    }
  }

  __device__ __forceinline__ void load_kept(const T* from) {
#pragma unroll
    for (int i = 0; i < kChunks; i++) chunks[i] = load16_kept(reinterpret_cast<const uint4*>(from) + i);
  }

  // A warp's vectors, as many as are left of the row, to its part of shared memory, past the registers: neighbouring
  // lanes copy neighbouring chunks. By all lanes of the warp, as what a lane loads others have copied.
  template <class Index>
  static __device__ __forceinline__ void start_copies(uint4* shared, const T* of_warp, Index left) {
    const auto* from = reinterpret_cast<const uint4*>(of_warp);
#pragma unroll
    for (int i = 0; i < kChunks; i++) {
      int chunk = 32 * i + lane_in_row();
      if (chunk / kChunks < left) start_copy16(shared + chunk, from + chunk);
    }
  }

  __device__ __forceinline__ void load_copies(const uint4* shared) {
#pragma unroll
    for (int i = 0; i < kChunks; i++) chunks[i] = shared[lane_in_row() * kChunks + i];
  }

  // By all lanes of the warp. Of vectors of two chunks, two lanes store first the even one's and then the odd one's: a
  // store of every other 16 bytes would cost the L2 as much as a full one.
  template <class Index, class Put = srmsnorm::Put>
  __device__ __forceinline__ void store(T* to, const Place<Index>& place, Put put = {}) const {
    auto* there = reinterpret_cast<uint4*>(to);
    if (kChunks == 2 && blockDim.x > 1) {
      int odd = threadIdx.x % 2;
      uint4 others = of_lane(odd ? chunks[0] : chunks[kChunks - 1], lane_in_warp() ^ 1);
      if (place.left + odd > 0) put(there - odd, odd ? others : chunks[0]);
      if (place.left + odd > 1) put(there + 2 - odd, odd ? chunks[kChunks - 1] : others);
    } else if (place.left > 0) {
#pragma unroll
      for (int i = 0; i < kChunks; i++) put(there + i, chunks[i]);
    }
  }

  // To an address that is `past` bytes past 16, in aligned chunks out of two lanes' vectors each. The chunks before the
  // first and behind the last vector of a run are parts of one, which the last lane writes, to which the first is the
  // next. By all lanes of the warp.
  template <class Index>
  __device__ __forceinline__ void store_shifted(T* to, int past, const Place<Index>& place) const {
    uint4 next = of_lane(chunks[0], lane_in_warp() + (place.ends_run() ? -lane_in_row() : 1));
    if (place.left <= 0) return;
    auto* aligned = reinterpret_cast<uint4*>(reinterpret_cast<char*>(to) - past);
    if (past == 0) {
#pragma unroll
      for (int i = 0; i < kChunks; i++) aligned[i] = chunks[i];
      return;
    }
#pragma unroll
    for (int i = 1; i < kChunks; i++) aligned[i] = bytes_from(chunks[i - 1], chunks[i], 16 - past);
    uint4 last = bytes_from(chunks[kChunks - 1], next, 16 - past);
    if (place.ends_run())
      store_parts<sizeof(T)>(last, past, aligned + kChunks, aligned - lane_in_row() * kChunks);
    else
      aligned[kChunks] = last;
  }

  __device__ __forceinline__ void widened(accumulate_t<T> (&to)[N]) const {
#pragma unroll
    for (int i = 0; i < kChunks; i++) widen16<T>(chunks[i], to + i * (N / kChunks));
  }

  __device__ __forceinline__ void set(const accumulate_t<T> (&from)[N]) {
    T elements[N];
    narrow(from, elements);
    memcpy(chunks, elements, sizeof(elements));
  }
};

// The same, stored as what the L2 need not keep where it lies at 16 bytes.
template <class T, int N>
struct Streamed : Vector<T, N> {
  template <class Index>
  __device__ __forceinline__ void store(T* to, const Place<Index>& place) const {
    Vector<T, N>::store(to, place, PutStreaming());
  }
};

// Fewer than 16 bytes: a result narrower than what it is made of, as quantised ones are to be
// (tests/narrow_results.cu). Stored in one piece where it is aligned to its size.
template <class T, int N>
  requires(!std::is_void_v<T> && N > 1 && N * sizeof(T) < 16)
struct Vector<T, N> {
  struct alignas(N * sizeof(T)) Elements {
    T of[N];
  } elements;

  template <class Index>
  __device__ __forceinline__ void store(T* to, const Place<Index>& place) const {
    if (place.left <= 0) return;
    if (reinterpret_cast<uintptr_t>(to) % sizeof(Elements) == 0) {
      *reinterpret_cast<Elements*>(to) = elements;
      return;
    }
#pragma unroll
    for (int i = 0; i < N; i++) to[i] = elements.of[i];
  }

  template <class Index>
  __device__ __forceinline__ void store_shifted(T* to, int, const Place<Index>& place) const {
    store(to, place);
  }

  __device__ __forceinline__ void set(const accumulate_t<T> (&from)[N]) { narrow(from, elements.of); }
};

// One element.
template <class T>
struct Vector<T, 1> {
  T element[1];

  __device__ __forceinline__ void load(const T* from) { element[0] = *from; }
  __device__ __forceinline__ void store(T* to) const { *to = element[0]; }
  __device__ __forceinline__ void widened(accumulate_t<T> (&to)[1]) const { to[0] = widen(element[0]); }
  __device__ __forceinline__ void set(const accumulate_t<T> (&from)[1]) { narrow(from, element); }
};

// One that was unpacked of a chunk: in the accumulation type, whatever chunk its operand lies in.
template <class T>
  requires(!std::is_void_v<T>)
struct Vector<T, 1, true> {
  accumulate_t<T> element[1];

  __device__ __forceinline__ void widened(accumulate_t<T> (&to)[1]) const { to[0] = element[0]; }
};

// Whether f is for wanted results and others: f(vector, row, whether it is wanted); else f(vector, row). The former is
// the kernel's of short rows, which has one element of each at a time.
template <class F>
constexpr bool kAsksWhether = requires(F f, const Vector<float, 1>& vector, float* row) { f(vector, row, true); };

// One element of a result whose type the call says: a number until there is one of all elements of a chunk, which
// convert(numbers, f) makes of them, once, for f(elements, row).
template <class A, class Convert>
struct Number {
  A element;
  Convert convert;

  __device__ __forceinline__ void store(A* to) const { *to = element; }
};

// By f, which is asked of a result that is not wanted only if it says so.
template <class F, class Vector, class E>
__device__ __forceinline__ void store_if(bool wanted, F f, const Vector& vector, E* row) {
  if constexpr (kAsksWhether<F>)
    f(vector, row, wanted);
  else if (wanted)
    f(vector, row);
}

// An operand that there is not.
template <int N, bool shifted>
struct Vector<void, N, shifted> {};
template <>
struct Vector<void, 1> {};

}  // namespace srmsnorm
