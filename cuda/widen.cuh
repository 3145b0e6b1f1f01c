// Logits of any type as the float32 numbers that they stand for.
#pragma once
#include "ptx.cuh"

DEV float widen(float x) { return x; }
DEV float widen(bf16 x) { return __bfloat162float(x); }
DEV float widen(f16 x) { return __half2float(x); }
