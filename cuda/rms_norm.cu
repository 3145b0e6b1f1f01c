// The norm before each half of a layer: y = x / sqrt(mean(x²) + eps) * weight, over rows of `hidden` numbers.
//
// With a residual, x is first added to it. The sum is rounded to the model's type, because that is what the next layer
// reads, and the norm sees the rounded sum; all else is float32 until the one rounding of y. With kQuantise, y becomes
// e4m3 with one scale per row instead, from the float32 values.
//
// A block owns a row. Its threads hold the whole row in registers, so that x and the residual are read once:
//
//     row        | v0 v1 … v511 | v512 … v1023 | … |      vectors of 8 numbers, hidden / 8 of them
//     thread     | t0 t1 … t511 | t0   … t511  | … |      up to kVectors for each thread
//
//     x, residual → sum → residual;   Σ sum² ─ block ─→ r = 1/rms;   y = sum·r·weight → out
//                                                        kQuantise:  max |y| ─ block ─→ scale;   y / scale → out
//
// Shapes: x, residual, out: [num_rows, hidden]; weight: [hidden]; scales: [num_rows] float32. hidden is a multiple of 8
// and at most 8 * kThreads * kVectors. `out` may be `x`. One block a row.
#include "ptx.cuh"
#include "reduce.cuh"
#include "vector.cuh"

template <class T, int kThreads, int kVectors, bool kQuantise>
__global__ void __launch_bounds__(kThreads, kVectors == 1 ? 3 : 2)
    rms_norm(void* out, float* scales, const T* x, T* residual, const T* weight, int hidden, float eps) {
  SHARED(float, sums, kThreads / 32);
  SHARED(u32, magnitudes, kThreads / 32);
  const int num_vectors = hidden / kVector;
  const size_t row = blockIdx.x;
  const size_t row_start = row * hidden;
  pdl_wait();
  pdl_launch_dependents();

  // All loads of a row are under way before the first is waited for.
  uint4 kept[kVectors], earlier[kVectors], factors[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; i++) {
    const int vector = threadIdx.x + i * kThreads;
    if (vector >= num_vectors) break;
    kept[i] = load_vector(x + row_start + vector * kVector);
    if (residual != nullptr) earlier[i] = load_vector(residual + row_start + vector * kVector);
    factors[i] = load_vector(weight + vector * kVector);
  }
  float squares = 0.f;
#pragma unroll
  for (int i = 0; i < kVectors; i++) {
    const int vector = threadIdx.x + i * kThreads;
    if (vector >= num_vectors) break;
    float sum[8];
    unpack<T>(kept[i], sum);
    if (residual != nullptr) {
      float added[8];
      unpack<T>(earlier[i], added);
#pragma unroll
      for (int j = 0; j < 8; j++) sum[j] += added[j];
      kept[i] = pack<T>(sum);
      store_vector(residual + row_start + vector * kVector, kept[i]);
      unpack<T>(kept[i], sum);
    }
#pragma unroll
    for (int j = 0; j < 8; j++) squares += sum[j] * sum[j];
  }
  const float mean = block_reduce<Sum, kThreads>(squares, sums) / hidden;
  const float inverse_rms = rsqrt_approx(mean + eps);

  float y[kVectors][8];
  u32 magnitude = 0;
#pragma unroll
  for (int i = 0; i < kVectors; i++) {
    const int vector = threadIdx.x + i * kThreads;
    if (vector >= num_vectors) break;
    float factor[8];
    unpack<T>(factors[i], factor);
    unpack<T>(kept[i], y[i]);
#pragma unroll
    for (int j = 0; j < 8; j++) y[i][j] *= inverse_rms * factor[j];
    if constexpr (kQuantise) {
      magnitude = max(magnitude, largest_magnitude(y[i]));
    } else {
      store_vector(static_cast<T*>(out) + row_start + vector * kVector, pack<T>(y[i]));
    }
  }
  if constexpr (kQuantise) {
    const Scale scale = scale_for<e4m3>(block_reduce<Max, kThreads>(magnitude, magnitudes));
#pragma unroll
    for (int i = 0; i < kVectors; i++) {
      const int vector = threadIdx.x + i * kThreads;
      if (vector >= num_vectors) break;
      store_codes(static_cast<e4m3*>(out) + row_start + vector * kVector, quantise<e4m3>(y[i], scale.inverse));
    }
    if (threadIdx.x == 0) scales[row] = scale.scale;
  }
}
