// What a thread has of short rows: a chunk, the elements that 16 bytes of the main operand hold, of every operand.
#pragma once
#include "chunk.cuh"
#include "convert.cuh"

namespace srmsnorm {

// The part of a chunk that belongs to one row: the elements from first to before end. Element j of the chunk is the
// row's element j - begin.
struct Part {
  int row, begin, first, end;

  __device__ __forceinline__ bool is_there() const { return first < end; }
  __device__ __forceinline__ bool begins_row() const { return begin >= first; }
};

// A chunk of each operand that an Op reads, or of each result, in the order in which it names them: in registers, as it
// lies in memory.
template <int N>
struct Chunk {
  static constexpr int kMost = N == 2 ? 8 : 4;  // bytes of an element
  alignas(16) char of[4][kMost * N];

  template <class E>
  __device__ __forceinline__ E* elements(int operand) {
    static_assert(sizeof(E) <= kMost);
    return reinterpret_cast<E*>(of[operand]);
  }
};

// The largest pieces in which so many bytes are copied.
template <int bytes>
using Piece = std::conditional_t<bytes % 16 == 0, uint4, std::conditional_t<bytes == 8, uint2, uint32_t>>;

template <int bytes>
__device__ __forceinline__ void copy_pieces(void* to, const void* from) {
  using Pieces = Piece<bytes>;
#pragma unroll
  for (int i = 0; i < bytes / sizeof(Pieces); i++) static_cast<Pieces*>(to)[i] = static_cast<const Pieces*>(from)[i];
}

// In one instruction, which the compiler does not take apart (H200, dim 57, y in float of bfloat16 0.88 of the roof for
// 0.45).
__device__ __forceinline__ void store_piece(uint4* to, uint4 piece) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(to), "r"(piece.x), "r"(piece.y), "r"(piece.z), "r"(piece.w)
               : "memory");
}
__device__ __forceinline__ void store_piece(uint2* to, uint2 piece) {
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" : : "l"(to), "r"(piece.x), "r"(piece.y) : "memory");
}
__device__ __forceinline__ void store_piece(uint32_t* to, uint32_t piece) { *to = piece; }

template <int bytes>
__device__ __forceinline__ void store_pieces(void* to, const void* from) {
  using Pieces = Piece<bytes>;
#pragma unroll
  for (int i = 0; i < bytes / sizeof(Pieces); i++)
    store_piece(static_cast<Pieces*>(to) + i, static_cast<const Pieces*>(from)[i]);
}

// From any address: the chunks of 16 bytes that have a part of it are read as a whole.
template <int bytes>
__device__ __forceinline__ void copy_across(void* to, const void* from) {
  static_assert(bytes % 16 == 0);
  const int past = bytes_past_16(from);
  const auto* aligned = reinterpret_cast<const uint4*>(static_cast<const char*>(from) - past);
  uint4 chunks[bytes / 16 + 1];
#pragma unroll
  for (int i = 0; i <= bytes / 16; i++) chunks[i] = aligned[i < bytes / 16 || past ? i : 0];
#pragma unroll
  for (int i = 0; i < bytes / 16; i++) static_cast<uint4*>(to)[i] = bytes_from(chunks[i], chunks[i + 1], past);
}

// The elements from first to before last of N, and 0 for the others. Of 16 bits in words, put together by what the
// compiler does not take apart again: else also chunks that are read as a whole become halves, in twice the registers.
template <int N, class E>
__device__ __forceinline__ void copy_some(E* to, const E* from, int first, int last) {
  auto has = [&](int j) { return first <= j && j < last; };
  if constexpr (sizeof(E) == 2) {
    const auto* halves = reinterpret_cast<const uint16_t*>(from);
    uint32_t low[N / 2], high[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
      low[i] = has(2 * i) ? halves[2 * i] : 0;
      high[i] = has(2 * i + 1) ? halves[2 * i + 1] : 0;
    }
#pragma unroll
    for (int i = 0; i < N / 2; i++)
      asm volatile("mad.lo.u32 %0, %1, 65536, %2;"
                   : "=r"(reinterpret_cast<uint32_t*>(to)[i])
                   : "r"(high[i]), "r"(low[i]));
  } else {
#pragma unroll
    for (int j = 0; j < N; j++) to[j] = has(j) ? from[j] : E();
  }
}

// 0 for all but the elements from first to before last.
template <int N, class E>
__device__ __forceinline__ void keep_some(E* elements, int first, int last) {
  auto has = [&](int j) { return first <= j && j < last; };
  if constexpr (sizeof(E) == 2) {
#pragma unroll
    for (int i = 0; i < N / 2; i++)
      reinterpret_cast<uint32_t*>(elements)[i] &= (has(2 * i) ? 0xffffu : 0) | (has(2 * i + 1) ? 0xffff0000u : 0);
  } else {
#pragma unroll
    for (int j = 0; j < N; j++)
      if (!has(j)) elements[j] = E();
  }
}

// The elements from first to before last.
template <int N, class E>
__device__ __forceinline__ void store_some(E* to, const E* elements, int first, int last) {
#pragma unroll
  for (int j = 0; j < N; j++)
    if (first <= j && j < last) to[j] = elements[j];
}

// Of 32 bytes: two lanes store first the even one's and then the odd one's, as a store of every other 16 bytes costs
// the L2 as much as a full one (H200, beside float, backward of 28 elements 0.96 of the roof for 0.83). By all of these
// lanes; both: whether this one and its neighbour store all. Whether they have.
__device__ __forceinline__ bool store_in_pairs(void* to, const void* from, bool both, unsigned lanes) {
  const int odd = threadIdx.x % 2;
  const auto* own = static_cast<const uint4*>(from);
  const uint4 given = odd ? own[0] : own[1];
  const uint4 others{__shfl_xor_sync(lanes, given.x, 1), __shfl_xor_sync(lanes, given.y, 1),
                     __shfl_xor_sync(lanes, given.z, 1), __shfl_xor_sync(lanes, given.w, 1)};
  if (!both) return false;
  auto* there = static_cast<uint4*>(to);
  store_piece(there - odd, odd ? others : own[0]);
  store_piece(there + 2 - odd, odd ? own[1] : others);
  return true;
}

// The compiler must not take words apart and keep the halves in twice the registers.
template <int bytes>
__device__ __forceinline__ void stay_packed(void* words) {
#pragma unroll
  for (int i = 0; i < bytes / 4; i++) asm volatile("" : "+r"(static_cast<uint32_t*>(words)[i]));
}

// Element j, in one instruction.
template <class E>
__device__ __forceinline__ accumulate_t<E> widened(const E* elements, int j) {
  if constexpr (sizeof(E) == 2) {
    float two[2];
    widen_word<E>(reinterpret_cast<const uint32_t*>(elements)[j / 2], two);
    return two[j % 2];
  } else {
    return widen(elements[j]);
  }
}

}  // namespace srmsnorm
