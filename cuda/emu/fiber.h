// Fibers: threads of control that give way only when they say so, each on a stack of its own.
#pragma once
#include <cstddef>

namespace emu {

class Fiber {
 public:
  // Make it begin in `entry`, which never returns, on `stack` (its highest address).
  void prepare(void* stack, void (*entry)());
  // Store the running fiber here and go on with `next`. Returns when somebody switches back.
  void switch_to(Fiber& next);

 private:
  void* stack_pointer_ = nullptr;
};

// Stacks of one size, each above a page that faults. They are made as needed and used again.
class Stacks {
 public:
  static constexpr size_t kBytes = 256 << 10;

  // The highest address of stack number `index`.
  void* top(size_t index);
  // Which stack's guard page holds `address`, or -1.
  long overflown(const void* address) const;
  ~Stacks();

 private:
  static constexpr size_t kPerSlab = 64;
  struct Slab {
    char* base;
    Slab* next;
  };
  Slab* slab(size_t number);
  Slab* first_ = nullptr;
};

}  // namespace emu
