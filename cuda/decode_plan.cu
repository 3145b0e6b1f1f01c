// Deal the work of decode attention evenly to blocks, on the device, so that the host never waits for a length.
//
// Lanes (see decode_work.cuh) lie one behind the other on a line; a lane is as long as its tokens have tiles, plus
// kLaneCost tiles for what starting and ending one costs. The line is cut into equal parts, and a part that cuts a lane
// splits it:
//
//     line     |--- lane 0 ---|-- lane 1 --|------------------ lane 2 ------------------|-- lane 3 --|
//     parts    |      0        |      1        |      2        |      3        |      4        |  5  |
//     items    |      0       |  1  (cut moves |2|     3       |       4       |   5   |  6   | …
//                                to the end)
//
// A cut near the end of a lane moves to that end, so that no item is too small to pay. Part p is the work of one block
// per KV head, which walks through its items [item_starts[p], item_starts[p + 1]). A split lane's items write partial
// results into neighbouring slots: cut p lies in one lane only, so 2p - 1 … is free for the lane that it cuts first.
//
// With `split_tiles` > 0 lanes are cut at the multiples of so many tiles instead, counted from position 0, whatever
// else is in the batch, and parts take whole items: the same sequence then gets the same bits in every batch. Should
// there be more items than room, the split is doubled until they fit.
//
// One block of kThreads; a launch of a few microseconds, once a step for all layers that have the same window.
#include "decode_work.cuh"

constexpr int kLaneCost = 2;      // in tiles
constexpr int kSmallestPart = 6;  // in tiles; what is smaller costs more to merge than it saves

struct Sequence {
  int query_begin, q_len, kv_length;
  int first;         // the first token that any of its queries sees
  int first_tile;
  int num_tiles;
  int num_lanes;
};

struct Batch {
  const int* query_starts;
  const int* kv_lengths;
  int group, rows_per_item, tile_tokens, window;

  DEV Sequence sequence(int s) const {
    Sequence q;
    q.query_begin = query_starts[s];
    q.q_len = query_starts[s + 1] - q.query_begin;
    q.kv_length = kv_lengths[s];
    q.first = window > 0 ? max(0, q.kv_length - q.q_len + 1 - window) : 0;
    q.first_tile = q.first / tile_tokens;
    q.num_tiles = ceil_div(q.kv_length, tile_tokens) - q.first_tile;
    q.num_lanes = ceil_div(q.q_len * group, rows_per_item);
    return q;
  }
};

DEV int count_splits(const Sequence& q, int split_tiles) {
  if (split_tiles == 0 || q.num_tiles == 0) return 1;
  return ceil_div(q.first_tile + q.num_tiles, split_tiles) - q.first_tile / split_tiles;
}

// The sum of the values of all threads before this one; `total` is that of all. `sums`: shared, [kThreads / 32].
template <int kThreads>
DEV int scan(int value, int* sums, int& total) {
  const int lane = lane_id(), warp = threadIdx.x / 32;
  int sum = value;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int before = __shfl_up_sync(0xffffffffu, sum, distance);
    if (lane >= distance) sum += before;
  }
  if (lane == 31) sums[warp] = sum;
  __syncthreads();
  int warps_before = 0;
  total = 0;
#pragma unroll
  for (int w = 0; w < kThreads / 32; w++) {
    if (w < warp) warps_before += sums[w];
    total += sums[w];
  }
  __syncthreads();
  return warps_before + sum - value;
}

// The first index of the ascending `values[0 … count)` whose value exceeds `x`.
DEV int upper_bound(const int* values, int count, int x) {
  int low = 0, high = count;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (values[middle] > x) high = middle; else low = middle + 1;
  }
  return low;
}

DEV DecodeItem make_item(const Sequence& q, int s, int row_begin, int tile_begin, int tile_end, int tile_tokens) {
  DecodeItem item = {};
  item.sequence = s;
  item.token_begin = max(q.first, tile_begin * tile_tokens);
  item.token_end = min(q.kv_length, tile_end * tile_tokens);
  item.row_begin = row_begin;
  item.query_begin = q.query_begin;
  item.q_len = q.q_len;
  item.kv_length = q.kv_length;
  item.num_slots = 1;
  return item;
}

// scratch: [2 * (num_sequences + 1) + 3 * (num_parts + 1)] int32.
template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    decode_plan(const int* query_starts, const int* kv_lengths, DecodeItem* items, int* item_starts, int* scratch,
                int num_sequences, int num_parts, int group, int rows_per_item, int tile_tokens, int window,
                int split_tiles, int max_items) {
  SHARED(int, sums, kThreads / 32);
  pdl_wait();
  const Batch batch = {query_starts, kv_lengths, group, rows_per_item, tile_tokens, window};
  int* costs = scratch;                          // [num_sequences + 1]: the line before each sequence
  int* firsts = costs + num_sequences + 1;       // [num_sequences + 1]: lanes before each; with splits, items
  int* part_lanes = firsts + num_sequences + 1;  // [num_parts + 1]: where each part begins: lane and tile
  int* part_tiles = part_lanes + num_parts + 1;
  int* cuts_before = part_tiles + num_parts + 1;  // [num_parts + 1]: parts before that begin inside a lane
  const int tid = threadIdx.x;

  // Lay the lanes on the line. Each thread takes neighbouring sequences.
  const int run = ceil_div(num_sequences, kThreads);
  const int run_begin = min(tid * run, num_sequences), run_end = min(run_begin + run, num_sequences);
  int total_cost, total_items;
  while (true) {
    int cost = 0, count = 0;
    for (int s = run_begin; s < run_end; s++) {
      const Sequence q = batch.sequence(s);
      const int splits = count_splits(q, split_tiles);
      cost += q.num_lanes * (q.num_tiles + kLaneCost * splits);
      count += q.num_lanes * splits;
    }
    cost = scan<kThreads>(cost, sums, total_cost);
    count = scan<kThreads>(count, sums, total_items);
    if (split_tiles > 0 && total_items > max_items) {
      split_tiles *= 2;
      continue;
    }
    for (int s = run_begin; s < run_end; s++) {
      const Sequence q = batch.sequence(s);
      const int splits = count_splits(q, split_tiles);
      costs[s] = cost;
      firsts[s] = count;
      cost += q.num_lanes * (q.num_tiles + kLaneCost * splits);
      count += q.num_lanes * splits;
    }
    break;
  }
  if (tid == 0) {
    costs[num_sequences] = total_cost;
    firsts[num_sequences] = total_items;
  }
  __syncthreads();
  const int part_cost = max(kSmallestPart, ceil_div(total_cost, num_parts));

  if (split_tiles > 0) {
    for (int part = tid; part <= num_parts; part += kThreads) {
      const int at = part * part_cost;
      int index = total_items;
      if (at < total_cost) {
        const int s = upper_bound(costs, num_sequences + 1, at) - 1;
        const Sequence q = batch.sequence(s);
        const int splits = count_splits(q, split_tiles), lane_cost = q.num_tiles + kLaneCost * splits;
        const int lane = (at - costs[s]) / lane_cost, within = (at - costs[s]) % lane_cost;
        // Split c > 0 of a lane begins at c * (split_tiles + kLaneCost) - first_tile % split_tiles.
        const int next = ceil_div(within + q.first_tile % split_tiles, split_tiles + kLaneCost);
        index = firsts[s] + lane * splits + (within == 0 ? 0 : min(next, splits));
      }
      item_starts[part] = index;
    }
    for (int index = tid; index < total_items; index += kThreads) {
      const int s = upper_bound(firsts, num_sequences + 1, index) - 1;
      const Sequence q = batch.sequence(s);
      const int splits = count_splits(q, split_tiles);
      const int lane = (index - firsts[s]) / splits, split = (index - firsts[s]) % splits;
      const int tile_begin = (q.first_tile / split_tiles + split) * split_tiles;
      DecodeItem item = make_item(q, s, lane * rows_per_item, tile_begin, tile_begin + split_tiles, tile_tokens);
      item.slot = index;
      item.first_slot = index - split;
      item.num_slots = splits;
      items[index] = item;
    }
    return;
  }

  for (int part = tid; part <= num_parts; part += kThreads) {
    const int at = part * part_cost;
    int lane = total_items, tile = 0;
    if (at < total_cost) {
      const int s = upper_bound(costs, num_sequences + 1, at) - 1;
      const Sequence q = batch.sequence(s);
      const int lane_cost = q.num_tiles + kLaneCost;
      lane = firsts[s] + (at - costs[s]) / lane_cost;
      tile = max(0, (at - costs[s]) % lane_cost - kLaneCost);
      if (tile > 0 && q.num_tiles - tile < kLaneCost) lane++, tile = 0;
    }
    part_lanes[part] = lane;
    part_tiles[part] = tile;
  }
  __syncthreads();

  // Number the items: one for each lane, and one more for each part that begins inside a lane.
  const int parts = ceil_div(num_parts + 1, kThreads);
  const int parts_begin = min(tid * parts, num_parts + 1), parts_end = min(parts_begin + parts, num_parts + 1);
  int num_cuts = 0, total_cuts;
  for (int part = parts_begin; part < parts_end; part++) num_cuts += part_tiles[part] > 0;
  num_cuts = scan<kThreads>(num_cuts, sums, total_cuts);
  for (int part = parts_begin; part < parts_end; part++) {
    const bool cuts = part_tiles[part] > 0;
    cuts_before[part] = num_cuts;
    item_starts[part] = part_lanes[part] + num_cuts + cuts;
    num_cuts += cuts;
  }
  __syncthreads();

  for (int s = tid; s < num_sequences; s += kThreads) {
    const Sequence q = batch.sequence(s);
    for (int i = 0; i < q.num_lanes; i++) {
      const int lane = firsts[s] + i;
      // The parts that begin inside this lane stand right before those that begin behind it. Part 0 is not among them.
      const int behind = upper_bound(part_lanes, num_parts + 1, lane);
      int cut = behind;
      while (part_lanes[cut - 1] == lane && part_tiles[cut - 1] > 0) cut--;
      const int num_items = 1 + behind - cut;
      const int index = lane + cuts_before[cut];
      int tile = 0;
      for (int piece = 0; piece < num_items; piece++, cut++) {
        const int end = cut < behind ? part_tiles[cut] : q.num_tiles;
        DecodeItem item = make_item(q, s, i * rows_per_item, q.first_tile + tile, q.first_tile + end, tile_tokens);
        item.first_slot = 2 * (cut - piece) - 1;
        item.slot = item.first_slot + piece;
        item.num_slots = num_items;
        items[index + piece] = item;
        tile = end;
      }
    }
  }
}
