// How keys and values come into shared memory for paged_decode.cu: each warp's ring of slabs, and the copies ahead of it.
#pragma once
#include "decode_work.cuh"
#include "kv_slab.cuh"

struct Pool {
  const u8* entries;    // [num_blocks, 2, num_kv_heads, block_size, head_dim]
  const float* scales;  // [num_blocks, 2, num_kv_heads, block_size], of quantised entries
  const int* tables;    // [num_sequences, max_blocks]
  int num_kv_heads, page_shift, max_blocks;  // block_size = 1 << page_shift
};

template <class KV, int kHeadDim, int kWarps, int kSlabs, int kStages>
struct Ring {
  using Lines = Slab<KV, kHeadDim>;
  static constexpr int kTokens = kSlabs * kSlab;     // a warp's, of a tile
  static constexpr int kTile = kWarps * kTokens;
  static constexpr int kScales = kIsQuantised<KV> ? kTokens : 0;
  static constexpr int kStageBytes = 2 * (kSlabs * Lines::kBytes + kScales * 4);
  static constexpr int kBytes = kWarps * kStages * kStageBytes;

  // Where a stage holds what: [key or value][slab][token][dim], then the scales [key or value][token].
  static DEV u8* slab(u8* stage, int kind, int i) { return stage + (kind * kSlabs + i) * Lines::kBytes; }
  static DEV float* scales(u8* stage, int kind) {
    return reinterpret_cast<float*>(stage + 2 * kSlabs * Lines::kBytes) + kind * kScales;
  }
};

// The copying half of a warp: a cursor in the block's items that runs ahead of the attention.
template <class KV, int kHeadDim, int kWarps, int kSlabs, int kStages>
struct Feed {
  using R = Ring<KV, kHeadDim, kWarps, kSlabs, kStages>;
  using Lines = typename R::Lines;

  Pool pool;
  const DecodeItem* items;
  int next_item, item_end;
  int4 upcoming;  // the first 16 bytes of items[next_item], asked for early
  int sequence, token_begin, token_end;
  int token;          // the first of this warp's tokens in the tile to copy; at or behind token_end: no more items
  int pages[kSlabs];  // of this warp's slabs in that tile, asked for early
  u8* ring;
  int stage;

  DEV Feed(const Pool& pool, const DecodeItem* items, int item_begin, int item_end, u8* ring)
      : pool(pool), items(items), next_item(item_begin), item_end(item_end), ring(ring), stage(0) {
    token = token_end = 0;
    peek();
    open_item();
  }

  DEV void peek() {
    if (next_item < item_end) upcoming = *reinterpret_cast<const int4*>(items + next_item);
  }

  // Go to the next item that has tokens, and ask for its first pages.
  DEV void open_item() {
    token = token_end = 0;
    while (token >= token_end && next_item < item_end) {
      sequence = upcoming.x;
      token_begin = upcoming.y;
      token_end = upcoming.z;
      token = token_begin / R::kTile * R::kTile;
      next_item++;
      peek();
    }
    ask_pages();
  }

  DEV bool is_open() const { return token < token_end; }
  DEV int warp_token() const { return token + threadIdx.x / 32 * R::kTokens; }

  DEV void ask_pages() {
    const int* table = pool.tables + static_cast<size_t>(sequence) * pool.max_blocks;
#pragma unroll
    for (int i = 0; i < kSlabs; i++) {
      const int first = warp_token() + i * kSlab;
      pages[i] = is_open() && first < token_end && first + kSlab > token_begin ? table[first >> pool.page_shift] : 0;
    }
  }

  // Start the copies of one tile, zeros in place of tokens outside of the item, and go to the next tile.
  DEV void copy() {
    const int first = warp_token();
    if (is_open() && first < token_end && first + R::kTokens > token_begin) {
      u8* to = ring + stage * R::kStageBytes;
#pragma unroll
      for (int i = 0; i < kSlabs; i++) copy_slab(to, i, first + i * kSlab);
    }
    cp_async_commit();
    stage = stage + 1 == kStages ? 0 : stage + 1;
    if (is_open()) {
      token += R::kTile;
      if (is_open()) ask_pages(); else open_item();
    }
  }

  DEV void copy_slab(u8* to, int i, int first) {
    const int lane = lane_id(), block_size = 1 << pool.page_shift;
    const size_t line = static_cast<size_t>(pages[i]) * 2 * pool.num_kv_heads + blockIdx.x;
    const size_t row = (line << pool.page_shift) + (first & (block_size - 1));
    const size_t values_behind = static_cast<size_t>(pool.num_kv_heads) << pool.page_shift;
#pragma unroll
    for (int kind = 0; kind < 2; kind++) {
      const u8* from = pool.entries + (row + kind * values_behind) * Lines::kRowBytes;
      u8* slab = R::slab(to, kind, i);
#pragma unroll
      for (int j = 0; j < kSlab * Lines::kChunks / 32; j++) {
        const int chunk = j * 32 + lane, in_slab = chunk / Lines::kChunks, token = first + in_slab;
        cp_async16(slab + Lines::offset(in_slab, chunk % Lines::kChunks), from + chunk * 16,
                   token >= token_begin && token < token_end);
      }
    }
    if constexpr (kIsQuantised<KV>) {
      // 16 scales of keys and 16 of values: 8 chunks. Scales of tokens outside of the item come along, unused.
      if (lane < 8) {
        const int kind = lane >> 2, part = (lane & 3) * 4;
        cp_async16(R::scales(to, kind) + i * kSlab + part, pool.scales + row + kind * values_behind + part,
                   first < token_end && first + kSlab > token_begin);
      }
    }
  }
};
