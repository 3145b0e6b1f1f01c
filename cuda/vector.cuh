// Sixteen bytes at a time: the eight numbers in them, and the eight bytes that eight numbers become.
//
//     uint4   | x0 x1 | x2 x3 | x4 x5 | x6 x7 |    bf16 or f16         float[8], in registers
//     uint2   | q0 q1   q2 q3 | q4 q5   q6 q7 |    e4m3 or s8
//
// Quantised numbers share one scale per row (or per head): value = code * scale, scale = largest magnitude / largest code.
#pragma once
#include "ptx.cuh"

using s8 = signed char;

constexpr int kVector = 8;  // 16-bit numbers in 16 bytes

template <class To, class From>
DEV To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  memcpy(static_cast<void*>(&to), &from, sizeof(To));
  return to;
}

DEV float2 widen(bf16x2 pair) { return __bfloat1622float2(pair); }
DEV float2 widen(f16x2 pair) { return __half22float2(pair); }

template <class T>
struct Pair;
template <>
struct Pair<bf16> {
  using Type = bf16x2;
};
template <>
struct Pair<f16> {
  using Type = f16x2;
};

// To the nearest, ties to even.
DEV bf16x2 narrow(Pair<bf16>, float x, float y) { return __floats2bfloat162_rn(x, y); }
DEV f16x2 narrow(Pair<f16>, float x, float y) { return __floats2half2_rn(x, y); }

DEV uint4 load_vector(const void* from) { return *static_cast<const uint4*>(from); }
DEV void store_vector(void* to, uint4 packed) { *static_cast<uint4*>(to) = packed; }
DEV void store_codes(void* to, uint2 codes) { *static_cast<uint2*>(to) = codes; }

template <class T>
DEV void unpack(uint4 packed, float (&x)[8]) {
  const u32 words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 pair = widen(bits_as<typename Pair<T>::Type>(words[i]));
    x[2 * i] = pair.x;
    x[2 * i + 1] = pair.y;
  }
}

template <class T>
DEV uint4 pack(const float (&x)[8]) {
  u32 words[4];
#pragma unroll
  for (int i = 0; i < 4; i++) words[i] = bits_as<u32>(narrow(Pair<T>(), x[2 * i], x[2 * i + 1]));
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// The bits of the largest |x|. Compared as integers, which order magnitudes as floats do and put infinity above every
// number and NaN above infinity: what is not finite reaches the scale and cannot hide in a code.
DEV u32 largest_magnitude(const float (&x)[8]) {
  u32 largest = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) largest = max(largest, bits_as<u32>(x[i]) & 0x7fffffffu);
  return largest;
}

template <class Q>
struct Code;
template <>
struct Code<e4m3> {
  static constexpr float kLargest = 448.f;
};
template <>
struct Code<s8> {
  static constexpr float kLargest = 127.f;
};

// Four numbers to the nearest codes, ties to even, the first in the lowest byte; beyond the largest, the largest.
DEV u32 encode4(Code<e4m3>, float a, float b, float c, float d) {
  const u32 low = __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3);
  const u32 high = __nv_cvt_float2_to_fp8x2(make_float2(c, d), __NV_SATFINITE, __NV_E4M3);
  return low | high << 16;
}
DEV u32 encode(Code<s8>, float x) {
  return static_cast<u8>(static_cast<int>(rintf(fminf(fmaxf(x, -127.f), 127.f))));
}
DEV u32 encode4(Code<s8> code, float a, float b, float c, float d) {
  return encode(code, a) | encode(code, b) << 8 | encode(code, c) << 16 | encode(code, d) << 24;
}

// `inverse` multiplies numbers into codes. It is 0 where all magnitudes are below 1e-30, whose inverse might overflow.
struct Scale {
  float scale, inverse;
};

template <class Q>
DEV Scale scale_for(u32 largest_magnitude_bits) {
  const float largest = bits_as<float>(largest_magnitude_bits);
  return {largest * (1.f / Code<Q>::kLargest), largest > 1e-30f ? Code<Q>::kLargest / largest : 0.f};
}

template <class Q>
DEV uint2 quantise(const float (&x)[8], float inverse) {
  float y[8];
#pragma unroll
  for (int i = 0; i < 8; i++) y[i] = x[i] * inverse;
  constexpr Code<Q> code{};
  return make_uint2(encode4(code, y[0], y[1], y[2], y[3]), encode4(code, y[4], y[5], y[6], y[7]));
}
