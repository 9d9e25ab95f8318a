// Products by a warpgroup (128 threads, the first a multiple of 128) that read their operands from shared memory: wgmma, sm_90a.
// PTX ISA, "Asynchronous warpgroup level matrix multiply-accumulate instructions". tests/kernels/cuda has the same for a CPU.
//
// D[64, N] += A[64, K] B[K, N], with K = 16 elements of 16 bits or 8 of Tf32 (32 bytes either way). Thread t = 32 w + 4 g + c of
// the warpgroup (warp w, g < 8, c < 4) holds, for j < N / 8,
//   sum[4 j + 0], sum[4 j + 1] = D[16 w + g,     8 j + 2 c], D[.., 8 j + 2 c + 1]
//   sum[4 j + 2], sum[4 j + 3] = D[16 w + g + 8, 8 j + 2 c], D[.., 8 j + 2 c + 1].
//
// An operand in shared memory lies in lines of LINE = 32, 64 or 128 bytes, one after the other, and is swizzled: see swizzled().
//   plain  ("K-major"):  a line is one row of A (one column of B) and holds LINE / 32 steps of K. Step k begins 32 k bytes on.
//   turned ("MN-major", 16-bit only): a line is one k and holds LINE / 2 rows of A (columns of B). Step k begins 16 k lines on.
//          A wider operand (N > LINE / 2) lies in parts as wide as a line, `apart` bytes from one to the next.
// The first line lies at a multiple of 8 LINE bytes.
#pragma once
#include "device.h"

// Where the 16 bytes at `offset` from the first line go: the 16-byte chunk number within the line is XORed with the number
// of the 128-byte line modulo 8, 4 or 2 (address bits 4.. with bits 7..). `offset` a multiple of 16.
template <int LINE> DEVICE u32 swizzled(u32 offset) { return offset ^ ((offset >> 3) & (u32)(LINE - 16)); }

// The descriptor of an operand whose lines are LINE bytes: bits 0-13 address / 16, 16-29 `apart` / 16 (unused but for turned
// operands wider than a line), 32-45 distance of eight lines / 16, 62-63 swizzle (128 bytes: 1, 64: 2, 32: 3).
// Adding `descriptor_step(bytes)` moves its beginning.
template <int LINE> DEVICE u64 descriptor(const void* first, int apart = 16) {
    static_assert(LINE == 32 || LINE == 64 || LINE == 128, "lines are as long as a swizzle pattern is wide");
    const u64 swizzle = LINE == 128 ? 1 : LINE == 64 ? 2 : 3;
    return (u64)((shared_address(first) & 0x3ffffu) >> 4) | (u64)(apart / 16) << 16 | (u64)(8 * LINE / 16) << 32 | swizzle << 62;
}
DEVICE u64 descriptor_step(u32 bytes) { return bytes >> 4; }

#ifndef EMULATED

// Before the first product after sums (or A's registers) were written by other instructions.
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until all but the LEFT groups committed last are done: what they read may be overwritten, their sums be read.
template <int LEFT> DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory"); }
// After the wait and before the sums are read (after zeroing and before the first product): the compiler sees neither.
template <int COUNT> DEVICE void settle(float (&sum)[COUNT]) {
    UNROLL for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(sum[i])::"memory");
}

// Four 8x8 matrices of 16-bit elements to shared memory: lane l gives the address of row l % 8 of matrix l / 8 (16 bytes).
DEVICE void store_matrix(void* row, const u32 (&from)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
                 ::"r"(shared_address(row)), "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3]) : "memory");
}
DEVICE void store_matrix_turned(void* row, const u32 (&from)[4]) {  // each matrix transposed on the way
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};"
                 ::"r"(shared_address(row)), "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3]) : "memory");
}

// asm wants every operand by name and by number: the N / 2 sums are %0, %1, ...
#define SUM4(i) "+f"(sum[i]), "+f"(sum[i + 1]), "+f"(sum[i + 2]), "+f"(sum[i + 3])
#define SUM8(i) SUM4(i), SUM4(i + 4)
#define SUM16(i) SUM8(i), SUM8(i + 8)
#define SUM32(i) SUM16(i), SUM16(i + 16)
#define SUMS_8 SUM4(0)
#define SUMS_16 SUM8(0)
#define SUMS_32 SUM16(0)
#define SUMS_64 SUM32(0)
#define SUMS_128 SUM32(0), SUM32(32)
#define SUMS_256 SUM32(0), SUM32(32), SUM32(64), SUM32(96)
#define TEN(d) ", %" #d "0, %" #d "1, %" #d "2, %" #d "3, %" #d "4, %" #d "5, %" #d "6, %" #d "7, %" #d "8, %" #d "9"
#define NUMBERS_8 "%0, %1, %2, %3"
#define NUMBERS_16 NUMBERS_8 ", %4, %5, %6, %7"
#define NUMBERS_32 NUMBERS_16 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define NUMBERS_64 NUMBERS_32 ", %16, %17, %18, %19" TEN(2) ", %30, %31"
#define NUMBERS_128 NUMBERS_64 ", %32, %33, %34, %35, %36, %37, %38, %39" TEN(4) TEN(5) ", %60, %61, %62, %63"
#define NUMBERS_256 NUMBERS_128 ", %64, %65, %66, %67, %68, %69" TEN(7) TEN(8) TEN(9) TEN(10) TEN(11) \
    ", %120, %121, %122, %123, %124, %125, %126, %127"

#define WIDE_ASM(N, KIND, A, B, ADD, REST) \
    "{\n.reg .pred add;\nsetp.ne.b32 add, " ADD ", 0;\n" \
    "wgmma.mma_async.sync.aligned.m64n" #N KIND " {" NUMBERS_##N "}, " A ", " B ", add, 1, 1" REST ";\n}"

template <int N, class T> struct Wide;  // P0 to P6: the numbers of the operands behind the sums
#define WIDE_16BIT(N, T, KIND, P0, P1, P2, P3, P4, P5, P6) \
    template <> struct Wide<N, T> { \
        template <int A_TURNED, int B_TURNED> static DEVICE void shared(float (&sum)[N / 2], u64 a, u64 b, int add) { \
            asm volatile(WIDE_ASM(N, KIND, P0, P1, P2, ", " P3 ", " P4) \
                         : SUMS_##N : "l"(a), "l"(b), "r"(add), "n"(A_TURNED), "n"(B_TURNED)); \
        } \
        template <int B_TURNED> static DEVICE void registers(float (&sum)[N / 2], const u32 (&a)[4], u64 b, int add) { \
            asm volatile(WIDE_ASM(N, KIND, "{" P0 ", " P1 ", " P2 ", " P3 "}", P4, P5, ", " P6) \
                         : SUMS_##N : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(B_TURNED)); \
        } \
    };
#define WIDE_TF32(N, P0, P1, P2, P3, P4, P5) \
    template <> struct Wide<N, Tf32> { \
        template <int A_TURNED, int B_TURNED> static DEVICE void shared(float (&sum)[N / 2], u64 a, u64 b, int add) { \
            static_assert(!A_TURNED && !B_TURNED, "wgmma turns 16-bit operands only"); \
            asm volatile(WIDE_ASM(N, "k8.f32.tf32.tf32", P0, P1, P2, "") : SUMS_##N : "l"(a), "l"(b), "r"(add)); \
        } \
        template <int B_TURNED> static DEVICE void registers(float (&sum)[N / 2], const u32 (&a)[4], u64 b, int add) { \
            static_assert(!B_TURNED, "wgmma turns 16-bit operands only"); \
            asm volatile(WIDE_ASM(N, "k8.f32.tf32.tf32", "{" P0 ", " P1 ", " P2 ", " P3 "}", P4, P5, "") \
                         : SUMS_##N : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add)); \
        } \
    };
#define WIDE(N, P0, P1, P2, P3, P4, P5, P6) \
    WIDE_16BIT(N, Bfloat16, "k16.f32.bf16.bf16", P0, P1, P2, P3, P4, P5, P6) \
    WIDE_16BIT(N, Float16, "k16.f32.f16.f16", P0, P1, P2, P3, P4, P5, P6) \
    WIDE_TF32(N, P0, P1, P2, P3, P4, P5)
WIDE(8, "%4", "%5", "%6", "%7", "%8", "%9", "%10")
WIDE(16, "%8", "%9", "%10", "%11", "%12", "%13", "%14")
WIDE(32, "%16", "%17", "%18", "%19", "%20", "%21", "%22")
WIDE(64, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
WIDE(128, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
WIDE(256, "%128", "%129", "%130", "%131", "%132", "%133", "%134")

// sum += a b (sum = a b where not `accumulate`), begun: all 128 threads together, done after wgmma_commit and wgmma_wait.
template <int N, class T, bool A_TURNED = false, bool B_TURNED = false>
DEVICE void multiply_wide(float (&sum)[N / 2], u64 a, u64 b, bool accumulate) {
    Wide<N, T>::template shared<A_TURNED, B_TURNED>(sum, a, b, accumulate);
}
// The same with A in registers, as load_matrix gives it to multiply(): warp w holds rows 16 w to 16 w + 15.
template <int N, class T, bool B_TURNED = false>
DEVICE void multiply_wide(float (&sum)[N / 2], const u32 (&a)[4], u64 b, bool accumulate) {
    Wide<N, T>::template registers<B_TURNED>(sum, a, b, accumulate);
}
#endif
