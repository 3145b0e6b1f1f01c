// Kernels that are wrong, each in one way; `which` chooses, by its place in the list of test_emulator_mistakes.py.
//
// Blocks of 128 threads. `global` holds 100 bytes, `freed` is no longer there, `map` is of a tensor of 8 x 64 bf16.
#include "ptx.cuh"

constexpr int kThreads = 128;

DEV void make_barrier(u64* barrier, u32 count) {
  if (threadIdx.x == 0) {
    mbar_init(barrier, count);
    mbar_fence_init();
  }
  __syncthreads();
}

DEV int overflow_stack(volatile int depth) {
  volatile char page[4096];
  page[depth % 4096] = static_cast<char>(depth);
  return depth > 1 << 20 ? 0 : overflow_stack(depth + 1) + page[depth % 4096];
}

DEV void multiply(u8* tile, u64 offset = 0) {
  u64 desc = wgmma_desc(tile + offset, 128, 1024, 16);
  float d[4];
  wgmma_ss<8, BF16>(d, desc, desc, 0);
  wgmma_commit();
}

template <bool kUnused>
__global__ void __launch_bounds__(kThreads)
    mistakes(u8* global, u8* freed, int which, const __grid_constant__ TensorMap map) {
  DYN_SMEM(tile);
  SHARED(u64, barrier, 2);
  const u32 thread = threadIdx.x;
  u32 r[4] = {};
  switch (which) {
    case 0:  // a barrier to which nobody else comes
      if (thread < 32) bar_sync(3, 64);
      return;
    case 1:  // an mbarrier that nobody arrives at
      make_barrier(barrier, 1);
      mbar_wait(barrier, 0);
      return;
    case 2:  // lanes that do different things
      if (thread % 32 < 16) {
        __syncwarp();
      } else {
        __shfl_sync(~0u, thread, 0);
      }
      return;
    case 3:  // lanes with different masks
      __shfl_sync(thread % 2 ? ~0u : 0x55555555u, thread, 0);
      return;
    case 4:  // a mask without oneself
      if (thread == 40) __syncwarp(1);
      return;
    case 5:  // a shuffle from a lane that takes no part
      if (thread % 32 < 16) __shfl_sync(0xFFFFu, thread, 20);
      return;
    case 6:  // counts that differ
      bar_sync(2, thread < 32 ? 128 : 64);
      return;
    case 7:  // a count that is not of whole warps
      bar_sync(2, 100);
      return;
    case 8:  // a warp that arrives twice
      if (thread < 32) {
        bar_arrive(2, 128);
        bar_arrive(2, 128);
      }
      return;
    case 9:  // leaving while others wait
      if (thread != 77) __syncthreads();
      return;
    case 10:  // waiting for who has left
      if (thread >= 64) return;
      __syncthreads();
      return;
    case 11:  // a barrier that was not made
      mbar_arrive(barrier);
      return;
    case 12:  // a barrier that was made twice
      if (thread == 0) mbar_init(barrier, 1);
      __syncthreads();
      if (thread == 1) mbar_init(barrier, 1);
      return;
    case 13:  // more arrivals than it counts, while bytes are missing
      make_barrier(barrier, 1);
      if (thread == 0) {
        mbar_expect_tx(barrier, 64);
        mbar_arrive(barrier);
      }
      return;
    case 14:  // a parity that is none
      make_barrier(barrier, 1);
      mbar_wait(barrier, 2);
      return;
    case 15:  // a barrier that was written over
      make_barrier(barrier, 1);
      if (thread == 0) {
        barrier[0] = 0;
        mbar_arrive(barrier);
      }
      return;
    case 16:  // two phases while others wait for the first
      make_barrier(barrier, 1);
      make_barrier(barrier + 1, 32);
      if (thread < 32) {
        mbar_arrive(barrier + 1);
        mbar_wait(barrier, 0);
      } else if (thread == 32) {
        mbar_wait(barrier + 1, 0);
        mbar_arrive(barrier);
        mbar_arrive(barrier);
      }
      return;
    case 17:  // bytes that never came
      make_barrier(barrier, 1);
      if (thread == 0) mbar_expect_tx(barrier, 64);
      return;
    case 18:  // fewer bytes than expected, and somebody waits
      make_barrier(barrier, 1);
      if (thread == 0) {
        mbar_expect_tx(barrier, 96);
        tma_load_1d(tile, global, 80, barrier);
      }
      mbar_wait(barrier, 0);
      return;
    case 19:  // a copy that nobody waits for
      make_barrier(barrier, 1);
      if (thread == 0) {
        mbar_expect_tx(barrier, 96);
        tma_load_1d(tile, global, 96, barrier);
      }
      return;
    case 20:  // a barrier that copies cannot see
      if (thread == 0) {
        mbar_init(barrier, 1);
        mbar_expect_tx(barrier, 96);
        tma_load_1d(tile, global, 96, barrier);
      }
      return;
    case 21:  // a box to a place that is not aligned
      make_barrier(barrier, 1);
      if (thread == 0) tma_load_2d(tile + 64, &map, barrier, 0, 0);
      return;
    case 22:  // more coordinates than dimensions
      make_barrier(barrier, 1);
      if (thread == 0) tma_load_3d(tile, &map, barrier, 0, 0, 0);
      return;
    case 23:  // something else than a map
      make_barrier(barrier, 1);
      if (thread == 0) tma_load_2d(tile, reinterpret_cast<const TensorMap*>(global), barrier, 0, 0);
      return;
    case 24:  // a box that ends behind shared memory
      make_barrier(barrier, 1);
      if (thread == 0) tma_load_2d(tile + 16384 - 128, &map, barrier, 0, 0);
      return;
    case 25:  // bytes that are not a multiple of 16
      make_barrier(barrier, 1);
      if (thread == 0) tma_load_1d(tile, global, 40, barrier);
      return;
    case 26:  // a store of what was written without a fence
      tile[thread] = 1;
      __syncthreads();
      if (thread == 0) {
        tma_store_1d(global, tile, 96);
        tma_store_commit();
        tma_store_wait<0>();
      }
      return;
    case 27:  // a store that nobody waits for
      if (thread == 0) {
        tma_store_1d(global, tile, 96);
        tma_store_commit();
      }
      return;
    case 28:  // a product without a fence
      multiply(tile);
      wgmma_wait<0>();
      return;
    case 29:  // a product that nobody waits for
      wgmma_fence();
      multiply(tile);
      return;
    case 30:  // a product of what was written without a fence
      tile[thread] = 1;
      __syncthreads();
      wgmma_fence();
      multiply(tile);
      wgmma_wait<0>();
      return;
    case 31:  // a product of only three warps
      if (thread >= 32) {
        wgmma_fence();
        multiply(tile);
        wgmma_wait<0>();
      }
      return;
    case 32:  // lanes with different descriptors
      wgmma_fence();
      multiply(tile, thread == 5 ? 32 : 0);
      wgmma_wait<0>();
      return;
    case 33:  // a tile that begins where its swizzle does not
      wgmma_fence();
      multiply(tile, 256);
      wgmma_wait<0>();
      return;
    case 34:  // a copy to a place that is not aligned
      cp_async16(tile + 8, global);
      return;
    case 35:  // a copy from a place that is not aligned
      cp_async16(tile, global + 4);
      return;
    case 36:  // a row behind shared memory
      ldmatrix_x4(r, tile + 16368);
      return;
    case 37:  // a row that is not aligned
      ldmatrix_x4(r, tile + 24);
      return;
    case 38:  // a read behind a tensor
      if (thread == 3) global[4096] += reinterpret_cast<volatile u32*>(global)[40];
      return;
    case 39:  // a write right behind a tensor
      if (thread == 3) global[100] = 1;
      return;
    case 40:  // a tensor that was freed
      if (thread == 3) global[0] = freed[8];
      return;
    case 41:  // a write right behind shared memory
      if (thread == 3) tile[16380] = 1;
      return;
    case 42:  // a write far behind it
      if (thread == 3) tile[16384 + 100] = 1;
      return;
    case 43:  // a write behind an array
      if (thread == 3) reinterpret_cast<volatile u8*>(barrier)[17] = 1;
      return;
    case 44:  // nothing
      if (thread == 3) *reinterpret_cast<volatile int*>(static_cast<u64>(thread - 3)) = 1;
      return;
    case 45:
      if (thread == 3) global[0] = static_cast<u8>(overflow_stack(0));
      return;
    case 46:
      if (thread == 3) global[0] = static_cast<u8>(100 / static_cast<int>(global[thread]));
      return;
    case 47:  // a vector that is not aligned
      if (thread == 3) {
        uint4 v = *reinterpret_cast<const uint4*>(global + thread + 5);
        global[0] = static_cast<u8>(v.x + v.w);
      }
      return;
    case 48:  // an index behind an array
      if (thread == 3) global[0] = static_cast<u8>(r[thread + 5]);
      return;
    case 49:  // a pointer that is not into shared memory
      cp_async16(global, tile);
      return;
    case 50:  // an operand that is written while it is read
      wgmma_fence();
      multiply(tile);
      __syncthreads();
      if (thread < 32) {
        wgmma_wait<0>();
        tile[thread] = 1;
        fence_proxy_async();
      }
      __syncthreads();
      if (thread >= 32) wgmma_wait<0>();
      return;
  }
}
