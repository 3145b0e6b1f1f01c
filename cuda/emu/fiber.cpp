#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#if !defined(__x86_64__)
#error "the emulator switches stacks by hand, on x86-64 only"
#endif

// Save the registers that a callee must keep and the stack pointer, and take the other fiber's. System V ABI.
extern "C" void emu_switch_stack(void** save, void* load);
asm(R"(
.text
.globl emu_switch_stack
.hidden emu_switch_stack
.type emu_switch_stack, @function
emu_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emu_switch_stack, . - emu_switch_stack
)");

namespace emu {

void Fiber::prepare(void* stack, void (*entry)()) {
  // What emu_switch_stack pops: six registers and the address to return to. At `entry` the stack is 16-byte aligned
  // less the eight bytes of a return address, as after a call.
  void** frame = static_cast<void**>(stack) - 2;
  *frame = reinterpret_cast<void*>(entry);
  frame -= 6;
  std::memset(frame, 0, 6 * sizeof(void*));
  stack_pointer_ = frame;
}

void Fiber::switch_to(Fiber& next) { emu_switch_stack(&stack_pointer_, next.stack_pointer_); }

static const size_t kPage = 4096;

Stacks::Slab* Stacks::slab(size_t number) {
  Slab** link = &first_;
  for (;; number--, link = &(*link)->next) {
    if (!*link) {
      void* base =
          mmap(nullptr, kPerSlab * kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (base == MAP_FAILED) abort();
      *link = new Slab{static_cast<char*>(base), nullptr};
      for (size_t i = 0; i < kPerSlab; i++) mprotect((*link)->base + i * kBytes, kPage, PROT_NONE);
    }
    if (number == 0) return *link;
  }
}

void* Stacks::top(size_t index) { return slab(index / kPerSlab)->base + (index % kPerSlab + 1) * kBytes; }

long Stacks::overflown(const void* address) const {
  long first = 0;
  for (const Slab* s = first_; s; s = s->next, first += kPerSlab) {
    size_t offset = static_cast<const char*>(address) - s->base;
    if (offset < kPerSlab * kBytes && offset % kBytes < kPage) return first + static_cast<long>(offset / kBytes);
  }
  return -1;
}

Stacks::~Stacks() {
  while (first_) {
    Slab* next = first_->next;
    munmap(first_->base, kPerSlab * kBytes);
    delete first_;
    first_ = next;
  }
}

}  // namespace emu
