// The wrappers of ptx.cuh, which says what each one is, as calls of the emulator.
#pragma once
#include "operations.h"

DEV u32 smem_u32(const void* p) { return emu::self->block->shared.address(p); }
DEV u32 lane_id() { return emu::self->lane; }

DEV uint4 ld_nc_v4(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % 16) emu::fail("ld_nc_v4: the address %p is misaligned", p);
  return *static_cast<const uint4*>(p);
}
template <class T>
DEV T ld_acquire(const T* p) {
  emu::give_way();
  return *static_cast<const volatile T*>(p);
}
template <class T>
DEV void st_release(T* p, std::common_type_t<T> v) {
  *static_cast<volatile T*>(p) = v;
  emu::give_way();
}
template <class T>
DEV T atom_add_acq_rel(T* p, std::common_type_t<T> v) {
  return atomicAdd(p, v);
}

DEV float exp2_approx(float x) { return exp2f(x); }
DEV float rsqrt_approx(float x) { return 1.f / sqrtf(x); }

DEV void bar_sync(int id, int n) { emu::barrier_sync(id, n); }
DEV void bar_arrive(int id, int n) { emu::barrier_arrive(id, n); }

DEV void cp_async16(void* dst, const void* src, bool pred = true) { emu::async_copy(dst, src, pred); }
DEV void cp_async_commit() { emu::async_copy_commit(); }
template <int N>
DEV void cp_async_wait() {
  emu::async_copy_wait(N);
}

DEV void ldmatrix_x1(u32 (&r)[1], const void* p) { emu::load_matrix(r, 1, p, false); }
DEV void ldmatrix_x2(u32 (&r)[2], const void* p) { emu::load_matrix(r, 2, p, false); }
DEV void ldmatrix_x4(u32 (&r)[4], const void* p) { emu::load_matrix(r, 4, p, false); }
DEV void ldmatrix_x2_trans(u32 (&r)[2], const void* p) { emu::load_matrix(r, 2, p, true); }
DEV void ldmatrix_x4_trans(u32 (&r)[4], const void* p) { emu::load_matrix(r, 4, p, true); }
DEV void stmatrix_x4(void* p, const u32 (&r)[4]) { emu::store_matrix(p, r); }

DEV void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { emu::multiply_16bit(BF16, d, a, b0, b1); }
DEV void mma_f16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { emu::multiply_16bit(F16, d, a, b0, b1); }
DEV void mma_e4m3(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { emu::multiply_e4m3(d, a, b0, b1); }
DEV void mma_s8(int (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { emu::multiply_s8(d, a, b0, b1); }

DEV void pdl_wait() {}
DEV void pdl_launch_dependents() {}

DEV void mbar_init(u64* bar, u32 count) { emu::mbarrier_init(bar, count); }
DEV void mbar_fence_init() { emu::mbarrier_fence_init(); }
DEV void mbar_expect_tx(u64* bar, u32 bytes) { emu::mbarrier_arrive(bar, bytes); }
DEV void mbar_arrive(u64* bar) { emu::mbarrier_arrive(bar, 0); }
DEV void mbar_wait(u64* bar, u32 parity) { emu::mbarrier_wait(bar, parity); }
DEV void fence_proxy_async() { emu::self->block->shared.publish_soon(); }

DEV void tma_prefetch(const TensorMap* map) { emu::tensor_map_check(map); }
DEV void tma_load_1d(void* dst, const void* src, u32 bytes, u64* bar) { emu::bulk_load(dst, src, bytes, bar); }
DEV void tma_load_2d(void* dst, const TensorMap* map, u64* bar, int x, int y) {
  int at[] = {x, y};
  emu::bulk_load_box(dst, map, bar, 2, at);
}
DEV void tma_load_3d(void* dst, const TensorMap* map, u64* bar, int x, int y, int z) {
  int at[] = {x, y, z};
  emu::bulk_load_box(dst, map, bar, 3, at);
}
DEV void tma_load_4d(void* dst, const TensorMap* map, u64* bar, int x, int y, int z, int w) {
  int at[] = {x, y, z, w};
  emu::bulk_load_box(dst, map, bar, 4, at);
}
DEV void tma_store_1d(void* dst, const void* src, u32 bytes) { emu::bulk_store(dst, src, bytes); }
DEV void tma_store_2d(const TensorMap* map, const void* src, int x, int y) {
  int at[] = {x, y};
  emu::bulk_store_box(map, src, 2, at);
}
DEV void tma_store_commit() { emu::bulk_store_commit(); }
template <int N>
DEV void tma_store_wait() {
  emu::bulk_store_wait(N);
}

template <int R>
DEV void reg_alloc() {
  static_assert(R >= 24 && R <= 256 && R % 8 == 0, "setmaxnreg takes 24 to 256, a multiple of 8");
}
template <int R>
DEV void reg_dealloc() {
  static_assert(R >= 24 && R <= 256 && R % 8 == 0, "setmaxnreg takes 24 to 256, a multiple of 8");
}

DEV void wgmma_fence() { emu::product_fence(); }
DEV void wgmma_commit() { emu::product_commit(); }
template <int N>
DEV void wgmma_wait() {
  emu::product_wait(N);
}
template <int N>
DEV void wgmma_regs_fence(float (&)[N]) {}
DEV u64 wgmma_desc(const void* p, int swizzle_bytes, u32 stride_bytes, u32 leading_bytes) {
  u64 mode = swizzle_bytes == 128 ? 1 : swizzle_bytes == 64 ? 2 : swizzle_bytes == 32 ? 3 : 0;
  u64 address = (smem_u32(p) & 0x3FFFF) >> 4;
  return address | static_cast<u64>((leading_bytes & 0x3FFFF) >> 4) << 16 |
         static_cast<u64>((stride_bytes & 0x3FFFF) >> 4) << 32 | mode << 62;
}
template <int N, WgmmaKind kKind, bool TransB = false>
DEV void wgmma_ss(float (&d)[N / 2], u64 desc_a, u64 desc_b, int scale_d) {
  static_assert(N % 8 == 0 && N >= 8 && N <= 256, "N is 8, 16, ... 256");
  static_assert(kKind != E4M3 || !TransB, "only 16-bit operands may be MN-major");
  emu::product(kKind, N, d, nullptr, desc_a, desc_b, TransB, scale_d);
}
template <int N, WgmmaKind kKind, bool TransB = false>
DEV void wgmma_rs(float (&d)[N / 2], const u32 (&a)[4], u64 desc_b, int scale_d) {
  static_assert(N % 8 == 0 && N >= 8 && N <= 256, "N is 8, 16, ... 256");
  static_assert(kKind != E4M3 || !TransB, "only 16-bit operands may be MN-major");
  emu::product(kKind, N, d, a, 0, desc_b, TransB, scale_d);
}
