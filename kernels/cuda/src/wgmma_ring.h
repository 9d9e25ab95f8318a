// A ring of stages in shared memory: one warpgroup fills it by copies, WARPGROUPS others multiply what is in it.
//
// `full` says that a stage is in, `empty` that all who read it are done. Stages are numbered from the first that the CTA fills.
// ROOM_BYTES behind the stages are for what the multiplying warpgroups like.
#pragma once
#include "wgmma.h"

static const int line = 128;        // bytes
static const int lag = STAGES - 2;  // stages whose copies are under way while the next ones begin
static const int gatherer_registers = 104, multiplier_registers = 200;  // of 168 each: 504 for a thread of every warpgroup
static_assert(STAGES >= 3, "a stage is multiplied and one is let go while the others are filled");

template <int STAGE_BYTES, int ROOM_BYTES> struct RingOf {
    static_assert(STAGE_BYTES % 1024 == 0 && ROOM_BYTES % 16 == 0, "swizzle patterns begin at multiples of their size");
    char *stages, *room;
    u64 *full, *empty, *kept;  // kept: a word to go with each stage

    DEVICE RingOf() {
        stages = shared_memory();
        room = stages + STAGES * STAGE_BYTES;
        full = (u64*)(room + ROOM_BYTES);
        empty = full + STAGES;
        kept = empty + STAGES;
    }
    DEVICE void open() const {  // by all threads of the CTA, before anything else
        if (threadIdx.x == 0) {
            UNROLL for (int i = 0; i < STAGES; ++i) {
                mbarrier_init(full + i, 4);
                mbarrier_init(empty + i, 4 * WARPGROUPS);
            }
            mbarrier_publish();
        }
        __syncthreads();
    }
    DEVICE char* at(int number) const { return stages + number % STAGES * STAGE_BYTES; }
    DEVICE void wait_full(int number) const { mbarrier_wait(full + number % STAGES, number / STAGES & 1); }
    DEVICE void wait_empty(int number) const { mbarrier_wait(empty + number % STAGES, (number / STAGES & 1) ^ 1); }

    // The calling warp's copies into a stage are in: tell wgmma, which reads past the ordinary path, then the readers.
    DEVICE void publish(int number) const {
        proxy_fence();
        __syncwarp();
        if (threadIdx.x % 32 == 0) mbarrier_arrive(full + number % STAGES);
    }
    // All copies into stage `number` are begun: those of the stage `lag` before it are in.
    DEVICE void filled(int number) const {
        copy_commit();
        copy_wait<lag>();
        if (number >= lag) publish(number - lag);
    }
    DEVICE void close(int count) const {  // `count` stages are filled, and no more come
        copy_wait<0>();
        for (int i = count > lag ? count - lag : 0; i < count; ++i) publish(i);
    }
    DEVICE void release(int number) const {  // the calling warp has read a stage
        __syncwarp();
        if (threadIdx.x % 32 == 0) mbarrier_arrive(empty + number % STAGES);
    }
};
