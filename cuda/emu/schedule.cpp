// Who runs next. Four orders, because a race shows in one and hides in another:
//
// - forward: always the first warp that can run, its first lane first; reverse: the last of both. A warp runs as far
// ahead
//   of the others as the barriers let it.
// - random: any ready thread.
// - priority: warps have random priorities and the highest runs, until one of them, now and then, gets another. Most
// races
//   need two or three things in an unlucky order, and this finds those far sooner than uniform chance does ("A
//   Randomized Scheduler with Probabilistic Guarantees of Finding Bugs", https://doi.org/10.1145/1736020.1736040).
#include <algorithm>

#include "machine.h"

namespace emu {

static const u32 kChangeOneIn = 512;

void Schedule::begin(Order order, u32 seed) {
  order_ = order;
  state_ = seed * 2654435761u + 1;
  if (!state_) state_ = 1;
  warps_.clear();
}

void Schedule::add(Block& block) {
  for (Warp& warp : block.warps) {
    warp.priority = random();
    warps_.push_back(&warp);
  }
}

void Schedule::remove(Block& block) {
  auto of_block = [&](const Warp* warp) { return warp->block == &block; };
  warps_.erase(std::remove_if(warps_.begin(), warps_.end(), of_block), warps_.end());
}

u32 Schedule::random() {  // xorshift32
  state_ ^= state_ << 13;
  state_ ^= state_ >> 17;
  state_ ^= state_ << 5;
  return state_;
}

bool Schedule::coin() { return is_random() && (random() >> 16 & 1); }

u32 Schedule::choose_lane(u32 ready) {
  switch (order_) {
    case Order::kForward:
      return __builtin_ctz(ready);
    case Order::kReverse:
      return 31 - __builtin_clz(ready);
    default: {
      u32 turn = random() >> 8 & 31;
      u32 turned = turn ? ready >> turn | ready << (32 - turn) : ready;
      return (__builtin_ctz(turned) + turn) & 31;
    }
  }
}

Thread* Schedule::next() {
  if (order_ == Order::kPriority && !warps_.empty() && random() % kChangeOneIn == 0) {
    shuffle(*warps_[random() % warps_.size()]);
  }
  Warp* chosen = nullptr;
  u32 ready = 0;
  for (Warp* warp : warps_) {
    if (!warp->ready) continue;
    ready++;
    bool better = !chosen;
    if (order_ == Order::kReverse) better = true;
    if (order_ == Order::kRandom) better = random() % ready == 0;  // each of those seen so far is as likely
    if (order_ == Order::kPriority) better = !chosen || warp->priority > chosen->priority;
    if (better) chosen = warp;
  }
  if (!chosen) return nullptr;
  u32 lane = choose_lane(chosen->ready);
  chosen->ready &= ~(1u << lane);
  return chosen->threads[lane];
}

}  // namespace emu
