// What the plan of decode attention hands to the kernels that carry it out: a list of pieces of work.
//
// A *lane* is up to `rows_per_item` packed rows of one sequence against all tokens they may see. Packed rows are the
// (query token, head) pairs that share one KV head, token by token:
//
//     row       | 0 1 2 3 | 4 5 6 7 | …      group = 4 query heads per KV head
//     token     |    0    |    1    | …      row / group
//     head      | 0 1 2 3 | 0 1 2 3 | …      row % group, from the KV head's first query head
//
// An item is a lane, or a range of a lane's tokens. Every KV head has the same items, each carried out by another block.
#pragma once
#include "ptx.cuh"

struct DecodeItem {
  int sequence;     // its row in the block tables
  int token_begin;  // keys and values [token_begin, token_end); both 0 in a padding row, whose outputs are zeros
  int token_end;
  int row_begin;    // the lane's first packed row

  int query_begin;  // the sequence's first query token in the ragged batch
  int q_len;        // its query tokens; the last stands at position kv_length - 1
  int kv_length;
  int slot;         // where the partial result goes if the lane is split

  int first_slot;   // the lane's items have the slots [first_slot, first_slot + num_slots), in the order of their tokens
  int num_slots;    // 1: not split, the result goes straight to the output
  int unused[2];
};
static_assert(sizeof(DecodeItem) == 48, "three 16-byte loads");

DEV int ceil_div(int a, int b) { return (a + b - 1) / b; }
