// Rows of a table by their numbers: the embeddings of a step's tokens, or the hidden states whose logits are wanted.
//
// Bytes are copied as they are, sixteen a thread; the type does not matter. A negative id gives zeros: padding.
//
//     ids     | 7 | -1 | 2 | …          out   | row 7 | 0 0 0 … | row 2 | …
//     block   (token, piece): kThreads vectors of that row
//
// Shapes: table: [num_rows, row]; ids: [num_tokens] int32; out: [num_tokens, row]; a row is `row_vectors` times 16 bytes.
#include "ptx.cuh"

template <int kThreads>
__global__ void __launch_bounds__(kThreads) embed(uint4* out, const uint4* table, const int* ids, int row_vectors) {
  const size_t token = blockIdx.x;
  const int vector = blockIdx.y * kThreads + threadIdx.x;
  pdl_wait();
  pdl_launch_dependents();
  if (vector >= row_vectors) return;
  const int id = ids[token];
  out[token * row_vectors + vector] =
      id < 0 ? make_uint4(0, 0, 0, 0) : table[static_cast<size_t>(id) * row_vectors + vector];
}
