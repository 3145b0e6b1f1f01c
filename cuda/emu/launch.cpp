// The loop of a launch: blocks become resident, threads take turns, faults and failures end it.
#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <numeric>

#include "machine.h"

namespace emu {

Thread* self = nullptr;
dim3 grid_dim;
dim3 block_dim;

Machine& machine() {
  static Machine the_machine;
  return the_machine;
}

static const size_t kResidentAtRandom = 3;  // blocks whose threads interleave, in the orders of chance

namespace {

struct Launch {
  Entry entry = nullptr;
  void* context = nullptr;
  size_t shared_bytes = 0;
  std::vector<u32> waiting;  // blocks that have not begun, the next one last
  std::vector<std::unique_ptr<Block>> resident;
  bool failed = false;
  sigjmp_buf fault;
};
Launch launch;

}  // namespace

Block::Block(size_t number_of_threads) : threads(number_of_threads), warps((number_of_threads + 31) / 32) {}

// ---- turns ----------------------------------------------------------------------------------------------------------

static void run_thread(Fiber& from, Thread& next) {
  machine().events++;
  self = &next;
  next.wait = {};
  from.switch_to(next.fiber);
}

// The next thread to run. When all are blocked, what is late can be late no longer: copies land, one by one.
static Thread* next_thread() {
  Schedule& schedule = machine().schedule;
  if (machine().options.late && schedule.is_random() && schedule.random() % 64 == 0) {
    for (auto& block : launch.resident) {
      if (schedule.coin()) land_a_load(*block);
    }
  }
  for (;;) {
    if (Thread* thread = schedule.next()) return thread;
    bool landed = false;
    for (auto& block : launch.resident) landed = land_a_load(*block) || landed;
    if (!landed) return nullptr;
  }
}

void suspend(const Wait& wait) {
  Thread& me = *self;
  me.wait = wait;
  Thread* next = next_thread();
  if (next == &me) {
    me.wait = {};
    self = &me;
    return;
  }
  if (!next) fail_deadlock(launch.resident);
  run_thread(me.fiber, *next);
}

void make_ready(Thread& thread) { thread.warp->ready |= 1u << thread.lane; }

void give_way() {
  Schedule& schedule = machine().schedule;
  if (!schedule.coin()) return;
  if (schedule.coin()) schedule.shuffle(*self->warp);
  make_ready(*self);
  suspend({});
}

void abandon() {
  launch.failed = true;
  siglongjmp(launch.fault, 1);
}

static void thread_main() {
  launch.entry(launch.context);
  Thread& me = *self;
  Block& mine = *me.block;
  barriers_check_exit(me);
  stores_check_exit(me);
  me.exited = true;
  me.copies.clear();
  me.warp->exited |= 1u << me.lane;
  if (me.warp->exited == me.warp->lanes) products_check_exit(*me.warp);
  mine.alive--;
  if (mine.alive > 0) {
    Thread* next = next_thread();
    if (!next) fail_deadlock(launch.resident);
    run_thread(me.fiber, *next);
  }
  me.fiber.switch_to(machine().main);  // the block is over: the main loop looks after it
  abort();
}

// ---- blocks ---------------------------------------------------------------------------------------------------------

static void begin_block(Block& block, u32 number, size_t first_stack) {
  block.index = {number % grid_dim.x, number / grid_dim.x % grid_dim.y, number / grid_dim.x / grid_dim.y};
  // NaN in every type; or, in the orders of chance, a number that is huge in most and whose bits are not all set.
  block.shared.begin(launch.shared_bytes, machine().schedule.is_random() ? 0x7F : 0xFF);
  block.alive = block.threads.size();
  for (NamedBarrier& barrier : block.barriers) barrier = {};
  block.mbarriers.clear();
  block.loads.clear();
  for (size_t w = 0; w < block.warps.size(); w++) {
    block.warps[w] = {};
    block.warps[w].block = &block;
    block.warps[w].number = w;
  }
  for (u32 i = 0; i < block.threads.size(); i++) {
    Thread& thread = block.threads[i];
    Warp& warp = block.warps[i / 32];
    thread = {};
    thread.index = {i % block_dim.x, i / block_dim.x % block_dim.y, i / block_dim.x / block_dim.y};
    thread.number = i;
    thread.lane = i % 32;
    thread.warp = &warp;
    thread.block = &block;
    thread.fiber.prepare(machine().stacks.top(first_stack + i), thread_main);
    warp.threads[thread.lane] = &thread;
    warp.lanes |= 1u << thread.lane;
  }
  for (Warp& warp : block.warps) warp.ready = warp.lanes;
}

// Put blocks where there is room. One at a time in the fixed orders, so that what runs is easy to follow; several in
// the orders of chance, so that what blocks do to each other through global memory shows.
static void fill() {
  Schedule& schedule = machine().schedule;
  size_t room = schedule.is_random() ? kResidentAtRandom : 1;
  size_t threads = block_dim.x * block_dim.y * block_dim.z;
  for (size_t place = 0; place < room && !launch.waiting.empty(); place++) {
    if (place == launch.resident.size()) launch.resident.push_back(std::make_unique<Block>(threads));
    Block& block = *launch.resident[place];
    if (block.alive > 0) continue;
    begin_block(block, launch.waiting.back(), place * threads);
    launch.waiting.pop_back();
    schedule.add(block);
  }
}

static void end_block(Block& block) {
  self = &block.threads[0];
  mbarriers_check_end(block);
  products_check_end(block);
  block.shared.check_end();
  machine().schedule.remove(block);
}

static void run_blocks() {
  for (;;) {
    fill();
    Thread* next = next_thread();
    if (!next) break;
    run_thread(machine().main, *next);
    end_block(*self->block);  // of which `self` was the last to exit
  }
  check_global_canaries();
}

// ---- faults ---------------------------------------------------------------------------------------------------------

static void on_fault(int signal, siginfo_t* info, void* context) {
  const ucontext_t* at = static_cast<const ucontext_t*>(context);
  describe_fault(signal, info->si_addr, reinterpret_cast<const void*>(at->uc_mcontext.gregs[REG_RIP]));
  launch.failed = true;
  siglongjmp(launch.fault, 1);
}

namespace {

// The handlers of faults, on a stack of their own, for as long as a launch runs.
class Faults {
 public:
  Faults() : stack_(64 << 10) {
    stack_t stack{};
    stack.ss_sp = stack_.data();
    stack.ss_size = stack_.size();
    sigaltstack(&stack, &old_stack_);
    struct sigaction action{};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < kSignals; i++) sigaction(signals_[i], &action, &old_[i]);
  }
  ~Faults() {
    for (int i = 0; i < kSignals; i++) sigaction(signals_[i], &old_[i], nullptr);
    sigaltstack(&old_stack_, nullptr);
  }

 private:
  static constexpr int kSignals = 4;
  const int signals_[kSignals] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
  std::vector<char> stack_;
  stack_t old_stack_{};
  struct sigaction old_[kSignals];
};

}  // namespace

static const char* refusal(const u32* grid, const u32* block, size_t shared_bytes) {
  u64 threads = u64(block[0]) * block[1] * block[2];
  if (threads == 0 || threads > 1024 || block[2] > 64) return "a block has 1 to 1024 threads";
  if (u64(grid[0]) * grid[1] * grid[2] == 0 || grid[1] > 65535 || grid[2] > 65535)
    return "the grid's size is not allowed";
  if (shared_bytes > SharedMemory::kLimit) return "a block has at most 232448 bytes of shared memory";
  return nullptr;
}

int run(Entry entry, void* context, const u32* grid, const u32* block, size_t shared_bytes, char* error,
        int error_bytes) {
  Machine& m = machine();
  if (const char* why = refusal(grid, block, shared_bytes)) {
    snprintf(error, error_bytes, "%s: grid (%u, %u, %u), block (%u, %u, %u), %zu bytes of shared memory", why, grid[0],
             grid[1], grid[2], block[0], block[1], block[2], shared_bytes);
    return 1;
  }
  grid_dim = dim3(grid[0], grid[1], grid[2]);
  if (block_dim.x * block_dim.y * block_dim.z != block[0] * block[1] * block[2]) launch.resident.clear();
  block_dim = dim3(block[0], block[1], block[2]);
  m.schedule.begin(m.options.order, m.options.seed);
  m.events = 0;
  launch.entry = entry;
  launch.context = context;
  launch.shared_bytes = shared_bytes;
  launch.failed = false;
  launch.waiting.resize(grid[0] * grid[1] * grid[2]);
  std::iota(launch.waiting.rbegin(), launch.waiting.rend(), 0);
  if (m.options.order == Order::kReverse) std::iota(launch.waiting.begin(), launch.waiting.end(), 0);
  if (m.schedule.is_random()) {
    for (size_t i = launch.waiting.size(); i > 1; i--)
      std::swap(launch.waiting[i - 1], launch.waiting[m.schedule.random() % i]);
  }
  for (auto& resident : launch.resident) resident->alive = 0;
  forget_failure();

  Faults faults;
  if (sigsetjmp(launch.fault, 1) == 0) run_blocks();
  self = nullptr;
  if (!launch.failed) return 0;
  snprintf(error, error_bytes, "%s", failure());
  launch.resident.clear();
  return 2;
}

}  // namespace emu
