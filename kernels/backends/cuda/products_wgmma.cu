// dsd and its transpose by wgmma (sm_90a): Y[n, m] = X[n, k] W^T, or with TURNED X[n, m] W; X, Y token-major, W in blocks.
//
// WARPGROUPS warpgroups multiply, one more gathers. CTAs stay and take tile after tile, heavy row groups first; the stages of
// the next tile are filled while the sums of one are written.
#if BLOCK >= 64
#include "wgmma_tall.h"
#else
#include "wgmma_flat.h"
#endif

// The calling thread's copies into a stage are in: tell wgmma, which reads past the ordinary path, then the readers.
DEVICE void publish(const Ring& ring, int filled, int lane) {
    proxy_fence();
    __syncwarp();
    if (lane == 0) mbarrier_arrive(ring.full + filled % STAGES);
}

DEVICE void produce(const Arguments& given, const Ring& ring, int thread) {
    const int lane = thread % 32;
    int filled = 0;
    for (int number = blockIdx.x; number < tiles(given); number += gridDim.x) {
        const Tile tile(given, number);
        Step next(given, tile, 0, lane);
        for (int at = 0; at < tile.steps; ++at, ++filled) {
            const Step step = next;
            next = Step(given, tile, at + 1, lane);  // early: the addresses of the next copies depend on it
            const int stage = filled % STAGES;
            mbarrier_wait(ring.empty + stage, (filled / STAGES & 1) ^ 1);
            gather_x(given, tile, step, ring.x(stage), thread);
            gather_blocks(given, step, ring.blocks(stage), thread);
            const u64 kept = step.kept();
            if (thread == 0) ring.kept[stage] = kept;
            copy_commit();
            copy_wait<lag>();
            if (filled >= lag) publish(ring, filled - lag, lane);
        }
    }
    copy_wait<0>();
    for (int i = filled > lag ? filled - lag : 0; i < filled; ++i) publish(ring, i, lane);
}

DEVICE void clear(Sums& sums) {
    UNROLL for (int half = 0; half < halves; ++half)
        UNROLL for (int slot = 0; slot < kinds; ++slot) {
            UNROLL for (int i = 0; i < width / 2; ++i) sums.at[half][slot][i] = 0.0f;
            settle(sums.at[half][slot]);
        }
}

DEVICE void release(const Ring& ring, int used, int lane) {
    __syncwarp();
    if (lane == 0) mbarrier_arrive(ring.empty + used % STAGES);
}

// The sums of one tile. `used`: stages taken so far, by all tiles.
DEVICE void sum_tile(Sums& sums, const Tile& tile, const Ring& ring, int group, int lane, int& used) {
    for (int at = 0; at < tile.steps; ++at, ++used) {
        const int stage = used % STAGES;
        mbarrier_wait(ring.full + stage, used / STAGES & 1);
        const u64 kept = ring.kept[stage];
        multiply_step(sums, ring, stage, group, kept);
        wgmma_commit();
        wgmma_wait<behind>();
        if (at >= behind) release(ring, used - behind, lane);
    }
    wgmma_wait<0>();
    if (behind && tile.steps > 0) release(ring, used - 1, lane);
    UNROLL for (int half = 0; half < halves; ++half)
        UNROLL for (int slot = 0; slot < kinds; ++slot) settle(sums.at[half][slot]);
}

DEVICE void consume(const Arguments& given, const Ring& ring, int group, int thread) {
    Sums sums;
    int used = 0;
    for (int number = blockIdx.x; number < tiles(given); number += gridDim.x) {
        const Tile tile(given, number);
        clear(sums);
        sum_tile(sums, tile, ring, group, thread % 32, used);
        store_sums(given, sums, tile, ring.output + group * output_bytes, group, thread);
    }
}

static const int gatherer_registers = 104, multiplier_registers = 200;  // of 168 each: 504 a thread of every warpgroup

KERNEL(dsd, Arguments, 128 * (WARPGROUPS + 1), 1) {
    const Ring ring;
    const int thread = threadIdx.x % 128, group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
    if (threadIdx.x == 0) {
        UNROLL for (int i = 0; i < STAGES; ++i) {
            mbarrier_init(ring.full + i, 4);
            mbarrier_init(ring.empty + i, 4 * WARPGROUPS);
        }
        mbarrier_publish();
    }
    __syncthreads();
    if (group == WARPGROUPS) {
        give_registers<gatherer_registers>();
        produce(given, ring, thread);
    } else {
        take_registers<multiplier_registers>();
        consume(given, ring, group, thread);
    }
}
