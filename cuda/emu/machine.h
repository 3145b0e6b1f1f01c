// The emulated machine: threads in warps in blocks, and who runs next.
//
// Every CUDA thread is a fiber, and one fiber runs at a time until it blocks (a barrier, a warp collective, an
// mbarrier) or gives way. A block is an object with all its state in it (shared memory, barriers, copies under way), so
// that several blocks can be resident and their threads interleave. Everything runs on the one thread that called
// `emu::run`.
#pragma once
#include <vector_types.h>

#include <memory>
#include <vector>

#include "fiber.h"
#include "memory.h"
#include "types.h"

namespace emu {

struct Block;
struct Warp;

enum class Order { kForward, kReverse, kRandom, kPriority };

struct Options {
  bool late = true;  // whether asynchronous work is done at the latest legal moment, or at once
  Order order = Order::kForward;
  u32 seed = 1;
};

// What a blocked thread waits for, kept for the report of a deadlock.
struct Wait {
  enum What { kNothing, kCollective, kBarrier, kMbarrier } what = kNothing;
  const char* name = "";
  u32 place = 0;   // the barrier's number, the mbarrier's address
  u32 parity = 0;  // of the phase, for an mbarrier
};

// One cp.async that has not landed.
struct AsyncCopy {
  void* to;
  const void* from;  // null: zeros
  u64 group;
};

// One bulk store that has not read its source.
struct BulkStore {
  TensorMap map;
  u32 from;
  void* to;  // of a store without a map
  u32 bytes;
  int at[4];
  u64 group;
};

struct Thread {
  Fiber fiber;
  uint3 index;
  u32 number;  // in the block
  u32 lane;
  Warp* warp = nullptr;
  Block* block = nullptr;
  bool exited = false;
  Wait wait;
  std::vector<AsyncCopy> copies;
  u64 copy_group = 0;
  std::vector<BulkStore> stores;
  u64 store_group = 0;
};

// What a warp's lanes do together. The last lane to arrive runs it for all of them, through what each has brought.
struct Operation {
  const char* name;
  // Returns whether the lanes go on; if not, they stay blocked until somebody makes them ready.
  bool (*run)(void* const* brought, u32 mask, Warp& warp);
};

// An operation for which some lanes still wait. Several of disjoint masks may be open in one warp.
struct Collective {
  const Operation* operation;
  u64 key;
  u32 mask;
  u32 arrived;
  void* brought[32];
};

// One wgmma of one warp that has not been computed.
struct Product {
  WgmmaKind kind;
  int columns;
  u64 a, b;
  bool a_in_registers;
  u32 a_registers[32][4];
  bool transposed_b;
  bool accumulates;
  u64 a_digest;  // of all 64 rows when it was issued
  float* d[32];
  u64 group;
};

struct Warp {
  Block* block = nullptr;
  u32 number = 0;
  Thread* threads[32] = {};
  u32 lanes = 0;  // that exist
  u32 exited = 0;
  u32 ready = 0;
  u32 priority = 0;
  std::vector<Collective> open;

  std::vector<Product> products;
  u64 product_group = 0;
  bool registers_fenced = false;
  u64 products_issued = 0;
  u64 products_digest = 0;
};

// A hardware barrier, bar.sync's and bar.arrive's; number 0 is __syncthreads'.
struct NamedBarrier {
  u32 expected = 0;
  u32 arrived = 0;
  std::vector<const Warp*> who;
  std::vector<Warp*> waiting;
};

struct Mbarrier {
  u32 count;
  u32 pending;  // arrivals that the phase still needs
  long bytes;   // expected less received
  u64 phase = 0;
  bool seen_by_copies = false;
  const Thread* creator;
  u64 word = 0;  // what stands in shared memory, to notice who writes over it
  std::vector<Thread*> waiting;
};

// One bulk load that has not landed.
struct BulkLoad {
  Thread* issuer;
  TensorMap map;  // rank 0: a plain copy
  const void* from;
  u32 to;
  u32 bytes;
  u32 mbarrier;
  int at[4];
};

struct Block {
  explicit Block(size_t number_of_threads);

  uint3 index{};
  SharedMemory shared;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  u32 alive = 0;
  NamedBarrier barriers[16];
  std::vector<std::pair<u32, Mbarrier>> mbarriers;
  std::vector<BulkLoad> loads;
};

// Whose turn it is.
class Schedule {
 public:
  void begin(Order order, u32 seed);
  void add(Block& block);
  void remove(Block& block);
  // Take a ready thread; null when there is none.
  Thread* next();
  u32 random();
  // A coin, of the orders that are random; false for the others.
  bool coin();
  bool is_random() const { return order_ == Order::kRandom || order_ == Order::kPriority; }
  // Have the warp stand elsewhere in the order of priorities.
  void shuffle(Warp& warp) { warp.priority = random(); }

 private:
  u32 choose_lane(u32 ready);
  Order order_ = Order::kForward;
  u32 state_ = 1;
  std::vector<Warp*> warps_;
};

// The thread that runs.
extern Thread* self;
extern dim3 grid_dim;
extern dim3 block_dim;

// ---- launch.cpp: the loop -------------------------------------------------------------------------------------------

struct Machine {
  Options options;
  Schedule schedule;
  Fiber main;
  Stacks stacks;
  u64 events = 0;
};
Machine& machine();

// Stop running until somebody makes this thread ready.
void suspend(const Wait& wait);
// Let others run now and then, where an order of chance is on: called behind whatever tells others something.
void give_way();
void make_ready(Thread& thread);
// Go back to the main loop for good: the launch has failed.
[[noreturn]] void abandon();

using Entry = void (*)(void* context);
int run(Entry entry, void* context, const u32* grid, const u32* block, size_t shared_bytes, char* error,
        int error_bytes);

// ---- report.cpp: what went wrong, and where -------------------------------------------------------------------------

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
// The text of the failure: block, thread and what it did.
const char* failure();
void describe_fault(int signal, const void* address, const void* instruction);
// Compose the report of a deadlock: who waits for what.
[[noreturn]] void fail_deadlock(const std::vector<std::unique_ptr<Block>>& blocks);
void forget_failure();

// ---- warp.cpp -------------------------------------------------------------------------------------------------------

// Meet the other lanes of `mask` at `operation`; `key` must be equal among them.
void collective(u32 mask, const Operation& operation, u64 key, void* brought);
// The same of the whole warp, none of whose lanes may have exited.
void aligned(const Operation& operation, u64 key, void* brought);

// ---- barrier.cpp, mbarrier.cpp, bulk.cpp, async_copy.cpp, wgmma.cpp: what happens when ------------------------------

void barriers_check_exit(Thread& thread);
Mbarrier& mbarrier_at(Block& block, u32 address);
void mbarrier_receive(Block& block, u32 address, u32 bytes);
void mbarriers_check_end(Block& block);
// Land one load of those under way; false when there is none.
bool land_a_load(Block& block);
void stores_check_exit(Thread& thread);
void products_check_exit(Warp& warp);
void products_check_end(Block& block);

}  // namespace emu
