// A kernel that does nothing with ten arguments: what is measured of it is its launch.
#include "ptx.cuh"

template <int kVersion>
__global__ void __launch_bounds__(256) nothing(void*, void*, void*, void*, void*, void*, int, int, float, float) {
  pdl_wait();
}
