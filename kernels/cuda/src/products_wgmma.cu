// dsd and its transpose by wgmma (sm_90a): Y[n, m] = X[n, k] W^T, or TURNED X W; X and Y token-major, W by its kept blocks.
//
// WARPGROUPS warpgroups multiply, one more gathers. CTAs stay and take the tiles that the plan deals to each; the stages of the
// next tile are filled while the sums of one are written.
#if BLOCK >= 64
#include "wgmma_tall.h"
#else
#include "wgmma_flat.h"
#endif

DEVICE void produce(const Arguments& given, const Ring& ring, int thread) {
    const int lane = thread % 32;
    int filled = 0;
    for (int number = given.begins[blockIdx.x], end = given.begins[blockIdx.x + 1]; number < end; ++number) {
        const Tile tile(Tile::load(given, number));
        Step next(given, tile, 0, lane);
        for (int at = 0; at < tile.steps; ++at, ++filled) {
            const Step step = next;
            next = Step(given, tile, at + 1, lane);  // early: the addresses of the next copies depend on it
            ring.wait_empty(filled);
            gather_x(given, tile, step, ring.at(filled), thread);
            gather_blocks(given, step, ring.at(filled) + blocks_at, thread);
            const u64 kept = step.kept();
            if (thread == 0) ring.kept[filled % STAGES] = kept;
            ring.filled(filled);
        }
    }
    ring.close(filled);
}

DEVICE void clear(Sums& sums) {
    UNROLL for (int half = 0; half < halves; ++half)
        UNROLL for (int slot = 0; slot < kinds; ++slot) {
            UNROLL for (int i = 0; i < width / 2; ++i) sums.at[half][slot][i] = 0.0f;
            settle(sums.at[half][slot]);
        }
}

// The sums of one tile. `used`: stages taken so far, by all tiles.
DEVICE void sum_tile(Sums& sums, const Tile& tile, const Ring& ring, int group, int& used) {
    for (int at = 0; at < tile.steps; ++at, ++used) {
        ring.wait_full(used);
        multiply_step(sums, ring.at(used), group, ring.kept[used % STAGES]);
        if (at >= behind) ring.release(used - behind);
    }
    wgmma_wait<0>();
    if (behind && tile.steps > 0) ring.release(used - 1);
    UNROLL for (int half = 0; half < halves; ++half)
        UNROLL for (int slot = 0; slot < kinds; ++slot) settle(sums.at[half][slot]);
}

DEVICE void consume(const Arguments& given, const Ring& ring, int group, int thread) {
    Sums sums;
    const int begin = given.begins[blockIdx.x], end = given.begins[blockIdx.x + 1];
    uint4 next = Tile::load(given, begin);  // no CTA is without tiles
    for (int number = begin, used = 0; number < end; ++number) {
        const Tile tile(next);
        next = Tile::load(given, min(number + 1, end - 1));  // early: it comes while this one is multiplied
        clear(sums);
        sum_tile(sums, tile, ring, group, used);
        store_sums(given, sums, tile, ring.room + group * output_bytes, group, thread);
    }
}

KERNEL(dsd, Arguments, 128 * (WARPGROUPS + 1), 1) {
    const Ring ring;
    const int thread = threadIdx.x % 128, group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
    ring.open();
    if (group == WARPGROUPS) {
        give_registers<gatherer_registers>();
        produce(given, ring, thread);
    } else {
        take_registers<multiplier_registers>();
        consume(given, ring, group, thread);
    }
}
