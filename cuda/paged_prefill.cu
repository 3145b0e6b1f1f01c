// Causal attention of a step's prompts over paged keys and values, on the tensor cores that every card from sm_80 on has
// (mma.sync). Chunks of any length at any depth stand side by side; see prefill_plan.cu for how they are cut into tiles.
//
//     qkv      [num_tokens, num_heads + 2 num_kv_heads, head_dim] bf16 or f16; only the queries are read
//     pool     [num_blocks, 2, num_kv_heads, block_size, head_dim] of the same type, or e4m3 or s8
//     scales   [num_blocks, 2, num_kv_heads, block_size] float, of e4m3 and s8: number = code * scale
//     tables   [num_sequences, max_blocks] int32; entries behind a sequence's last block are never followed
//     out      [num_tokens, num_heads, head_dim]; lse [num_tokens, num_heads] float, or none
//
// A block owns 64 rows (tokens x heads of one KV head); grid (num_kv_heads, max_tiles), the longest tiles first. Each of
// its four warps owns 16 rows and all keys, so no row is ever merged from parts:
//
//              keys (tile of 64)                       head_dim
//     rows   +-------------------+                   +----------+
//     warp 0 |                   |                   |          |     o += p v, in registers
//     warp 1 |   s = q k^T  ->  p (same registers)   |    o     |     (p is rounded to the input's type)
//     warp 2 |                   |                   |          |
//     warp 3 +-------------------+                   +----------+
//
// Shared memory has one tile of queries, one of keys and one of values, rows 16 bytes longer than head_dim so that
// ldmatrix meets no bank twice. Two barriers a tile; each copy has the other half of the loop to arrive in:
//
//     keys    | read by s = q k |  next keys fly in . . . . . . | read ...
//     values  |  fly in . . . . |  softmax  | read by o += p v  | next values fly in . . .
//                               ^ barrier                       ^ barrier
//
// Eight-bit codes land in a buffer of their own and are turned into numbers by the thread that copied them.
#include "prefill.cuh"

constexpr int kThreads = 128;
constexpr int kRows = 64;

constexpr int kQueryBytesKept = 256;  // of a row's head_dim: longer queries are read from shared memory at every tile

template <class T>
struct Mma;
template <>
struct Mma<bf16> {
  static DEV void add(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma_bf16(d, a, b0, b1); }
};
template <>
struct Mma<f16> {
  static DEV void add(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma_f16(d, a, b0, b1); }
};

// Four codes, the first in the lowest byte.
template <class KV>
DEV float4 decode(u32 codes);
template <>
DEV float4 decode<e4m3>(u32 codes) {
  const float2 low = __half22float2(f16x2(__nv_cvt_fp8x2_to_halfraw2(static_cast<u16>(codes), __NV_E4M3)));
  const float2 high = __half22float2(f16x2(__nv_cvt_fp8x2_to_halfraw2(static_cast<u16>(codes >> 16), __NV_E4M3)));
  return make_float4(low.x, low.y, high.x, high.y);
}
template <>
DEV float4 decode<s8>(u32 codes) {
  return make_float4(static_cast<s8>(codes), static_cast<s8>(codes >> 8), static_cast<s8>(codes >> 16),
                     static_cast<s8>(codes >> 24));
}

// Where the keys and values of one sequence and one KV head are.
template <class KV>
struct Pages {
  const KV* pool;
  const float* scales;
  const int* table;  // of the sequence
  int block_shift, num_kv_heads, kv_head;
  int begin, end;  // keys outside are not read: they may be in nobody's block

  DEV bool has(int key) const { return key >= begin && key < end; }

  // The number of a token's row in the pool. `kind`: 0 keys, 1 values.
  DEV long long row(int kind, int key) const {
    const long long plane = (table[key >> block_shift] * 2LL + kind) * num_kv_heads + kv_head;
    return (plane << block_shift) + (key & ((1 << block_shift) - 1));
  }
};

// One tile of keys or of values in shared memory, and how it comes there. Rows that the pages do not have become zeros.
template <class T, class KV, int kHeadDim>
struct KeyValueTile {
  static constexpr bool kCoded = sizeof(KV) == 1;
  static constexpr int kKeys = kHeadDim > 128 ? 32 : 64;
  static constexpr int kStride = kHeadDim + kVector;
  static constexpr int kPerPiece = 16 / sizeof(KV);
  static constexpr int kPieces = kHeadDim / kPerPiece;        // 16-byte pieces of a row
  static constexpr int kTurns = kKeys * kPieces / kThreads;   // pieces that a thread copies
  static constexpr int kCodeBytes = kCoded ? kKeys * kHeadDim : 0;
  static_assert(kKeys * kPieces % kThreads == 0, "every thread copies as many pieces");

  T* tile;
  u8* codes;
  float scale[kTurns];  // of the pieces under way

  DEV KeyValueTile(T* tile, u8* codes) : tile(tile), codes(codes) {}

  // Starts to copy the tile that begins at key0, as one group of cp.async.
  DEV void fetch(const Pages<KV>& pages, int kind, int key0) {
#pragma unroll
    for (int turn = 0; turn < kTurns; turn++) {
      const int piece = threadIdx.x + turn * kThreads, row = piece / kPieces, column = piece % kPieces * kPerPiece;
      const bool present = pages.has(key0 + row);
      const long long from = present ? pages.row(kind, key0 + row) : 0;
      void* to = kCoded ? static_cast<void*>(codes + piece * 16) : static_cast<void*>(tile + row * kStride + column);
      cp_async16(to, pages.pool + from * kHeadDim + column, present);
      if constexpr (kCoded) scale[turn] = present ? pages.scales[from] : 0.f;
    }
    cp_async_commit();
  }

  // Makes numbers of the codes that this thread copied, which have landed. The tile is free.
  DEV void land() {
    if constexpr (kCoded) {
#pragma unroll
      for (int turn = 0; turn < kTurns; turn++) {
        const int piece = threadIdx.x + turn * kThreads, row = piece / kPieces, column = piece % kPieces * kPerPiece;
        const uint4 packed = load_vector(codes + piece * 16);
        const u32 words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const float4 low = decode<KV>(words[2 * half]), high = decode<KV>(words[2 * half + 1]);
          const float by = scale[turn];
          const float numbers[8] = {low.x * by,  low.y * by,  low.z * by,  low.w * by,
                                    high.x * by, high.y * by, high.z * by, high.w * by};
          store_vector(tile + row * kStride + column + half * kVector, pack<T>(numbers));
        }
      }
    }
  }
};

template <class T, class KV, int kHeadDim>
__global__ void __launch_bounds__(kThreads)
    paged_prefill(T* __restrict__ out, float* __restrict__ lse, const T* __restrict__ qkv, const KV* __restrict__ pool,
                  const float* __restrict__ scales, const int2* __restrict__ tiles,
                  const int* __restrict__ query_starts, const int* __restrict__ kv_lengths,
                  const int* __restrict__ block_tables, int max_blocks, int block_shift, int num_heads,
                  int token_stride, int window, float scale) {
  using Tile = KeyValueTile<T, KV, kHeadDim>;
  constexpr int kKeys = Tile::kKeys, kStride = Tile::kStride, kSteps = kHeadDim / 16, kPieces = kHeadDim / kVector;
  constexpr bool kKept = kHeadDim * sizeof(T) <= kQueryBytesKept;
  DYN_SMEM(memory);
  T* queries = reinterpret_cast<T*>(memory);
  T* key_rows = queries + kRows * kStride;
  T* value_rows = key_rows + kKeys * kStride;
  u8* codes = reinterpret_cast<u8*>(value_rows + kKeys * kStride);

  const int2 place = tiles[blockIdx.y];
  if (place.x < 0) return;
  const int kv_head = blockIdx.x, num_kv_heads = gridDim.x, group = num_heads / num_kv_heads;
  const QueryTile<kRows> tile({query_starts, kv_lengths, group, window}, place);
  const Pages<KV> pages{pool,    scales,     block_tables + static_cast<long long>(tile.sequence) * max_blocks,
                        block_shift, num_kv_heads, kv_head, tile.begin, tile.end};
  const int warp = threadIdx.x / 32, lane = lane_id();
  const int first_row = warp * 16 + lane / 4;  // and first_row + 8: what this lane has of each product
  T* own_queries = queries + warp * 16 * kStride;

  float o[kHeadDim / 8][4] = {};
  OnlineSoftmax softmax;

  if (tile.end > 0) {
    for (int piece = threadIdx.x; piece < kRows * kPieces; piece += kThreads) {
      const int row = piece / kPieces, column = piece % kPieces * kVector;
      const bool present = row < tile.num_rows;
      const long long at = present ? static_cast<long long>(tile.token(row)) * token_stride +
                                         (kv_head * group + tile.head(row)) * kHeadDim + column
                                   : 0;
      cp_async16(queries + row * kStride + column, qkv + at, present);
    }
    Tile keys(key_rows, codes), values(value_rows, codes + Tile::kCodeBytes);
    const int start = tile.begin / kKeys * kKeys;
    keys.fetch(pages, 0, start);
    values.fetch(pages, 1, start);
    cp_async_wait<1>();
    keys.land();
    __syncthreads();

    const CausalMask<kRows> mask(tile, first_row);
    u32 q[kKept ? kSteps : 1][4];
    const T* query = own_queries + (lane & 15) * kStride + (lane >> 4) * kVector;
    const T* key = key_rows + ((lane >> 4) * 8 + (lane & 7)) * kStride + (lane >> 3 & 1) * kVector;
    const T* value = value_rows + (lane & 15) * kStride + (lane >> 4) * kVector;
    if constexpr (kKept) {
#pragma unroll
      for (int k = 0; k < kSteps; k++) ldmatrix_x4(q[k], query + k * 16);
    }

    for (int key0 = start;; key0 += kKeys) {
      const bool more = key0 + kKeys < tile.end;
      float s[kKeys / 8][4] = {};
#pragma unroll
      for (int k = 0; k < kSteps; k++) {
        if constexpr (!kKept) ldmatrix_x4(q[0], query + k * 16);
#pragma unroll
        for (int j = 0; j < kKeys / 16; j++) {
          u32 b[4];  // keys 0 to 7 and 8 to 15 of 16, each in two halves of k
          ldmatrix_x4(b, key + j * 16 * kStride + k * 16);
          Mma<T>::add(s[2 * j], q[kKept ? k : 0], b[0], b[1]);
          Mma<T>::add(s[2 * j + 1], q[kKept ? k : 0], b[2], b[3]);
        }
      }
      cp_async_wait<0>();
      values.land();
      __syncthreads();  // the values stand; nobody reads these keys any more
      if (more) keys.fetch(pages, 0, key0 + kKeys);

      mask.apply(s, key0);
      float shrink[2];
      softmax.step(s, scale, shrink);
#pragma unroll
      for (int j = 0; j < kHeadDim / 8; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) o[j][e] *= shrink[e >> 1];
      }
#pragma unroll
      for (int k = 0; k < kKeys / 16; k++) {
        u32 p[4];
        pack_weights<T>(p, s[2 * k], s[2 * k + 1]);
#pragma unroll
        for (int j = 0; j < kHeadDim / 16; j++) {
          u32 b[4];  // columns 0 to 7 and 8 to 15 of 16, each in two halves of the keys
          ldmatrix_x4_trans(b, value + k * 16 * kStride + j * 16);
          Mma<T>::add(o[2 * j], p, b[0], b[1]);
          Mma<T>::add(o[2 * j + 1], p, b[2], b[3]);
        }
      }
      if (!more) break;
      cp_async_wait<0>();
      keys.land();
      __syncthreads();  // the next keys stand; nobody reads these values any more
      values.fetch(pages, 1, key0 + kKeys);
    }
    softmax.finish();
  }

  // Through the rows of the queries, which nobody but this warp reads, so that whole rows are written.
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = lane / 4 + 8 * half;
    const float by = softmax.inverse(half);
#pragma unroll
    for (int j = 0; j < kHeadDim / 8; j++) {
      const u32 pair = bits_as<u32>(narrow(Pair<T>(), o[j][2 * half] * by, o[j][2 * half + 1] * by));
      *reinterpret_cast<u32*>(own_queries + row * kStride + j * 8 + 2 * (lane & 3)) = pair;
    }
    const int tile_row = first_row + 8 * half;
    if (lse != nullptr && (lane & 3) == 0 && tile_row < tile.num_rows) {
      const long long at = static_cast<long long>(tile.token(tile_row)) * num_heads + kv_head * group;
      lse[at + tile.head(tile_row)] = softmax.log_sum(half, scale);
    }
  }
  __syncwarp();
  for (int piece = lane; piece < 16 * kPieces; piece += 32) {
    const int row = piece / kPieces, column = piece % kPieces * kVector, tile_row = warp * 16 + row;
    if (tile_row < tile.num_rows) {
      const long long at = static_cast<long long>(tile.token(tile_row)) * num_heads + kv_head * group;
      store_vector(out + (at + tile.head(tile_row)) * kHeadDim + column,
                   load_vector(own_queries + row * kStride + column));
    }
  }
}
