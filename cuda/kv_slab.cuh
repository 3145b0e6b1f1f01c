// Sixteen tokens of one KV head: how they lie in shared memory, and how tensor cores read them there.
//
// In the pool a slab is one contiguous piece, because pages hold 16, 32 or 64 tokens of a head. In shared memory each
// token keeps its row, and the 16-byte chunks of a row are exchanged with each other, so that the eight rows that
// ldmatrix reads at once lie in eight different groups of four banks:
//
//     chunks a row    8, 16, 32 (128 bytes and up)    chunk ^ (row & 7)
//                     4, 12     (rows of 64 bytes ·)  chunk ^ (row >> 1 & 3)
//                     6, …      (rows of 32 bytes ·)  chunk ^ (row >> 2 & 1)
//
// Keys and values are the right operand of m16n8k16, whose registers lane 4 g + t fills with column g, and with k = 2 t,
// 2 t + 1 of each half of k. Bytes are read as if two of them were one 16-bit number: a register then holds four bytes,
//
//     keys       dims 4 t … 4 t + 3 of token g                     k is permuted: Queries puts its own dims there too
//     values     dims 2 g, 2 g + 1 of tokens 2 t, 2 t + 1          even dims make one block of columns, odd the next
//
// and its bytes 0 and 2 become one register of two f16, its bytes 1 and 3 another.
#pragma once
#include "vector.cuh"

constexpr int kSlab = 16;

template <class KV>
constexpr bool kIsQuantised = sizeof(KV) == 1;

// The type of the tensor cores' operands: the model's own, or f16, in which every code is exact.
template <class T, class KV>
struct OperandType {
  using Type = T;
};
template <class T>
struct OperandType<T, e4m3> {
  using Type = f16;
};
template <class T>
struct OperandType<T, s8> {
  using Type = f16;
};

DEV void mma(bf16, float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_bf16(d, a, b[0], b[1]); }
DEV void mma(f16, float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_f16(d, a, b[0], b[1]); }

// Four codes to f16: bytes 0 and 2, bytes 1 and 3. The numbers are the codes' values times kUnit.
DEV void widen_codes(e4m3, u32 codes, u32& even, u32& odd) {
  // The sign stays on top, exponent and mantissa move to where f16 has the low four bits of its exponent: 2^-8 of the
  // value, exact for subnormals too. (There is a conversion instruction from sm_89 on; this takes as few.)
  even = (codes << 8 & 0x80008000u) | (codes << 7 & 0x3f803f80u);
  odd = (codes & 0x80008000u) | (codes >> 1 & 0x3f803f80u);
}
DEV void widen_codes(s8, u32 codes, u32& even, u32& odd) {
  // 1024 + x in f16 has x in its low bits: flip the sign bit, so that they are code + 128, and take 1152 away.
  const f16x2 offset = bits_as<f16x2>(0x64806480u);
  even = bits_as<u32>(__hsub2(bits_as<f16x2>((codes & 0x00ff00ffu) ^ 0x64806480u), offset));
  odd = bits_as<u32>(__hsub2(bits_as<f16x2>((codes >> 8 & 0x00ff00ffu) ^ 0x64806480u), offset));
}
template <class KV>
constexpr float kUnit = 1.f;
template <>
constexpr float kUnit<e4m3> = 1.f / 256.f;

template <class KV, int kHeadDim>
struct Slab {
  static_assert(kHeadDim % 32 == 0, "columns are taken 32 at a time");
  static constexpr int kRowBytes = kHeadDim * static_cast<int>(sizeof(KV));
  static constexpr int kChunks = kRowBytes / 16;  // of a row
  static constexpr int kBytes = kSlab * kRowBytes;
  static constexpr int kPairs = kHeadDim / 32;  // of 16 dims

  static DEV int offset(int row, int chunk) {
    constexpr int kPeriod = kChunks % 8 == 0 ? 8 : kChunks % 4 == 0 ? 4 : 2;  // neighbouring chunks that are exchanged
    static_assert(kChunks % 2 == 0, "at least two");
    return row * kRowBytes + (chunk ^ (row / (8 / kPeriod) % kPeriod)) * 16;
  }

  // The registers of keys for dims [32 pair, 32 pair + 32): [k step][block of 8 tokens][half of k].
  static DEV void load_keys(u32 (&b)[2][2][2], const u8* keys, int pair) {
    const int lane = lane_id();
    u32 r[4];
    if constexpr (kIsQuantised<KV>) {
      ldmatrix_x4(r, keys + offset(lane & 15, 2 * pair + (lane >> 4)));
#pragma unroll
      for (int i = 0; i < 4; i++) widen_codes(KV(), r[i], b[i >> 1][i & 1][0], b[i >> 1][i & 1][1]);
    } else {
#pragma unroll
      for (int step = 0; step < 2; step++) {
        ldmatrix_x4(r, keys + offset((lane >> 4) * 8 + (lane & 7), 4 * pair + 2 * step + (lane >> 3 & 1)));
#pragma unroll
        for (int i = 0; i < 4; i++) b[step][i >> 1][i & 1] = r[i];
      }
    }
  }

  // The registers of values for dims [32 pair, 32 pair + 32): [block of 8 columns][half of the tokens].
  static DEV void load_values(u32 (&b)[4][2], const u8* values, int pair) {
    const int lane = lane_id();
    u32 r[4];
    if constexpr (kIsQuantised<KV>) {
      ldmatrix_x4_trans(r, values + offset(lane & 15, 2 * pair + (lane >> 4)));
#pragma unroll
      for (int i = 0; i < 4; i++) widen_codes(KV(), r[i], b[i & 2][i & 1], b[(i & 2) + 1][i & 1]);
    } else {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        ldmatrix_x4_trans(r, values + offset(lane & 15, 4 * pair + 2 * half + (lane >> 4)));
#pragma unroll
        for (int i = 0; i < 4; i++) b[2 * half + (i >> 1)][i & 1] = r[i];
      }
    }
  }

  // Put this lane's part of 32 columns (four blocks of accumulators, their elements `first` and `first + 1`) in order.
  static DEV void store_columns(float* row, const float (*blocks)[4], int first, float factor) {
    const int t = lane_id() & 3;
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      const float low[2] = {blocks[j][first] * factor, blocks[j][first + 1] * factor};
      const float high[2] = {blocks[j + 1][first] * factor, blocks[j + 1][first + 1] * factor};
      if constexpr (kIsQuantised<KV>) {
        *reinterpret_cast<float4*>(row + 8 * j + 4 * t) = make_float4(low[0], high[0], low[1], high[1]);
      } else {
        *reinterpret_cast<float2*>(row + 8 * j + 2 * t) = make_float2(low[0], low[1]);
        *reinterpret_cast<float2*>(row + 8 * j + 8 + 2 * t) = make_float2(high[0], high[1]);
      }
    }
  }
};
