// Sums and maxima over the lanes of a warp and over the warps of a block.
//
// The order of the additions is fixed by the number of lanes and warps alone, a butterfly inside a warp and then the
// warps from first to last, so the same numbers give the same bits in every run and whatever else is in the batch:
//
//     lanes    0 1 2 3 4 5 6 7        partials   | warp 0 | warp 1 | … |    one barrier, then every thread
//     step 1   0+4 1+5 2+6 3+7 …                                            adds all of them for itself
//     step 2   …
#pragma once
#include "ptx.cuh"

struct Sum {};
struct Max {};  // of floats, where a number wins against NaN, and of unsigned integers

DEV float combine(Sum, float a, float b) { return a + b; }
DEV float combine(Max, float a, float b) { return fmaxf(a, b); }
DEV u32 combine(Max, u32 a, u32 b) { return a > b ? a : b; }

// Combine over groups of `lanes` neighbouring lanes, a power of two; every lane of the warp takes part and every lane
// gets its group's result.
template <class Op, class T>
DEV T warp_reduce(T value, int lanes = 32) {
#pragma unroll
  for (int distance = 16; distance > 0; distance >>= 1) {
    if (distance < lanes) value = combine(Op(), value, __shfl_xor_sync(0xffffffffu, value, distance));
  }
  return value;
}

// Combine over a block of kThreads; every thread gets the result. `partials`: shared memory, [kThreads / 32]; a second
// reduction uses another array, or a barrier of its own before it writes this one again.
template <class Op, int kThreads, class T>
DEV T block_reduce(T value, T* partials) {
  static_assert(kThreads % 32 == 0 && kThreads <= 1024, "whole warps");
  value = warp_reduce<Op>(value);
  if (lane_id() == 0) partials[threadIdx.x / 32] = value;
  __syncthreads();
  T result = partials[0];
#pragma unroll
  for (int warp = 1; warp < kThreads / 32; warp++) result = combine(Op(), result, partials[warp]);
  return result;
}
