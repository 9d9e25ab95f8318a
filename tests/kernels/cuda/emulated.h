// The language of the device for a CPU: what ptx.h and CUDA give on a GPU, with faults found that a GPU would hide.
// device.h includes it where EMULATED is defined. What is found, and what is not: emulator.py.
#pragma once
#include <math.h>

#define DEVICE inline
#define UNROLL
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __align__(bytes) __attribute__((aligned(bytes)))
#define threadIdx (emulated::now->thread)
#define blockIdx (emulated::now->cta->index)
#define blockDim (dim3{emulated::run.options.threads, 1, 1})
#define gridDim (dim3{emulated::run.options.grid[0], emulated::run.options.grid[1], emulated::run.options.grid[2]})
#define warpSize 32

#include "emulated_copies.h"
#include "emulated_builtins.h"
#include "emulated_pieces.h"
#include "emulated_wgmma.h"
#include "emulated_launch.h"
#ifdef WATCHED
#include "emulated_watch.h"
#endif
