// Attention of up to 64 packed rows per sequence by wgmma and TMA: what paged_decode.cu computes, for sm_90a, with keys
// and values of the queries' own type. It is for speculation and large groups, where paged_decode.cu would read keys and
// values once for every 16 or 32 rows.
//
// One warp fetches, one warpgroup multiplies. Tiles are 64 tokens; kStages of them are under way, across the borders of
// items, so that memory never idles while an item ends:
//
//     warps 0 to 3    s = q k^T   64 rows x 64 tokens     queries and keys from shared memory
//                     o += p v    64 rows x head_dim      p in registers, from s's; values from shared memory
//     warp 4          boxes of one block and one span of head_dim, up to 16 for keys and as many for values
//
// Shared memory, in swizzled rows of 128 bytes (64 where head_dim is 96), span after span of head_dim:
//
//     | queries | stage 0: keys, values | stage 1 | … | barriers, ticket |
//     tile:  | span 0: token 0, token 1, … | span 1: token 0, … | …
//
// The pool comes as a tensor map {head_dim, block_size, 2 num_kv_heads, num_blocks}, so that a block's number is a
// coordinate; blocks that are not the item's have a number outside of the pool, for which TMA writes zeros and reads
// nothing. Slots of its own blocks that are not the item's may hold anything, even NaN, and 0 times NaN is NaN: their
// values are made zero before they are multiplied. Warps whose 16 rows do not exist multiply zeros and weigh nothing.
//
// A row's bits depend on the tokens that it sees and on the plan's splits alone; see paged_decode.cu.
#include "decode_results.cuh"

#if HOPPER

constexpr int kRows = 64;
constexpr int kTile = 64;  // tokens
constexpr int kConsumers = 128;
constexpr int kConsumerWarps = kConsumers / 32;
constexpr int kThreads = kConsumers + 32;
constexpr int kConsumerBarrier = 1;

template <class T>
constexpr WgmmaKind kKind = BF16;
template <>
constexpr WgmmaKind kKind<f16> = F16;

// How tiles and queries lie in shared memory. A swizzled row holds kSpan numbers of head_dim.
template <int kHeadDim>
struct Layout {
  static constexpr int kSpan = kHeadDim % 64 == 0 ? 64 : 32;
  static constexpr int kSpans = kHeadDim / kSpan;
  static constexpr int kRowBytes = kSpan * 2;
  static constexpr int kTileBytes = kTile * kHeadDim * 2;  // of keys, of values, and of queries

  // Of a piece of 16 bytes. Swizzling permutes the pieces of the rows of a pattern.
  static DEV int offset(int row, int piece) {
    constexpr int kPieces = kRowBytes / 16;
    const int pattern = kPieces == 8 ? row & 7 : row >> 1 & 3;
    return (piece / kPieces * kTile + row) * kRowBytes + (piece % kPieces ^ pattern) * 16;
  }

  // From the beginning of queries or keys to their numbers 16 step … of head_dim, in the descriptor's units of 16 bytes.
  static DEV int step_offset(int step) {
    return (step / (kSpan / 16) * kTile * kRowBytes + step % (kSpan / 16) * 32) / 16;
  }
};

template <int kStages>
struct Barriers {
  u64 full[kStages];
  u64 empty[kStages];  // one arrival of each consumer warp
  u64 ticket;          // not a static array, behind which queries would begin at the next 1,024 bytes
};

// Fetches the tiles of all items, as stages become free. Each lane copies at most one box of keys and one of values.
template <int kHeadDim, int kStages>
DEV void produce(const DecodeItem* items, int item_begin, int item_end, const TensorMap& map, const int* tables,
                 int max_blocks, int block_shift, int num_blocks, u8* stages, Barriers<kStages>* barriers) {
  using L = Layout<kHeadDim>;
  const int block_size = 1 << block_shift, lane = lane_id();
  const int page = lane / L::kSpans, span = lane % L::kSpans;
  const bool copies = page < kTile >> block_shift;
  const int offset = (span * kTile + (page << block_shift)) * L::kRowBytes;
  int stage = 0, parity = 0;
  for (int i = item_begin; i < item_end; i++) {
    const int4 item = *reinterpret_cast<const int4*>(items + i);  // sequence, token_begin, token_end, …
    const int* table = tables + static_cast<size_t>(item.x) * max_blocks;
    for (int tile = item.y / kTile * kTile; tile < item.z; tile += kTile) {
      const int first = tile + (page << block_shift);
      const bool seen = copies && first < item.z && first + block_size > item.y;
      const int block = seen ? table[first >> block_shift] : num_blocks;
      u8* to = stages + stage * 2 * L::kTileBytes + offset;
      if (lane == 0) {  // alone: who came late would wait for a parity that has come and gone
        mbar_wait(&barriers->empty[stage], parity ^ 1);
        mbar_expect_tx(&barriers->full[stage], 2 * L::kTileBytes);
      }
      __syncwarp();
      if (copies) {
        const int plane = blockIdx.x, planes = gridDim.x;
        tma_load_4d(to, &map, &barriers->full[stage], span * L::kSpan, 0, plane, block);
        tma_load_4d(to + L::kTileBytes, &map, &barriers->full[stage], span * L::kSpan, 0, planes + plane, block);
      }
      if (++stage == kStages) {
        stage = 0;
        parity ^= 1;
      }
    }
  }
}

// What one lane knows of its two rows, g and g + 8 of its warp's 16.
struct Rows {
  int first[2], last[2];  // the tokens that the row sees; none where last < first
  float maximum[2], sum[2];
  float scale;  // of scores, to the base of 2

  DEV Rows(const DecodeItem& item, int row, int group, int window, float scale) : scale(scale) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int query = (item.row_begin + row + 8 * half) / group;
      last[half] = query < item.q_len ? item.kv_length - item.q_len + query : -1;
      first[half] = window > 0 ? max(0, last[half] - window + 1) : 0;
      maximum[half] = minus_infinity();
      sum[half] = 0.f;
    }
  }

  // Scores of tokens `token` and up to weights. What was gathered before is to be multiplied by `shrink`.
  DEV void weigh(float (&s)[kTile / 2], int token, float (&shrink)[2]) {
    const int column = token + 2 * (lane_id() & 3);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float largest = maximum[half];
#pragma unroll
      for (int i = 0; i < kTile / 4; i++) {
        float& score = s[i / 2 * 4 + 2 * half + i % 2];
        const int at = column + i / 2 * 8 + i % 2;
        score = at >= first[half] && at <= last[half] ? score * scale : minus_infinity();
        largest = fmaxf(largest, score);
      }
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
      const float origin = largest == minus_infinity() ? 0.f : largest;  // nothing seen yet: no inf - inf
      shrink[half] = maximum[half] == largest ? 1.f : exp2_approx(maximum[half] - largest);
      maximum[half] = largest;
      float gathered = 0.f;
#pragma unroll
      for (int i = 0; i < kTile / 4; i++) {
        float& weight = s[i / 2 * 4 + 2 * half + i % 2];
        weight = exp2_approx(weight - origin);
        gathered += weight;
      }
      sum[half] = fmaf(sum[half], shrink[half], gathered);
    }
  }

  // Each lane of a quad has the sum of its columns; afterwards each has the row's.
  DEV void finish() {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 1);
      sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 2);
    }
  }
};

// grid: (num_kv_heads, parts of the plan).
template <class T, int kHeadDim, int kStages>
__global__ void __launch_bounds__(kThreads, kHeadDim <= 128 ? 2 : 1)
    paged_decode_sm90(T* out, float* log_sums, const T* qkv, const __grid_constant__ TensorMap map, const int* tables,
                      const DecodeItem* items, const int* item_starts, float* partial_out, float* partial_sums,
                      u32* counters, int num_heads, int qkv_stride, int block_shift, int max_blocks, int num_blocks,
                      int window, float softmax_scale) {
  using L = Layout<kHeadDim>;
  constexpr int kPieces = kHeadDim / 8;  // of 16 bytes, in a row
  DYN_SMEM(queries);
  u8* stages = queries + L::kTileBytes;
  Barriers<kStages>* barriers = reinterpret_cast<Barriers<kStages>*>(stages + kStages * 2 * L::kTileBytes);
  const int num_kv_heads = gridDim.x, group = num_heads / num_kv_heads;

  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; i++) {
      mbar_init(&barriers->full[i], 1);
      mbar_init(&barriers->empty[i], kConsumerWarps);
    }
    mbar_fence_init();
  }
  __syncthreads();
  pdl_wait();
  const int item_begin = item_starts[blockIdx.y], item_end = item_starts[blockIdx.y + 1];

  if (threadIdx.x >= kConsumers) {
    produce<kHeadDim>(items, item_begin, item_end, map, tables, max_blocks, block_shift, num_blocks, stages, barriers);
    return;
  }

  const Results<T, kHeadDim, kRows> results = {out,          log_sums, partial_out, partial_sums,
                                               counters, num_heads, num_kv_heads};
  const int warp = threadIdx.x / 32, lane = lane_id(), own_row = warp * 16 + lane / 4;
  const u64 query_desc = wgmma_desc(queries, L::kRowBytes, 8 * L::kRowBytes, 0);
  int stage = 0, parity = 0;

  for (int i = item_begin; i < item_end; i++) {
    const DecodeItem item = items[i];
    const int num_rows = min(kRows, item.q_len * group - item.row_begin);
    for (int piece = threadIdx.x; piece < kRows * kPieces; piece += kConsumers) {
      const int row = piece / kPieces, packed = item.row_begin + row;
      const bool exists = row < num_rows;
      const size_t token = exists ? item.query_begin + packed / group : 0;
      const int head = blockIdx.x * group + packed % group;
      cp_async16(queries + L::offset(row, piece % kPieces),
                 qkv + token * qkv_stride + (exists ? head * kHeadDim + piece % kPieces * 8 : 0), exists);
    }
    cp_async_commit();
    cp_async_wait<0>();
    fence_proxy_async();
    bar_sync(kConsumerBarrier, kConsumers);

    Rows rows(item, own_row, group, window, softmax_scale * kLog2e);
    float o[kHeadDim / 2];
#pragma unroll
    for (int j = 0; j < kHeadDim / 2; j++) o[j] = 0.f;

    for (int tile = item.token_begin / kTile * kTile; tile < item.token_end; tile += kTile) {
      u8 *keys = stages + stage * 2 * L::kTileBytes, *values = keys + L::kTileBytes;
      mbar_wait(&barriers->full[stage], parity);

      float s[kTile / 2];
      const u64 key_desc = wgmma_desc(keys, L::kRowBytes, 8 * L::kRowBytes, 0);
      wgmma_regs_fence(s);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kHeadDim / 16; k++) {
        wgmma_ss<kTile, kKind<T>>(s, query_desc + L::step_offset(k), key_desc + L::step_offset(k), k > 0);
      }
      wgmma_commit();

      if (tile < item.token_begin || tile + kTile > item.token_end) {
        for (int piece = threadIdx.x; piece < kTile * kPieces; piece += kConsumers) {
          const int token = piece / kPieces, at = tile + token;
          if (at < item.token_begin || at >= item.token_end) {
            store_vector(values + L::offset(token, piece % kPieces), make_uint4(0, 0, 0, 0));
          }
        }
        fence_proxy_async();
        bar_sync(kConsumerBarrier, kConsumers);
      }
      wgmma_wait<0>();
      wgmma_regs_fence(s);

      u32 p[kTile / 16][4] = {};
      if (warp * 16 < num_rows) {
        float shrink[2];
        rows.weigh(s, tile, shrink);
        if (__ballot_sync(0xffffffffu, shrink[0] != 1.f || shrink[1] != 1.f) != 0) {
#pragma unroll
          for (int j = 0; j < kHeadDim / 2; j++) o[j] *= shrink[j >> 1 & 1];
        }
#pragma unroll
        for (int j = 0; j < kTile / 4; j++) p[j / 4][j % 4] = bits_as<u32>(narrow(Pair<T>(), s[2 * j], s[2 * j + 1]));
      }

      const u64 value_desc = wgmma_desc(values, L::kRowBytes, 8 * L::kRowBytes, kTile * L::kRowBytes);
      wgmma_regs_fence(o);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kTile / 16; k++) {
        wgmma_rs<kHeadDim, kKind<T>, true>(o, p[k], value_desc + k * L::kRowBytes, 1);  // 16 tokens behind
      }
      wgmma_commit();
      wgmma_wait<0>();
      wgmma_regs_fence(o);
      if (lane == 0) mbar_arrive(&barriers->empty[stage]);  // each warp: the wait told it of its own reads only
      if (++stage == kStages) {
        stage = 0;
        parity ^= 1;
      }
    }

    rows.finish();
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = own_row + 8 * half;
      const float sum = rows.sum[half], factor = sum > 0.f ? 1.f / sum : 0.f;
      if (row < num_rows) {
        if (lane % 4 == 0) results.store_sum(item, row, rows.maximum[half] + log2f(sum));  // of nothing: -inf
#pragma unroll
        for (int j = 0; j < kHeadDim / 8; j++) {
          const float* two = o + 4 * j + 2 * half;
          results.store_pair(item, row, 8 * j + 2 * (lane % 4), make_float2(two[0] * factor, two[1] * factor));
        }
      }
    }
    bar_sync(kConsumerBarrier, kConsumers);  // nobody reads these queries any more, and partial results are there
    if (item.num_slots > 1) {
      if (threadIdx.x == 0) barriers->ticket = results.count(item);
      bar_sync(kConsumerBarrier, kConsumers);
      if (barriers->ticket == static_cast<u64>(item.num_slots) - 1) results.merge(item, num_rows, kConsumers);
    }
  }
}

#endif  // HOPPER
