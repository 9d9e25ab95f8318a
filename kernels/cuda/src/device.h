// What every kernel includes: the language of the device. On a GPU it is CUDA C++ and ptx.h; in tests, where EMULATED is
// defined, the same sources are compiled for the CPU and an emulator stands behind the same names.
//
// Rules that keep the sources compilable by both: no header but these, no static __shared__ variables (shared memory is
// what shared_memory() points at), no inline PTX outside ptx.h and wgmma.h, one by-value struct of arguments a kernel, loops over
// registers fully unrolled, every warp-wide function called by all 32 lanes of the warp together.
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// Element types. `Storage` lies in memory; products of Bfloat16, Float16 and Tf32 are exact and are summed in float.
struct Float32 {
    typedef float Storage;
    static const int bytes = 4;
};
struct Tf32 {  // float in memory, 10 bits of fraction in the product
    typedef float Storage;
    static const int bytes = 4;
};
struct Bfloat16 {
    typedef u16 Storage;
    static const int bytes = 2;
};
struct Float16 {
    typedef u16 Storage;
    static const int bytes = 2;
};

// What the driver says of a matrix in memory, of which TMA copies boxes: a field of the kernel's arguments, made by the host.
struct alignas(64) TensorMap {
    u64 words[16];
};

#ifdef EMULATED
#include "emulated.h"
#else
#include "ptx.h"
#endif

// One value between memory and arithmetic. Rounding is to nearest, ties to even.
template <class T> struct Convert {  // Float32 and Tf32
    static DEVICE float widen(float stored) { return stored; }
    static DEVICE float narrow(float value) { return value; }
};
template <> struct Convert<Bfloat16> {
    static DEVICE float widen(u16 stored) { return bits_float((u32)stored << 16); }
    static DEVICE u16 narrow(float value) { return (u16)(pack_bf16(value, 0.0f) & 0xffffu); }
};
template <> struct Convert<Float16> {
    static DEVICE float widen(u16 stored) { return f16_float(stored); }
    static DEVICE u16 narrow(float value) { return (u16)(pack_f16(value, 0.0f) & 0xffffu); }
};

// Two neighbouring values, the first in the low half.
DEVICE u32 pack(float low, float high, Bfloat16) { return pack_bf16(low, high); }
DEVICE u32 pack(float low, float high, Float16) { return pack_f16(low, high); }
