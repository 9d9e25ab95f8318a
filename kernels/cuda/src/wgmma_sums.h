// What the multiplying warpgroups of dsd by wgmma do, whoever fills the ring: sums of one tile after the other, and on to
// Y by a Writer.
#pragma once
#if BLOCK >= 64
#include "wgmma_tall.h"
#else
#include "wgmma_flat.h"
#endif

DEVICE void clear(Sums& sums) {
    UNROLL for (int half = 0; half < halves; ++half)
        UNROLL for (int slot = 0; slot < kinds; ++slot) {
            UNROLL for (int i = 0; i < width / 2; ++i) sums.at[half][slot][i] = 0.0f;
            settle(sums.at[half][slot]);
        }
}

// The sums of one tile. `used`: stages taken so far, by all tiles.
template <class Ring>
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

template <class Writer, class Given, class Ring>
DEVICE void consume(const Given& given, const Ring& ring, int group, int thread) {
    Sums sums;
    const int begin = given.begins[blockIdx.x / CLUSTER], end = given.begins[blockIdx.x / CLUSTER + 1];
    uint4 next = Tile::load(given, begin);  // no CTA is without tiles
    for (int number = begin, used = 0; number < end; ++number) {
        const Tile tile(next);
        next = Tile::load(given, min(number + 1, end - 1));  // early: it comes while this one is multiplied
        clear(sums);
        sum_tile(sums, tile, ring, group, used);
        Writer::write(given, sums, tile, ring.room + group * Writer::room_bytes, group, thread);
    }
    Writer::close(thread);
}
