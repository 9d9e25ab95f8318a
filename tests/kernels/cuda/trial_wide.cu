// Two warpgroups: sums[64, COLUMNS] += a[64, 16 or 8] b[.., COLUMNS] `steps` times, operands at the places of shared memory that descriptors
// tell; `fault` plants one. The second warpgroup writes to a place of its own.
#include "device.h"

struct Arguments {
    const char *image;  // of shared memory
    const u32 *left;    // A as fragments, 4 registers a thread, or null
    float *sums;        // [2, 64, COLUMNS]
    u64 a, b, a_step, b_step;
    int bytes, steps, fault;
};

enum Fault { none, no_proxy_fence, sums_touched, sums_read, read_late, no_fence, not_together, no_wait, fragments_after_fence, fenced_by_reader, stored_after_fence };

KERNEL(wide, Arguments, 256, 1) {
    const int thread = (int)threadIdx.x, lane = thread % 32, warp = thread / 32, fault = given.fault;
    char *shared = shared_memory();
    for (int i = thread * 16; i < given.bytes; i += 256 * 16) copy_async<16>(shared + i, given.image + i, true);
    copy_commit();
    copy_wait<0>();
    if (fault != no_proxy_fence && fault != fenced_by_reader) proxy_fence();
    __syncthreads();
    if (fault == stored_after_fence && thread == 5) *(u32 *)(shared + 16) ^= 1u;
    __syncthreads();
    if (fault == fenced_by_reader) proxy_fence();
    float sum[COLUMNS / 2] = {};
    u32 a[4] = {};
    if (given.left) for (int i = 0; i < 4; ++i) a[i] = given.left[thread % 128 * 4 + i];
    if (fault != no_fence) wgmma_fence();
    settle(sum);
    if (fault == fragments_after_fence) load_matrix(a, shared + lane * 16);
    for (int step = 0; step < given.steps; ++step) {
        const u64 right = given.b + (u64)step * given.b_step;
        if (fault == not_together && warp == 2) continue;
        if (given.left) multiply_wide<COLUMNS, ELEMENT, (B_TURNED != 0)>(sum, a, right, true);
        else multiply_wide<COLUMNS, ELEMENT, (A_TURNED != 0), (B_TURNED != 0)>(sum, given.a + (u64)step * given.a_step, right, step > 0);
        wgmma_commit();
    }
    if (fault == sums_touched) sum[1] += 1.0f;
    const float early = sum[0];
    if (fault == read_late) copy_async<16>(shared + thread % 128 * 16, given.image, true);
    if (fault != no_wait) wgmma_wait<0>();
    settle(sum);
    if (fault == sums_read) sum[0] = early;
    float *to = given.sums + thread / 128 * 64 * COLUMNS + (warp % 4 * 16 + lane / 4) * COLUMNS + lane % 4 * 2;
    for (int i = 0; i < COLUMNS / 2; ++i) to[i / 2 % 2 * 8 * COLUMNS + i / 4 * 8 + i % 2] = sum[i];
}
