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

// Turn a lane's eight pairs. `low` and `high` are its 16 numbers as the picture above has them.
DEV void turn_pairs(float (&low)[8], float (&high)[8], const float4 (&cos_sin)[4], bool paired) {
#pragma unroll
  for (int i = 0; i < 4; i++) {  // pairs 2i and 2i + 1
    const float4 c = cos_sin[i];
    if (!paired) {
      turn(low[2 * i], high[2 * i], c.x, c.y);
      turn(low[2 * i + 1], high[2 * i + 1], c.z, c.w);
    } else if (i < 2) {
      turn(low[4 * i], low[4 * i + 1], c.x, c.y);
      turn(low[4 * i + 2], low[4 * i + 3], c.z, c.w);
    } else {
      turn(high[4 * i - 8], high[4 * i - 7], c.x, c.y);
      turn(high[4 * i - 6], high[4 * i - 5], c.z, c.w);
    }
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
__global__ void __launch_bounds__(kThreads)
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
  const int low_at = paired ? lane * 16 : lane * 8;
  const int high_at = paired ? low_at + 8 : low_at + head_dim / 2;
  T* own = qkv + (static_cast<size_t>(token) * (num_turned + num_kv_heads) + head) * head_dim;
  pdl_wait();
  pdl_launch_dependents();

  const int slot = slots[token];
  const size_t table_row = static_cast<size_t>(positions[token]) * head_dim;  // head_dim / 2 pairs of two floats
  float low[8] = {}, high[8] = {};
  float4 cos_sin[4];
  if (works) {
    const uint4 low_packed = load_vector(own + low_at), high_packed = load_vector(own + high_at);
    if (is_turned) {
      const float4* from = reinterpret_cast<const float4*>(rotations + table_row + lane * 16);
#pragma unroll
      for (int i = 0; i < 4; i++) cos_sin[i] = from[i];
    }
    unpack<T>(low_packed, low);
    unpack<T>(high_packed, high);
  }
  if (q_weight != nullptr) {
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < 8; i++) squares += low[i] * low[i] + high[i] * high[i];
    const float mean = warp_reduce<Sum>(squares, lanes) / head_dim;
    if (works && is_turned) {
      const T* weight = is_query ? q_weight : k_weight;
      multiply(low, rsqrt_approx(mean + eps), weight + low_at);
      multiply(high, rsqrt_approx(mean + eps), weight + high_at);
    }
  }
  if (works && is_turned) {
    turn_pairs(low, high, cos_sin, paired);
    store_vector(own + low_at, pack<T>(low));
    store_vector(own + high_at, pack<T>(high));
  }

  const bool stores = works && !is_query && slot >= 0;
  const int plane = head - num_heads;  // keys' heads, then values': as in a block of the pool
  const size_t place =
      (static_cast<size_t>(slot / block_size) * 2 * num_kv_heads + plane) * block_size + slot % block_size;
  const uint4 low_packed = pack<T>(low), high_packed = pack<T>(high);
  Stored* stored = pool + place * head_dim;
  if constexpr (kSame<T, Stored>) {
    if (stores) {
      store_vector(stored + low_at, low_packed);
      store_vector(stored + high_at, high_packed);
    }
  } else {
    unpack<T>(low_packed, low);
    unpack<T>(high_packed, high);
    const u32 magnitude = warp_reduce<Max>(max(largest_magnitude(low), largest_magnitude(high)), lanes);
    const Scale scale = scale_for<Stored>(magnitude);
    if (stores) {
      store_codes(stored + low_at, quantise<Stored>(low, scale.inverse));
      store_codes(stored + high_at, quantise<Stored>(high, scale.inverse));
      if (lane == 0) kv_scales[place] = scale.scale;
    }
  }
}
