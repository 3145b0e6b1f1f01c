// Bulk copies (TMA): whole boxes of a tensor, moved by one thread's instruction, counted in bytes by an mbarrier.
//
// Late, a load lands only when every thread is blocked, one load after the other; in the orders of chance also now and
// then before. Early, it lands at once. A store reads shared memory when it is waited for, or at once. Both belong to
// the asynchronous proxy: what a store reads, ordinary instructions must have written before a fence_proxy_async.
#include <cstring>

#include "operations.h"

namespace emu {

// ---- tensor maps ----------------------------------------------------------------------------------------------------

// https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__TENSOR__MEMORY.html
int tensor_map_encode(TensorMap* map, int element_bytes, u32 rank, const void* address, const u64* dims,
                      const u64* strides, const u32* box, int swizzle_bytes) {
  TensorMap made{};
  bool known_swizzle = swizzle_bytes == 0 || swizzle_bytes == 32 || swizzle_bytes == 64 || swizzle_bytes == 128;
  bool known_element = element_bytes == 1 || element_bytes == 2 || element_bytes == 4 || element_bytes == 8;
  if (rank < 1 || rank > 4 || !known_swizzle || !known_element) return 1;
  if (reinterpret_cast<uintptr_t>(address) % 16 != 0) return 1;
  u64 inner_bytes = u64(box[0]) * element_bytes;
  if (inner_bytes % 16 != 0 || (swizzle_bytes && inner_bytes > u64(swizzle_bytes))) return 1;
  for (u32 i = 0; i < rank; i++) {
    if (dims[i] == 0 || dims[i] > 1ull << 32 || box[i] == 0 || box[i] > 256) return 1;
    made.dims[i] = dims[i];
    made.box[i] = box[i];
  }
  for (u32 i = 0; i + 1 < rank; i++) {
    if (strides[i] % 16 != 0 || strides[i] >= 1ull << 40) return 1;
    made.strides[i] = strides[i];
  }
  made.address = reinterpret_cast<uintptr_t>(address);
  made.rank = rank;
  made.element_bytes = element_bytes;
  made.swizzle_bytes = swizzle_bytes;
  made.signature = TensorMap::kSignature;
  memcpy(map, &made, sizeof made);
  return 0;
}

void tensor_map_check(const TensorMap* map) {
  bool aligned = reinterpret_cast<uintptr_t>(map) % alignof(TensorMap) == 0;
  if (!aligned || map->signature != TensorMap::kSignature)
    fail("what lies at %p is not a tensor map", static_cast<const void*>(map));
}

static u32 box_bytes(const TensorMap& map) {
  u32 bytes = map.element_bytes;
  for (int i = 0; i < map.rank; i++) bytes *= map.box[i];
  return bytes;
}

// Within each 128 bytes the 16-byte units change places: the number of the unit is xored with that of the row, of as
// many bits as the swizzle has units (32 bytes: 1 bit, 64: 2, 128: 3). Rows are 128 bytes of address, whatever the
// tile's are.
u32 swizzled(u32 address, u32 swizzle_bytes) {
  u32 units = swizzle_bytes / 16;
  return units ? address ^ (address >> 7 & (units - 1)) << 4 : address;
}

// Call `move(global address, offset in the box)` for each element of the box that lies in the tensor, and
// `outside(offset)` for each that does not.
template <class Move, class Outside>
static void for_each_element(const TensorMap& map, const int* at, Move move, Outside outside) {
  u32 index[4] = {};
  u32 elements = box_bytes(map) / map.element_bytes;
  for (u32 i = 0; i < elements; i++) {
    bool inside = true;
    u64 address = map.address;
    for (int dim = 0; dim < map.rank; dim++) {
      long place = long(at[dim]) + index[dim];
      inside = inside && place >= 0 && place < long(map.dims[dim]);
      address += place * (dim ? map.strides[dim - 1] : map.element_bytes);
    }
    if (inside) {
      move(reinterpret_cast<u8*>(address), i * map.element_bytes);
    } else {
      outside(i * map.element_bytes);
    }
    for (int dim = 0; dim < map.rank && ++index[dim] == map.box[dim]; dim++) index[dim] = 0;
  }
}

// ---- loads ----------------------------------------------------------------------------------------------------------

static void land(Block& block, const BulkLoad& load) {
  Thread* running = self;
  self = load.issuer;  // to whom a fault is due
  u8* to = block.shared.at(load.to, load.bytes, 16, "a bulk copy");
  if (load.map.rank == 0) {
    memcpy(to, load.from, load.bytes);
  } else {
    u32 bytes = load.map.element_bytes;
    auto place = [&](u32 offset) { return to - load.to + swizzled(load.to + offset, load.map.swizzle_bytes); };
    for_each_element(
        load.map, load.at, [&](const u8* from, u32 offset) { memcpy(place(offset), from, bytes); },
        [&](u32 offset) { memset(place(offset), 0, bytes); });
  }
  block.shared.written_by_copy(load.to, load.bytes);
  mbarrier_receive(block, load.mbarrier, load.bytes);
  self = running;
}

static void start(BulkLoad& load, u64* barrier, const char* what) {
  Block& block = *self->block;
  load.issuer = self;
  load.mbarrier = block.shared.address(barrier, 8, 8, what);
  if (!mbarrier_at(block, load.mbarrier).seen_by_copies) {
    fail("%s: the mbarrier at shared address %u was made without mbar_fence_init", what, load.mbarrier);
  }
  if (machine().options.late) {
    block.loads.push_back(load);
  } else {
    land(block, load);
    give_way();
  }
}

bool land_a_load(Block& block) {
  if (block.loads.empty()) return false;
  size_t which = 0;
  if (machine().options.order == Order::kReverse) which = block.loads.size() - 1;
  if (machine().schedule.is_random()) which = machine().schedule.random() % block.loads.size();
  BulkLoad load = block.loads[which];
  block.loads.erase(block.loads.begin() + which);
  land(block, load);
  return true;
}

void bulk_load(void* to, const void* from, u32 bytes, u64* barrier) {
  BulkLoad load{};
  load.to = self->block->shared.address(to, bytes, 16, "tma_load_1d");
  load.from = from;
  load.bytes = bytes;
  if (bytes == 0 || bytes % 16 != 0) fail("tma_load_1d: %u bytes are not a multiple of 16", bytes);
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) fail("tma_load_1d: the global address %p is misaligned", from);
  start(load, barrier, "tma_load_1d");
}

static void need_rank(const TensorMap& map, int rank, const char* what) {
  if (map.rank != rank) fail("%s: %d coordinates for a tensor map of %d dimensions", what, rank, map.rank);
}

void bulk_load_box(void* to, const TensorMap* map, u64* barrier, int rank, const int* at) {
  tensor_map_check(map);
  need_rank(*map, rank, "tma_load");
  BulkLoad load{};
  load.map = *map;
  load.bytes = box_bytes(*map);
  load.to = self->block->shared.address(to, load.bytes, 128, "tma_load");
  for (int i = 0; i < rank; i++) load.at[i] = at[i];
  start(load, barrier, "tma_load");
}

// ---- stores ---------------------------------------------------------------------------------------------------------

static void write(const BulkStore& store) {
  SharedMemory& shared = self->block->shared;
  u32 bytes = store.map.rank ? box_bytes(store.map) : store.bytes;
  shared.check_published(store.from, bytes, "tma_store");
  const u8* from = shared.at(store.from, bytes, 16, "tma_store");
  if (store.map.rank == 0) {
    memcpy(store.to, from, bytes);
    return;
  }
  for_each_element(
      store.map, store.at,
      [&](u8* to, u32 offset) {
        memcpy(to, from - store.from + swizzled(store.from + offset, store.map.swizzle_bytes), store.map.element_bytes);
      },
      [](u32) {});
}

static void start(BulkStore& store) {
  store.group = self->store_group;
  if (machine().options.late) {
    self->stores.push_back(store);
  } else {
    write(store);
    give_way();
  }
}

void bulk_store(void* to, const void* from, u32 bytes) {
  BulkStore store{};
  store.from = self->block->shared.address(from, bytes, 16, "tma_store_1d");
  store.to = to;
  store.bytes = bytes;
  if (bytes == 0 || bytes % 16 != 0) fail("tma_store_1d: %u bytes are not a multiple of 16", bytes);
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0) fail("tma_store_1d: the global address %p is misaligned", to);
  start(store);
}

void bulk_store_box(const TensorMap* map, const void* from, int rank, const int* at) {
  tensor_map_check(map);
  need_rank(*map, rank, "tma_store");
  BulkStore store{};
  store.map = *map;
  store.from = self->block->shared.address(from, box_bytes(*map), 128, "tma_store");
  for (int i = 0; i < rank; i++) store.at[i] = at[i];
  start(store);
}

void bulk_store_commit() { self->store_group++; }

void bulk_store_wait(u64 newest) {
  std::vector<BulkStore>& stores = self->stores;
  auto first = stores.begin();
  for (; first != stores.end() && first->group + newest < self->store_group; first++) write(*first);
  stores.erase(stores.begin(), first);
}

void stores_check_exit(Thread& thread) {
  if (!thread.stores.empty()) fail("exits with %zu bulk stores that it never waited for", thread.stores.size());
}

}  // namespace emu
