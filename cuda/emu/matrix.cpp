// ldmatrix, stmatrix and mma.sync: how tiles lie over a warp's registers.
//
// All of them share one picture. With lane = 4 g + t, a register of an 8-row fragment holds, of row g, as many
// neighbouring elements as fit, beginning at t times as many:
//
//            column  0 1   2 3   4 5   6 7        (16-bit elements: two a register)
//      row 0        lane0 lane1 lane2 lane3
//      row 1        lane4 lane5 lane6 lane7
//      ...
//
// PTX ISA, "Matrix fragments for mma.m16n8k16" and following. Sums are taken in float32, in ascending k, one by one.
#include <cstring>

#include "operations.h"

namespace emu {

// ---- numbers --------------------------------------------------------------------------------------------------------

namespace {

struct E4m3Table {
  float value[256];
  E4m3Table() {
    for (int i = 0; i < 256; i++) {
      e4m3 number;
      number.__x = static_cast<u8>(i);
      value[i] = static_cast<float>(number);
    }
  }
};

}  // namespace

float element_e4m3(u8 bits) {
  static const E4m3Table table;
  return table.value[bits];
}

// ---- ldmatrix, stmatrix ---------------------------------------------------------------------------------------------

namespace {

struct Rows {
  u32* registers;
  u8* row;
  int matrices;
  bool transposed;
};

}  // namespace

static void need_whole_warp(const char* what) {
  if (self->warp->lanes != ~0u) fail("%s needs a warp of 32 lanes", what);
}

// Element (row, column) of 8x8 matrix `m`, whose rows lanes 8 m to 8 m + 7 have named.
static u8* matrix_element(void* const* brought, int m, int row, int column) {
  return static_cast<const Rows*>(brought[8 * m + row])->row + 2 * column;
}

static bool gather_matrices(void* const* brought, u32, Warp&) {
  for (int lane = 0; lane < 32; lane++) {
    const Rows& mine = *static_cast<const Rows*>(brought[lane]);
    int g = lane / 4, t = lane % 4;
    for (int m = 0; m < mine.matrices; m++) {
      u16 pair[2];
      for (int e = 0; e < 2; e++) {
        const u8* from =
            mine.transposed ? matrix_element(brought, m, 2 * t + e, g) : matrix_element(brought, m, g, 2 * t + e);
        memcpy(&pair[e], from, 2);
      }
      memcpy(&mine.registers[m], pair, 4);
    }
  }
  return true;
}

static bool scatter_matrices(void* const* brought, u32, Warp&) {
  for (int lane = 0; lane < 32; lane++) {
    const Rows& mine = *static_cast<const Rows*>(brought[lane]);
    for (int m = 0; m < 4; m++) memcpy(matrix_element(brought, m, lane / 4, 2 * (lane % 4)), &mine.registers[m], 4);
  }
  return true;
}

static const Operation kLoadMatrix{"ldmatrix", gather_matrices};
static const Operation kStoreMatrix{"stmatrix", scatter_matrices};

void load_matrix(u32* registers, int matrices, const void* row, bool transposed) {
  need_whole_warp("ldmatrix");
  // Lanes that name no row may bring any address.
  if (static_cast<int>(self->lane) < 8 * matrices) self->block->shared.address(row, 16, 16, "ldmatrix");
  Rows mine{registers, static_cast<u8*>(const_cast<void*>(row)), matrices, transposed};
  aligned(kLoadMatrix, matrices * 2 + transposed, &mine);
}

void store_matrix(void* row, const u32* registers) {
  need_whole_warp("stmatrix");
  self->block->shared.address(row, 16, 16, "stmatrix");
  Rows mine{const_cast<u32*>(registers), static_cast<u8*>(row), 4, false};
  aligned(kStoreMatrix, 0, &mine);
}

// ---- mma.sync -------------------------------------------------------------------------------------------------------

namespace {

struct Factors {
  void* d;
  const u32* a;
  u32 b[2];
};

struct Signed8 {
  using Element = int;
  static constexpr int kPerRegister = 4;
  static int read(const u8* at) { return static_cast<signed char>(*at); }
};
template <WgmmaKind kKind>
struct Floating {
  using Element = float;
  static constexpr int kPerRegister = kKind == E4M3 ? 4 : 2;
  static float read(const u8* at) { return element(kKind, at); }
};

}  // namespace

// m16n8k(8 n), n elements a register: a is 16 rows of two halves of k, b 8 columns of two halves, d 16 x 8.
template <class Kind>
static bool multiply(void* const* brought, u32, Warp&) {
  using Element = typename Kind::Element;
  constexpr int n = Kind::kPerRegister;
  constexpr int k_extent = 8 * n;
  Element a[16][k_extent], b[k_extent][8];
  for (int lane = 0; lane < 32; lane++) {
    const Factors& mine = *static_cast<const Factors*>(brought[lane]);
    int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; half++) {
      for (int e = 0; e < n; e++) {
        int k = half * 4 * n + t * n + e;
        int byte = e * 4 / n;
        a[g][k] = Kind::read(reinterpret_cast<const u8*>(&mine.a[2 * half]) + byte);
        a[g + 8][k] = Kind::read(reinterpret_cast<const u8*>(&mine.a[2 * half + 1]) + byte);
        b[k][g] = Kind::read(reinterpret_cast<const u8*>(&mine.b[half]) + byte);
      }
    }
  }
  Element sum[16][8] = {};
  for (int row = 0; row < 16; row++) {
    for (int k = 0; k < k_extent; k++) {
      for (int column = 0; column < 8; column++) sum[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int lane = 0; lane < 32; lane++) {
    Element* d = static_cast<Element*>(static_cast<const Factors*>(brought[lane])->d);
    for (int i = 0; i < 4; i++) d[i] += sum[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
  }
  return true;
}

static const Operation kMultiplyBf16{"mma.bf16", multiply<Floating<BF16>>};
static const Operation kMultiplyF16{"mma.f16", multiply<Floating<F16>>};
static const Operation kMultiplyE4m3{"mma.e4m3", multiply<Floating<E4M3>>};
static const Operation kMultiplyS8{"mma.s8", multiply<Signed8>};

static void multiply_with(const Operation& operation, void* d, const u32* a, u32 b0, u32 b1) {
  need_whole_warp(operation.name);
  Factors mine{d, a, {b0, b1}};
  aligned(operation, 0, &mine);
}

void multiply_16bit(WgmmaKind kind, float* d, const u32* a, u32 b0, u32 b1) {
  multiply_with(kind == BF16 ? kMultiplyBf16 : kMultiplyF16, d, a, b0, b1);
}
void multiply_e4m3(float* d, const u32* a, u32 b0, u32 b1) { multiply_with(kMultiplyE4m3, d, a, b0, b1); }
void multiply_s8(int* d, const u32* a, u32 b0, u32 b1) { multiply_with(kMultiplyS8, d, a, b0, b1); }

}  // namespace emu
