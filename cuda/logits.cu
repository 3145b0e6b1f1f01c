// What a request asks for before a token is drawn from its logits: penalties, biases, bans, a grammar, temperature.
//
// The order is that of `engine/sampler.py`, and so is the rounding of each step (no product is fused with a sum): the
// repetition penalty over tokens of prompt and answer, the frequency and presence penalties over the answer's, the
// bias; bans and the mask of what is allowed, a bit a token; the division by the temperature.
//
// Few tokens are touched by lists, all by the rest, so a block holds a piece of the row in shared memory, and each of
// its threads walks the row's lists and changes what falls into the piece. A list names a token once.
//
//     row        | piece 0 | piece 1 | … |          grid (pieces, rows), kPiece tokens a piece
//     held       in ─ seen list ─ barrier ─ bias list ─┐
//     open       mask ─ ban list ──────────────────────┴─ barrier ─→ temperature → out
//
// What is not finite in the input is NaN in the output, whatever the lists say of it: `sample` finds it there and fails
// that row alone.
//
// Shapes: in: [num_rows, in_stride], out: [num_rows, out_stride] float32, both `vocab` wide; they may be the same.
// temperatures: [num_rows] float32; 0 is greedy and divides nothing, a negative one marks a row of padding, left alone.
// Lists are ragged, row r owning the entries starts[r] to starts[r + 1] - 1; where starts is null there are none:
// seen: pairs (token, 2 * times in the answer + whether in the prompt), with repetition, presence and frequency:
// [num_rows]; bias_ids, biases; bans. allowed: [num_rows, allowed_words] bits, the first token's the lowest; or null.
#include "ptx.cuh"
#include "widen.cuh"

DEV float finite_or_nan(float x) { return x - x == 0.f ? x : __uint_as_float(0x7fc00000u); }
DEV float banned(float x) { return x == x ? __uint_as_float(0xff800000u) : x; }

template <class T, int kThreads, int kPiece>
__global__ void __launch_bounds__(kThreads)
    logits(float* out, long long out_stride, const T* in, long long in_stride, int vocab, const float* temperatures,
           const int* seen_starts, const int2* seen, const float* repetition, const float* presence,
           const float* frequency, const int* bias_starts, const int* bias_ids, const float* biases,
           const int* ban_starts, const int* bans, const u32* allowed, int allowed_words) {
  SHARED(float, held, kPiece);
  SHARED(u32, open, kPiece / 32);
  const size_t row = blockIdx.y;
  const int first = blockIdx.x * kPiece;
  const u32 size = min(kPiece, vocab - first);
  pdl_wait();
  pdl_launch_dependents();
  const float temperature = temperatures[row];
  if (temperature < 0.f) return;

  const T* from = in + row * in_stride + first;
#pragma unroll 8
  for (u32 i = threadIdx.x; i < size; i += kThreads) held[i] = finite_or_nan(widen(from[i]));
  for (u32 word = threadIdx.x; word * 32 < size; word += kThreads) {
    open[word] = allowed == nullptr ? 0xffffffffu : allowed[row * allowed_words + first / 32 + word];
  }
  __syncthreads();

  if (ban_starts != nullptr) {
    for (int entry = ban_starts[row] + threadIdx.x; entry < ban_starts[row + 1]; entry += kThreads) {
      const u32 at = bans[entry] - first;
      if (at < size) atomicAnd(&open[at / 32], ~(1u << at % 32));
    }
  }
  if (seen_starts != nullptr) {
    for (int entry = seen_starts[row] + threadIdx.x; entry < seen_starts[row + 1]; entry += kThreads) {
      const u32 at = seen[entry].x - first;
      if (at >= size) continue;
      float x = held[at];
      x = x > 0.f ? x / repetition[row] : __fmul_rn(x, repetition[row]);
      const int times = seen[entry].y >> 1;
      if (times > 0) x = __fsub_rn(x, __fadd_rn(__fmul_rn(frequency[row], static_cast<float>(times)), presence[row]));
      held[at] = x;
    }
  }
  if (bias_starts != nullptr) {
    __syncthreads();
    for (int entry = bias_starts[row] + threadIdx.x; entry < bias_starts[row + 1]; entry += kThreads) {
      const u32 at = bias_ids[entry] - first;
      if (at < size) held[at] += biases[entry];
    }
  }
  __syncthreads();

  float* to = out + row * out_stride + first;
  for (u32 i = threadIdx.x; i < size; i += kThreads) {
    const float x = open[i / 32] >> i % 32 & 1 ? held[i] : banned(held[i]);
    to[i] = temperature > 0.f ? x / fmaxf(temperature, 1e-5f) : x;
  }
}
