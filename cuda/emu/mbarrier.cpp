// mbarriers: arrivals and bytes, phase after phase.
//
// Their state is kept here and not in the eight bytes of shared memory, which hold a word that changes with it: so
// whoever uses a barrier before it is made, makes it twice or writes over it is found. A phase is over when no arrival
// and no byte is missing. PTX ISA, "mbarrier".
#include <algorithm>

#include "operations.h"

namespace emu {

static const long kMostBytes = (1 << 20) - 1;
static const u32 kMostArrivals = (1 << 20) - 1;

static u64 word_of(const Mbarrier& barrier) {
  return 0x6D62000000000000ull ^ barrier.phase << 40 ^ u64(barrier.pending) << 20 ^ (barrier.bytes & 0xFFFFF);
}

static void write_word(Block& block, u32 address, Mbarrier& barrier) {
  barrier.word = word_of(barrier);
  *reinterpret_cast<u64*>(block.shared.at(address, 8, 8, "an mbarrier")) = barrier.word;
}

Mbarrier& mbarrier_at(Block& block, u32 address) {
  for (auto& [place, barrier] : block.mbarriers) {
    if (place == address) return barrier;
  }
  fail("the mbarrier at shared address %u is used before mbar_init", address);
}

static Mbarrier& intact(Block& block, u32 address) {
  Mbarrier& barrier = mbarrier_at(block, address);
  if (*reinterpret_cast<const u64*>(block.shared.at(address, 8, 8, "an mbarrier")) != barrier.word) {
    fail("the mbarrier at shared address %u was written over", address);
  }
  return barrier;
}

void mbarrier_init(u64* pointer, u32 count) {
  Block& block = *self->block;
  u32 address = block.shared.address(pointer, 8, 8, "mbar_init");
  if (count == 0 || count > kMostArrivals) fail("mbar_init: a count of %u is not allowed", count);
  for (auto& [place, barrier] : block.mbarriers) {
    if (place == address) fail("mbar_init: the mbarrier at shared address %u exists already", address);
  }
  block.mbarriers.push_back({address, {}});
  Mbarrier& barrier = block.mbarriers.back().second;
  barrier.count = barrier.pending = count;
  barrier.bytes = 0;
  barrier.creator = self;
  write_word(block, address, barrier);
}

void mbarrier_fence_init() {
  for (auto& [address, barrier] : self->block->mbarriers) {
    if (barrier.creator == self) barrier.seen_by_copies = true;
  }
}

static void settle(Block& block, u32 address, Mbarrier& barrier) {
  if (barrier.pending == 0 && barrier.bytes == 0) {
    barrier.phase++;
    barrier.pending = barrier.count;
    for (Thread* thread : barrier.waiting) make_ready(*thread);
    barrier.waiting.clear();
  }
  write_word(block, address, barrier);
}

void mbarrier_arrive(u64* pointer, u32 expect_bytes) {
  Block& block = *self->block;
  u32 address = block.shared.address(pointer, 8, 8, "mbar_arrive");
  Mbarrier& barrier = intact(block, address);
  block.shared.publish();
  if (barrier.pending == 0) {
    fail(
        "mbar_arrive: more than the %u arrivals of a phase at the mbarrier at shared address %u, which still lacks %ld "
        "bytes",
        barrier.count, address, barrier.bytes);
  }
  barrier.pending--;
  barrier.bytes += expect_bytes;
  if (barrier.bytes > kMostBytes) fail("mbar_expect_tx: %ld bytes are more than an mbarrier counts", barrier.bytes);
  settle(block, address, barrier);
  give_way();
}

void mbarrier_receive(Block& block, u32 address, u32 bytes) {
  Mbarrier& barrier = intact(block, address);
  barrier.bytes -= bytes;
  if (barrier.bytes < -kMostBytes)
    fail("the mbarrier at shared address %u received more bytes than it counts", address);
  settle(block, address, barrier);
}

void mbarrier_wait(u64* pointer, u32 parity) {
  Block& block = *self->block;
  u32 address = block.shared.address(pointer, 8, 8, "mbar_wait");
  if (parity > 1) fail("mbar_wait: the parity is %u, which is neither 0 nor 1", parity);
  Mbarrier& barrier = intact(block, address);
  if ((barrier.phase & 1) != parity) return;
  barrier.waiting.push_back(self);
  suspend({Wait::kMbarrier, "mbar_wait", address, parity});
  // On a card a waiter looks now and then. If two phases can pass meanwhile, he may miss both.
  if ((mbarrier_at(block, address).phase & 1) == parity) {
    fail("mbar_wait: two phases of the mbarrier at shared address %u passed while this thread waited for one", address);
  }
}

void mbarriers_check_end(Block& block) {
  for (const BulkLoad& load : block.loads) {
    self = load.issuer;
    fail("the block ended while a bulk copy to shared address %u was under way: nobody waited for it", load.to);
  }
  for (const auto& [address, barrier] : block.mbarriers) {
    if (barrier.bytes != 0) {
      fail("the block ended and the mbarrier at shared address %u still expects %ld bytes", address, barrier.bytes);
    }
  }
}

}  // namespace emu
