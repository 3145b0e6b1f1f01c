// One probe for each wrapper of ptx.cuh: bits in, bits out, nothing in between. `which` chooses, by its place in the
// list of test_emulator_wrappers.py. One block of 128 threads; `in` and `out` are arrays of words.
#include "ptx.cuh"

constexpr int kThreads = 128;
constexpr int kTileBytes = 16384;

DEV void fill(u8* tile, const u32* in) {
  for (int i = threadIdx.x; i < kTileBytes / 4; i += kThreads) reinterpret_cast<u32*>(tile)[i] = in[i];
  __syncthreads();
}

DEV void empty(u8* tile, u32* out) {
  __syncthreads();
  for (int i = threadIdx.x; i < kTileBytes / 4; i += kThreads) out[i] = reinterpret_cast<u32*>(tile)[i];
}

template <int N>
DEV void give(u32* out, const u32 (&r)[N]) {
  for (int i = 0; i < N; i++) out[threadIdx.x * N + i] = r[i];
}

// Lane i of each warp names row 31 - i of the warp's 512 bytes, so that an order of rows is seen.
DEV u8* row_of(u8* tile) { return tile + threadIdx.x / 32 * 512 + (31 - threadIdx.x % 32) * 16; }

template <class D, class Multiply>
DEV void multiply(u32* out, const u32* in, Multiply with) {
  u32 a[4];
  D d[4];
  const u32* mine = in + threadIdx.x * 10;
  for (int i = 0; i < 4; i++) a[i] = mine[i];
  for (int i = 0; i < 4; i++) memcpy(&d[i], &mine[6 + i], 4);
  with(d, a, mine[4], mine[5]);
  for (int i = 0; i < 4; i++) memcpy(&out[threadIdx.x * 4 + i], &d[i], 4);
}

DEV void probe_shuffles(u32* out, const u32* in) {
  u32 v = in[threadIdx.x];
  int by = static_cast<int>(in[threadIdx.x / 32] & 31);
  u32 r[8] = {__shfl_sync(~0u, v, by),
              __shfl_sync(~0u, v, by, 8),
              __shfl_xor_sync(~0u, v, by),
              __shfl_up_sync(~0u, v, by & 7, 16),
              __shfl_down_sync(~0u, v, by & 7, 16),
              __ballot_sync(~0u, v & 1),
              static_cast<u32>(__any_sync(~0u, (v & 255) == 0)) * 2 + static_cast<u32>(__all_sync(~0u, (v & 255) != 0)),
              __reduce_add_sync(~0u, v)};
  give(out, r);
}

DEV void probe_lanes(u32* out, u8* tile) {
  u32 r[2] = {lane_id(), smem_u32(tile + threadIdx.x) - smem_u32(tile)};
  give(out, r);
}

// Copies in two groups; every fourth thread copies zeros, from an address that must not be read.
DEV void probe_cp_async(u32* out, const u32* in, u8* tile) {
  bool reads = threadIdx.x % 4 != 3;
  cp_async16(tile + threadIdx.x * 16, reads ? in + threadIdx.x * 4 : in, reads);
  cp_async_commit();
  cp_async16(tile + (kThreads + threadIdx.x) * 16, in + (kThreads + threadIdx.x) * 4);
  cp_async_commit();
  cp_async_wait<1>();
  u32 first[4];
  memcpy(first, tile + threadIdx.x * 16, 16);
  give(out, first);
  cp_async_wait<0>();
  memcpy(first, tile + (kThreads + threadIdx.x) * 16, 16);
  give(out + kThreads * 4, first);
}

DEV void probe_memory(u32* out, const u32* in) {
  uint4 v = ld_nc_v4(in + threadIdx.x * 4);
  u32 r[4] = {v.x, v.y, v.z, v.w};
  give(out + kThreads, r);
  if (threadIdx.x == 0) st_release(out, ld_acquire(in));
  __syncthreads();
  atom_add_acq_rel(out, threadIdx.x);
}

DEV void probe_arithmetic(u32* out, const u32* in) {
  float x = __uint_as_float(in[threadIdx.x]);
  u32 r[2] = {__float_as_uint(exp2_approx(x)), __float_as_uint(rsqrt_approx(x))};
  give(out, r);
}

// Warps 1 to 3 write and arrive; warp 0 waits for them and reads, then all of them meet at another barrier.
DEV void probe_barriers(u32* out, const u32* in, u8* tile) {
  u32* words = reinterpret_cast<u32*>(tile);
  if (threadIdx.x >= 32) {
    words[threadIdx.x] = in[threadIdx.x];
    bar_arrive(1, kThreads);
    bar_sync(2, kThreads);
    out[threadIdx.x] = words[threadIdx.x - 32];
  } else {
    bar_sync(1, kThreads);
    u32 sum = words[threadIdx.x + 32] + words[threadIdx.x + 64] + words[threadIdx.x + 96];
    words[threadIdx.x] = sum;
    bar_sync(2, kThreads);
    out[threadIdx.x] = sum;
  }
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// Three phases of one barrier: who arrives, who waits, and that parity 1 passes at first.
DEV void probe_mbarrier(u32* out, const u32* in, u8* tile) {
  SHARED(u64, barrier, 1);
  u32* words = reinterpret_cast<u32*>(tile);
  if (threadIdx.x == 0) mbar_init(barrier, kThreads);
  __syncthreads();
  mbar_wait(barrier, 1);
  u32 sum = 0;
  for (u32 phase = 0; phase < 3; phase++) {
    words[phase * kThreads + threadIdx.x] = in[phase * kThreads + threadIdx.x];
    mbar_arrive(barrier);
    mbar_wait(barrier, phase & 1);
    sum = sum * 3 + words[phase * kThreads + kThreads - 1 - threadIdx.x];
  }
  out[threadIdx.x] = sum;
}

template <class Copy>
DEV void load(u32* out, u8* tile, u32 bytes, Copy copy) {
  SHARED(u64, barrier, 1);
  for (int i = threadIdx.x; i < kTileBytes / 4; i += kThreads) reinterpret_cast<u32*>(tile)[i] = 0xABABABAB;
  fence_proxy_async();
  if (threadIdx.x == 0) {
    mbar_init(barrier, 1);
    mbar_fence_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    mbar_expect_tx(barrier, bytes);
    copy(tile, barrier);
  }
  mbar_wait(barrier, 0);
  empty(tile, out);
}

template <class Copy>
DEV void store(const u32* in, u8* tile, Copy copy) {
  fill(tile, in);
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    copy(tile);
    tma_store_commit();
    tma_store_wait<0>();
  }
}
#endif

// `bytes` is what a box holds, or what a plain copy moves; `x`, `y`, `z`, `w` where it begins.
__global__ void __launch_bounds__(kThreads) wrappers(u32* out, const u32* in, int which, int bytes, int x, int y, int z,
                                                     int w, const __grid_constant__ TensorMap map) {
  DYN_SMEM(tile);
  u32 r1[1], r2[2], r4[4];
  switch (which) {
    case 0:
      return probe_lanes(out, tile);
    case 1:
      return probe_shuffles(out, in);
    case 2:
      return probe_cp_async(out, in, tile);
    case 3:
      return probe_memory(out, in);
    case 4:
      return probe_arithmetic(out, in);
    case 5:
      return probe_barriers(out, in, tile);
    case 6:
      fill(tile, in);
      ldmatrix_x1(r1, row_of(tile));
      return give(out, r1);
    case 7:
      fill(tile, in);
      ldmatrix_x2(r2, row_of(tile));
      return give(out, r2);
    case 8:
      fill(tile, in);
      ldmatrix_x4(r4, row_of(tile));
      return give(out, r4);
    case 9:
      fill(tile, in);
      ldmatrix_x2_trans(r2, row_of(tile));
      return give(out, r2);
    case 10:
      fill(tile, in);
      ldmatrix_x4_trans(r4, row_of(tile));
      return give(out, r4);
    case 11:
      return multiply<float>(out, in, [](float(&d)[4], const u32(&a)[4], u32 b0, u32 b1) { mma_bf16(d, a, b0, b1); });
    case 12:
      return multiply<float>(out, in, [](float(&d)[4], const u32(&a)[4], u32 b0, u32 b1) { mma_f16(d, a, b0, b1); });
    case 13:
      return multiply<int>(out, in, [](int(&d)[4], const u32(&a)[4], u32 b0, u32 b1) { mma_s8(d, a, b0, b1); });
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
    case 14:
      return multiply<float>(out, in, [](float(&d)[4], const u32(&a)[4], u32 b0, u32 b1) { mma_e4m3(d, a, b0, b1); });
#endif
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    case 15:
      fill(tile, in);
      for (int i = 0; i < 4; i++) r4[i] = in[threadIdx.x * 4 + i];
      __syncthreads();
      stmatrix_x4(row_of(tile), r4);
      return empty(tile, out);
    case 16:
      return probe_mbarrier(out, in, tile);
    case 17:
      return load(out, tile, bytes, [&](u8* to, u64* barrier) { tma_load_1d(to, in, bytes, barrier); });
    case 18:
      return load(out, tile, bytes, [&](u8* to, u64* barrier) {
        tma_prefetch(&map);
        tma_load_2d(to, &map, barrier, x, y);
      });
    case 19:
      return load(out, tile, bytes, [&](u8* to, u64* barrier) { tma_load_3d(to, &map, barrier, x, y, z); });
    case 20:
      return load(out, tile, bytes, [&](u8* to, u64* barrier) { tma_load_4d(to, &map, barrier, x, y, z, w); });
    case 21:
      return store(in, tile, [&](const u8* from) { tma_store_1d(out, from, bytes); });
    case 22:
      return store(in, tile, [&](const u8* from) { tma_store_2d(&map, from, x, y); });
#endif
    case 23:
      pdl_wait();
      pdl_launch_dependents();
      out[threadIdx.x] = in[threadIdx.x];
  }
}
