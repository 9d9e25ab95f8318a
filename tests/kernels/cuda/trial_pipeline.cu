// c[16, 32] = a[16, depth] b[depth, 32] in bf16 by four warps, through stages of shared memory; `fault` plants a fault.
#include "device.h"

struct Arguments {
    const u16 *a, *b;
    float *c;
    int depth, fault;
};

static const int stages = 3, stage_bytes = 1536;

enum Fault {
    none, no_wait, no_barrier, wrong_stage_read, wrong_stage_written, lane_skips, lane_exits, lanes_differ, other_barrier,
    not_stored, misaligned, outside, not_copied, copied_twice, written_outside, no_memory, wait_too_late, half_committed
};

// A stage: 16 rows of 16 elements of a, then 16 rows of 32 elements of b.
DEVICE void begin_stage(const Arguments &given, char *stage, int step) {
    const int thread = (int)threadIdx.x;
    if (given.fault == not_copied && thread == 20) return;
    if (thread < 32) copy_async<16>(stage + 16 * thread, given.a + thread / 2 * given.depth + step * 16 + thread % 2 * 8, true);
    else if (thread < 96) copy_async<16>(stage + 512 + 16 * (thread - 32), given.b + step * 512 + (thread - 32) * 8, true);
    else if (given.fault == copied_twice && thread == 100) copy_async<16>(stage, given.a, true);
}

KERNEL(pipeline, Arguments, 128, 1) {
    char *shared = shared_memory();
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, steps = given.depth / 16, fault = given.fault;
    float sum[4] = {};
    for (int step = 0; step < stages - 1; ++step) {
        begin_stage(given, shared + step * stage_bytes, step);
        if (fault != half_committed) copy_commit();
    }
    for (int step = 0; step < steps; ++step) {
        if (fault == wait_too_late) copy_wait<stages - 1>();
        else if (fault != no_wait) copy_wait<stages - 2>();
        if (fault == lane_exits && threadIdx.x == 70) return;
        if (fault == other_barrier && warp == 2 && step == 3) barrier_wait(1, 128);
        else if (fault != no_barrier) __syncthreads();
        const int ahead = step + stages - 1;
        if (ahead < steps) begin_stage(given, shared + (fault == wrong_stage_written ? step : ahead) % stages * stage_bytes, ahead);
        copy_commit();
        const char *stage = shared + (fault == wrong_stage_read ? step + 1 : step) % stages * stage_bytes;
        u32 a[4], b[2];
        const char *row = stage + lane % 16 * 32 + lane / 16 * 16;
        if (fault == misaligned && lane == 3) row += 8;
        if (fault == outside && lane == 3 && warp == 1) row = shared + stages * stage_bytes;
        if (fault != lane_skips || threadIdx.x != 37) load_matrix(a, row);
        if (fault == lanes_differ && lane > 20) load_matrix(b, stage + 512 + lane % 16 * 64 + warp * 16);
        else load_matrix_turned(b, stage + 512 + lane % 16 * 64 + warp * 16);
        multiply(sum, a, b, Bfloat16());
    }
    if (fault == written_outside && threadIdx.x == 99) shared[stages * stage_bytes] = 1;
    float *c = fault == no_memory ? (float *)16 : given.c;
    for (int i = 0; i < 4; ++i)
        if (fault != not_stored || threadIdx.x != 127) c[(lane / 4 + i / 2 * 8) * 32 + warp * 8 + lane % 4 * 2 + i % 2] = sum[i];
}
