// The gated half of a layer: out = silu(gate) * up, where silu(g) = g / (1 + exp(-g)).
//
// All in float32 with one rounding, that of the result. Two kernels: `silu_mul` writes the model's type and needs no
// number but its own, so any grid will do; `silu_mul_quantise` writes e4m3 with one scale per row, so a block owns a
// row and keeps it in registers until the largest magnitude is known.
//
//     gate_up, one token   | g0 g1 … g(n-1) | u0 u1 … u(n-1) |     n = intermediate, a multiple of 8
//     silu_mul             | blocks (token, 0), (token, 1), … of kThreads vectors of 8 |
//     silu_mul_quantise    | t0 t1 … t0 t1 … | up to kVectors vectors for each thread of block (token)
//
// Shapes: gate_up: [num_tokens, 2 * intermediate]; out: [num_tokens, intermediate]; scales: [num_tokens] float32.
#include "ptx.cuh"
#include "reduce.cuh"
#include "vector.cuh"

constexpr float kLog2E = 1.4426950408889634f;

// Relative error about 1e-6. exp(-g) that overflows gives 0, as it should.
DEV float silu(float gate) { return gate / (1.f + exp2_approx(-kLog2E * gate)); }

// Eight products of the token whose gates start at `gates`.
template <class T>
DEV void gated(const T* gates, int intermediate, int vector, float (&y)[8]) {
  float up[8];
  unpack<T>(load_vector(gates + vector * kVector), y);
  unpack<T>(load_vector(gates + intermediate + vector * kVector), up);
#pragma unroll
  for (int j = 0; j < 8; j++) y[j] = silu(y[j]) * up[j];
}

template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads) silu_mul(T* out, const T* gate_up, int intermediate) {
  const size_t token = blockIdx.x;
  const int vector = blockIdx.y * kThreads + threadIdx.x;
  pdl_wait();
  pdl_launch_dependents();
  if (vector * kVector >= intermediate) return;
  float y[8];
  gated(gate_up + token * 2 * intermediate, intermediate, vector, y);
  store_vector(out + token * intermediate + vector * kVector, pack<T>(y));
}

template <class T, int kThreads, int kVectors>
__global__ void __launch_bounds__(kThreads)
    silu_mul_quantise(e4m3* out, float* scales, const T* gate_up, int intermediate) {
  SHARED(u32, magnitudes, kThreads / 32);
  const size_t token = blockIdx.x;
  const int num_vectors = intermediate / kVector;
  pdl_wait();
  pdl_launch_dependents();

  float y[kVectors][8];
  u32 magnitude = 0;
#pragma unroll
  for (int i = 0; i < kVectors; i++) {
    const int vector = threadIdx.x + i * kThreads;
    if (vector >= num_vectors) break;
    gated(gate_up + token * 2 * intermediate, intermediate, vector, y[i]);
    magnitude = max(magnitude, largest_magnitude(y[i]));
  }
  const Scale scale = scale_for<e4m3>(block_reduce<Max, kThreads>(magnitude, magnitudes));
#pragma unroll
  for (int i = 0; i < kVectors; i++) {
    const int vector = threadIdx.x + i * kThreads;
    if (vector >= num_vectors) break;
    store_codes(out + token * intermediate + vector * kVector, quantise<e4m3>(y[i], scale.inverse));
  }
  if (threadIdx.x == 0) scales[token] = scale.scale;
}
