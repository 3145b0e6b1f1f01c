// The emulator's side of each instruction: what the names in ptx_names.h and cuda_names.h call.
#pragma once
#include <cstring>

#include "machine.h"

namespace emu {

// barrier.cpp
void sync_threads();
void barrier_sync(int id, int threads);
void barrier_arrive(int id, int threads);

// async_copy.cpp
void async_copy(void* to, const void* from, bool read);
void async_copy_commit();
void async_copy_wait(u64 newest);

// matrix.cpp
void load_matrix(u32* registers, int matrices, const void* row, bool transposed);
void store_matrix(void* row, const u32* registers);
void multiply_16bit(WgmmaKind kind, float* d, const u32* a, u32 b0, u32 b1);
void multiply_e4m3(float* d, const u32* a, u32 b0, u32 b1);
void multiply_s8(int* d, const u32* a, u32 b0, u32 b1);

// mbarrier.cpp
void mbarrier_init(u64* barrier, u32 count);
void mbarrier_fence_init();
void mbarrier_arrive(u64* barrier, u32 expect_bytes);
void mbarrier_wait(u64* barrier, u32 parity);

// bulk.cpp
void bulk_load(void* to, const void* from, u32 bytes, u64* barrier);
void bulk_load_box(void* to, const TensorMap* map, u64* barrier, int rank, const int* at);
void bulk_store(void* to, const void* from, u32 bytes);
void bulk_store_box(const TensorMap* map, const void* from, int rank, const int* at);
void bulk_store_commit();
void bulk_store_wait(u64 newest);
void tensor_map_check(const TensorMap* map);
int tensor_map_encode(TensorMap* map, int element_bytes, u32 rank, const void* address, const u64* dims,
                      const u64* strides, const u32* box, int swizzle_bytes);
// Where byte `address` of a swizzled tile lies.
u32 swizzled(u32 address, u32 swizzle_bytes);

// wgmma.cpp
void product_fence();
void product_commit();
void product_wait(u64 newest);
void product(WgmmaKind kind, int columns, float* d, const u32* a_registers, u64 a, u64 b, bool transposed_b,
             int scale_d);

// An element of a register or of memory, as a float.
float element_e4m3(u8 bits);
inline float element(WgmmaKind kind, const void* at) {
  if (kind == E4M3) return element_e4m3(*static_cast<const u8*>(at));
  u16 bits;
  memcpy(&bits, at, sizeof bits);
  if (kind == F16) {
    f16 number;
    memcpy(&number, &bits, sizeof number);
    return __half2float(number);
  }
  u32 wide = u32(bits) << 16;
  float number;
  memcpy(&number, &wide, sizeof number);
  return number;
}

}  // namespace emu
