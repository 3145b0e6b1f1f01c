// Memory that tells who leaves its bounds.
#pragma once
#include <cstddef>
#include <vector>

#include "types.h"

namespace emu {

// The shared memory of one block. Addresses, as instructions see them, are offsets into one arena:
//
//   0         1024             page                 +page           227 KB in all
//   | faults  | dynamic, poison | canary up to page | faults | arrays of SHARED, each before a canary | faults
//
// Dynamic memory begins on 1024 bytes, as DYN_SMEM says. Everything is `poison` when a block begins.
class SharedMemory {
 public:
  static constexpr size_t kLimit = 227 << 10;  // a block's on sm_90
  static constexpr size_t kStaticLimit = 48 << 10;

  SharedMemory();
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  void begin(size_t dynamic_bytes, u8 poison);
  // Fail where a canary was written over.
  void check_end() const;

  u8* dynamic() const { return arena_ + kReserved; }
  // The array of SHARED that `key` stands for, made when first asked for.
  void* array(const void* key, const char* name, size_t bytes, size_t alignment);

  // The address of a pointer; fails when it points elsewhere, is misaligned, or `bytes` reach out of bounds.
  u32 address(const void* pointer, size_t bytes, size_t alignment, const char* what) const;
  u32 address(const void* pointer) const;
  u8* at(u32 address, size_t bytes, size_t alignment, const char* what) const;
  // Whether a fault's address lies in the arena, and where.
  bool locate(const void* pointer, long* address) const;

  // The asynchronous proxy (bulk copies, wgmma) sees what it wrote itself, and ordinary writes only after a fence. What
  // it has been shown stands in a second copy; `publish_soon` marks that somebody fenced, `publish` shows everything.
  void publish_soon() { publish_pending_ = true; }
  void publish();
  void written_by_copy(u32 address, size_t bytes);
  void check_published(u32 address, size_t bytes, const char* what);

 private:
  static constexpr size_t kReserved = 1024;
  static constexpr size_t kArena = 256 << 10;

  struct Array {
    const void* key;
    const char* name;
    size_t offset;
    size_t bytes;
    size_t end;  // of its canary
  };
  void protect(size_t dynamic_bytes);
  bool inside(size_t offset, size_t bytes) const;

  u8* base_ = nullptr;   // of the mapping
  u8* arena_ = nullptr;  // address 0
  u8* published_ = nullptr;
  bool publish_pending_ = false;
  u8 poison_ = 0;
  size_t dynamic_bytes_ = ~size_t(0);
  size_t statics_ = 0;  // offset at which arrays begin
  size_t static_end_ = 0;
  size_t static_open_ = 0;  // up to where arrays can be accessed
  std::vector<Array> arrays_;
};

// Global memory: each allocation lies right before a page that faults, and is 0xFF when it is new. What is freed faults
// for as long as some thousands of later frees.
void* global_allocate(size_t bytes);
void global_free(void* pointer, size_t bytes);
// Fail when bytes between an allocation's end and its guard page (there are up to 15) were written.
void check_global_canaries();
// Say where `address` lies, for a report; false when it is nobody's.
bool describe_global(const void* address, char* text, size_t text_bytes);

}  // namespace emu
