// The machine's instructions under names: every inline PTX of the project stands in this file and nowhere else.
//
// A kernel includes this header and calls the wrappers, so the same source compiles three ways: by NVRTC for a card,
// and by g++, where `emu/emu.h` defines the same names and a CPU executes them. A wrapper does one instruction and
// decides nothing; what it needs of its caller (alignment, which threads, which fence before) stands above it. PTX
// names can be looked up in https://docs.nvidia.com/cuda/parallel-thread-execution/.
//
// HOPPER is 1 where wgmma and setmaxnreg exist (sm_90a) and under the emulator; a kernel keeps what needs them behind
// it.
#pragma once

#if !defined(__CUDACC__) && !defined(__CUDACC_RTC__)
#include "emu/emu.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using bf16 = __nv_bfloat16;
using bf16x2 = __nv_bfloat162;
using f16 = __half;
using f16x2 = __half2;
using e4m3 = __nv_fp8_e4m3;

#define DEV __device__ __forceinline__

// Shared memory: DYN_SMEM names the block's dynamic part, SHARED a static array. Nothing is said with __shared__
// itself, because the emulator has to know the place of each.
#define DYN_SMEM(name) extern __shared__ __align__(1024) unsigned char name[]
#define SHARED(T, name, N) __shared__ __align__(alignof(T) < 16 ? 16 : alignof(T)) T name[N]

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER 1
#else
#define HOPPER 0
#endif

// The types that wgmma multiplies.
enum WgmmaKind { BF16, F16, E4M3 };

// What cuTensorMapEncodeTiled writes; a kernel takes it as `const __grid_constant__ TensorMap`.
struct __align__(64) TensorMap {
  u64 opaque[16];
};

// The 32-bit address of shared memory that instructions take. `cvta.to.shared`
DEV u32 smem_u32(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }

// This thread's number in its warp. `%laneid`
DEV u32 lane_id() {
  u32 lane;
  asm("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

// ---- loads, stores and atomics with an order or a hint --------------------------------------------------------------

// 16 bytes of global memory that nobody writes during the kernel, not kept in L1. `ld.global.nc.L1::no_allocate.v4`
DEV uint4 ld_nc_v4(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

// Load, before everything that follows. `ld.acquire.gpu`
DEV u32 ld_acquire(const u32* p) {
  u32 v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
DEV int ld_acquire(const int* p) { return static_cast<int>(ld_acquire(reinterpret_cast<const u32*>(p))); }

// Store, after everything that precedes. `st.release.gpu`
DEV void st_release(u32* p, u32 v) { asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory"); }
DEV void st_release(int* p, int v) { st_release(reinterpret_cast<u32*>(p), static_cast<u32>(v)); }

// Add and return what was there, ordered on both sides. `atom.add.acq_rel.gpu`
DEV u32 atom_add_acq_rel(u32* p, u32 v) {
  u32 old;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(v) : "memory");
  return old;
}
DEV int atom_add_acq_rel(int* p, int v) {
  return static_cast<int>(atom_add_acq_rel(reinterpret_cast<u32*>(p), static_cast<u32>(v)));
}

// ---- arithmetic -----------------------------------------------------------------------------------------------------

// 2^x to about 2 ulp; 0 for -inf, subnormals are zeros. `ex2.approx.ftz`
DEV float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / sqrt(x) to about 1 ulp. `rsqrt.approx.ftz`
DEV float rsqrt_approx(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ---- barriers of a part of the block --------------------------------------------------------------------------------

// Wait at barrier `id` (1 to 15; 0 is __syncthreads) until `n` threads, whole warps, stand or have arrived there.
// `bar.sync`
DEV void bar_sync(int id, int n) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n) : "memory"); }

// Arrive at barrier `id` without waiting. `bar.arrive`
DEV void bar_arrive(int id, int n) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(n) : "memory"); }

// ---- cp.async: 16-byte copies into shared memory, in groups of one thread -------------------------------------------

// Start to copy 16 bytes from global to shared memory, both 16-byte aligned; zeros, and no read, when !pred.
// `cp.async.cg.shared.global`
DEV void cp_async16(void* dst, const void* src, bool pred = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem_u32(dst)), "l"(src), "r"(pred ? 16 : 0)
               : "memory");
}

// Close this thread's group of copies. `cp.async.commit_group`
DEV void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait until at most the N newest groups of this thread are under way; others see the data after a barrier.
// `cp.async.wait_group`
template <int N>
DEV void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- 8x8 matrices of 16-bit elements between shared memory and a warp's registers -----------------------------------
// Lane i names row i % 8 of matrix i / 8 (16 bytes, aligned). Afterwards lane 4 g + t holds elements (g, 2 t) and
// (g, 2 t + 1) of each matrix, with trans (2 t, g) and (2 t + 1, g).

// One matrix; lanes 0 to 7 name rows. `ldmatrix.m8n8.x1`
DEV void ldmatrix_x1(u32 (&r)[1], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(smem_u32(p)) : "memory");
}

// Two matrices; lanes 0 to 15 name rows. `ldmatrix.m8n8.x2`
DEV void ldmatrix_x2(u32 (&r)[2], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(smem_u32(p))
               : "memory");
}

// Four matrices. `ldmatrix.m8n8.x4`
DEV void ldmatrix_x4(u32 (&r)[4], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(smem_u32(p))
               : "memory");
}

// Two matrices, each transposed. `ldmatrix.m8n8.x2.trans`
DEV void ldmatrix_x2_trans(u32 (&r)[2], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(smem_u32(p))
               : "memory");
}

// Four matrices, each transposed. `ldmatrix.m8n8.x4.trans`
DEV void ldmatrix_x4_trans(u32 (&r)[4], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(smem_u32(p))
               : "memory");
}

// ---- mma.sync: a warp's d += a b ------------------------------------------------------------------------------------
// With lane = 4 g + t: d[0], d[1] are (row g, columns 2 t, 2 t + 1), d[2], d[3] those of row g + 8. a[0], a[1] hold
// rows g and g + 8 of the first half of k, a[2], a[3] of the second; b0 and b1 the two halves of k of column g. A
// register holds consecutive elements of k, beginning at t times as many as fit.

// m16n8k16, bf16 x bf16 -> float. `mma.sync.m16n8k16.f32.bf16.bf16.f32`
DEV void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// m16n8k16, f16 x f16 -> float. `mma.sync.m16n8k16.f32.f16.f16.f32`
DEV void mma_f16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// m16n8k32, s8 x s8 -> int. `mma.sync.m16n8k32.s32.s8.s8.s32`
DEV void mma_s8(int (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#if __CUDA_ARCH__ >= 890
// m16n8k32, e4m3 x e4m3 -> float; sm_89 and up. `mma.sync.m16n8k32.f32.e4m3.e4m3.f32`
DEV void mma_e4m3(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

// ---- programmatic dependent launch: no-ops where it does not exist --------------------------------------------------

// Wait until the kernel before this one in the stream has finished and its writes are seen. `griddepcontrol.wait`
DEV void pdl_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Let the next kernel in the stream begin as soon as every block has said so. `griddepcontrol.launch_dependents`
DEV void pdl_launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#if __CUDA_ARCH__ >= 900

// Four matrices from registers into rows that the lanes name as for ldmatrix; sm_90 and up. `stmatrix.m8n8.x4`
DEV void stmatrix_x4(void* p, const u32 (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(smem_u32(p)), "r"(r[0]),
               "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

// ---- mbarrier: 8 bytes of shared memory that count arrivals and bytes, phase after phase ----------------------------

// Make a barrier whose every phase needs `count` arrivals. `mbarrier.init`
DEV void mbar_init(u64* bar, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_u32(bar)), "r"(count) : "memory");
}

// Let bulk copies see the barriers that this thread made; a barrier among the threads follows. `fence.mbarrier_init`
DEV void mbar_fence_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Arrive, and have the phase wait for `bytes` more bytes. `mbarrier.arrive.expect_tx`
DEV void mbar_expect_tx(u64* bar, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_u32(bar)), "r"(bytes) : "memory");
}

// Arrive. `mbarrier.arrive`
DEV void mbar_arrive(u64* bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_u32(bar)) : "memory");
}

// Wait until the phase of this parity is over: 0 for the first, third, ...; 1 passes a new barrier.
// `mbarrier.try_wait.parity`
DEV void mbar_wait(u64* bar, u32 parity) {
  u32 over;
  do {
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(over)
        : "r"(smem_u32(bar)), "r"(parity)
        : "memory");
  } while (!over);
}

// Order this thread's ordinary accesses to shared memory before bulk copies' and wgmma's. `fence.proxy.async`
DEV void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- bulk copies (TMA): one thread starts them, an mbarrier counts their bytes --------------------------------------

// Fetch a tensor map ahead of its use. `prefetch.tensormap`
DEV void tma_prefetch(const TensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }

// Copy `bytes` (a multiple of 16, both sides 16-byte aligned) of global memory. `cp.async.bulk.shared::cluster.global`
DEV void tma_load_1d(void* dst, const void* src, u32 bytes, u64* bar) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(smem_u32(dst)),
      "l"(src), "r"(bytes), "r"(smem_u32(bar))
      : "memory");
}

// Copy a box whose first element is (x, y); what lies outside of the tensor is zero and counts as bytes.
// `dst` is 128-byte aligned. `cp.async.bulk.tensor.2d`
DEV void tma_load_2d(void* dst, const TensorMap* map, u64* bar, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(smem_u32(dst)),
      "l"(map), "r"(smem_u32(bar)), "r"(x), "r"(y)
      : "memory");
}

// The same of three dimensions. `cp.async.bulk.tensor.3d`
DEV void tma_load_3d(void* dst, const TensorMap* map, u64* bar, int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(smem_u32(dst)),
      "l"(map), "r"(smem_u32(bar)), "r"(x), "r"(y), "r"(z)
      : "memory");
}

// The same of four dimensions. `cp.async.bulk.tensor.4d`
DEV void tma_load_4d(void* dst, const TensorMap* map, u64* bar, int x, int y, int z, int w) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(smem_u32(dst)),
      "l"(map), "r"(smem_u32(bar)), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
}

// Write `bytes` of shared memory to global memory, aligned as for the load. `cp.async.bulk.global.shared::cta`
DEV void tma_store_1d(void* dst, const void* src, u32 bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(dst), "r"(smem_u32(src)), "r"(bytes)
               : "memory");
}

// Write a box from shared memory; what lies outside of the tensor is not written. Whoever wrote the box has fenced
// (fence_proxy_async) before a barrier. `cp.async.bulk.tensor.2d.global.shared::cta`
DEV void tma_store_2d(const TensorMap* map, const void* src, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
               "r"(smem_u32(src)), "r"(x), "r"(y)
               : "memory");
}

// Close this thread's group of stores. `cp.async.bulk.commit_group`
DEV void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Wait until at most the N newest groups still read shared memory. `cp.async.bulk.wait_group.read`
template <int N>
DEV void tma_store_wait() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}

#endif  // sm_90

#if HOPPER

// ---- registers move between warpgroups; needs __launch_bounds__ -----------------------------------------------------

// Have R registers a thread, waiting until they are free. `setmaxnreg.inc`
template <int R>
DEV void reg_alloc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(R));
}

// Keep only R registers a thread. `setmaxnreg.dec`
template <int R>
DEV void reg_dealloc() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(R));
}

// ---- wgmma: a warpgroup's d = a b + scale_d d, 64 x N, asynchronous -------------------------------------------------
// With lane = 4 g + t of warp w: of each four of d, number j, the first two are (row 16 w + g, columns 8 j + 2 t and
// 8 j + 2 t + 1), the others the same of row 16 w + g + 8. a is in shared memory (ss) or in registers (rs, as for
// mma.sync, of the warp's 16 rows). Neither d nor a's registers may be touched between wgmma and wgmma_wait, nor may
// the shared memory be written.

// Order what was done to registers before the wgmma that follow: before the first one after a wait. `wgmma.fence`
DEV void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Close a group. `wgmma.commit_group`
DEV void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Wait until at most the N newest groups of this warp are under way. `wgmma.wait_group`
template <int N>
DEV void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// Keep the compiler from moving accesses to d across this line; no instruction.
template <int N>
DEV void wgmma_regs_fence(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// Where an operand lies in shared memory: `swizzle_bytes` is 0, 32, 64 or 128. Rows of K (K-major): `stride_bytes` is
// from 8 rows to the next 8, `leading_bytes`, unswizzled only, from 16 bytes of K to the next 16. Columns of K
// (MN-major): swizzled, `stride_bytes` is from 8 of K to the next 8, `leading_bytes` from one swizzle_bytes of M or N
// to the next; unswizzled the other way round. "Matrix descriptor"
DEV u64 wgmma_desc(const void* p, int swizzle_bytes, u32 stride_bytes, u32 leading_bytes) {
  u64 mode = swizzle_bytes == 128 ? 1 : swizzle_bytes == 64 ? 2 : swizzle_bytes == 32 ? 3 : 0;
  u64 address = (smem_u32(p) & 0x3FFFF) >> 4;
  return address | static_cast<u64>((leading_bytes & 0x3FFFF) >> 4) << 16 |
         static_cast<u64>((stride_bytes & 0x3FFFF) >> 4) << 32 | mode << 62;
}

template <int N>
struct WgmmaShape;  // one for every N: 8, 16, ... 256

// One instruction; what follows its type are the numbers of the operands behind d's.
#define WGMMA_SS_16BIT(N, type, a, b, p, t)                                                        \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " p                                               \
               ", 0;\n"                                                                            \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type " {" WGMMA_REGS_##N \
               "}, " a ", " b ", p, 1, 1, 0, " t ";\n}"                                            \
               : WGMMA_OUTS_##N                                                                    \
               : "l"(desc_a), "l"(desc_b), "r"(scale_d), "n"(TransB ? 1 : 0))
#define WGMMA_SS_8BIT(N, type, a, b, p)                                                                            \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " p                                                               \
               ", 0;\n"                                                                                            \
               "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32." type "." type " {" WGMMA_REGS_##N "}, " a ", " b  \
                                                                                                   ", p, 1, 1;\n}" \
               : WGMMA_OUTS_##N                                                                                    \
               : "l"(desc_a), "l"(desc_b), "r"(scale_d))
#define WGMMA_RS_16BIT(N, type, a0, a1, a2, a3, b, p, t)                                           \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " p                                               \
               ", 0;\n"                                                                            \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type " {" WGMMA_REGS_##N \
               "}, {" a0 ", " a1 ", " a2 ", " a3 "}, " b ", p, 1, 1, " t ";\n}"                    \
               : WGMMA_OUTS_##N                                                                    \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(desc_b), "r"(scale_d), "n"(TransB ? 1 : 0))
#define WGMMA_RS_8BIT(N, type, a0, a1, a2, a3, b, p)                                               \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " p                                               \
               ", 0;\n"                                                                            \
               "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32." type "." type " {" WGMMA_REGS_##N \
               "}, {" a0 ", " a1 ", " a2 ", " a3 "}, " b ", p, 1, 1;\n}"                           \
               : WGMMA_OUTS_##N                                                                    \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(desc_b), "r"(scale_d))

// One N; p0 to p6 are the numbers of the seven operands behind d's N / 2.
#define WGMMA_SHAPE(N, p0, p1, p2, p3, p4, p5, p6)                                      \
  template <>                                                                           \
  struct WgmmaShape<N> {                                                                \
    template <WgmmaKind kKind, bool TransB>                                             \
    DEV static void ss(float (&d)[N / 2], u64 desc_a, u64 desc_b, int scale_d) {        \
      if constexpr (kKind == BF16) {                                                    \
        WGMMA_SS_16BIT(N, "bf16", p0, p1, p2, p3);                                      \
      } else if constexpr (kKind == F16) {                                              \
        WGMMA_SS_16BIT(N, "f16", p0, p1, p2, p3);                                       \
      } else {                                                                          \
        WGMMA_SS_8BIT(N, "e4m3", p0, p1, p2);                                           \
      }                                                                                 \
    }                                                                                   \
    template <WgmmaKind kKind, bool TransB>                                             \
    DEV static void rs(float (&d)[N / 2], const u32 (&a)[4], u64 desc_b, int scale_d) { \
      if constexpr (kKind == BF16) {                                                    \
        WGMMA_RS_16BIT(N, "bf16", p0, p1, p2, p3, p4, p5, p6);                          \
      } else if constexpr (kKind == F16) {                                              \
        WGMMA_RS_16BIT(N, "f16", p0, p1, p2, p3, p4, p5, p6);                           \
      } else {                                                                          \
        WGMMA_RS_8BIT(N, "e4m3", p0, p1, p2, p3, p4, p5);                               \
      }                                                                                 \
    }                                                                                   \
  };
#include "wgmma_shapes.cuh"

// d += a b (d = a b when !scale_d), a and b in shared memory; m64nNk16, of E4M3 m64nNk32. TransB: b is MN-major, 16-bit
// kinds only. `wgmma.mma_async`
template <int N, WgmmaKind kKind, bool TransB = false>
DEV void wgmma_ss(float (&d)[N / 2], u64 desc_a, u64 desc_b, int scale_d) {
  static_assert(kKind != E4M3 || !TransB, "only 16-bit operands may be MN-major");
  WgmmaShape<N>::template ss<kKind, TransB>(d, desc_a, desc_b, scale_d);
}

// The same with a in registers. `wgmma.mma_async`
template <int N, WgmmaKind kKind, bool TransB = false>
DEV void wgmma_rs(float (&d)[N / 2], const u32 (&a)[4], u64 desc_b, int scale_d) {
  static_assert(kKind != E4M3 || !TransB, "only 16-bit operands may be MN-major");
  WgmmaShape<N>::template rs<kKind, TransB>(d, a, desc_b, scale_d);
}

#endif  // HOPPER
#endif  // the card's side
