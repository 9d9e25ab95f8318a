// dsd and its transpose by wgmma (sm_90a) as in products_wgmma.cu, with operands that TMA brings and outputs that it takes,
// and perhaps clusters of two CTAs.
//
// One warp asks for boxes by tensor maps instead of a warpgroup that gathers: it computes no addresses, needs no fence
// between proxies and few registers. CTAs of a cluster take the same tiles, each its part, stage by stage together.
#include "wgmma_store.h"

DEVICE void produce(const Arguments& given, const BoxRing& ring, int lane) {
    const int cluster = blockIdx.x / CLUSTER, end = given.begins[cluster + 1];
    if (lane == 0) prefetch_map(given.x_map), prefetch_map(given.values_map), prefetch_map(given.y_map);
    for (int number = given.begins[cluster], filled = 0; number < end; ++number) {
        const Tile tile(Tile::load(given, number));
        Step next(given, tile, 0, lane);
        for (int at = 0; at < tile.steps; ++at, ++filled) {
            const Step step = next;
            next = Step(given, tile, at + 1, lane);  // early: where the next boxes lie depends on it
            const u64 kept = step.kept();
            ring.wait_empty(filled);
            if (lane == 0) ring.expect(filled, kept);
            __syncwarp();
            u64* full = ring.full + filled % STAGES;
            bring_x(given, tile, step, at, ring.at(filled), full, lane);
            bring_blocks(given, step, ring.at(filled) + blocks_at, full, lane);
        }
    }
    __syncwarp();
}

CLUSTERED(dsd, Arguments, 128 * (WARPGROUPS + 1), 1, CLUSTER) {
    const BoxRing ring;
    const int thread = threadIdx.x % 128, group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
    ring.open();
    if (group == WARPGROUPS) {
        give_registers<bringer_registers>();
        if (thread < 32) produce(given, ring, thread);
    } else {
        take_registers<summer_registers>();
        consume<ByBoxes>(given, ring, group, thread);
    }
    if (CLUSTER > 1) ring.meet();  // the other may still bring something here, or say that it has read it
}
