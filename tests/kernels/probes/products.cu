// wgmma of every N: tiles in shared memory as they come, one product, the accumulators as they lie.
//
// One block of a warpgroup. `a` and `b` are images of shared memory (a's at 0, b's at `b_at`), or `a` is 4 words a
// thread; `d` is N / 2 floats a thread. Two products are made: d = a b, and with what lies `a_step` and `b_step` bytes
// further on d += a b.
#include "ptx.cuh"

#if HOPPER

struct Operands {
  const u8* tile;
  const u32* a;
  int a_swizzle, a_stride, a_leading, a_step;
  int b_at, b_swizzle, b_stride, b_leading, b_step;
};

template <int N, WgmmaKind kKind, bool TransB, bool kFromRegisters>
DEV void multiply(float* out, const Operands& o) {
  float d[N / 2];
  for (int i = 0; i < N / 2; i++) d[i] = 1e30f;
  u32 first[4], second[4];
  for (int i = 0; i < 4; i++) {
    first[i] = kFromRegisters ? o.a[threadIdx.x * 8 + i] : 0;
    second[i] = kFromRegisters ? o.a[threadIdx.x * 8 + 4 + i] : 0;
  }
  u64 a = wgmma_desc(o.tile, o.a_swizzle, o.a_stride, o.a_leading);
  u64 a_next = wgmma_desc(o.tile + o.a_step, o.a_swizzle, o.a_stride, o.a_leading);
  u64 b = wgmma_desc(o.tile + o.b_at, o.b_swizzle, o.b_stride, o.b_leading);
  u64 b_next = wgmma_desc(o.tile + o.b_at + o.b_step, o.b_swizzle, o.b_stride, o.b_leading);
  wgmma_regs_fence(d);
  wgmma_fence();
  if constexpr (kFromRegisters) {
    wgmma_rs<N, kKind, TransB>(d, first, b, 0);
    wgmma_rs<N, kKind, TransB>(d, second, b_next, 1);
  } else {
    wgmma_ss<N, kKind, TransB>(d, a, b, 0);
    wgmma_ss<N, kKind, TransB>(d, a_next, b_next, 1);
  }
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_regs_fence(d);
  for (int i = 0; i < N / 2; i++) out[threadIdx.x * (N / 2) + i] = d[i];
}

template <WgmmaKind kKind, bool TransB, bool kFromRegisters>
__global__ void __launch_bounds__(128)
    products(float* out, const u32* image, const u32* a, int columns, int a_swizzle, int a_stride, int a_leading,
             int a_step, int b_at, int b_swizzle, int b_stride, int b_leading, int b_step, int bytes) {
  DYN_SMEM(tile);
  for (int i = threadIdx.x; i < bytes / 4; i += 128) reinterpret_cast<u32*>(tile)[i] = image[i];
  fence_proxy_async();
  __syncthreads();
  Operands o{tile, a, a_swizzle, a_stride, a_leading, a_step, b_at, b_swizzle, b_stride, b_leading, b_step};
#define PROBE(N) \
  case N:        \
    return multiply<N, kKind, TransB, kFromRegisters>(out, o);
#define PROBES(N) \
  PROBE(N) PROBE(N + 8) PROBE(N + 16) PROBE(N + 24) PROBE(N + 32) PROBE(N + 40) PROBE(N + 48) PROBE(N + 56)
  if constexpr (kKind == BF16 && !TransB && !kFromRegisters) {  // of one kind every N
    switch (columns) { PROBES(8) PROBES(72) PROBES(136) PROBES(200) }
  } else {
    switch (columns) { PROBE(8) PROBE(24) PROBE(40) PROBE(64) PROBE(136) PROBE(256) }
  }
}

#endif
