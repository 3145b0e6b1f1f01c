// Causal attention of a step's prompts over paged keys and values by wgmma and TMA: what paged_prefill.cu computes, for
// sm_90a, with keys and values of the queries' own type. The arguments are the same, save that the pool comes as a
// tensor map {head_dim, block_size, 2 num_kv_heads, num_blocks}, so that a block's number is a coordinate.
//
// A block owns 128 rows (tokens x heads of one KV head); grid (num_kv_heads, max_tiles), the longest tiles first. Three
// warpgroups share the work as in FlashAttention-3 (https://arxiv.org/abs/2407.08608):
//
//     warpgroup 0   one warp fetches tiles of keys and values, 16 to 64 tokens at a time, into two stages each
//     warpgroup 1   rows 0 to 63      s = q k^T, softmax, o += p v
//     warpgroup 2   rows 64 to 127    the same
//
// The two take turns at the tensor cores, so that one's softmax hides behind the other's products; and each starts the
// next scores before it multiplies with the present weights, which hides its softmax behind its own product too:
//
//     wg 1   | q k1 | p0 v0 |  softmax 1  .  .  .  | q k2 | p1 v1 |  softmax 2  .
//     wg 2   .  softmax 0   | q k1 | p0 v0 |  softmax 1  .  .  .  | q k2 | p1 v1 |
//
// Shared memory, in swizzled rows of 128 bytes (64 where head_dim is 96), span after span of head_dim:
//
//     | queries of wg 1, of wg 2 | keys: stage 0, 1 | values: stage 0, 1 | barriers |
//                                  tile:  | span 0: key 0, key 1, ... | span 1: key 0, ... | ...
//
// Keys are the right operand as they lie (rows of k); values are too, read along columns (MN-major); weights stay in
// registers. Blocks behind the last key have a number outside of the pool: TMA writes zeros for them and reads nothing.
// Slots of the last block that nobody has written hold anything, even NaN, and 0 times NaN is NaN: their values are
// made zero by the warp that fetched them.
#include "prefill.cuh"

#if HOPPER

constexpr int kRows = 128;
constexpr int kGroupRows = 64;  // of a warpgroup
constexpr int kGroupThreads = 128;
constexpr int kThreads = 3 * kGroupThreads;
constexpr int kGroupWarps = 4;
constexpr int kStages = 2;
constexpr int kKinds = 2;  // keys, values

// Named barriers, one for each consumer: its turn, where the other arrives when it has taken its own; and its end. After
// the very last turn an arrival is left over.
constexpr int kTurnBarrier = 1;
constexpr int kEndBarrier = 3;

template <class T>
struct Kind;
template <>
struct Kind<bf16> {
  static constexpr WgmmaKind kValue = BF16;
};
template <>
struct Kind<f16> {
  static constexpr WgmmaKind kValue = F16;
};

// How tiles lie in shared memory. A swizzled row holds kSpan numbers of head_dim.
template <int kHeadDim>
struct Layout {
  static constexpr int kKeys = kHeadDim > 128 ? 64 : 128;
  static constexpr int kSpan = kHeadDim % 64 == 0 ? 64 : 32;
  static constexpr int kSpans = kHeadDim / kSpan;
  static constexpr int kRowBytes = kSpan * 2;
  static constexpr int kTileBytes = kKeys * kHeadDim * 2;
  static constexpr int kGroupBytes = kGroupRows * kHeadDim * 2;
  static constexpr int kBarriers = 2 * kGroupBytes + kKinds * kStages * kTileBytes;

  // Where in a warpgroup's queries a number lies, in bytes. Swizzling permutes the 16-byte pieces of 8 rows' pattern.
  static DEV int place(int row, int column) {
    const int pattern = kRowBytes == 128 ? row & 7 : (row >> 1) & 3;
    return (column / kSpan * kGroupRows + row) * kRowBytes + ((column % kSpan * 2) ^ (pattern << 4));
  }

  // From the beginning of a tile to its 16 numbers of k, number `step`, of an operand whose rows are keys or queries.
  static DEV int k_offset(int rows, int step) {
    return step / (kSpan / 16) * rows * kRowBytes + step % (kSpan / 16) * 32;
  }
};

struct Barriers {
  u64 full[kKinds][kStages];
  u64 empty[kKinds][kStages];  // one arrival of each consumer warp
  u64 landed;                  // values of which some are to be made zero before they are full
};

template <int n>
DEV float (&in_blocks(float (&flat)[n]))[n / 4][4] {
  return reinterpret_cast<float (&)[n / 4][4]>(flat);
}

// Fetches all tiles, keys and values in turn, as stages become free. One warp; each lane copies at most one box of a
// tile: one span of one block.
template <int kHeadDim>
DEV void produce(const QueryTile<kRows>& tile, const TensorMap& map, const int* table, int block_shift, int num_blocks,
                 u8* tiles, Barriers* barriers) {
  using L = Layout<kHeadDim>;
  const int block_size = 1 << block_shift, lane = lane_id();
  const int page = lane / L::kSpans, span = lane % L::kSpans;
  const bool copies = page < L::kKeys >> block_shift;
  const int offset = (span * L::kKeys + (page << block_shift)) * L::kRowBytes;
  const int written = tile.kv_length & (block_size - 1);  // slots of the last block; 0: all
  const int start = tile.begin / L::kKeys * L::kKeys;

  for (int key0 = start, step = 0; key0 < tile.end; key0 += L::kKeys, step++) {
    const int stage = step % kStages, parity = step / kStages & 1;
    const int first = key0 + (page << block_shift);
    const bool seen = copies && first < tile.end && first + block_size > tile.begin;
    const int block = seen ? table[first >> block_shift] : num_blocks;
#pragma unroll
    for (int kind = 0; kind < kKinds; kind++) {
      const bool ragged = kind == 1 && written != 0 && key0 + L::kKeys > tile.kv_length;
      u8* to = tiles + (kind * kStages + stage) * L::kTileBytes;
      u64* full = &barriers->full[kind][stage];
      u64* done = ragged ? &barriers->landed : full;
      if (lane == 0) {  // alone: a slow lane might find the stage filled and emptied, and wait for the next time
        mbar_wait(&barriers->empty[kind][stage], parity ^ 1);
        mbar_expect_tx(done, L::kTileBytes);
      }
      __syncwarp();
      if (copies) {
        const int plane = kind * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x);
        tma_load_4d(to + offset, &map, done, span * L::kSpan, 0, plane, block);
      }
      if (ragged) {  // the last tile: nothing waits behind it
        mbar_wait(done, 0);
        const int from = tile.kv_length - key0, count = block_size - written;
        constexpr int kPieces = L::kRowBytes / 16;
        for (int piece = lane; piece < L::kSpans * count * kPieces; piece += 32) {
          const int row = piece / kPieces, of_span = row / count, key = from + row % count;
          store_vector(to + (of_span * L::kKeys + key) * L::kRowBytes + piece % kPieces * 16, make_uint4(0, 0, 0, 0));
        }
        fence_proxy_async();
        __syncwarp();
        if (lane == 0) mbar_arrive(full);
      }
    }
  }
}

template <class T, int kHeadDim>
__global__ void __launch_bounds__(kThreads, 1)
    paged_prefill_sm90(T* __restrict__ out, float* __restrict__ lse, const T* __restrict__ qkv,
                       const __grid_constant__ TensorMap map, const int2* __restrict__ tiles,
                       const int* __restrict__ query_starts, const int* __restrict__ kv_lengths,
                       const int* __restrict__ block_tables, int max_blocks, int block_shift, int num_blocks,
                       int num_heads, int token_stride, int window, float scale) {
  using L = Layout<kHeadDim>;
  constexpr int kKeys = L::kKeys, kPieces = kHeadDim / kVector;
  constexpr WgmmaKind kKind = Kind<T>::kValue;
  DYN_SMEM(memory);
  u8* stages = memory + 2 * L::kGroupBytes;
  Barriers* barriers = reinterpret_cast<Barriers*>(memory + L::kBarriers);

  const int2 place = tiles[blockIdx.y];
  if (place.x < 0) return;
  const int kv_head = blockIdx.x, group = num_heads / static_cast<int>(gridDim.x);
  const QueryTile<kRows> tile({query_starts, kv_lengths, group, window}, place);
  if (threadIdx.x == 0) {
    for (int kind = 0; kind < kKinds; kind++) {
      for (int stage = 0; stage < kStages; stage++) {
        mbar_init(&barriers->full[kind][stage], 1);
        mbar_init(&barriers->empty[kind][stage], 2 * kGroupWarps);
      }
    }
    mbar_init(&barriers->landed, 1);
    mbar_fence_init();
    tma_prefetch(&map);
  }
  __syncthreads();

  if (threadIdx.x < kGroupThreads) {
    reg_dealloc<40>();
    if (threadIdx.x < 32) {
      const int* table = block_tables + static_cast<long long>(tile.sequence) * max_blocks;
      produce<kHeadDim>(tile, map, table, block_shift, num_blocks, stages, barriers);
    }
    return;
  }

  reg_alloc<232>();
  const int consumer = threadIdx.x / kGroupThreads - 1, thread = threadIdx.x % kGroupThreads;
  const int warp = thread / 32, lane = lane_id();
  const int group_row = warp * 16 + lane / 4;                // and + 8: what this lane has of each product
  const int first_row = consumer * kGroupRows + group_row;   // in the tile
  u8* queries = memory + consumer * L::kGroupBytes;

  float o[kHeadDim / 2];
#pragma unroll
  for (int i = 0; i < kHeadDim / 2; i++) o[i] = 0.f;
  OnlineSoftmax softmax;

  if (tile.end > 0) {
    for (int piece = thread; piece < kGroupRows * kPieces; piece += kGroupThreads) {
      const int row = piece / kPieces, column = piece % kPieces * kVector, tile_row = consumer * kGroupRows + row;
      const bool present = tile_row < tile.num_rows;
      const long long at = present ? static_cast<long long>(tile.token(tile_row)) * token_stride +
                                         (kv_head * group + tile.head(tile_row)) * kHeadDim + column
                                   : 0;
      cp_async16(queries + L::place(row, column), qkv + at, present);
    }
    cp_async_commit();
    cp_async_wait<0>();
    fence_proxy_async();  // the first turn begins with a barrier

    const CausalMask<kRows> mask(tile, first_row);
    const int start = tile.begin / kKeys * kKeys, num_steps = (tile.end - start + kKeys - 1) / kKeys;
    const u64 query_desc = wgmma_desc(queries, L::kRowBytes, 8 * L::kRowBytes, 0);
    float s[kKeys / 2];
    u32 p[kKeys / 16][4];
    float shrink[2];

    const auto stage_of = [&](int kind, int step) { return stages + (kind * kStages + step % kStages) * L::kTileBytes; };
    const auto await = [&](int kind, int step) {
      mbar_wait(&barriers->full[kind][step % kStages], step / kStages & 1);
    };
    const auto release = [&](int kind, int step) {  // each warp: wgmma_wait has told it of its own reads only
      if (lane == 0) mbar_arrive(&barriers->empty[kind][step % kStages]);
    };
    const auto score = [&](int step) {
      const u64 key_desc = wgmma_desc(stage_of(0, step), L::kRowBytes, 8 * L::kRowBytes, 0);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kHeadDim / 16; k++) {
        wgmma_ss<kKeys, kKind>(s, query_desc + L::k_offset(kGroupRows, k) / 16, key_desc + L::k_offset(kKeys, k) / 16,
                               k > 0);
      }
      wgmma_commit();
    };
    const auto gather = [&](int step) {
      const u64 value_desc = wgmma_desc(stage_of(1, step), L::kRowBytes, 8 * L::kRowBytes, kKeys * L::kRowBytes);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kKeys / 16; k++) {
        wgmma_rs<kHeadDim, kKind, true>(o, p[k], value_desc + k * 16 * L::kRowBytes / 16, 1);
      }
      wgmma_commit();
    };
    const auto weigh = [&](int step) {
      mask.apply(in_blocks(s), start + step * kKeys);
      softmax.step(in_blocks(s), scale, shrink);
    };
    const auto round_weights = [&] {
#pragma unroll
      for (int k = 0; k < kKeys / 16; k++) pack_weights<T>(p[k], in_blocks(s)[2 * k], in_blocks(s)[2 * k + 1]);
    };
    const auto begin_turn = [&] { bar_sync(kTurnBarrier + consumer, 2 * kGroupThreads); };
    const auto end_turn = [&] { bar_arrive(kTurnBarrier + (consumer ^ 1), 2 * kGroupThreads); };

    if (consumer == 1) end_turn();  // the other begins
    await(0, 0);
    begin_turn();
    score(0);
    end_turn();
    wgmma_wait<0>();
    wgmma_regs_fence(s);
    release(0, 0);
    weigh(0);
    round_weights();

    if (num_steps > 1) await(0, 1);
    for (int step = 1; step < num_steps; step++) {
      begin_turn();
      wgmma_regs_fence(s);
      wgmma_regs_fence(o);
      score(step);
      await(1, step - 1);
      gather(step - 1);
      end_turn();
      wgmma_wait<1>();
      wgmma_regs_fence(s);
      release(0, step);
      weigh(step);
      if (step + 1 < num_steps) await(0, step + 1);  // here: ptxas moves no softmax behind a wait for memory
      wgmma_wait<0>();
      wgmma_regs_fence(o);
      release(1, step - 1);
#pragma unroll
      for (int i = 0; i < kHeadDim / 2; i++) o[i] *= shrink[i >> 1 & 1];
      round_weights();
    }

    await(1, num_steps - 1);
    wgmma_regs_fence(o);
    gather(num_steps - 1);
    wgmma_wait<0>();
    wgmma_regs_fence(o);
    softmax.finish();
    bar_sync(kEndBarrier + consumer, kGroupThreads);  // nobody reads these queries any more
  }

  // Through the rows of the queries, so that whole rows are written; each warp its own.
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const float by = softmax.inverse(half);
#pragma unroll
    for (int j = 0; j < kHeadDim / 8; j++) {
      const u32 pair = bits_as<u32>(narrow(Pair<T>(), o[4 * j + 2 * half] * by, o[4 * j + 2 * half + 1] * by));
      *reinterpret_cast<u32*>(queries + L::place(group_row + 8 * half, 8 * j + 2 * (lane & 3))) = pair;
    }
    const int tile_row = first_row + 8 * half;
    if (lse != nullptr && (lane & 3) == 0 && tile_row < tile.num_rows) {
      const long long at = static_cast<long long>(tile.token(tile_row)) * num_heads + kv_head * group;
      lse[at + tile.head(tile_row)] = softmax.log_sum(half, scale);
    }
  }
  __syncwarp();
  for (int piece = lane; piece < 16 * kPieces; piece += 32) {
    const int row = warp * 16 + piece / kPieces, column = piece % kPieces * kVector;
    const int tile_row = consumer * kGroupRows + row;
    if (tile_row < tile.num_rows) {
      const long long at = static_cast<long long>(tile.token(tile_row)) * num_heads + kv_head * group;
      store_vector(out + (at + tile.head(tile_row)) * kHeadDim + column, load_vector(queries + L::place(row, column)));
    }
  }
}

#endif  // HOPPER
