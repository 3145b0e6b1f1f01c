// The arithmetic of paged_decode.cu: one warp's rows against one stage of its ring after the other.
//
// Accumulators of m16n8k16 lie in registers so that a row belongs to the four lanes of a quad: with lane = 4 g + t,
// elements 0 and 1 are row g, elements 2 and 3 row g + 8 ("halves" 0 and 1 below), columns 2 t and 2 t + 1 of the block.
#pragma once
#include "decode_feed.cuh"
#include "decode_results.cuh"

// The attending half of a warp: its part of one item.
template <class T, class KV, int kHeadDim, int kRowTiles, int kWarps, int kSlabs, int kStages>
struct Attention {
  using R = Ring<KV, kHeadDim, kWarps, kSlabs, kStages>;
  using Lines = typename R::Lines;
  using Operand = typename OperandType<T, KV>::Type;

  static constexpr int kSteps = kHeadDim / 16;  // of k, over the dims
  static constexpr int kQueryBytes = kRowTiles * kSteps * 32 * 16;

  const uint4* queries;  // shared by the block's warps: [row tile][step][lane], the registers of the left operand
  float o[kRowTiles][kHeadDim / 8][4];
  // Of rows g and g + 8 of each row tile:
  int first[kRowTiles][2], last[kRowTiles][2];  // the tokens that the row sees; none where last < first
  float scale[kRowTiles][2];                    // of its scores, to the base of 2
  float maximum[kRowTiles][2], sum[kRowTiles][2];
  float unit[kRowTiles][2];  // quantised values: o is in units of this power of two

  // Begin an item; a barrier of the block follows. qkv: the queries' rows stand first in each qkv_stride numbers.
  DEV Attention(uint4* shared_queries, const DecodeItem& item, const T* qkv, int qkv_stride, int group, int window,
                float softmax_scale)
      : queries(shared_queries) {
    const int g = lane_id() >> 2;
#pragma unroll
    for (int i = 0; i < kRowTiles; i++) {
      const T* rows[2];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int row = item.row_begin + i * 16 + half * 8 + g, query = row / group;
        const bool exists = query < item.q_len;
        const size_t token = item.query_begin + query;
        const int head = blockIdx.x * group + row % group;
        rows[half] = exists ? qkv + token * qkv_stride + head * kHeadDim : nullptr;
        last[i][half] = exists ? item.kv_length - item.q_len + query : -1;
        first[i][half] = window > 0 ? max(0, last[i][half] - window + 1) : 0;
        scale[i][half] = softmax_scale * kLog2e;
        maximum[i][half] = minus_infinity();
        sum[i][half] = 0.f;
        unit[i][half] = 0.f;
      }
      share_queries(shared_queries + i * kSteps * 32, i, rows);
#pragma unroll
      for (int j = 0; j < kHeadDim / 8; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) o[i][j][e] = 0.f;
      }
    }
  }

  // Each warp puts its share of the steps of a row tile where all warps read them. Rows that do not exist are zeros.
  DEV void share_queries(uint4* to, int i, const T* const (&rows)[2]) {
    const int lane = lane_id(), warp = threadIdx.x / 32;
    float factor[2];
    if constexpr (kIsQuantised<KV>) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        // The power of two that brings the row's largest to [1, 2): from its exponent, which must have an inverse.
        const u32 exponent = min(max(largest_of(rows[half]) >> 23, 1u), 253u);
        factor[half] = bits_as<float>((254u - exponent) << 23);
        scale[i][half] *= bits_as<float>(exponent << 23) * (1.f / kUnit<KV>);
      }
    }
    for (int step = warp; step < kSteps; step += kWarps) {
      u32 a[4];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        if constexpr (kIsQuantised<KV>) {
          float x[4];
          load_four(x, rows[half], step);
#pragma unroll
          for (int e = 0; e < 2; e++) {
            a[half + 2 * e] = bits_as<u32>(__floats2half2_rn(x[e] * factor[half], x[e + 2] * factor[half]));
          }
        } else {
          const T* at = rows[half] + step * 16 + 2 * (lane & 3);
          a[half] = rows[half] ? *reinterpret_cast<const u32*>(at) : 0u;
          a[half + 2] = rows[half] ? *reinterpret_cast<const u32*>(at + 8) : 0u;
        }
      }
      to[step * 32 + lane] = make_uint4(a[0], a[1], a[2], a[3]);
    }
  }

  // Dims 4 t to 4 t + 3 of the 16 of a step.
  static DEV void load_four(float (&x)[4], const T* row, int step) {
    using Two = typename Pair<T>::Type;
    uint2 raw = make_uint2(0u, 0u);
    if (row) raw = *reinterpret_cast<const uint2*>(row + step * 16 + 4 * (lane_id() & 3));
    const float2 low = widen(bits_as<Two>(raw.x)), high = widen(bits_as<Two>(raw.y));
    x[0] = low.x;
    x[1] = low.y;
    x[2] = high.x;
    x[3] = high.y;
  }

  // The bits of the largest magnitude of a row.
  static DEV u32 largest_of(const T* row) {
    u32 largest = 0;
    for (int step = 0; step < kSteps; step++) {
      float x[4];
      load_four(x, row, step);
#pragma unroll
      for (int e = 0; e < 4; e++) largest = max(largest, bits_as<u32>(x[e]) & 0x7fffffffu);
    }
    largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    return max(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
  }

  // One stage of the ring: the warp's tokens from `token` on.
  DEV void attend(u8* stage, int token) {
    float s[kRowTiles][2 * kSlabs][4] = {};
#pragma unroll
    for (int pair = 0; pair < Lines::kPairs; pair++) {
      u32 a[kRowTiles][2][4];
#pragma unroll
      for (int i = 0; i < kRowTiles; i++) {
#pragma unroll
        for (int step = 0; step < 2; step++) {
          const uint4 four = queries[(i * kSteps + 2 * pair + step) * 32 + lane_id()];
          a[i][step][0] = four.x;
          a[i][step][1] = four.y;
          a[i][step][2] = four.z;
          a[i][step][3] = four.w;
        }
      }
#pragma unroll
      for (int slab = 0; slab < kSlabs; slab++) {
        u32 b[2][2][2];
        Lines::load_keys(b, R::slab(stage, 0, slab), pair);
#pragma unroll
        for (int i = 0; i < kRowTiles; i++) {
#pragma unroll
          for (int step = 0; step < 2; step++) {
#pragma unroll
            for (int n = 0; n < 2; n++) mma(Operand(), s[i][2 * slab + n], a[i][step], b[step][n]);
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kRowTiles; i++) weigh(i, s[i], stage, token);
#pragma unroll
    for (int slab = 0; slab < kSlabs; slab++) {
      u32 p[kRowTiles][4];
#pragma unroll
      for (int i = 0; i < kRowTiles; i++) {
#pragma unroll
        for (int r = 0; r < 4; r++) {
          const float* two = s[i][2 * slab + (r >> 1)] + 2 * (r & 1);
          p[i][r] = bits_as<u32>(narrow(Pair<Operand>(), two[0], two[1]));
        }
      }
#pragma unroll
      for (int pair = 0; pair < Lines::kPairs; pair++) {
        u32 b[4][2];
        Lines::load_values(b, R::slab(stage, 1, slab), pair);
#pragma unroll
        for (int i = 0; i < kRowTiles; i++) {
#pragma unroll
          for (int n = 0; n < 4; n++) mma(Operand(), o[i][4 * pair + n], p[i], b[n]);
        }
      }
    }
  }

  // Scores to weights, and the running maximum, sum and unit with them.
  DEV void weigh(int i, float (&s)[2 * kSlabs][4], u8* stage, int token) {
    const int column = 2 * (lane_id() & 3);
    float shrink[2];  // what was gathered so far is multiplied by it
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float largest = maximum[i][half], largest_scale = 0.f;
      float value_scales[2 * kSlabs][2];
#pragma unroll
      for (int n = 0; n < 2 * kSlabs; n++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float& score = s[n][2 * half + e];
          const int at = token + 8 * n + column + e;
          const bool seen = at >= first[i][half] && at <= last[i][half];
          float factor = scale[i][half];
          if constexpr (kIsQuantised<KV>) {
            factor *= R::scales(stage, 0)[8 * n + column + e];
            value_scales[n][e] = seen ? R::scales(stage, 1)[8 * n + column + e] : 0.f;
            largest_scale = fmaxf(largest_scale, value_scales[n][e]);
          }
          score = seen ? score * factor : minus_infinity();
          largest = fmaxf(largest, score);
        }
      }
      largest = quad_max(largest);
      const float origin = largest == minus_infinity() ? 0.f : largest;  // nothing seen yet: no inf - inf
      shrink[half] = maximum[i][half] == largest ? 1.f : exp2_approx(maximum[i][half] - largest);
      maximum[i][half] = largest;
      float gathered = 0.f;
#pragma unroll
      for (int n = 0; n < 2 * kSlabs; n++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float& weight = s[n][2 * half + e];
          weight = exp2_approx(weight - origin);
          gathered += weight;
        }
      }
      sum[i][half] = fmaf(sum[i][half], shrink[half], gathered);
      if constexpr (kIsQuantised<KV>) {
        const float per_unit = raise_unit(i, half, quad_max(largest_scale), shrink[half]);
#pragma unroll
        for (int n = 0; n < 2 * kSlabs; n++) {
#pragma unroll
          for (int e = 0; e < 2; e++) s[n][2 * half + e] *= value_scales[n][e] * per_unit;
        }
      }
    }
    if (__ballot_sync(0xffffffffu, shrink[0] != 1.f || shrink[1] != 1.f) != 0) {
#pragma unroll
      for (int j = 0; j < kHeadDim / 8; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) o[i][j][e] *= shrink[e >> 1];
      }
    }
  }

  // Have a unit at least as large as this scale's power of two, so that weights in units stay below 2. Returns its
  // inverse; 0 for scales so small that all their codes are zeros.
  DEV float raise_unit(int i, int half, float scale_of_value, float& shrink) {
    const float power = bits_as<float>(bits_as<u32>(scale_of_value) & 0x7f800000u);
    const float raised = fmaxf(unit[i][half], power);
    const float per_unit = raised > 1e-37f ? bits_as<float>(0x7f000000u - bits_as<u32>(raised)) : 0.f;
    if (raised != unit[i][half]) shrink *= unit[i][half] * per_unit;
    unit[i][half] = raised;
    return per_unit;
  }

  static DEV float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
  }

  // Each lane of a quad has the sum of its columns; afterwards each has the row's.
  DEV void finish() {
#pragma unroll
    for (int i = 0; i < kRowTiles; i++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        sum[i][half] += __shfl_xor_sync(0xffffffffu, sum[i][half], 1);
        sum[i][half] += __shfl_xor_sync(0xffffffffu, sum[i][half], 2);
      }
    }
  }
};
