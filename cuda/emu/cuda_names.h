// What CUDA C++ gives every kernel without an include: built-in variables, warp functions, atomics, intrinsics.
#pragma once
#include <cassert>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <type_traits>

#include "operations.h"

#define threadIdx (::emu::self->index)
#define blockIdx (::emu::self->block->index)
#define blockDim (::emu::block_dim)
#define gridDim (::emu::grid_dim)
#define warpSize 32

#define DYN_SMEM(name) u8* name = ::emu::self->block->shared.dynamic()
#define SHARED(T, name, N) \
  static char name##_key;  \
  T(&name)[N] = *static_cast<T(*)[N]>(::emu::self->block->shared.array(&name##_key, #name, sizeof(T) * (N), alignof(T)))

DEV void __syncthreads() { emu::sync_threads(); }

// ---- warps ----------------------------------------------------------------------------------------------------------

namespace emu {

template <class T>
struct Shuffled {
  T value, result;
  int source;
};

template <class T>
bool exchange(void* const* brought, u32 mask, Warp&) {
  for (int lane = 0; lane < 32; lane++) {
    if (!(mask >> lane & 1)) continue;
    Shuffled<T>& mine = *static_cast<Shuffled<T>*>(brought[lane]);
    if (!(mask >> mine.source & 1)) fail("a shuffle reads lane %d, which is not in the mask %08x", mine.source, mask);
    mine.result = static_cast<const Shuffled<T>*>(brought[mine.source])->value;
  }
  return true;
}

template <class T>
T shuffle(u32 mask, T value, int source) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 2, "shuffles move 2, 4 or 8 bytes");
  static const Operation operation{"a shuffle", exchange<T>};
  Shuffled<T> mine{value, value, source};
  collective(mask, operation, 0, &mine);
  return mine.result;
}

template <class T>
struct Voted {
  T value;
  u32 result;
};

// Reduce the lanes' values with `Fold::fold(result, value, lane)`, beginning with Fold::first.
template <class Fold, class T>
bool vote(void* const* brought, u32 mask, Warp&) {
  u32 result = Fold::first;
  for (u32 lane = 0; lane < 32; lane++) {
    if (mask >> lane & 1) result = Fold::fold(result, static_cast<const Voted<T>*>(brought[lane])->value, lane);
  }
  for (u32 lane = 0; lane < 32; lane++) {
    if (mask >> lane & 1) static_cast<Voted<T>*>(brought[lane])->result = result;
  }
  return true;
}

template <class Fold, class T>
u32 voted(const char* name, u32 mask, T value) {
  static const Operation operation{name, vote<Fold, T>};
  Voted<T> mine{value, 0};
  collective(mask, operation, 0, &mine);
  return mine.result;
}

struct Ballot {
  static constexpr u32 first = 0;
  static u32 fold(u32 result, int value, u32 lane) { return result | (value ? 1u << lane : 0); }
};
struct Sum {
  static constexpr u32 first = 0;
  static u32 fold(u32 result, u32 value, u32) { return result + value; }
};
struct And {
  static constexpr u32 first = ~0u;
  static u32 fold(u32 result, u32 value, u32) { return result & value; }
};
struct Or {
  static constexpr u32 first = 0;
  static u32 fold(u32 result, u32 value, u32) { return result | value; }
};
struct Xor {
  static constexpr u32 first = 0;
  static u32 fold(u32 result, u32 value, u32) { return result ^ value; }
};
struct MaxUnsigned {
  static constexpr u32 first = 0;
  static u32 fold(u32 result, u32 value, u32) { return result > value ? result : value; }
};
struct MinUnsigned {
  static constexpr u32 first = ~0u;
  static u32 fold(u32 result, u32 value, u32) { return result < value ? result : value; }
};
struct MaxSigned {
  static constexpr u32 first = 0x80000000u;
  static u32 fold(u32 result, int value, u32) { return int(result) > value ? result : u32(value); }
};
struct MinSigned {
  static constexpr u32 first = 0x7FFFFFFFu;
  static u32 fold(u32 result, int value, u32) { return int(result) < value ? result : u32(value); }
};

inline bool meet(void* const*, u32, Warp&) { return true; }

}  // namespace emu

DEV void __syncwarp(u32 mask = 0xFFFFFFFFu) {
  static const emu::Operation operation{"__syncwarp", emu::meet};
  emu::collective(mask, operation, 0, nullptr);
}
// `width` lanes, a power of two, are a segment; who would read outside of his segment reads himself.
template <class T>
DEV T __shfl_sync(u32 mask, T value, int source, int width = 32) {
  int lane = emu::self->lane;
  return emu::shuffle(mask, value, (lane & ~(width - 1)) | (source & (width - 1)));
}
template <class T>
DEV T __shfl_xor_sync(u32 mask, T value, int bits, int width = 32) {
  int lane = emu::self->lane, source = lane ^ bits;
  return emu::shuffle(mask, value, source / width <= lane / width ? source : lane);
}
template <class T>
DEV T __shfl_down_sync(u32 mask, T value, int delta, int width = 32) {
  int lane = emu::self->lane;
  return emu::shuffle(mask, value, lane % width + delta < width ? lane + delta : lane);
}
template <class T>
DEV T __shfl_up_sync(u32 mask, T value, int delta, int width = 32) {
  int lane = emu::self->lane;
  return emu::shuffle(mask, value, lane % width - delta >= 0 ? lane - delta : lane);
}
DEV u32 __ballot_sync(u32 mask, int predicate) { return emu::voted<emu::Ballot>("__ballot_sync", mask, predicate); }
DEV int __any_sync(u32 mask, int predicate) { return emu::voted<emu::Ballot>("__any_sync", mask, predicate) != 0; }
DEV int __all_sync(u32 mask, int predicate) { return emu::voted<emu::Ballot>("__all_sync", mask, !predicate) == 0; }
DEV u32 __reduce_add_sync(u32 mask, u32 value) { return emu::voted<emu::Sum>("__reduce_add_sync", mask, value); }
DEV int __reduce_add_sync(u32 mask, int value) {
  return int(emu::voted<emu::Sum>("__reduce_add_sync", mask, u32(value)));
}
DEV u32 __reduce_and_sync(u32 mask, u32 value) { return emu::voted<emu::And>("__reduce_and_sync", mask, value); }
DEV u32 __reduce_or_sync(u32 mask, u32 value) { return emu::voted<emu::Or>("__reduce_or_sync", mask, value); }
DEV u32 __reduce_xor_sync(u32 mask, u32 value) { return emu::voted<emu::Xor>("__reduce_xor_sync", mask, value); }
DEV u32 __reduce_max_sync(u32 mask, u32 value) {
  return emu::voted<emu::MaxUnsigned>("__reduce_max_sync", mask, value);
}
DEV u32 __reduce_min_sync(u32 mask, u32 value) {
  return emu::voted<emu::MinUnsigned>("__reduce_min_sync", mask, value);
}
DEV int __reduce_max_sync(u32 mask, int value) {
  return int(emu::voted<emu::MaxSigned>("__reduce_max_sync", mask, value));
}
DEV int __reduce_min_sync(u32 mask, int value) {
  return int(emu::voted<emu::MinSigned>("__reduce_min_sync", mask, value));
}
// Matching is a vote that everybody counts for himself.
DEV u32 __match_any_sync(u32 mask, u32 value) {
  u32 equal = 0;
  for (int lane = 0; lane < 32; lane++) {
    if (!(mask >> lane & 1)) continue;
    u32 theirs = emu::shuffle(mask, value, lane);
    if (theirs == value) equal |= 1u << lane;
  }
  return equal;
}

// ---- memory ---------------------------------------------------------------------------------------------------------
// Threads take turns and nothing is reordered, so that every access is atomic and a fence has nothing to do but to let
// others run.

DEV void __threadfence() { emu::give_way(); }
DEV void __threadfence_block() { emu::give_way(); }
DEV void __threadfence_system() { emu::give_way(); }

namespace emu {

template <class T, class Change>
T exchange_atomically(T* p, Change change) {
  T old = *p;
  *p = change(old);
  give_way();
  return old;
}

}  // namespace emu

template <class T>
DEV T atomicAdd(T* p, std::common_type_t<T> v) {
  return emu::exchange_atomically(p, [&](T old) { return static_cast<T>(old + v); });
}
template <class T>
DEV T atomicSub(T* p, std::common_type_t<T> v) {
  return emu::exchange_atomically(p, [&](T old) { return static_cast<T>(old - v); });
}
template <class T>
DEV T atomicMax(T* p, std::common_type_t<T> v) {
  return emu::exchange_atomically(p, [&](T old) { return v > old ? v : old; });
}
template <class T>
DEV T atomicMin(T* p, std::common_type_t<T> v) {
  return emu::exchange_atomically(p, [&](T old) { return v < old ? v : old; });
}
template <class T>
DEV T atomicExch(T* p, std::common_type_t<T> v) {
  return emu::exchange_atomically(p, [&](T) { return v; });
}
template <class T>
DEV T atomicCAS(T* p, std::common_type_t<T> expected, std::common_type_t<T> v) {
  return emu::exchange_atomically(p, [&](T old) { return old == expected ? v : old; });
}
template <class T>
DEV T atomicAnd(T* p, std::common_type_t<T> v) {
  return emu::exchange_atomically(p, [&](T old) { return static_cast<T>(old & v); });
}
template <class T>
DEV T atomicOr(T* p, std::common_type_t<T> v) {
  return emu::exchange_atomically(p, [&](T old) { return static_cast<T>(old | v); });
}
template <class T>
DEV T atomicXor(T* p, std::common_type_t<T> v) {
  return emu::exchange_atomically(p, [&](T old) { return static_cast<T>(old ^ v); });
}
DEV u32 atomicInc(u32* p, u32 limit) {
  return emu::exchange_atomically(p, [&](u32 old) { return old >= limit ? 0 : old + 1; });
}

template <class T>
DEV T __ldg(const T* p) {
  return *p;
}
template <class T>
DEV T __ldcg(const T* p) {
  return *p;
}
template <class T>
DEV T __ldcs(const T* p) {
  return *p;
}
template <class T>
DEV void __stcg(T* p, std::common_type_t<T> v) {
  *p = v;
}
template <class T>
DEV void __stcs(T* p, std::common_type_t<T> v) {
  *p = v;
}

// ---- numbers --------------------------------------------------------------------------------------------------------

namespace emu {

template <class To, class From>
To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "as many bits");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace emu

DEV u32 __float_as_uint(float x) { return emu::same_bits<u32>(x); }
DEV int __float_as_int(float x) { return emu::same_bits<int>(x); }
DEV float __uint_as_float(u32 x) { return emu::same_bits<float>(x); }
DEV float __int_as_float(int x) { return emu::same_bits<float>(x); }

DEV int __popc(u32 x) { return __builtin_popcount(x); }
DEV int __popcll(u64 x) { return __builtin_popcountll(x); }
DEV int __ffs(int x) { return __builtin_ffs(x); }
DEV int __ffsll(long long x) { return __builtin_ffsll(x); }
DEV int __clz(int x) { return x ? __builtin_clz(x) : 32; }
DEV int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
DEV u32 __brev(u32 x) {
  u32 reversed = 0;
  for (int bit = 0; bit < 32; bit++) reversed |= (x >> bit & 1) << (31 - bit);
  return reversed;
}
DEV u32 __umulhi(u32 a, u32 b) { return static_cast<u32>(u64(a) * b >> 32); }
DEV int __mulhi(int a, int b) { return static_cast<int>(static_cast<long long>(a) * b >> 32); }
DEV u64 __umul64hi(u64 a, u64 b) { return static_cast<u64>(static_cast<unsigned __int128>(a) * b >> 64); }
DEV u32 __byte_perm(u32 x, u32 y, u32 selector) {
  u64 bytes = u64(y) << 32 | x;
  u32 result = 0;
  for (int i = 0; i < 4; i++) {
    u32 choice = selector >> 4 * i & 15;
    u32 byte = bytes >> 8 * (choice & 7) & 0xFF;
    if (choice & 8) byte = byte & 0x80 ? 0xFF : 0;  // its sign, eight times
    result |= byte << 8 * i;
  }
  return result;
}
DEV u32 __funnelshift_l(u32 low, u32 high, u32 shift) { return (u64(high) << 32 | low) << (shift & 31) >> 32; }
DEV u32 __funnelshift_r(u32 low, u32 high, u32 shift) {
  return static_cast<u32>((u64(high) << 32 | low) >> (shift & 31));
}
DEV int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; i++) c += static_cast<signed char>(a >> 8 * i) * static_cast<signed char>(b >> 8 * i);
  return c;
}

DEV int min(int a, int b) { return a < b ? a : b; }
DEV int max(int a, int b) { return a > b ? a : b; }
DEV u32 min(u32 a, u32 b) { return a < b ? a : b; }
DEV u32 max(u32 a, u32 b) { return a > b ? a : b; }
DEV u32 min(int a, u32 b) { return min(static_cast<u32>(a), b); }
DEV u32 max(int a, u32 b) { return max(static_cast<u32>(a), b); }
DEV u32 min(u32 a, int b) { return min(a, static_cast<u32>(b)); }
DEV u32 max(u32 a, int b) { return max(a, static_cast<u32>(b)); }
DEV long long min(long long a, long long b) { return a < b ? a : b; }
DEV long long max(long long a, long long b) { return a > b ? a : b; }
DEV u64 min(u64 a, u64 b) { return a < b ? a : b; }
DEV u64 max(u64 a, u64 b) { return a > b ? a : b; }
DEV float min(float a, float b) { return fminf(a, b); }
DEV float max(float a, float b) { return fmaxf(a, b); }

// Approximations are their exact namesakes here: tests allow for the difference, and nothing is tuned by it.
// Macros, because the C library has some of these names for itself.
#define __expf(x) expf(x)
#define __exp10f(x) powf(10.f, x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __sincosf(x, s, c) sincosf(x, s, c)
#define __powf(x, y) powf(x, y)
DEV float __fdividef(float a, float b) { return a / b; }
DEV float __fdiv_rn(float a, float b) { return a / b; }
DEV float __frcp_rn(float x) { return 1.f / x; }
DEV float __fsqrt_rn(float x) { return sqrtf(x); }
DEV float __frsqrt_rn(float x) { return 1.f / sqrtf(x); }
DEV float rsqrtf(float x) { return 1.f / sqrtf(x); }
DEV float __saturatef(float x) { return fminf(fmaxf(x, 0.f), 1.f); }
DEV float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
// Sums and products that are rounded by themselves, never fused.
DEV float __fadd_rn(float a, float b) {
  volatile float sum = a + b;
  return sum;
}
DEV float __fsub_rn(float a, float b) {
  volatile float difference = a - b;
  return difference;
}
DEV float __fmul_rn(float a, float b) {
  volatile float product = a * b;
  return product;
}
DEV int __float2int_rn(float x) { return static_cast<int>(nearbyintf(x)); }
DEV int __float2int_rz(float x) { return static_cast<int>(x); }
DEV int __float2int_rd(float x) { return static_cast<int>(floorf(x)); }
DEV int __float2int_ru(float x) { return static_cast<int>(ceilf(x)); }
DEV float __int2float_rn(int x) { return static_cast<float>(x); }
DEV float __uint2float_rn(u32 x) { return static_cast<float>(x); }
DEV void __trap() { emu::fail("__trap"); }
