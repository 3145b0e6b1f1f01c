// From a kernel and the array of pointers that cuLaunchKernel takes to threads that run it.
#pragma once
#include <cstring>
#include <utility>

#include "machine.h"

namespace emu {

// One parameter, copied, since what the array points to need not be aligned.
template <class T>
T parameter(const void* at) {
  alignas(T) unsigned char copy[sizeof(T)];
  std::memcpy(copy, at, sizeof(T));
  return *reinterpret_cast<T*>(copy);
}

template <class... Parameters>
struct Bound {
  void (*kernel)(Parameters...);
  void** arguments;

  static void enter(void* context) { static_cast<Bound*>(context)->call(std::index_sequence_for<Parameters...>{}); }
  template <size_t... I>
  void call(std::index_sequence<I...>) {
    kernel(parameter<Parameters>(arguments[I])...);
  }
};

// Run a grid of blocks. `arguments` points to each parameter, as cuLaunchKernel's kernelParams does. Returns 0, or not
// 0 with a text in `error`.
template <class... Parameters>
int launch(void (*kernel)(Parameters...), const u32* grid, const u32* block, size_t shared_bytes, void** arguments,
           char* error, int error_bytes) {
  Bound<Parameters...> bound{kernel, arguments};
  return run(&Bound<Parameters...>::enter, &bound, grid, block, shared_bytes, error, error_bytes);
}

}  // namespace emu
