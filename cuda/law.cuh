// A row's law as integers, so that sums of it are the same in any order, and the random number that is looked up in it.
//
// A token is known by its distance below the likeliest, in nats, as a key of 30 bits: the smaller, the likelier. Its mass,
// relative to the likeliest's, is a function of the key alone:
//
//     logit x ── largest − x ──→ distance d ── 2^25 d, cut ──→ key ── 2^45 e^−d, cut ──→ mass, at most 2^45
//                                0 … 32 nats                   30 bits
//
// A key says more than a float32 probability does: from half a nat on it holds every bit of d, below that it cuts 3e-8.
// Tokens with equal keys are equals, and wherever that matters the lowest id goes first. What has less than 2^-45 of
// the likeliest's mass has none; 262,144 tokens of mass 2^45 make 2^63, which fits.
//
// Because masses are integers, their sums do not depend on how threads, warps and blocks share the work, a prefix sum
// never decreases, and a draw that is below the total falls on a token that has mass.
#pragma once
#include "reduce.cuh"

constexpr int kKeyBits = 30;
constexpr u32 kNoMass = 1u << kKeyBits;  // the key of all that is 32 nats below or more; its mass is 0
constexpr float kKeysPerNat = 33554432.f;
constexpr float kLikeliest = 35184372088832.f;  // the mass of key 0

// NaN counts as too far below.
DEV u32 key_of(float distance) { return static_cast<u32>(fminf(distance, 32.f) * kKeysPerNat); }

// The mass, or 0 for those that have less than `min_p` of the likeliest's.
DEV u64 mass_of(u32 key, float min_p) {
  const float share = expf(static_cast<float>(key) * (-1.f / kKeysPerNat));
  return share < min_p ? 0 : static_cast<u64>(share * kLikeliest);
}

// Unsigned numbers in the order of the floats, where 0 and -0 are equal and NaN is above everything.
constexpr u32 kRankOfNothing = 0x007fffffu;   // -infinity
constexpr u32 kRankOfInfinity = 0xff800000u;  // and NaN above it
DEV u32 rank_of(float x) {
  const u32 bits = __float_as_uint(x + 0.f);
  if (x != x) return 0xffffffffu;
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
DEV float ranked(u32 rank) { return __uint_as_float(rank >> 31 ? rank & 0x7fffffffu : ~rank); }

// A token that is higher or, as high, has a lower id, has the larger standing.
DEV u64 standing_of(float x, int id) {
  return static_cast<u64>(rank_of(x)) << 32 | (0xffffffffu - static_cast<u32>(id));
}
DEV u32 rank_in(u64 standing) { return static_cast<u32>(standing >> 32); }
DEV int id_in(u64 standing) { return static_cast<int>(0xffffffffu - static_cast<u32>(standing)); }

// For warp_reduce and block_reduce.
DEV u64 combine(Sum, u64 a, u64 b) { return a + b; }
DEV u64 combine(Max, u64 a, u64 b) { return max(a, b); }

// Give the sum of the values of the threads before this one, and of all. `partials`: shared memory, [kThreads / 32]; a
// second scan uses another array, or a barrier of its own before it writes this one again.
template <int kThreads>
DEV u64 block_scan(u64 value, u64* partials, u64& total) {
  u64 upto = value;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const u64 earlier = __shfl_up_sync(0xffffffffu, upto, distance);
    if (lane_id() >= static_cast<u32>(distance)) upto += earlier;
  }
  const int warp = threadIdx.x / 32;
  if (lane_id() == 31) partials[warp] = upto;
  __syncthreads();
  u64 before = upto - value;
  total = 0;
  for (int other = 0; other < kThreads / 32; other++) {
    if (other < warp) before += partials[other];
    total += partials[other];
  }
  return before;
}

// Philox 4x32-10 (`engine/philox.py` has the same): 53 random bits that belong to (seed, position, choice).
DEV u64 random_bits(u64 seed, u64 position, u32 choice) {
  u32 key0 = static_cast<u32>(seed), key1 = static_cast<u32>(seed >> 32);
  u32 c0 = static_cast<u32>(position), c1 = static_cast<u32>(position >> 32), c2 = choice, c3 = 0;
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const u64 product0 = static_cast<u64>(0xD2511F53u) * c0, product1 = static_cast<u64>(0xCD9E8D57u) * c2;
    c0 = static_cast<u32>(product1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<u32>(product1);
    c2 = static_cast<u32>(product0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<u32>(product0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return static_cast<u64>(c0 >> 5) << 26 | c1 >> 6;
}
