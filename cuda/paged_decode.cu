// Attention of a few query tokens per sequence against keys and values in pages, by mma.sync (sm_80 and up).
//
// A step of decoding reads every key and value once and does little with them, so that this kernel is made to keep
// memory busy. All query heads that share a KV head, and all query tokens of a sequence (speculation verifies several),
// are packed into the rows of one tensor-core tile; see decode_work.cuh. A block walks through its part of the plan
// (decode_plan.cu), item after item; its warps share each tile of tokens:
//
//     tile       | slab | slab | slab | slab | slab | slab | slab | slab |     kSlabs slabs of 16 tokens a warp
//     warp            0             1             2             3
//
//     S = Q K^T     rows x 16 tokens, per warp        Q and K from shared memory
//     O += P V      rows x head_dim, per warp         P from S's registers, V from shared memory
//
// Nothing is shared between warps on the way: a warp copies its own slabs into its own ring of kStages (cp.async), waits
// for nobody else and keeps its own running maximum, sum and output. Its copies run kStages - 1 tiles ahead, also across
// the borders of items, so that memory never idles while an item ends. At that end the warps' results are put together
// in the order of the warps; a split lane's go to its slot as float32 with the logarithm of their sum, and the block that
// comes last, told by a counter, merges the slots in their order. So the bits do not depend on who comes last.
//
// Quantised keys and values (e4m3 or s8, a scale per token and head) become f16 in registers. A key's scale multiplies
// its score. A value's goes into its weight, relative to the largest scale that the row has seen, since f16 could not
// hold every product; a row's queries are brought to [1, 2) by a power of two for the same reason.
//
// What a row sees decides about its bits alone: a token that it does not see has weight 0, counts for no maximum, and
// multiplies nothing by other than 1.
#include "decode_attention.cuh"

constexpr int kColumns = 32;       // of the output that are put together at once
constexpr int kColumnStride = 40;  // floats; rows of 32 would fall onto the same banks

// Blocks that a multiprocessor's registers have room for.
constexpr int min_blocks(int head_dim, int row_tiles, int warps) {
  return warps == 4 && (row_tiles == 2 || head_dim == 256) ? 2 : 3;
}

// grid: (num_kv_heads, parts of the plan); kWarps warps.
template <class T, class KV, int kHeadDim, int kRowTiles, int kWarps, int kSlabs, int kStages>
__global__ void __launch_bounds__(kWarps * 32, min_blocks(kHeadDim, kRowTiles, kWarps))
    paged_decode(T* out, float* log_sums, const T* qkv, const u8* entries, const float* scales, const int* tables,
                 const DecodeItem* items, const int* item_starts, float* partial_out, float* partial_sums,
                 u32* counters, int num_heads, int num_kv_heads, int qkv_stride, int page_shift, int max_blocks, int window,
                 float softmax_scale) {
  using R = Ring<KV, kHeadDim, kWarps, kSlabs, kStages>;
  using Lines = typename R::Lines;
  constexpr int kRows = 16 * kRowTiles, kThreads = kWarps * 32;
  DYN_SMEM(shared);
  // Queries while an item is attended to; then [kWarps][16][kColumnStride] floats, in which its output is put together.
  u8* behind_ring = shared + R::kBytes;
  float* columns = reinterpret_cast<float*>(behind_ring);
  SHARED(float, maxima, kWarps * kRows);
  SHARED(float, sums, kWarps * kRows);
  SHARED(u32, tickets, 1);
  const Results<T, kHeadDim, kRows> results = {out,          log_sums, partial_out, partial_sums,
                                               counters, num_heads, num_kv_heads};
  const Pool pool = {entries, scales, tables, num_kv_heads, page_shift, max_blocks};
  const int warp = threadIdx.x / 32, g = lane_id() >> 2, t = lane_id() & 3;
  u8* ring = shared + warp * kStages * R::kStageBytes;

  pdl_wait();
  int item_index = item_starts[blockIdx.y];
  const int item_end = item_starts[blockIdx.y + 1];
  Feed<KV, kHeadDim, kWarps, kSlabs, kStages> feed(pool, items, item_index, item_end, ring);
#pragma unroll
  for (int i = 0; i < kStages - 1; i++) feed.copy();

  int stage = 0;
  for (; item_index < item_end; item_index++) {
    const DecodeItem item = items[item_index];
    Attention<T, KV, kHeadDim, kRowTiles, kWarps, kSlabs, kStages> attention(
        reinterpret_cast<uint4*>(behind_ring), item, qkv, qkv_stride, num_heads / num_kv_heads, window, softmax_scale);
    __syncthreads();
    for (int tile = item.token_begin / R::kTile * R::kTile; tile < item.token_end; tile += R::kTile) {
      feed.copy();
      cp_async_wait<kStages - 1>();
      __syncwarp();
      const int token = tile + warp * R::kTokens;
      if (token < item.token_end && token + R::kTokens > item.token_begin) {
        attention.attend(ring + stage * R::kStageBytes, token);
      }
      stage = stage + 1 == kStages ? 0 : stage + 1;
      __syncwarp();
    }
    attention.finish();

    // Put the warps together: their maxima and sums first, which say what each warp's output is multiplied by.
    const int num_rows = min(kRows, item.q_len * (num_heads / num_kv_heads) - item.row_begin);
#pragma unroll
    for (int i = 0; i < kRowTiles; i++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int row = i * 16 + half * 8 + g;
        if (t == 0) {
          maxima[warp * kRows + row] = attention.maximum[i][half];
          sums[warp * kRows + row] = attention.sum[i][half];
        }
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kRowTiles; i++) {
      float factor[2];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int row = i * 16 + half * 8 + g;
        float largest = minus_infinity(), total = 0.f;
#pragma unroll
        for (int w = 0; w < kWarps; w++) largest = fmaxf(largest, maxima[w * kRows + row]);
        const float origin = largest == minus_infinity() ? 0.f : largest;
#pragma unroll
        for (int w = 0; w < kWarps; w++) {
          total = fmaf(sums[w * kRows + row], exp2_approx(maxima[w * kRows + row] - origin), total);
        }
        factor[half] = total > 0.f ? exp2_approx(attention.maximum[i][half] - origin) / total : 0.f;
        if constexpr (kIsQuantised<KV>) factor[half] *= attention.unit[i][half] * (1.f / kUnit<KV>);
        if (warp == 0 && t == 0 && row < num_rows) results.store_sum(item, row, origin + log2f(total));
      }
#pragma unroll
      for (int pair = 0; pair < Lines::kPairs; pair++) {
        float* mine = columns + (warp * 16 + g) * kColumnStride;
        Lines::store_columns(mine, attention.o[i] + 4 * pair, 0, factor[0]);
        Lines::store_columns(mine + 8 * kColumnStride, attention.o[i] + 4 * pair, 2, factor[1]);
        __syncthreads();
        for (int e = threadIdx.x; e < 16 * kColumns / 4; e += kThreads) {
          const int row = e / (kColumns / 4), column = e % (kColumns / 4) * 4;
          float4 x = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
          for (int w = 0; w < kWarps; w++) {
            const float4 y = *reinterpret_cast<const float4*>(columns + (w * 16 + row) * kColumnStride + column);
            x = make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w);
          }
          if (i * 16 + row < num_rows) results.store(item, i * 16 + row, pair * kColumns + column, x);
        }
        __syncthreads();
      }
    }

    if (item.num_slots > 1) {  // the barrier above: every thread's part is there
      if (threadIdx.x == 0) tickets[0] = results.count(item);
      __syncthreads();
      if (tickets[0] == static_cast<u32>(item.num_slots) - 1) results.merge(item, num_rows, kThreads);
    }
  }
}
