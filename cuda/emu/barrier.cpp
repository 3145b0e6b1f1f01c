// __syncthreads, bar.sync and bar.arrive: sixteen counters of warps.
//
// The hardware counts whole warps, so a warp's lanes first meet each other and then arrive as 32 threads. Whoever waits
// is released by the warp that completes the count.
#include <algorithm>

#include "operations.h"

namespace emu {

namespace {

struct Arrival {
  u32 barrier;
  u32 threads;  // 0: all of the block
  bool waits;
};

}  // namespace

static void release(NamedBarrier& barrier, const Warp& last) {
  for (Warp* warp : barrier.waiting) {
    if (warp == &last) continue;
    for (u32 lane = 0; lane < 32; lane++) {
      if (warp->lanes >> lane & 1) make_ready(*warp->threads[lane]);
    }
  }
  barrier = {};
}

static bool arrive(void* const* brought, u32 mask, Warp& warp) {
  const Arrival& arrival = *static_cast<const Arrival*>(brought[self->lane]);
  Block& block = *warp.block;
  NamedBarrier& barrier = block.barriers[arrival.barrier];
  block.shared.publish();

  u32 expected = arrival.threads ? arrival.threads : 32 * block.warps.size();
  if (barrier.arrived && barrier.expected != expected) {
    fail("barrier %u: this warp counts %u threads, who came before counted %u", arrival.barrier, expected,
         barrier.expected);
  }
  if (std::find(barrier.who.begin(), barrier.who.end(), &warp) != barrier.who.end()) {
    fail("barrier %u: the same warp arrives twice before the barrier is complete (%u of %u threads)", arrival.barrier,
         barrier.arrived, barrier.expected);
  }
  barrier.expected = expected;
  barrier.arrived += 32;
  barrier.who.push_back(&warp);
  if (barrier.arrived == expected) {
    release(barrier, warp);
    return true;
  }
  if (!arrival.waits) return true;
  barrier.waiting.push_back(&warp);
  for (u32 lane = 0; lane < 32; lane++) {
    if (mask >> lane & 1) {
      warp.threads[lane]->wait = {Wait::kBarrier, arrival.barrier ? "bar.sync" : "__syncthreads", arrival.barrier};
    }
  }
  return false;
}

static const Operation kSync{"bar.sync", arrive};
static const Operation kSyncThreads{"__syncthreads", arrive};
static const Operation kArrive{"bar.arrive", arrive};

static void come(const Operation& operation, int id, int threads, bool waits) {
  if (id < 0 || id > 15) fail("%s: there is no barrier %d, only 0 to 15", operation.name, id);
  if (threads <= 0 || threads % 32 != 0) fail("%s %d: %d threads are not whole warps", operation.name, id, threads);
  Arrival arrival{static_cast<u32>(id), static_cast<u32>(threads), waits};
  aligned(operation, u64(id) << 32 | threads, &arrival);
}

void sync_threads() {
  const Block& block = *self->block;
  if (block.alive < block.threads.size()) {
    fail("__syncthreads: %zu threads of the block have exited", block.threads.size() - block.alive);
  }
  Arrival arrival{0, 0, true};
  aligned(kSyncThreads, 0, &arrival);
}

void barrier_sync(int id, int threads) { come(kSync, id, threads, true); }

void barrier_arrive(int id, int threads) {
  come(kArrive, id, threads, false);
  give_way();
}

void barriers_check_exit(Thread& thread) {
  for (const Collective& c : thread.warp->open) {
    if (c.mask >> thread.lane & 1)
      fail("exits while lanes %08x of its warp wait for it at %s", c.arrived, c.operation->name);
  }
  const NamedBarrier& all = thread.block->barriers[0];
  if (all.arrived) fail("exits while %u threads wait at __syncthreads", all.arrived);
}

}  // namespace emu
