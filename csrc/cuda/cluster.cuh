// Thread block clusters: who a block is in its cluster, and one exchange of a value between all blocks.
#pragma once
#include <cstdint>
#include <type_traits>

#include "plan.h"

// The compilation for an architecture that has clusters; the instructions below do not exist for others.
#define SRMSNORM_CLUSTERS (__CUDA_ARCH__ >= 900)

namespace srmsnorm {

__device__ __forceinline__ int cluster_blocks() {
  int blocks = 0;
#if SRMSNORM_CLUSTERS
  asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(blocks));
#else
  __trap();  // code for an earlier architecture on a GPU that has clusters: an error, not a wrong sum
#endif
  return blocks;
}

__device__ __forceinline__ int cluster_rank() {
  int rank = 0;
#if SRMSNORM_CLUSTERS
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
}

// Every block's value to every block, once. In shared memory at the same place in all blocks. A value is written into a
// peer's memory together with its bytes' arrival at the peer's barrier, so that a block waits for what it needs and for
// nothing else, and may leave as soon as it has it: whatever was written to it has arrived. (Two full cluster barriers
// and a release of all memory before the first: 1.1 us of 4.2 for one row of 65536.)
template <class T>
struct Exchange {
  T of_block[kMaxCluster];
  uint64_t barrier;

  // By all threads, before anything else.
  __device__ __forceinline__ void open() {
#if SRMSNORM_CLUSTERS
    if (threadIdx.x == 0) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address(&barrier)) : "memory");
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncwarp();
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");  // this block runs, and takes values
#endif
  }

  // By all threads, with their block's value: the values by block.
  __device__ __forceinline__ const T* all(T value, int blocks, int rank) {
#if SRMSNORM_CLUSTERS
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
    if (threadIdx.x == 0)
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address(&barrier)),
                   "r"(blocks * static_cast<int>(sizeof(T)))
                   : "memory");
    if (threadIdx.x < blocks) send(value, rank, threadIdx.x);
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], 0;\n"
        "@!done bra again;\n"
        "}" ::"r"(address(&barrier))
        : "memory");
#endif
    return of_block;
  }

 private:
  static __device__ __forceinline__ uint32_t address(void* shared) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  }

  static __device__ __forceinline__ uint32_t address_of_peer(void* shared, int peer) {
    uint32_t there = 0;
#if SRMSNORM_CLUSTERS
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address(shared)), "r"(peer));
#endif
    return there;
  }

  __device__ __forceinline__ void send(T value, int rank, int peer) {
#if SRMSNORM_CLUSTERS
    uint32_t to = address_of_peer(&of_block[rank], peer), arrival = address_of_peer(&barrier, peer);
    static_assert(sizeof(T) == 4 || sizeof(T) == 8);
    std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t> bits;
    memcpy(&bits, &value, sizeof(T));
    if constexpr (sizeof(T) == 4)
      asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to), "r"(bits),
                   "r"(arrival)
                   : "memory");
    else
      asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(to), "l"(bits),
                   "r"(arrival)
                   : "memory");
#endif
  }
};

template <class T>
__device__ __forceinline__ Exchange<T>& shared_exchange() {
  __shared__ Exchange<T> exchange;
  return exchange;
}

}  // namespace srmsnorm
