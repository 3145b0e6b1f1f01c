// The log-probabilities of the chosen token and of the likeliest few, for the rows that asked for them.
//
// They are those of the logits as the model gave them, before penalties, temperature and filters. The logarithm of the
// sum is taken of integer masses (law.cuh), the same whatever the block's shape; the likeliest are found by the exact
// logits, the lowest id first among equals.
//
// A block owns a row. Each thread keeps the best of its own tokens; a round takes the block's best, and the warp of the
// thread that had it looks through that thread's tokens, some 130 of 128,256, for the next best below it:
//
//     thread     | t0 t1 … t1023 | t0 t1 … t1023 | …         its tokens lie kThreads apart
//     round      bests ─ block ─→ winner → out               its warp: the thread's tokens, one after the other a lane
//
// Shapes: logits: [num_rows, stride], `vocab` wide; chosen: [num_rows] int32, the token of each row, negative for none;
// rows, numbers: [num_asked] int32, which row and how many of the likeliest (0 to width); a negative row is padding.
// chosen_logprobs: [num_asked] float32; top_ids int32, top_logprobs float32: [num_asked, width], the first `number` of
// each written, no more than the vocabulary has. Rows without a token are left alone.
#include "law.cuh"
#include "ptx.cuh"
#include "widen.cuh"

template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads)
    logprobs(float* chosen_logprobs, int* top_ids, float* top_logprobs, int width, const T* logits, long long stride,
             int vocab, const int* chosen, const int* rows, const int* numbers) {
  SHARED(u64, sums, kThreads / 32);
  SHARED(u64, standings, 2 * (kThreads / 32));
  pdl_wait();
  pdl_launch_dependents();
  const int row = rows[blockIdx.x];
  if (row < 0 || chosen[row] < 0) return;
  const T* x = logits + row * stride;

  u64 best = 0;
#pragma unroll 8
  for (int id = threadIdx.x; id < vocab; id += kThreads) best = max(best, standing_of(widen(x[id]), id));
  u64 winner = block_reduce<Max, kThreads>(best, standings);
  const float largest = ranked(rank_in(winner));

  u64 mass = 0;
#pragma unroll 8
  for (int id = threadIdx.x; id < vocab; id += kThreads) mass += mass_of(key_of(largest - widen(x[id])), 0.f);
  mass = block_reduce<Sum, kThreads>(mass, sums);
  const float log_total = logf(static_cast<float>(mass) / kLikeliest);
  if (threadIdx.x == 0) chosen_logprobs[blockIdx.x] = widen(x[chosen[row]]) - largest - log_total;

  const int number = min(min(numbers[blockIdx.x], width), vocab);
  for (int place = 0; place < number; place++) {
    const u32 owner = id_in(winner) % kThreads;
    if (threadIdx.x == 0) {
      top_ids[blockIdx.x * width + place] = id_in(winner);
      top_logprobs[blockIdx.x * width + place] = ranked(rank_in(winner)) - largest - log_total;
    }
    if (threadIdx.x / 32 == owner / 32) {
      u64 next = 0;
      for (int id = owner + lane_id() * kThreads; id < vocab; id += 32 * kThreads) {
        const u64 standing = standing_of(widen(x[id]), id);
        if (standing < winner) next = max(next, standing);
      }
      next = warp_reduce<Max>(next);
      if (threadIdx.x == owner) best = next;
    }
    winner = block_reduce<Max, kThreads>(best, standings + (place + 1) % 2 * (kThreads / 32));
  }
}
