// A libcuda.so.1 that runs nothing and writes down what it was asked, one line a call, to the file in STUB_DRIVER_LOG.
// Without that variable it does nothing at all, which is how the cost of a launch on the Python side is measured.
// cuda.bindings looks every function up by name; what is not here it takes as missing.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

thread_local bool context = false;

FILE* log() {
  static FILE* file = getenv("STUB_DRIVER_LOG") ? fopen(getenv("STUB_DRIVER_LOG"), "w") : nullptr;
  return file;
}

template <class... Values>
int told(const char* format, Values... values) {
  if (log() == nullptr) return 0;
  fprintf(log(), format, values...);
  fputc('\n', log());
  fflush(log());
  return 0;
}

// The arguments are those of the kernel that the test launches: a pointer, an int, a float and a tensor map.
int launched(const unsigned* grid, const unsigned* block, unsigned shared, const void* stream, void** arguments) {
  if (log() == nullptr) return 0;
  if (grid[0] == 666) return 700;  // CUDA_ERROR_ILLEGAL_ADDRESS
  if (!context) return 201;        // CUDA_ERROR_INVALID_CONTEXT
  uint64_t pointer;
  int32_t integer;
  float real;
  memcpy(&pointer, arguments[0], sizeof pointer);
  memcpy(&integer, arguments[1], sizeof integer);
  memcpy(&real, arguments[2], sizeof real);
  const unsigned char* map = static_cast<unsigned char*>(arguments[3]);
  return told("launch grid %u %u %u block %u %u %u shared %u stream %zu arguments %llu %d %g %02x..%02x", grid[0], grid[1],
              grid[2], block[0], block[1], block[2], shared, reinterpret_cast<size_t>(stream),
              static_cast<unsigned long long>(pointer), integer, real, map[0], map[127]);
}

struct Attribute {
  int id;
  char pad[4];
  union {
    int allowed;
    char room[64];
  };
};

struct Config {
  unsigned grid[3], block[3], shared;
  void* stream;
  Attribute* attributes;
  unsigned num_attributes;
};

}  // namespace

extern "C" {
int cuInit(unsigned) { return 0; }

int cuDeviceGet(int* device, int index) {
  *device = index;
  return index < 8 ? 0 : 101;  // CUDA_ERROR_INVALID_DEVICE
}

int cuDevicePrimaryCtxRetain(void** made, int device) {
  *made = reinterpret_cast<void*>(static_cast<size_t>(100 + device));
  return 0;
}

int cuCtxSetCurrent(void* made) {
  context = true;
  return told("context %zu", reinterpret_cast<size_t>(made));
}

int cuLibraryLoadData(void** library, const void* code, void*, void*, unsigned, void*, void*, unsigned) {
  *library = reinterpret_cast<void*>(1);
  return told("load %.5s", static_cast<const char*>(code));
}

int cuLibraryGetKernel(void** kernel, void*, const char* name) {
  *kernel = reinterpret_cast<void*>(2);
  if (strcmp(name, "missing") == 0) return 500;  // CUDA_ERROR_NOT_FOUND
  return told("kernel %s", name);
}

int cuKernelGetFunction(void** function, void*) {
  *function = reinterpret_cast<void*>(3);
  return 0;
}

int cuFuncSetAttribute(void*, int attribute, int value) { return told("attribute %d = %d", attribute, value); }

int cuLaunchKernel(void*, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void* stream, void** arguments, void**) {
  const unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
  return launched(grid, block, shared, stream, arguments);
}

int cuLaunchKernelEx(const Config* config, void*, void** arguments, void**) {
  for (unsigned i = 0; i < config->num_attributes; i++)
    told("launch attribute %d = %d", config->attributes[i].id, config->attributes[i].allowed);
  return launched(config->grid, config->block, config->shared, config->stream, arguments);
}

int cuTensorMapEncodeTiled(void* map, int type, unsigned rank, void* address, const uint64_t* sizes, const uint64_t* strides,
                           const unsigned* box, const unsigned* steps, int interleave, int swizzle, int promotion, int fill) {
  memset(map, 0x5A, 128);
  told("map aligned %d type %d rank %u address %zu interleave %d swizzle %d promotion %d fill %d",
       reinterpret_cast<uintptr_t>(map) % 64 == 0, type, rank, reinterpret_cast<size_t>(address), interleave, swizzle, promotion,
       fill);
  for (unsigned i = 0; i < rank; i++)
    told("map dimension %llu stride %llu box %u step %u", static_cast<unsigned long long>(sizes[i]),
         static_cast<unsigned long long>(i + 1 < rank ? strides[i] : 0), box[i], steps[i]);
  return rank == 5 ? 1 : 0;  // CUDA_ERROR_INVALID_VALUE
}

int cuGetErrorString(int error, const char** text) {
  *text = error == 700 ? "an illegal memory access was encountered" : "named by its code";
  return 0;
}
}
