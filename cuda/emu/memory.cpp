#include "memory.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>

#include "machine.h"

namespace emu {

static const size_t kPage = 4096;
static const u8 kPoison = 0xFF;
static const u8 kCanary = 0x7F;  // NaN or huge in every type, and as an index far outside

static size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

static u8* map_pages(size_t bytes, int protection) {
  void* pages = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) {
    fprintf(stderr, "the emulator cannot map %zu bytes\n", bytes);
    abort();
  }
  return static_cast<u8*>(pages);
}

static bool is_canary(const u8* begin, const u8* end) {
  for (; begin < end; begin++) {
    if (*begin != kCanary) return false;
  }
  return true;
}

// ---- shared memory --------------------------------------------------------------------------------------------------

SharedMemory::SharedMemory() {
  // One page more on either side; dynamic memory begins a page, address 0 lies kReserved before it.
  base_ = map_pages(kArena + 3 * kPage, PROT_NONE);
  arena_ = base_ + 2 * kPage - kReserved;
  published_ = map_pages(kArena + kPage, PROT_READ | PROT_WRITE);
}

SharedMemory::~SharedMemory() {
  munmap(base_, kArena + 3 * kPage);
  munmap(published_, kArena + kPage);
}

void SharedMemory::protect(size_t dynamic_bytes) {
  u8* dynamic_pages = base_ + 2 * kPage;
  size_t open = round_up(dynamic_bytes, kPage);
  mprotect(base_, kArena + 3 * kPage, PROT_NONE);
  if (open) mprotect(dynamic_pages, open, PROT_READ | PROT_WRITE);
  statics_ = static_open_ = dynamic_pages + open + kPage - arena_;
}

void SharedMemory::begin(size_t dynamic_bytes, u8 poison) {
  poison_ = poison;
  if (dynamic_bytes != dynamic_bytes_) protect(dynamic_bytes);
  dynamic_bytes_ = dynamic_bytes;
  memset(dynamic(), poison_, dynamic_bytes);
  memset(dynamic() + dynamic_bytes, kCanary, round_up(dynamic_bytes, kPage) - dynamic_bytes);
  memset(published_, poison_, kReserved + dynamic_bytes);
  publish_pending_ = false;
  arrays_.clear();
  static_end_ = statics_;
}

void* SharedMemory::array(const void* key, const char* name, size_t bytes, size_t alignment) {
  for (const Array& a : arrays_) {
    if (a.key == key) return arena_ + a.offset;
  }
  // Aligned as a pointer and as an address: they differ by a multiple of 1024.
  size_t offset = round_up(static_end_, alignment < 16 ? 16 : alignment);
  size_t end = round_up(offset + bytes, 16) + 64;
  if (dynamic_bytes_ + (offset + bytes - statics_) > kLimit || offset + bytes - statics_ > kStaticLimit) {
    fail("SHARED(%s): %zu bytes of static and %zu of dynamic shared memory are more than a block may have", name,
         offset + bytes - statics_, dynamic_bytes_);
  }
  if (end > static_open_) {
    size_t more = round_up(end - static_open_, kPage);
    mprotect(arena_ + static_open_, more, PROT_READ | PROT_WRITE);
    static_open_ += more;
  }
  memset(arena_ + offset, poison_, bytes);
  memset(arena_ + offset + bytes, kCanary, end - offset - bytes);
  memset(published_ + offset, poison_, bytes);
  arrays_.push_back({key, name, offset, bytes, end});
  static_end_ = end;
  return arena_ + offset;
}

void SharedMemory::check_end() const {
  const u8* end = dynamic() + dynamic_bytes_;
  if (!is_canary(end, dynamic() + round_up(dynamic_bytes_, kPage))) {
    fail("shared memory was written behind its %zu dynamic bytes", dynamic_bytes_);
  }
  for (const Array& a : arrays_) {
    if (!is_canary(arena_ + a.offset + a.bytes, arena_ + a.end)) {
      fail("shared memory was written behind the array %s of %zu bytes", a.name, a.bytes);
    }
  }
}

bool SharedMemory::inside(size_t offset, size_t bytes) const {
  if (offset >= kReserved && offset + bytes <= kReserved + dynamic_bytes_) return true;
  for (const Array& a : arrays_) {
    if (offset >= a.offset && offset + bytes <= a.offset + a.bytes) return true;
  }
  return false;
}

u32 SharedMemory::address(const void* pointer) const {
  size_t offset = static_cast<const u8*>(pointer) - arena_;
  if (offset >= kArena) fail("smem_u32 of a pointer that does not point to shared memory");
  return static_cast<u32>(offset);
}

u32 SharedMemory::address(const void* pointer, size_t bytes, size_t alignment, const char* what) const {
  size_t offset = static_cast<const u8*>(pointer) - arena_;
  if (offset >= kArena) fail("%s: the pointer %p does not point to shared memory", what, pointer);
  at(static_cast<u32>(offset), bytes, alignment, what);
  return static_cast<u32>(offset);
}

u8* SharedMemory::at(u32 address, size_t bytes, size_t alignment, const char* what) const {
  if (!inside(address, bytes)) {
    fail("%s: %zu bytes at shared address %u are out of range (dynamic memory is [%zu, %zu))", what, bytes, address,
         kReserved, kReserved + dynamic_bytes_);
  }
  if (address % alignment) fail("%s: the shared address %u is misaligned, it needs %zu", what, address, alignment);
  return arena_ + address;
}

bool SharedMemory::locate(const void* pointer, long* address) const {
  const u8* p = static_cast<const u8*>(pointer);
  *address = p - arena_;
  return p >= base_ && p < base_ + kArena + 3 * kPage;
}

void SharedMemory::publish() {
  if (!publish_pending_) return;
  publish_pending_ = false;
  memcpy(published_ + kReserved, dynamic(), dynamic_bytes_);
  memcpy(published_ + statics_, arena_ + statics_, static_end_ - statics_);
}

void SharedMemory::written_by_copy(u32 address, size_t bytes) { memcpy(published_ + address, arena_ + address, bytes); }

void SharedMemory::check_published(u32 address, size_t bytes, const char* what) {
  publish();
  if (memcmp(published_ + address, arena_ + address, bytes) != 0) {
    fail("%s reads shared address %u, which was written without fence_proxy_async", what, address);
  }
}

// ---- global memory --------------------------------------------------------------------------------------------------

namespace {

struct Allocation {
  u8* pages;
  size_t mapped;  // with the guard page
  size_t bytes;
  bool freed;
};

struct GlobalMemory {
  std::map<const u8*, Allocation> by_address;  // of its first byte
  std::deque<const u8*> freed;
};

GlobalMemory& global_memory() {
  static GlobalMemory memory;
  return memory;
}

}  // namespace

static const size_t kKeptFreed = 4096;

void* global_allocate(size_t bytes) {
  GlobalMemory& memory = global_memory();
  // Vectors of 16 bytes must be loadable, so what the size lacks to a multiple of 16 lies behind it, as a canary.
  size_t body = round_up(bytes ? bytes : 1, 16);
  size_t open = round_up(body, kPage);
  u8* pages = map_pages(open + kPage, PROT_READ | PROT_WRITE);
  mprotect(pages + open, kPage, PROT_NONE);
  u8* address = pages + open - body;
  memset(pages, kCanary, open - body);
  memset(address, kPoison, bytes);
  memset(address + bytes, kCanary, body - bytes);
  memory.by_address[address] = {pages, open + kPage, bytes, false};
  return address;
}

void global_free(void* pointer, size_t) {
  GlobalMemory& memory = global_memory();
  auto found = memory.by_address.find(static_cast<u8*>(pointer));
  if (found == memory.by_address.end() || found->second.freed) return;
  Allocation& a = found->second;
  a.freed = true;
  // Nothing remains but the addresses, which fault.
  mmap(a.pages, a.mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  memory.freed.push_back(found->first);
  if (memory.freed.size() > kKeptFreed) {
    auto oldest = memory.by_address.find(memory.freed.front());
    munmap(oldest->second.pages, oldest->second.mapped);
    memory.by_address.erase(oldest);
    memory.freed.pop_front();
  }
}

void check_global_canaries() {
  for (const auto& [address, a] : global_memory().by_address) {
    if (a.freed) continue;
    u8* before = const_cast<u8*>(address - a.pages > 64 ? address - 64 : a.pages);
    u8* behind = const_cast<u8*>(address + a.bytes);
    u8* end = a.pages + a.mapped - kPage;
    bool early = !is_canary(before, address), late = !is_canary(behind, end);
    if (!early && !late) continue;
    memset(before, kCanary, address - before);  // it is told once, and not of the launches that follow
    memset(behind, kCanary, end - behind);
    fail("global memory was written %s a tensor of %zu bytes", early ? "before" : "behind", a.bytes);
  }
}

bool describe_global(const void* pointer, char* text, size_t text_bytes) {
  const u8* p = static_cast<const u8*>(pointer);
  const auto& all = global_memory().by_address;
  auto next = all.upper_bound(p);
  if (next != all.begin()) {
    auto [address, a] = *std::prev(next);
    if (p < a.pages + a.mapped) {
      if (a.freed) {
        snprintf(text, text_bytes, "use after free: byte %td of a tensor of %zu bytes that was freed", p - address,
                 a.bytes);
      } else {
        snprintf(text, text_bytes, "out of bounds: %td bytes behind the end of a tensor of %zu bytes",
                 p - address - static_cast<ptrdiff_t>(a.bytes), a.bytes);
      }
      return true;
    }
  }
  if (next != all.end() && p >= next->second.pages) {
    snprintf(text, text_bytes, "out of bounds: %td bytes before a tensor of %zu bytes", next->first - p,
             next->second.bytes);
    return true;
  }
  return false;
}

}  // namespace emu
