// Lists the tiles of a step's prefill, longest first: once a step, on the device, before the first layer.
//
// A tile is kRows rows of one sequence. A row is one query head of one token: the `group` heads that share a KV head
// stand together, so that a tile of a short chunk is as full as one of a long prompt. Row r of a sequence is token
// r / group, head r % group of every group alike:
//
//     group 4, kRows 16     | t0h0 t0h1 t0h2 t0h3 | t1h0 … | … t3h3 |   tile 0, sees keys up to token 3
//                           | t4h0 …                                    tile 1
//
// What a tile costs grows with the last position that it sees. The hardware starts blocks in order, so tiles are listed
// by that position, longest first, and short ones fill the gaps at the end. The list is
//
//     tiles: [max_tiles, 2] int32: (sequence, first row), (-1, 0) where there is no tile
//
// and max_tiles is bounded by the shapes alone: nobody has to ask the device how many there are, and a captured graph
// fits every step.
//
// One thread per tile, and no sorting: a tile's place is the number of tiles that go before it, and how many of them a
// sequence has follows from its two lengths. So the order is the same in every run, without atomics.
#include "ptx.cuh"

constexpr int kThreads = 128;

struct Chunk {
  int num_rows;  // query tokens times group
  int before;    // keys that stand before the first query token
};

DEV Chunk chunk_of(const int* query_starts, const int* kv_lengths, int group, int sequence) {
  const int num_queries = query_starts[sequence + 1] - query_starts[sequence];
  return {num_queries * group, kv_lengths[sequence] - num_queries};
}

// How many of the chunk's tiles see more than `keys` keys.
template <int kRows>
DEV int tiles_beyond(Chunk chunk, int keys, int group) {
  const int num_tiles = (chunk.num_rows + kRows - 1) / kRows;
  const int rows = max(0, keys - chunk.before) * group;  // of this chunk that the tile must pass
  return rows < chunk.num_rows ? num_tiles - rows / kRows : 0;
}

template <int kRows>
__global__ void __launch_bounds__(kThreads)
    prefill_plan(int2* __restrict__ tiles, const int* __restrict__ query_starts, const int* __restrict__ kv_lengths,
                 int num_sequences, int group, int max_tiles) {
  const int number = blockIdx.x * kThreads + threadIdx.x;
  if (number >= max_tiles) return;

  int sequence = -1, tile = 0, total = 0;
  for (int other = 0; other < num_sequences; other++) {
    const int first = total;
    total += (chunk_of(query_starts, kv_lengths, group, other).num_rows + kRows - 1) / kRows;
    if (number >= first && number < total) {
      sequence = other;
      tile = number - first;
    }
  }
  if (sequence < 0) {
    tiles[number] = make_int2(-1, 0);
    return;
  }

  const Chunk own = chunk_of(query_starts, kv_lengths, group, sequence);
  const int last_row = min((tile + 1) * kRows, own.num_rows) - 1;
  const int keys = own.before + last_row / group + 1;  // that this tile sees
  int place = 0;
  for (int other = 0; other < num_sequences; other++) {
    const Chunk chunk = chunk_of(query_starts, kv_lengths, group, other);
    place += tiles_beyond<kRows>(chunk, other < sequence ? keys - 1 : keys, group);
  }
  // A token whose heads lie in two tiles is the last of both where it ends the chunk.
  for (int earlier = tile; earlier > 0 && own.before + (earlier * kRows - 1) / group + 1 == keys; earlier--) place++;
  tiles[place] = make_int2(sequence, tile * kRows);
}
