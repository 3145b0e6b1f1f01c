// The next token of each row: top-k, top-p and min-p without a sort, and one draw by inverse transform.
//
// A block owns a row. The law is made of integers (law.cuh), so the result is the same bits whatever the block's shape,
// the row's place in the batch and the order in which threads come to an atomic. The filters are those of
// `engine/sampler.py`: min_p against the likeliest, then the top_k likeliest, then the fewest likeliest whose mass
// reaches top_p of what is left. What they keep is a cut:
//
//     key of a token    0 ─────────── cut.key ─────────── 2^30        the smaller the likelier
//                       | all are kept | the first num_equal, by id | none
//
// A cut is found by radix selection: a histogram over ten bits of the keys that agree with what was found so far, its
// prefix sum, the bin in which the wanted count (top_k) or mass (top_p) is reached; three levels make the 30 bits.
//
//     level 0   | 1/32 nat | 1/32 nat | … 1024 bins      tokens below the bin's upper edge are listed in shared
//     level 1            └ | 1024 bins |                 memory as soon as they fit (kListed), ascending by id, and
//     level 2                    └ | 1024 bins |         the list takes the row's place for all that follows
//
// The draw walks in the order of ids: each warp sums the kept mass of one of kWarps equal parts, the part in which the
// draw falls is divided again until it has no more tokens than the block has threads, and one prefix sum over those
// names the token. Equals are counted along the way, so that each knows whether it is among the first num_equal.
//
// A row is read three times: for its maximum, for level 0 and to be listed; without filters twice, for its maximum and
// for its parts. Rows that do not list (nearly flat laws) are read a few times more. All but the first time it comes
// from L2 as long as the batch has less than some 90 rows of 128,256 tokens. What would come next: the maximum as a
// by-product of `logits`, and several blocks a row for small batches, whose histograms, being of integers, would add up
// in global memory to the same bits.
//
// Shapes: logits: [num_rows, stride] float32, `vocab` wide, as `logits` leaves them; everything else: [num_rows].
// temperatures: 0 takes the highest logit, the lowest id among equals; a negative one marks padding, left alone; they
// are not divided by here. top_ks 0, top_ps 1 and min_ps 0 are off. The draw belongs to (seed, position, choice).
// errors: 0; 1 for a row that holds NaN or +infinity, 2 for one in which every token is -infinity; their token is -1.
#include "law.cuh"
#include "ptx.cuh"

constexpr int kDigitBits = 10;
constexpr int kBins = 1 << kDigitBits;
constexpr int kListed = 4096;
constexpr int kAhead = 8;  // loads of a thread that are under way at once

enum Failure { kNone = 0, kNotFinite = 1, kNothingAllowed = 2 };

// The tokens that are looked at, ascending by id: a row, or those of it that were listed.
struct Tokens {
  const float* row;
  float largest;
  const u32* keys;  // null as long as nothing is listed
  const int* ids;
  int count;
};

struct Cut {
  u32 key;
  u32 num_equal;
};

// What a cut is measured by: how many tokens have mass (top_k), or their mass (top_p).
struct Measure {
  bool is_mass;
  float min_p;
};

DEV u64 weight_of(u32 key, Measure measure) {
  const u64 mass = mass_of(key, measure.min_p);
  return measure.is_mass ? mass : mass != 0;
}

template <int kThreads>
struct Room {
  u64 histogram[kBins];
  u64 partials[kThreads / 32];
  u64 masses[kThreads / 32];
  u64 equals[kThreads / 32];
  u32 counts[kAhead * kThreads / 32];  // of listed tokens, by load and warp
  u32 starts[kAhead * kThreads / 32];
  u32 keys[kListed];
  int ids[kListed];
  u64 ahead;
  u32 bin;
};

// Read the keys at `first`, `first + stride` and so on; from `end` on they have no mass. All loads are started, from
// places that exist, before any is used.
DEV void read_keys(u32 (&keys)[kAhead], const Tokens& tokens, int first, int stride, int end) {
  if (tokens.keys != nullptr) {
#pragma unroll
    for (int j = 0; j < kAhead; j++) keys[j] = tokens.keys[min(first + j * stride, end - 1)];
  } else {
    float x[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; j++) x[j] = tokens.row[min(first + j * stride, end - 1)];
#pragma unroll
    for (int j = 0; j < kAhead; j++) keys[j] = key_of(tokens.largest - x[j]);
  }
#pragma unroll
  for (int j = 0; j < kAhead; j++) {
    if (first + j * stride >= end) keys[j] = kNoMass;
  }
}
DEV u32 key_at(const Tokens& tokens, int at) {
  return tokens.keys != nullptr ? tokens.keys[at] : key_of(tokens.largest - tokens.row[at]);
}
DEV int id_at(const Tokens& tokens, int at) { return tokens.keys != nullptr ? tokens.ids[at] : at; }

// Find the highest logit's standing. `partials`: shared memory, [kThreads / 32].
template <int kThreads>
DEV u64 find_best(const float* row, int vocab, u64* partials) {
  u64 best = 0;
  for (int first = threadIdx.x; first < vocab; first += kThreads * kAhead) {
    float x[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; j++) x[j] = row[min(first + j * kThreads, vocab - 1)];
#pragma unroll
    for (int j = 0; j < kAhead; j++) best = max(best, standing_of(x[j], min(first + j * kThreads, vocab - 1)));
  }
  return block_reduce<Max, kThreads>(best, partials);
}

// Sum the weights of the cut's tokens into bins of the ten bits above `shift`, of keys that begin with `prefix`.
template <int kThreads>
DEV void fill_bins(Room<kThreads>& room, const Tokens& tokens, Cut cut, Measure measure, u32 prefix, int shift) {
  for (int bin = threadIdx.x; bin < kBins; bin += kThreads) room.histogram[bin] = 0;
  __syncthreads();
  // A thread keeps a bin's sum until it meets another bin: many equals would queue up for one atomic.
  u32 held = 0;
  u64 sum = 0;
  auto add = [&](u32 key, u32 times) {
    if (key >> shift >> kDigitBits != prefix) return;
    const u32 bin = key >> shift & (kBins - 1);
    if (bin != held) {
      if (sum != 0) atomicAdd(&room.histogram[held], sum);
      held = bin;
      sum = 0;
    }
    sum += times * weight_of(key, measure);
  };
  for (int first = threadIdx.x; first < tokens.count; first += kThreads * kAhead) {
    u32 keys[kAhead];
    read_keys(keys, tokens, first, kThreads, tokens.count);
#pragma unroll
    for (int j = 0; j < kAhead; j++) {
      if (keys[j] < cut.key) add(keys[j], 1);
    }
  }
  if (threadIdx.x == 0) add(cut.key, cut.num_equal);
  if (sum != 0) atomicAdd(&room.histogram[held], sum);
  __syncthreads();
}

// Let the tokens with keys below `edge` be all that is looked at, if they fit into the list.
template <int kThreads>
DEV void list_below(Room<kThreads>& room, Tokens& tokens, u32 edge) {
  constexpr int kWarps = kThreads / 32;
  static_assert(kAhead * kWarps <= kThreads, "a thread for each vote");
  const int warp = threadIdx.x / 32;
  const u32 lanes_before = (1u << lane_id()) - 1;
  int listed = 0;
  for (int first = 0; first < tokens.count; first += kThreads * kAhead) {
    u32 keys[kAhead], votes[kAhead];
    read_keys(keys, tokens, first + threadIdx.x, kThreads, tokens.count);
#pragma unroll
    for (int j = 0; j < kAhead; j++) votes[j] = __ballot_sync(0xffffffffu, keys[j] < edge);
    if (lane_id() == 0) {
#pragma unroll
      for (int j = 0; j < kAhead; j++) room.counts[j * kWarps + warp] = __popc(votes[j]);
    }
    __syncthreads();
    u64 total;
    const u64 vote = threadIdx.x < kAhead * kWarps ? room.counts[threadIdx.x] : 0;
    const u64 start = block_scan<kThreads>(vote, room.partials, total);
    if (listed + total > kListed) return;
    if (threadIdx.x < kAhead * kWarps) room.starts[threadIdx.x] = start;
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kAhead; j++) {
      if (!(votes[j] >> lane_id() & 1)) continue;
      const u32 place = listed + room.starts[j * kWarps + warp] + __popc(votes[j] & lanes_before);
      room.keys[place] = keys[j];
      room.ids[place] = first + j * kThreads + threadIdx.x;
    }
    listed += total;
  }
  tokens.keys = room.keys;
  tokens.ids = room.ids;
  tokens.count = listed;
  __syncthreads();
}

// Cut where the weights, from the likeliest on, reach `count`, or if it is 0 `share` of their total; nowhere if they do
// not.
template <int kThreads>
DEV Cut select(Room<kThreads>& room, Tokens& tokens, Cut cut, Measure measure, u64 count, double share) {
  constexpr int kEach = kBins / kThreads;
  static_assert(kBins % kThreads == 0, "as many bins for each thread");
  u32 prefix = 0;
  u64 ahead = 0, wanted = count;
#pragma unroll 1
  for (int shift = kKeyBits - kDigitBits; shift >= 0; shift -= kDigitBits) {
    fill_bins(room, tokens, cut, measure, prefix, shift);
    const u64* bins = room.histogram + threadIdx.x * kEach;
    u64 sum = 0, total;
    for (int i = 0; i < kEach; i++) sum += bins[i];
    u64 before = ahead + block_scan<kThreads>(sum, room.partials, total);
    if (wanted == 0) wanted = max(static_cast<u64>(ceil(share * static_cast<double>(total))), 1ull);
    if (wanted > ahead + total) return cut;
    if (before < wanted && wanted <= before + sum) {
      int bin = 0;
      while (before + bins[bin] < wanted) before += bins[bin++];
      room.bin = threadIdx.x * kEach + bin;
      room.ahead = before;
    }
    __syncthreads();
    prefix = prefix << kDigitBits | room.bin;
    ahead = room.ahead;
    if (tokens.keys == nullptr) list_below(room, tokens, (prefix + 1) << shift);
  }
  const u64 each = weight_of(prefix, measure);
  return {prefix, static_cast<u32>((wanted - ahead + each - 1) / each)};
}

// Draw from what the cut keeps, in the order of ids; `bits`: 53 random ones. One thread gets a token, the others -1.
template <int kThreads>
DEV int draw(Room<kThreads>& room, const Tokens& tokens, Cut cut, float min_p, u64 bits) {
  constexpr int kWarps = kThreads / 32;
  const u64 mass_of_equals = mass_of(cut.key, min_p);
  int begin = 0, end = tokens.count;
  u64 mass_before = 0, equals_before = 0, wanted = 0;
  do {
    const int size = (end - begin + kWarps - 1) / kWarps;
    const int part_begin = begin + threadIdx.x / 32 * size;
    const int part_end = min(part_begin + size, end);
    u64 mass = 0, equals = 0;
    for (int first = part_begin + lane_id(); first < part_end; first += 32 * kAhead) {
      u32 keys[kAhead];
      read_keys(keys, tokens, first, 32, part_end);
#pragma unroll
      for (int j = 0; j < kAhead; j++) {
        if (keys[j] < cut.key) mass += mass_of(keys[j], min_p);
        if (keys[j] == cut.key) equals++;
      }
    }
    mass = warp_reduce<Sum>(mass);
    equals = warp_reduce<Sum>(equals);
    if (lane_id() == 0) {
      room.masses[threadIdx.x / 32] = mass;
      room.equals[threadIdx.x / 32] = equals;
    }
    __syncthreads();
    auto kept_equals = [&](u64 equals) { return min(equals, static_cast<u64>(cut.num_equal)); };
    auto kept_mass = [&](int part, u64 equals_before) {
      const u64 kept = kept_equals(equals_before + room.equals[part]) - kept_equals(equals_before);
      return room.masses[part] + kept * mass_of_equals;
    };
    if (end - begin == tokens.count) {
      u64 total = 0, met = 0;
      for (int part = 0; part < kWarps; part++) {
        total += kept_mass(part, met);
        met += room.equals[part];
      }
      wanted = __umul64hi(bits, total) << 11 | bits * total >> 53;
    }
    int part = 0;
    for (u64 next; mass_before + (next = kept_mass(part, equals_before)) <= wanted; part++) {
      mass_before += next;
      equals_before += room.equals[part];
    }
    begin += part * size;
    end = min(begin + size, end);
    __syncthreads();
  } while (end - begin > kThreads);

  const int at = begin + static_cast<int>(threadIdx.x);
  const u32 key = at < end ? key_at(tokens, at) : kNoMass;
  u64 total;
  const u64 rank = equals_before + block_scan<kThreads>(key == cut.key, room.partials, total);
  const bool is_kept = key < cut.key || (key == cut.key && rank < cut.num_equal);
  const u64 mass = is_kept ? mass_of(key, min_p) : 0;
  const u64 before = mass_before + block_scan<kThreads>(mass, room.masses, total);
  return before <= wanted && wanted < before + mass ? id_at(tokens, at) : -1;
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    sample(int* drawn, int* errors, const float* logits, long long stride, int vocab, const float* temperatures,
           const int* top_ks, const double* top_ps, const float* min_ps, const u64* seeds, const u64* positions,
           const u32* choices) {
  SHARED(Room<kThreads>, rooms, 1);
  SHARED(u64, standings, kThreads / 32);
  Room<kThreads>& room = rooms[0];
  const size_t row = blockIdx.x;
  pdl_wait();
  pdl_launch_dependents();
  const float temperature = temperatures[row];
  if (temperature < 0.f) return;

  Tokens tokens = {logits + row * stride, 0.f, nullptr, nullptr, vocab};
  const u64 best = find_best<kThreads>(tokens.row, vocab, standings);
  const u32 rank = rank_in(best);
  const Failure failure = rank >= kRankOfInfinity ? kNotFinite : rank <= kRankOfNothing ? kNothingAllowed : kNone;
  if (threadIdx.x == 0) errors[row] = failure;
  if (failure != kNone || temperature == 0.f) {
    if (threadIdx.x == 0) drawn[row] = failure == kNone ? id_in(best) : -1;
    return;
  }

  tokens.largest = ranked(rank);
  const float min_p = fminf(min_ps[row], 1.f);
  Cut cut = {kNoMass, 0};
#pragma unroll 1
  for (int filter = 0; filter < 2; filter++) {
    const bool is_mass = filter == 1;
    const u64 count = is_mass ? 0 : max(top_ks[row], 0);
    const double share = is_mass ? top_ps[row] : 1.0;
    if (count > 0 || share < 1.0) cut = select(room, tokens, cut, {is_mass, min_p}, count, share);
  }
  const int token = draw(room, tokens, cut, min_p, random_bits(seeds[row], positions[row], choices[row]));
  if (token >= 0) drawn[row] = token;
}
