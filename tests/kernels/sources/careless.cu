// What the compiler's log has to tell: an array that is indexed at run time, and more live values than registers.
#include "ptx.cuh"

// `clean` needs nothing of the kind.
template <int kCount>
__global__ void clean(float* out) {
  out[threadIdx.x] = out[threadIdx.x] + kCount;
}

template <int kCount>
__global__ void indexed(float* out, const int* at) {
  float values[kCount];
#pragma unroll
  for (int i = 0; i < kCount; i++) values[i] = out[i];
  for (int i = 0; i < kCount; i++) values[at[i]] += 1.f;
  for (int i = 0; i < kCount; i++) out[i] = values[at[i]];
}

template <int kCount>
__global__ void __launch_bounds__(1024, 2) crowded(float* out) {
  float values[kCount];
#pragma unroll
  for (int i = 0; i < kCount; i++) values[i] = out[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; i++) out[(kCount - 1 - i) * 1024 + threadIdx.x] = values[i] * values[(i * 7) % kCount];
}

#if HOPPER
// An accumulator is read between the product and the wait for it: ptxas serialises.
template <int kCount>
__global__ void __launch_bounds__(128, 1) impatient(float* out, u64 a, u64 b) {
  float d[32];
#pragma unroll
  for (int i = 0; i < 32; i++) d[i] = 0.f;
  for (int k = 0; k < kCount; k++) {
    wgmma_fence();
    wgmma_ss<64, BF16>(d, a + k, b + k, 1);
    wgmma_commit();
    d[k % 2] += 1.f;
    wgmma_wait<0>();
  }
#pragma unroll
  for (int i = 0; i < 32; i++) out[i * 128 + threadIdx.x] = d[i];
}
#endif
