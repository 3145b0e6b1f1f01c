// Whole KV blocks from pools to pools, all layers in one launch: what a prefix tier and a swapped-out sequence need.
//
// A pool is an address: device memory, or pinned host memory that the device can address. The copy runs in the
// stream like any kernel, so that no block is read before it is written nor overwritten before it is read.
//
//     sources[layer]        | block 0 | block 1 | … |          pairs   | 5 → 0 | 1 → 3 | …
//     destinations[layer]   | block 0 | block 1 | … |
//     block (pair, piece, layer): kVectors * kThreads vectors of 16 bytes; a thread's loads are all under way at once
//
// Shapes: sources, destinations: [num_layers] addresses; pairs: [num_pairs, 2] int32 (source, destination). A block has
// `block_vectors` times 16 bytes. No destination may be another pair's source or destination.
#include "ptx.cuh"

template <int kThreads, int kVectors>
__global__ void __launch_bounds__(kThreads)
    copy_blocks(const u64* sources, const u64* destinations, const int2* pairs, u32 block_vectors) {
  pdl_wait();
  pdl_launch_dependents();
  const int2 pair = pairs[blockIdx.x];
  const size_t source_start = static_cast<size_t>(pair.x) * block_vectors;
  const size_t destination_start = static_cast<size_t>(pair.y) * block_vectors;
  const uint4* source = reinterpret_cast<const uint4*>(sources[blockIdx.z]) + source_start;
  uint4* destination = reinterpret_cast<uint4*>(destinations[blockIdx.z]) + destination_start;
  const u32 first = blockIdx.y * kThreads * kVectors + threadIdx.x;

  uint4 held[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; i++) {
    if (first + i * kThreads < block_vectors) held[i] = source[first + i * kThreads];
  }
#pragma unroll
  for (int i = 0; i < kVectors; i++) {
    if (first + i * kThreads < block_vectors) destination[first + i * kThreads] = held[i];
  }
}
