// cp.async: a thread's copies of 16 bytes, in groups.
//
// Late, a copy reads and writes when its group is waited for, which is the last moment that is legal: who reads earlier
// finds poison or old data, and who wrote over the source meanwhile copies what he wrote. Early, it does so at once:
// who still reads the destination finds it changed. In the orders of chance early copies fall either way.
#include <cstring>

#include "operations.h"

namespace emu {

static void land(const AsyncCopy& copy) {
  if (copy.from) {
    memcpy(copy.to, copy.from, 16);
  } else {
    memset(copy.to, 0, 16);
  }
}

void async_copy(void* to, const void* from, bool read) {
  self->block->shared.address(to, 16, 16, "cp.async");
  if (read && reinterpret_cast<uintptr_t>(from) % 16 != 0) fail("cp.async: the global address %p is misaligned", from);
  AsyncCopy copy{to, read ? from : nullptr, self->copy_group};
  // Copies of one thread have no order among them, but a group lands before the one behind it is known to have landed.
  if (machine().options.late || machine().schedule.coin()) {
    self->copies.push_back(copy);
  } else {
    land(copy);
  }
}

void async_copy_commit() { self->copy_group++; }

void async_copy_wait(u64 newest) {
  std::vector<AsyncCopy>& copies = self->copies;
  auto first = copies.begin();
  for (; first != copies.end() && first->group + newest < self->copy_group; first++) land(*first);
  copies.erase(copies.begin(), first);
}

}  // namespace emu
