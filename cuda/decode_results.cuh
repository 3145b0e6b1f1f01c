// What decode attention leaves: outputs and logarithms of sums, or partial ones in slots, and how slots become outputs.
#pragma once
#include "decode_work.cuh"
#include "vector.cuh"

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

DEV float minus_infinity() { return bits_as<float>(0xff800000u); }

// Where results go. The partial ones lie by slot, KV head and packed row.
template <class T, int kHeadDim, int kRows>
struct Results {
  T* out;                // [num_tokens, num_heads, head_dim]
  float* log_sums;       // [num_tokens, num_heads], natural logarithm; may be null
  float* partial_out;    // [num_slots, num_kv_heads, kRows, head_dim], each divided by its own sum
  float* partial_sums;   // [num_slots, num_kv_heads, kRows], logarithm to the base of 2
  u32* counters;         // [num_slots, num_kv_heads]: items of a lane that have ended, at its first slot; zero between
  int num_heads, num_kv_heads;

  DEV size_t partial_row(int slot, int row) const {
    return (static_cast<size_t>(slot) * num_kv_heads + blockIdx.x) * kRows + row;
  }

  DEV size_t out_row(const DecodeItem& item, int row) const {
    const int group = num_heads / num_kv_heads, packed = item.row_begin + row;
    return static_cast<size_t>(item.query_begin + packed / group) * num_heads + blockIdx.x * group + packed % group;
  }

  DEV void store(const DecodeItem& item, int row, int column, float4 x) const {
    if (item.num_slots > 1) {
      *reinterpret_cast<float4*>(partial_out + partial_row(item.slot, row) * kHeadDim + column) = x;
    } else {
      store_out(item, row, column, x);
    }
  }

  DEV void store_out(const DecodeItem& item, int row, int column, float4 x) const {
    const u32 low = bits_as<u32>(narrow(Pair<T>(), x.x, x.y)), high = bits_as<u32>(narrow(Pair<T>(), x.z, x.w));
    *reinterpret_cast<uint2*>(out + out_row(item, row) * kHeadDim + column) = make_uint2(low, high);
  }

  DEV void store_pair(const DecodeItem& item, int row, int column, float2 x) const {
    if (item.num_slots > 1) {
      *reinterpret_cast<float2*>(partial_out + partial_row(item.slot, row) * kHeadDim + column) = x;
    } else {
      *reinterpret_cast<u32*>(out + out_row(item, row) * kHeadDim + column) = bits_as<u32>(narrow(Pair<T>(), x.x, x.y));
    }
  }

  // `log_sum` to the base of 2.
  DEV void store_sum(const DecodeItem& item, int row, float log_sum) const {
    if (item.num_slots > 1) {
      partial_sums[partial_row(item.slot, row)] = log_sum;
    } else if (log_sums) {
      log_sums[out_row(item, row)] = log_sum * kLn2;
    }
  }

  // One thread, behind a barrier that orders its block's partial results before it: how many items of the lane have
  // ended before. The counter orders them before whoever counts later; a barrier, before that one's block.
  DEV u32 count(const DecodeItem& item) const {
    u32* counter = counters + static_cast<size_t>(item.first_slot) * num_kv_heads + blockIdx.x;
    const u32 before = atom_add_acq_rel(counter, 1u);
    if (before == static_cast<u32>(item.num_slots) - 1) *counter = 0;  // for the next launch
    return before;
  }

  // Put the slots of a lane together, in the order of their tokens.
  DEV void merge(const DecodeItem& item, int num_rows, int num_threads) const {
    for (int e = threadIdx.x; e < num_rows * (kHeadDim / 4); e += num_threads) {
      const int row = e / (kHeadDim / 4), column = e % (kHeadDim / 4) * 4;
      float largest = minus_infinity();
      for (int i = 0; i < item.num_slots; i++) {
        largest = fmaxf(largest, partial_sums[partial_row(item.first_slot + i, row)]);
      }
      const float origin = largest == minus_infinity() ? 0.f : largest;
      float4 x = make_float4(0.f, 0.f, 0.f, 0.f);
      float total = 0.f;
      for (int i = 0; i < item.num_slots; i++) {
        const size_t at = partial_row(item.first_slot + i, row);
        const float weight = exp2_approx(partial_sums[at] - origin);
        const float4 y = *reinterpret_cast<const float4*>(partial_out + at * kHeadDim + column);
        total += weight;
        x = make_float4(fmaf(weight, y.x, x.x), fmaf(weight, y.y, x.y), fmaf(weight, y.z, x.z), fmaf(weight, y.w, x.w));
      }
      const float inverse = total > 0.f ? 1.f / total : 0.f;
      store_out(item, row, column, make_float4(x.x * inverse, x.y * inverse, x.z * inverse, x.w * inverse));
      if (log_sums && column == 0) log_sums[out_row(item, row)] = (origin + log2f(total)) * kLn2;
    }
  }
};
