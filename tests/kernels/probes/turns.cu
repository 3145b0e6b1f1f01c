// Kernels whose result depends on when something happens; `which` chooses, by its place in test_emulator_turns.py.
// Blocks of 64 threads.
#include "ptx.cuh"

template <bool kUnused>
__global__ void __launch_bounds__(64) turns(u32* out, u32* in, int which) {
  SHARED(u32, words, 64 * 4);
  const u32 thread = threadIdx.x;
  switch (which) {
    case 0:  // a copy is read before it is waited for
      cp_async16(words + 4 * thread, in + 4 * thread);
      cp_async_commit();
      out[thread] = words[4 * thread];
      cp_async_wait<0>();
      return;
    case 1:  // a source is written over before its copy is waited for
      cp_async16(words + 4 * thread, in + 4 * thread);
      cp_async_commit();
      in[4 * thread] = 7;
      cp_async_wait<0>();
      out[thread] = words[4 * thread];
      return;
    case 2:  // threads write down when they came
      out[thread] = atomicAdd(in, 1u);
      return;
    case 3:  // blocks write down when they came
      if (thread == 0) out[blockIdx.x] = atomicAdd(in, 1u);
      return;
    case 4:  // every thread looks at its neighbour's word, without a barrier
      words[thread] = thread;
      out[thread] = words[(thread + 1) % 64];
      return;
  }
}
