// What went wrong, in words that name the block, the thread and what it did.
#include <dlfcn.h>

#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <string>

#include "machine.h"

namespace emu {

static char message[2048];

const char* failure() { return message; }
void forget_failure() { message[0] = 0; }

static size_t say_where() {
  if (!self) return 0;
  const uint3& b = self->block->index;
  const uint3& t = self->index;
  int n = snprintf(message, sizeof message, "block (%u, %u, %u) thread (%u, %u, %u): ", b.x, b.y, b.z, t.x, t.y, t.z);
  return static_cast<size_t>(n);
}

void fail(const char* format, ...) {
  size_t n = say_where();
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message + n, sizeof message - n, format, arguments);
  va_end(arguments);
  abandon();
}

// Runs in a signal handler, on what may be a fiber's overflown stack's alternative: composes, and calls nothing else.
void describe_fault(int signal, const void* address, const void* instruction) {
  size_t n = say_where();
  char* text = message + n;
  size_t room = sizeof message - n;
  long shared_address = 0;
  if (signal == SIGFPE) {
    snprintf(text, room, "integer division by zero");
  } else if (signal == SIGILL) {
    Dl_info library{};
    dladdr(instruction, &library);
    snprintf(text, room, "undefined behaviour (a misaligned access, an index behind its array); addr2line -e %s %#tx",
             library.dli_fname ? library.dli_fname : "?",
             static_cast<const u8*>(instruction) - static_cast<const u8*>(library.dli_fbase));
  } else if (machine().stacks.overflown(address) >= 0) {
    snprintf(text, room, "the stack of %zu KiB overflowed", Stacks::kBytes >> 10);
  } else if (self && self->block->shared.locate(address, &shared_address)) {
    snprintf(text, room, "out of bounds of shared memory, at shared address %ld", shared_address);
  } else if (!describe_global(address, text, room)) {
    snprintf(text, room, address ? "invalid access at %p" : "invalid access at %p, or a misaligned vector", address);
  }
}

// ---- deadlock -------------------------------------------------------------------------------------------------------

static std::string what_it_waits_for(const Thread& thread) {
  char text[256];
  const Wait& wait = thread.wait;
  Block& block = *thread.block;
  switch (wait.what) {
    case Wait::kCollective:
      for (const Collective& c : thread.warp->open) {
        if (c.arrived >> thread.lane & 1) {
          snprintf(text, sizeof text, "%s with lanes %08x, which have not come", wait.name, c.mask & ~c.arrived);
          return text;
        }
      }
      return wait.name;
    case Wait::kBarrier: {
      const NamedBarrier& barrier = block.barriers[wait.place];
      snprintf(text, sizeof text, "%s %u, where %u of %u threads have come", wait.name, wait.place, barrier.arrived,
               barrier.expected);
      return text;
    }
    case Wait::kMbarrier: {
      const Mbarrier& barrier = mbarrier_at(block, wait.place);
      snprintf(text, sizeof text,
               "the mbarrier at shared address %u (parity %u, its phase %llu lacks %u of %u arrivals and %ld bytes)",
               wait.place, wait.parity, barrier.phase, barrier.pending, barrier.count, barrier.bytes);
      return text;
    }
    default:
      return "nothing";
  }
}

void fail_deadlock(const std::vector<std::unique_ptr<Block>>& blocks) {
  std::string report;
  const Thread* first = nullptr;
  for (const auto& block : blocks) {
    // One line for each run of neighbours that wait for the same.
    size_t begin = 0;
    std::string shared_wait;
    auto close = [&](size_t end) {
      if (shared_wait.empty()) return;
      report += (report.empty() ? "" : "; ") + std::string("thread") +
                (end - begin > 1 ? "s " + std::to_string(begin) + "-" + std::to_string(end - 1) + " wait for "
                                 : " " + std::to_string(begin) + " waits for ") +
                shared_wait;
    };
    for (size_t i = 0; i <= block->threads.size(); i++) {
      std::string wait;
      if (i < block->threads.size() && !block->threads[i].exited) {
        wait = what_it_waits_for(block->threads[i]);
        if (!first) first = &block->threads[i];
      }
      if (i == block->threads.size() || wait != shared_wait) {
        close(i);
        begin = i;
        shared_wait = wait;
      }
    }
  }
  self = const_cast<Thread*>(first);
  fail("deadlock: %s", report.c_str());
}

}  // namespace emu
