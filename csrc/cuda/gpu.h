// The GPU as a plain value: what the host knows of it. Host only, no torch, no device code.
#pragma once
#include <cstdint>

namespace srmsnorm {

constexpr int kMaxCluster = 16;

struct Gpu {
  int device = 0;      // its number in this process
  int capability = 0;  // 90 for compute capability 9.0
  int multiprocessors = 0;
  int shared_bytes = 0;  // of a multiprocessor
  int64_t l2_bytes = 0;
  int64_t bandwidth = 0;  // of its memory, bytes a second; 0: the driver does not tell
  // Blocks in the largest cluster that a context has room for, whatever launch of ours it is; 1: none. What the others
  // are to a GPU, this is to a context, and only the plan of wide rows asks for it (is_wide).
  int largest_cluster = 1;
};

// Shared memory of a block of which so many, and no more, stand on a multiprocessor at a time; 1 KB of each is the
// system's.
constexpr int shared_bytes_for(int blocks, const Gpu& gpu) { return gpu.shared_bytes / (blocks + 1) - (1 << 10) + 128; }

// The largest cluster of a context. capability: the GPU's, or that of the architecture that the code was compiled for,
// the earlier one: code for one without clusters has none on any GPU. room_for(cluster): whether one of that size fits.
template <class RoomFor>
constexpr int largest_cluster(int capability, RoomFor room_for) {
  if (capability < 90) return 1;
  int cluster = kMaxCluster;
  while (cluster > 1 && !room_for(cluster)) cluster /= 2;
  return cluster;
}

}  // namespace srmsnorm
