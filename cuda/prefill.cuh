// What both prefill kernels share: which rows and keys a tile has, and the softmax that is kept while keys pass by.
//
// Keys are visited in tiles that begin at multiples of kKeys, counted from position 0 of the sequence, in ascending
// order. What happens to a row then depends on its own position alone: a tile of keys that a row does not see multiplies
// its sums by 1 and adds zeros to them. So a token's output has the same bits whatever else is in its tile or in the
// batch, and however the prompt was cut into chunks or how much of it came from the prefix cache.
//
// Accumulators of mma.sync and wgmma lie in registers alike. Of a product of 16 rows (for wgmma: this warp's 16 of 64)
// and 8 n columns, lane 4 g + t holds
//
//     s[j][0], s[j][1]   row g,      columns 8 j + 2 t, 8 j + 2 t + 1
//     s[j][2], s[j][3]   row g + 8,  the same columns
//
// so a row lies in the four lanes of a quad, and "half" 0 or 1 below is row g or g + 8.
#pragma once
#include "reduce.cuh"
#include "vector.cuh"

constexpr float kLn2 = 0.6931471805599453f;

DEV float minus_infinity() { return bits_as<float>(0xff800000u); }

struct Batch {
  const int* query_starts;  // [num_sequences + 1]
  const int* kv_lengths;    // [num_sequences]
  int group;                // query heads that share a KV head
  int window;               // a token sees the last `window` positions, its own included; all where <= 0
};

// Rows first_row to first_row + num_rows - 1 of one sequence, and the keys begin to end - 1 that some of them see.
template <int kRows>
struct QueryTile {
  int sequence, group, window;
  int first_row, num_rows;
  int first_token;  // of the sequence, in the batch
  int before;       // keys that stand before the first query token; negative where the sequence is padding
  int begin, end;   // keys
  int kv_length;

  DEV QueryTile(const Batch& batch, int2 tile)
      : sequence(tile.x), group(batch.group), window(batch.window > 0 ? batch.window : 1 << 30), first_row(tile.y) {
    first_token = batch.query_starts[sequence];
    kv_length = batch.kv_lengths[sequence];
    const int num_queries = batch.query_starts[sequence + 1] - first_token;
    num_rows = min(kRows, num_queries * group - first_row);
    before = kv_length - num_queries;
    end = position(num_rows - 1) + 1;
    begin = max(0, position(0) - window + 1);
  }

  DEV int token(int row) const { return first_token + (first_row + row) / group; }  // in the batch
  DEV int head(int row) const { return (first_row + row) % group; }                 // of the KV head's group
  DEV int position(int row) const { return before + (first_row + row) / group; }
};

// What one lane does to its two rows of the scores of a tile: `first_half` is row g of the 16, counted in the tile.
template <int kRows>
struct CausalMask {
  int last[2];   // the newest key that the row sees
  int first[2];  // the oldest
  int tile_last, tile_first;  // keys up to tile_last and from tile_first on are seen by every row of the tile

  DEV CausalMask(const QueryTile<kRows>& tile, int row) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      last[half] = tile.position(min(row + 8 * half, tile.num_rows - 1));
      first[half] = last[half] - tile.window + 1;
    }
    tile_last = tile.position(0);
    tile_first = tile.position(tile.num_rows - 1) - tile.window + 1;
  }

  // Keys key0 to key0 + 8 n - 1: those that a row does not see get a score of minus infinity.
  template <int n>
  DEV void apply(float (&s)[n][4], int key0) const {
    if (key0 >= tile_first && key0 + 8 * n - 1 <= tile_last) return;
    const int column = key0 + 2 * (lane_id() & 3);
#pragma unroll
    for (int j = 0; j < n; j++) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int key = column + 8 * j + (e & 1);
        if (key > last[e >> 1] || key < first[e >> 1]) s[j][e] = minus_infinity();
      }
    }
  }
};

// The softmax of two rows, keys after keys (https://arxiv.org/abs/1805.02867). Of its sum, each lane holds its columns'.
struct OnlineSoftmax {
  float maximum[2] = {minus_infinity(), minus_infinity()};  // of the scores, before the scale
  float sum[2] = {0.f, 0.f};

  // Turns scores into weights, 2^(scale * (score - maximum)). `shrink`: what was gathered with the maximum before is to
  // be multiplied by it.
  template <int n>
  DEV void step(float (&s)[n][4], float scale, float (&shrink)[2]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float largest = maximum[half];
#pragma unroll
      for (int j = 0; j < n; j++) largest = fmaxf(largest, fmaxf(s[j][2 * half], s[j][2 * half + 1]));
      largest = warp_reduce<Max>(largest, 4);
      const float origin = largest == minus_infinity() ? 0.f : largest * scale;  // nothing seen yet: no inf - inf
      // Exactly 1 where the maximum stays: keys that a row does not see must leave no trace of themselves.
      shrink[half] = maximum[half] == largest ? 1.f : exp2_approx((maximum[half] - largest) * scale);
      maximum[half] = largest;
      float total = 0.f;
#pragma unroll
      for (int j = 0; j < n; j++) {
        s[j][2 * half] = exp2_approx(fmaf(s[j][2 * half], scale, -origin));
        s[j][2 * half + 1] = exp2_approx(fmaf(s[j][2 * half + 1], scale, -origin));
        total += s[j][2 * half] + s[j][2 * half + 1];
      }
      sum[half] = fmaf(sum[half], shrink[half], total);
    }
  }

  // Adds up the quad's sums: from here on each lane has its rows'.
  DEV void finish() {
    sum[0] = warp_reduce<Sum>(sum[0], 4);
    sum[1] = warp_reduce<Sum>(sum[1], 4);
  }

  // By what the gathered values are multiplied: 0 where nothing was seen.
  DEV float inverse(int half) const { return sum[half] == 0.f ? 0.f : 1.f / sum[half]; }

  // The natural logarithm of the sum of exponentials; minus infinity where nothing was seen.
  DEV float log_sum(int half, float scale) const {
    return sum[half] == 0.f ? minus_infinity() : fmaf(maximum[half], scale, log2f(sum[half])) * kLn2;
  }
};

// The weights of 16 keys, rounded, as the left operand of a product with values. `s`: two neighbouring blocks of weights.
template <class T>
DEV void pack_weights(u32 (&packed)[4], const float (&low)[4], const float (&high)[4]) {
  packed[0] = bits_as<u32>(narrow(Pair<T>(), low[0], low[1]));
  packed[1] = bits_as<u32>(narrow(Pair<T>(), low[2], low[3]));
  packed[2] = bits_as<u32>(narrow(Pair<T>(), high[0], high[1]));
  packed[3] = bits_as<u32>(narrow(Pair<T>(), high[2], high[3]));
}
