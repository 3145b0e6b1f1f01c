// Between the QKV product and attention: norm of queries and keys (where the model has one), rotary positions, and the
// step's keys and values into their pages.
//
// Queries and keys are written back into `qkv`, rounded once, after norm and rotation. The pages hold what `qkv` then
// holds, or its quantisation with one scale per token and head: value = code * scale.
//
// A group of lanes owns a head, 16 numbers a lane, eight pairs that turn together. Which numbers are a pair depends on
// how the checkpoint's weights were laid out:
//
//     halves   | x0 x1 … x(h-1) | y0 y1 … y(h-1) |     lane l: x(8l) … x(8l+7) and y(8l) … y(8l+7)
//     paired   | x0 y0 x1 y1 …    … x(h-1) y(h-1) |     lane l: the 16 numbers from x(8l) on
//
//     block (token, y)   | head | head | … |     kThreads / lanes heads of `qkv`'s row: queries, then keys, then values
//
// `lanes` is head_dim / 16 rounded up to a power of two: 4 for 64, 8 for 96 (two of them idle) and 128, 16 for 256.
//
// Shapes: qkv: [num_tokens, num_heads + 2 * num_kv_heads, head_dim]; rotations: [num_positions, head_dim / 2] pairs
// (cos, sin) float32; q_weight, k_weight: [head_dim], or null for no norm; positions, slots: [num_tokens] int32, slot =
// block * block_size + offset, -1 writes no page; pool: [num_blocks, 2, num_kv_heads, block_size, head_dim] of Stored;
// kv_scales: [num_blocks, 2, num_kv_heads, block_size] float32, for quantised pools.
#include "ptx.cuh"
#include "reduce.cuh"
#include "vector.cuh"

template <class A, class B>
constexpr bool kSame = false;
template <class A>
constexpr bool kSame<A, A> = true;

// Turn (x, y) by an angle: the complex product with cos + i·sin.
DEV void turn(float& x, float& y, float cos, float sin) {
  const float turned = x * cos - y * sin;
  y = x * sin + y * cos;
  x = turned;
}

// Turn a lane's eight pairs. `x`: its numbers, in the order of the picture above; `cos_sin`: eight times both.
DEV void turn_pairs(float (&x)[2][8], const float (&cos_sin)[16], bool paired) {
  if (paired) {
#pragma unroll
    for (int i = 0; i < 16; i += 2) turn(x[i / 8][i % 8], x[i / 8][i % 8 + 1], cos_sin[i], cos_sin[i + 1]);
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++) turn(x[0][i], x[1][i], cos_sin[2 * i], cos_sin[2 * i + 1]);
  }
}

template <class T>
DEV void multiply(float (&x)[8], float factor, const T* weight) {
  float factors[8];
  unpack<T>(load_vector(weight), factors);
#pragma unroll
  for (int i = 0; i < 8; i++) x[i] *= factor * factors[i];
}

template <class T, class Stored, int kThreads>
__global__ void __launch_bounds__(kThreads, 8)
    rotary_kv_write(T* qkv, Stored* pool, float* kv_scales, const float* rotations, const T* q_weight,
                    const T* k_weight, const int* positions, const int* slots, int num_heads, int num_kv_heads,
                    int head_dim, int lanes, int block_size, int paired, float eps) {
  const int token = blockIdx.x;
  const int lane = threadIdx.x & (lanes - 1);
  const int head = (blockIdx.y * kThreads + threadIdx.x) / lanes;
  const int num_turned = num_heads + num_kv_heads;
  const bool is_query = head < num_heads;
  const bool is_turned = head < num_turned;
  // Lanes without numbers take part in the shuffles, with zeros.
  const bool works = head < num_turned + num_kv_heads && lane * 16 < head_dim;
  const int at[2] = {paired ? lane * 16 : lane * 8, paired ? lane * 16 + 8 : lane * 8 + head_dim / 2};
  T* own = qkv + (static_cast<size_t>(token) * (num_turned + num_kv_heads) + head) * head_dim;
  pdl_wait();
  pdl_launch_dependents();

  const int slot = slots[token];
  const size_t table_row = static_cast<size_t>(positions[token]) * head_dim;  // head_dim / 2 pairs of two floats
  float x[2][8] = {}, cos_sin[16];
  if (works) {
    const uint4 packed[2] = {load_vector(own + at[0]), load_vector(own + at[1])};
    if (is_turned) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float4 four = reinterpret_cast<const float4*>(rotations + table_row + lane * 16)[i];
        cos_sin[4 * i] = four.x;
        cos_sin[4 * i + 1] = four.y;
        cos_sin[4 * i + 2] = four.z;
        cos_sin[4 * i + 3] = four.w;
      }
    }
    unpack<T>(packed[0], x[0]);
    unpack<T>(packed[1], x[1]);
  }
  if (q_weight != nullptr) {
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < 8; i++) squares += x[0][i] * x[0][i] + x[1][i] * x[1][i];
    const float mean = warp_reduce<Sum>(squares, lanes) / head_dim;
    if (works && is_turned) {
      const T* weight = is_query ? q_weight : k_weight;
      multiply(x[0], rsqrt_approx(mean + eps), weight + at[0]);
      multiply(x[1], rsqrt_approx(mean + eps), weight + at[1]);
    }
  }
  if (works && is_turned) turn_pairs(x, cos_sin, paired);

  const uint4 packed[2] = {pack<T>(x[0]), pack<T>(x[1])};
  if (works && is_turned) {
    store_vector(own + at[0], packed[0]);
    store_vector(own + at[1], packed[1]);
  }
  const bool stores = works && !is_query && slot >= 0;
  const int plane = head - num_heads;  // keys' heads, then values': as in a block of the pool
  const size_t place =
      (static_cast<size_t>(slot / block_size) * 2 * num_kv_heads + plane) * block_size + slot % block_size;
  Stored* stored = pool + place * head_dim;
  if constexpr (kSame<T, Stored>) {
    if (stores) {
      store_vector(stored + at[0], packed[0]);
      store_vector(stored + at[1], packed[1]);
    }
  } else {
    unpack<T>(packed[0], x[0]);
    unpack<T>(packed[1], x[1]);
    const u32 magnitude = warp_reduce<Max>(max(largest_magnitude(x[0]), largest_magnitude(x[1])), lanes);
    const Scale scale = scale_for<Stored>(magnitude);
    if (stores) {
      store_codes(stored + at[0], quantise<Stored>(x[0], scale.inverse));
      store_codes(stored + at[1], quantise<Stored>(x[1], scale.inverse));
      if (lane == 0) kv_scales[place] = scale.scale;
    }
  }
}
