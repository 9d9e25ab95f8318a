// The functions and vector types that CUDA C++ has built in.
#pragma once
#include "emulated_barriers.h"

struct __attribute__((aligned(8))) uint2 { u32 x, y; };
struct __attribute__((aligned(16))) uint4 { u32 x, y, z, w; };
struct __attribute__((aligned(8))) int2 { int x, y; };
struct __attribute__((aligned(16))) int4 { int x, y, z, w; };
struct __attribute__((aligned(8))) float2 { float x, y; };
struct __attribute__((aligned(16))) float4 { float x, y, z, w; };
ENGINE uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
ENGINE uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
ENGINE int2 make_int2(int x, int y) { return {x, y}; }
ENGINE int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
ENGINE float2 make_float2(float x, float y) { return {x, y}; }
ENGINE float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

ENGINE void __syncthreads() { emulated::synchronise_cta(); }
ENGINE void __syncwarp(u32 mask = emulated::all_lanes) { emulated::synchronise_warp(mask); }
ENGINE void __threadfence() {}
ENGINE void __threadfence_block() {}
ENGINE void __nanosleep(u32) { emulated::let_others_run("__nanosleep"); }

template <class T> ENGINE T __shfl_sync(u32 mask, T value, int from, int width = 32) {
    return emulated::shuffle("__shfl_sync", mask, value, [=](int lane) { return (lane & ~(width - 1)) + (from & (width - 1)); });
}
template <class T> ENGINE T __shfl_xor_sync(u32 mask, T value, int bits, int width = 32) {
    return emulated::shuffle("__shfl_xor_sync", mask, value, [=](int lane) {
        const int from = lane ^ bits;
        return from < (lane & ~(width - 1)) + width ? from : lane;
    });
}
template <class T> ENGINE T __shfl_down_sync(u32 mask, T value, u32 delta, int width = 32) {
    return emulated::shuffle("__shfl_down_sync", mask, value, [=](int lane) {
        return (lane & (width - 1)) + (int)delta < width ? lane + (int)delta : lane;
    });
}
template <class T> ENGINE T __shfl_up_sync(u32 mask, T value, u32 delta, int width = 32) {
    return emulated::shuffle("__shfl_up_sync", mask, value, [=](int lane) {
        return (lane & (width - 1)) >= (int)delta ? lane - (int)delta : lane;
    });
}
ENGINE u32 __ballot_sync(u32 mask, int vote) { return emulated::ballot("__ballot_sync", mask, vote); }
ENGINE int __any_sync(u32 mask, int vote) { return emulated::ballot("__any_sync", mask, vote) != 0; }
ENGINE int __all_sync(u32 mask, int vote) { return emulated::ballot("__all_sync", mask, vote) == mask; }

ENGINE int __popc(u32 bits) { return __builtin_popcount(bits); }
ENGINE int __popcll(u64 bits) { return __builtin_popcountll(bits); }
ENGINE int __ffs(int bits) { return __builtin_ffs(bits); }
ENGINE int __ffsll(long long bits) { return __builtin_ffsll(bits); }
ENGINE int __clz(int bits) { return bits ? __builtin_clz((u32)bits) : 32; }
template <class T> ENGINE T __ldg(const T *from) { return *from; }
template <class T> ENGINE T __ldcg(const T *from) { return *from; }
template <class T> ENGINE void __stcg(T *to, T value) { *to = value; }

ENGINE int min(int a, int b) { return a < b ? a : b; }
ENGINE int max(int a, int b) { return a > b ? a : b; }
ENGINE u32 min(u32 a, u32 b) { return a < b ? a : b; }
ENGINE u32 max(u32 a, u32 b) { return a > b ? a : b; }
ENGINE long long min(long long a, long long b) { return a < b ? a : b; }
ENGINE long long max(long long a, long long b) { return a > b ? a : b; }
ENGINE u64 min(u64 a, u64 b) { return a < b ? a : b; }
ENGINE u64 max(u64 a, u64 b) { return a > b ? a : b; }
ENGINE float min(float a, float b) { return fminf(a, b); }
ENGINE float max(float a, float b) { return fmaxf(a, b); }
ENGINE float rsqrtf(float x) { return 1.0f / sqrtf(x); }
ENGINE float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
ENGINE float __fadd_rn(float a, float b) { return a + b; }
ENGINE float __fmul_rn(float a, float b) { return a * b; }
ENGINE float __expf(float x) { return expf(x); }
ENGINE float __fdividef(float a, float b) { return a / b; }
ENGINE float __frcp_rn(float x) { return 1.0f / x; }
ENGINE float __uint_as_float(u32 bits) { return __builtin_bit_cast(float, bits); }
ENGINE u32 __float_as_uint(float value) { return __builtin_bit_cast(u32, value); }
ENGINE float __int_as_float(int bits) { return __builtin_bit_cast(float, bits); }
ENGINE int __float_as_int(float value) { return __builtin_bit_cast(int, value); }

namespace emulated {

// Threads that use atomics may order themselves by them: what is before one is over for whoever comes later.
ENGINE void order_by_atomics() {
    join(now->cta->atomics, now->clock);
    join(now->clock, now->cta->atomics);
}

template <class T, class Change> ENGINE T atomic(T *at, Change change) {
    order_by_atomics();
    const T before = *at, after = change(before);
    if (memcmp(&before, &after, sizeof before)) run.spins = 0;
    *at = after;
    let_others_run("an atomic");
    return before;
}

}  // namespace emulated

template <class T, class U> ENGINE T atomicAdd(T *at, U value) { return emulated::atomic(at, [=](T old) { return (T)(old + (T)value); }); }
template <class T, class U> ENGINE T atomicSub(T *at, U value) { return emulated::atomic(at, [=](T old) { return (T)(old - (T)value); }); }
template <class T, class U> ENGINE T atomicMax(T *at, U value) { return emulated::atomic(at, [=](T old) { return old > (T)value ? old : (T)value; }); }
template <class T, class U> ENGINE T atomicMin(T *at, U value) { return emulated::atomic(at, [=](T old) { return old < (T)value ? old : (T)value; }); }
template <class T, class U> ENGINE T atomicOr(T *at, U value) { return emulated::atomic(at, [=](T old) { return (T)(old | (T)value); }); }
template <class T, class U> ENGINE T atomicExch(T *at, U value) { return emulated::atomic(at, [=](T) { return (T)value; }); }
template <class T, class U, class V> ENGINE T atomicCAS(T *at, U wanted, V value) {
    return emulated::atomic(at, [=](T old) { return old == (T)wanted ? (T)value : old; });
}
