// wgmma: 64 x N products of a warpgroup, asynchronous.
//
// A warp computes its own 16 of the 64 rows, when it waits for the group (late) or at once (early; in the orders of
// chance either). Late, operands in shared memory are read and the accumulators written at the wait: who releases a
// tile or reads a result before it, does so too early. Each of a warpgroup's four warps must issue the same products,
// which is checked when the block ends.
#include <cstring>

#include "operations.h"

namespace emu {

// ---- operands in shared memory --------------------------------------------------------------------------------------

namespace {

// A matrix descriptor, taken apart. PTX ISA, "Matrix descriptor format".
struct Descriptor {
  u32 start;
  u32 leading_bytes;
  u32 stride_bytes;
  u32 swizzle_bytes;

  explicit Descriptor(u64 bits)
      : start((bits & 0x3FFF) << 4),
        leading_bytes((bits >> 16 & 0x3FFF) << 4),
        stride_bytes((bits >> 32 & 0x3FFF) << 4) {
    static const u32 kSwizzles[] = {0, 128, 64, 32};
    swizzle_bytes = kSwizzles[bits >> 62];
    if (bits >> 49 & 7) fail("wgmma: a descriptor's base offset is not 0");
    // The pattern repeats every 8 rows of the tile; a tile begins with the first of them.
    if (swizzle_bytes && start % (8 * swizzle_bytes) >= swizzle_bytes) {
      fail("wgmma: a %u-byte swizzle begins at shared address %u, in the middle of its pattern", swizzle_bytes, start);
    }
  }

  // Where 16 bytes along K begin, of a row of a K-major operand; `k_byte` is a multiple of 16.
  u32 along_k(u32 row, u32 k_byte) const {
    u32 group = row / 8 * stride_bytes;
    if (!swizzle_bytes) return start + group + row % 8 * 16 + k_byte / 16 * leading_bytes;
    if (start % swizzle_bytes + k_byte >= swizzle_bytes) {
      fail("wgmma: K reaches over the end of a row of %u bytes, from shared address %u", swizzle_bytes, start);
    }
    return swizzled(start + group + row % 8 * swizzle_bytes + k_byte, swizzle_bytes);
  }

  // Where 16 bytes along M or N begin, of one k of an MN-major operand; `mn_byte` is a multiple of 16.
  u32 along_mn(u32 k, u32 mn_byte) const {
    if (!swizzle_bytes) return start + mn_byte / 16 * stride_bytes + k % 8 * 16 + k / 8 * leading_bytes;
    if (start % swizzle_bytes + mn_byte % swizzle_bytes >= swizzle_bytes) {
      fail("wgmma: M or N reaches over the end of a row of %u bytes, from shared address %u", swizzle_bytes, start);
    }
    return swizzled(start + mn_byte / swizzle_bytes * leading_bytes + mn_byte % swizzle_bytes + k % 8 * swizzle_bytes +
                        k / 8 * stride_bytes,
                    swizzle_bytes);
  }
};

constexpr int kMostK = 32;
constexpr int kMostN = 256;

struct Tile {
  float a[16][kMostK];
  float b[kMostK][kMostN];
  float sum[16][kMostN];
};

}  // namespace

static const u8* chunk(SharedMemory& shared, u32 address) {
  const u8* at = shared.at(address, 16, 16, "wgmma");
  shared.check_published(address, 16, "wgmma");
  return at;
}

// The numbers of 16 bytes; how many there are.
static int convert(WgmmaKind kind, const u8* from, float* to) {
  switch (kind) {
    case BF16:
      for (int e = 0; e < 8; e++) to[e] = element(BF16, from + 2 * e);
      return 8;
    case F16:
      for (int e = 0; e < 8; e++) to[e] = element(F16, from + 2 * e);
      return 8;
    default:
      for (int e = 0; e < 16; e++) to[e] = element(E4M3, from + e);
      return 16;
  }
}

static int k_extent(WgmmaKind kind) { return kind == E4M3 ? 32 : 16; }
static int element_bytes(WgmmaKind kind) { return kind == E4M3 ? 1 : 2; }

static void gather_a(Tile& tile, const Product& product, Warp& warp) {
  int bytes = element_bytes(product.kind), in_register = 4 / bytes;
  if (product.a_in_registers) {
    for (int lane = 0; lane < 32; lane++) {
      int g = lane / 4, t = lane % 4;
      for (int r = 0; r < 4; r++) {
        for (int e = 0; e < in_register; e++) {
          int row = g + 8 * (r % 2), k = r / 2 * 4 * in_register + t * in_register + e;
          tile.a[row][k] =
              element(product.kind, reinterpret_cast<const u8*>(&product.a_registers[lane][r]) + e * bytes);
        }
      }
    }
    return;
  }
  Descriptor a(product.a);
  for (int row = 0; row < 16; row++) {
    for (int half = 0; half < 2; half++) {
      const u8* from = chunk(warp.block->shared, a.along_k(16 * (warp.number % 4) + row, 16 * half));
      convert(product.kind, from, &tile.a[row][half * k_extent(product.kind) / 2]);
    }
  }
}

static void gather_b(Tile& tile, const Product& product, Warp& warp) {
  SharedMemory& shared = warp.block->shared;
  Descriptor b(product.b);
  if (product.transposed_b) {
    for (int k = 0; k < k_extent(product.kind); k++) {
      for (int n = 0; n < product.columns;)
        n += convert(product.kind, chunk(shared, b.along_mn(k, 2 * n)), &tile.b[k][n]);
    }
    return;
  }
  for (int n = 0; n < product.columns; n++) {
    for (int half = 0; half < 2; half++) {
      float numbers[16];
      int count = convert(product.kind, chunk(shared, b.along_k(n, 16 * half)), numbers);
      for (int e = 0; e < count; e++) tile.b[half * count + e][n] = numbers[e];
    }
  }
}

// A digest of the left operand, of the whole warpgroup's rows: nobody may write them before every warp has waited, even
// though a warp here reads its own only.
static u64 digest_a(const Product& product, Warp& warp) {
  u64 digest = 0xCBF29CE484222325ull;
  if (product.a_in_registers) return digest;
  Descriptor a(product.a);
  for (int row = 0; row < 64; row++) {
    for (int half = 0; half < 2; half++) {
      u64 words[2];
      memcpy(words, warp.block->shared.at(a.along_k(row, 16 * half), 16, 16, "wgmma"), 16);
      digest = (((digest ^ words[0]) * 0x100000001B3ull) ^ words[1]) * 0x100000001B3ull;
    }
  }
  return digest;
}

static void compute(const Product& product, Warp& warp) {
  static Tile tile;
  if (digest_a(product, warp) != product.a_digest) fail("wgmma: its left operand was written while it was under way");
  gather_a(tile, product, warp);
  gather_b(tile, product, warp);
  for (int row = 0; row < 16; row++) {
    for (int first = 0; first < product.columns; first += 8) {
      float sum[8] = {};
      for (int k = 0; k < k_extent(product.kind); k++) {
        for (int n = 0; n < 8; n++) sum[n] += tile.a[row][k] * tile.b[k][first + n];
      }
      memcpy(&tile.sum[row][first], sum, sizeof sum);
    }
  }
  for (int lane = 0; lane < 32; lane++) {
    for (int i = 0; i < product.columns / 2; i++) {
      int row = lane / 4 + 8 * (i / 2 % 2), column = i / 4 * 8 + 2 * (lane % 4) + i % 2;
      float& d = product.d[lane][i];
      d = (product.accumulates ? d : 0) + tile.sum[row][column];
    }
  }
}

// ---- issue, commit, wait --------------------------------------------------------------------------------------------

namespace {

struct Issued {
  Product product;  // of which every lane brings its own registers
  const u32* a_registers;
  float* d;
};

}  // namespace

static void digest(Warp& warp, u64 value) { warp.products_digest = (warp.products_digest ^ value) * 0x100000001B3ull; }

static bool issue(void* const* brought, u32, Warp& warp) {
  Product product = static_cast<const Issued*>(brought[0])->product;
  if (!warp.registers_fenced) fail("wgmma without wgmma_fence since the registers could last be touched");
  for (int lane = 0; lane < 32; lane++) {
    const Issued& mine = *static_cast<const Issued*>(brought[lane]);
    if (mine.product.a != product.a || mine.product.b != product.b || mine.product.accumulates != product.accumulates) {
      fail("wgmma: lanes 0 and %d bring different descriptors or scales", lane);
    }
    product.d[lane] = mine.d;
    if (product.a_in_registers) memcpy(product.a_registers[lane], mine.a_registers, sizeof product.a_registers[lane]);
  }
  product.group = warp.product_group;
  product.a_digest = digest_a(product, warp);
  warp.products_issued++;
  digest(warp, product.a);
  digest(warp, product.b);
  digest(warp, product.kind * 1024 + product.columns * 4 + product.transposed_b * 2 + product.accumulates);
  // Products of one warp complete in order, so one that waits makes those behind it wait.
  if (machine().options.late || !warp.products.empty() || machine().schedule.coin()) {
    warp.products.push_back(product);
  } else {
    compute(product, warp);
  }
  return true;
}

static bool fence(void* const*, u32, Warp& warp) {
  warp.registers_fenced = true;
  return true;
}

static bool commit(void* const*, u32, Warp& warp) {
  warp.product_group++;
  digest(warp, 1);
  return true;
}

static bool wait(void* const* brought, u32, Warp& warp) {
  u64 newest = *static_cast<const u64*>(brought[self->lane]);
  auto first = warp.products.begin();
  for (; first != warp.products.end() && first->group + newest < warp.product_group; first++) compute(*first, warp);
  warp.products.erase(warp.products.begin(), first);
  warp.registers_fenced = false;  // what has landed will be touched
  return true;
}

static const Operation kProduct{"wgmma", issue};
static const Operation kFence{"wgmma_fence", fence};
static const Operation kCommit{"wgmma_commit", commit};
static const Operation kWait{"wgmma_wait", wait};

static void need_warpgroup() {
  size_t first = self->warp->number / 4 * 128;
  if (self->block->threads.size() < first + 128) fail("wgmma needs a warpgroup of 128 threads");
}

void product(WgmmaKind kind, int columns, float* d, const u32* a_registers, u64 a, u64 b, bool transposed_b,
             int scale_d) {
  need_warpgroup();
  Issued mine{};
  mine.product.kind = kind;
  mine.product.columns = columns;
  mine.product.a = a;
  mine.product.b = b;
  mine.product.a_in_registers = a_registers != nullptr;
  mine.product.transposed_b = transposed_b;
  mine.product.accumulates = scale_d != 0;
  mine.a_registers = a_registers;
  mine.d = d;
  aligned(kProduct, kind * 1024 + columns * 2 + (a_registers != nullptr), &mine);
}

void product_fence() { aligned(kFence, 0, nullptr); }

void product_commit() {
  aligned(kCommit, 0, nullptr);
  give_way();
}

void product_wait(u64 newest) { aligned(kWait, newest, &newest); }

void products_check_exit(Warp& warp) {
  if (!warp.products.empty()) fail("exits with %zu wgmma that nobody waited for", warp.products.size());
}

void products_check_end(Block& block) {
  for (Warp& warp : block.warps) {
    Warp& first = block.warps[warp.number / 4 * 4];
    if (warp.products_issued != first.products_issued || warp.products_digest != first.products_digest) {
      self = warp.threads[0];
      fail("warps %u and %u of one warpgroup issued different wgmma (%llu and %llu of them)", first.number, warp.number,
           first.products_issued, warp.products_issued);
    }
  }
}

}  // namespace emu
