// The emulator's side of engine/device.py, in C.
#include "machine.h"
#include "operations.h"

extern "C" {

// Choose how the launches that follow run: `schedule` is 0 forward, 1 reverse, 2 random, 3 priority.
void emu_options(int late, int schedule, u32 seed) {
  emu::Options& options = emu::machine().options;
  options.late = late != 0;
  options.order = static_cast<emu::Order>(schedule);
  options.seed = seed;
}

// Global memory filled with 0xFF, 16-byte aligned, whose end is followed by a page that faults.
void* emu_alloc(size_t bytes) { return emu::global_allocate(bytes); }

// Free it; whoever still uses it faults.
void emu_free(void* pointer, size_t bytes) { emu::global_free(pointer, bytes); }

// How often one thread gave way to another in the last launch.
u64 emu_events() { return emu::machine().events; }

// Encode a tensor map, with the driver's checks. Returns 0, or 1 where the driver would return
// CUDA_ERROR_INVALID_VALUE.
int emu_tensor_map(void* out128, int element_bytes, u32 rank, void* address, const u64* dims, const u64* strides,
                   const u32* box, int swizzle_bytes) {
  return emu::tensor_map_encode(static_cast<TensorMap*>(out128), element_bytes, rank, address, dims, strides, box,
                                swizzle_bytes);
}

}  // extern "C"
