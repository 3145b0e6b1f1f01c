// Types that kernels and the emulator share, and CUDA's qualifiers without their meaning.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstddef>
#include <cstdint>

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using bf16 = __nv_bfloat16;
using bf16x2 = __nv_bfloat162;
using f16 = __half;
using f16x2 = __half2;
using e4m3 = __nv_fp8_e4m3;

#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __shared__
#undef __launch_bounds__
#undef __forceinline__
#undef __noinline__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __noinline__
#define __grid_constant__
#define __shared__ say_SHARED_or_DYN_SMEM_instead_of_shared

#define DEV inline
#define HOPPER 1

enum WgmmaKind { BF16, F16, E4M3 };

// The emulator's own encoding of a tensor map, in the 128 bytes of a CUtensorMap (`emu_tensor_map` writes it).
struct alignas(64) TensorMap {
  static constexpr u32 kSignature = 0x50414D54;

  u64 address;
  u64 strides[3];  // bytes from one index to the next, of dimensions 1, 2, 3; dimension 0 is dense
  u64 dims[4];     // elements; [0] is the innermost
  u32 box[4];      // elements
  u16 rank;
  u16 element_bytes;
  u32 swizzle_bytes;
  u32 signature;
  u32 reserved[9];
};
static_assert(sizeof(TensorMap) == 128, "as long as a CUtensorMap");
