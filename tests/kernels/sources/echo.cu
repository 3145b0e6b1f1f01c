// Each argument as it arrives, and what the block is told of its place: out[block] = {i, u, f, q, first word of the map}.
#include "ptx.cuh"

struct Told {
  float f;
  int i;
  u32 u, threads;
  long long q;
  u64 map;
};

template <int kFactor>
__global__ void __launch_bounds__(64) echo(Told* out, int i, u32 u, float f, long long q, const __grid_constant__ TensorMap map) {
  DYN_SMEM(shared);
  if (threadIdx.x == 0) reinterpret_cast<u32*>(shared)[0] = blockDim.x * gridDim.x;
  __syncthreads();
  if (threadIdx.x == 63) {
    const u64 first = *reinterpret_cast<const u64*>(&map);
    out[blockIdx.x] = {f * kFactor, i, u, reinterpret_cast<u32*>(shared)[0], q, first};
  }
}
