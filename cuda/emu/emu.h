// What a kernel sees when g++ compiles it: ptx.cuh includes this in place of its inline PTX.
//
// The emulator runs the very source of a kernel, compiled for the CPU, so that a machine without a GPU can say whether
// the kernel is right. It does not run PTX: that the wrappers of ptx.cuh do what they say is for a card to show.
// ARCHITECTURE.md tells what it models and what it cannot see.
#pragma once
#include "types.h"

#include "cuda_names.h"
#include "ptx_names.h"

#include "launch.h"
