// dsd and its transpose by wgmma (sm_90a): Y[n, m] = X[n, k] W^T, or TURNED X W; X and Y token-major, W by its kept blocks.
//
// WARPGROUPS warpgroups multiply, one more gathers. CTAs stay and take the tiles that the plan deals to each; the stages of the
// next tile are filled while the sums of one are written.
#include "wgmma_gather.h"
#include "wgmma_sums.h"

DEVICE void produce(const Arguments& given, const StageRing& ring, int thread) {
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

struct ByThreads {  // each stores some of the tile, in whole lines
    static const int room_bytes = output_bytes;
    static DEVICE void write(const Arguments& given, const Sums& sums, const Tile& tile, char* room, int group, int thread) {
        store_sums(given, sums, tile, room, group, thread);
    }
    static DEVICE void close(int) {}
};

KERNEL(dsd, Arguments, 128 * (WARPGROUPS + 1), 1) {
    const StageRing ring;
    const int thread = threadIdx.x % 128, group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
    ring.open();
    if (group == WARPGROUPS) {
        give_registers<gatherer_registers>();
        produce(given, ring, thread);
    } else {
        take_registers<multiplier_registers>();
        consume<ByThreads>(given, ring, group, thread);
    }
}
