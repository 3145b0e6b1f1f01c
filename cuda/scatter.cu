// Single numbers to their places: what has changed in the block tables since the step before.
//
// The tables of all running sequences stay on the device. A decode's table gets a new entry every block_size steps; to
// send whole tables would be megabytes a step, to send (place, value) pairs is a few bytes.
//
//     changes | 3, 17 | 260, 4 | …         table[3] = 17, table[260] = 4, …
//     thread  |   0   |    1   | …         a negative place is padding
//
// Shapes: table: any, int32, contiguous; changes: [num_changes, 2] int32. No place stands twice.
#include "ptx.cuh"

template <int kThreads>
__global__ void __launch_bounds__(kThreads) scatter(int* table, const int2* changes, int num_changes) {
  const int change = blockIdx.x * kThreads + threadIdx.x;
  pdl_wait();
  pdl_launch_dependents();
  if (change >= num_changes) return;
  const int2 place_value = changes[change];
  if (place_value.x >= 0) table[place_value.x] = place_value.y;
}
