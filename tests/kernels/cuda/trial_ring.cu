// A warp brings rows of 512 bytes into a ring; four warps read them and sum the 16-bit numbers of each row. `fault` plants one.
#include "device.h"

struct Arguments {
    const u16 *rows;
    u32 *sums;
    int count, fault, bulk;
};

static const int places = 3, row_bytes = 512;

enum Fault {
    none, full_not_awaited, empty_not_awaited, too_few_bytes, not_published, no_barrier, wrong_parity, released_early, one_releases,
    not_released, overwritten, released_twice, bulk_misaligned
};

DEVICE void bring(const Arguments &given, char *ring, u64 *full, u64 *empty) {
    const int lane = (int)threadIdx.x % 32;
    for (int row = 0; row < given.count; ++row) {
        const int place = row % places;
        if (row >= places && given.fault != empty_not_awaited) mbarrier_wait(empty + place, (u32)(row / places + 1) % 2);
        const char *from = (const char *)given.rows + row * row_bytes;
        if (!given.bulk) {
            copy_async<16>(ring + place * row_bytes + lane * 16, from + lane * 16, true);
            mbarrier_arrive_after_copies(full + place);
        } else if (lane == 0) {
            mbarrier_expect(full + place, row_bytes - (given.fault == too_few_bytes && row == 4 ? 16 : 0));
            copy_bulk(ring + place * row_bytes + (given.fault == bulk_misaligned ? 8 : 0), from, row_bytes, full + place);
        }
    }
}

DEVICE void take(const Arguments &given, const char *ring, u64 *full, u64 *empty) {
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    for (int row = 0; row < given.count; ++row) {
        const int place = row % places, parity = row / places % 2;
        if (given.fault != full_not_awaited) mbarrier_wait(full + place, (u32)(given.fault == wrong_parity ? 1 - parity : parity));
        if (given.fault == released_early) mbarrier_arrive(empty + place);
        u32 four[4];
        load_matrix(four, ring + place * row_bytes + lane * 16);
        u32 sum = 0;
        for (int i = 0; i < 4; ++i) sum += (four[i] & 0xffff) + (four[i] >> 16);
        for (int bit = 1; bit < 32; bit *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bit);
        if (lane == 0) given.sums[row * 4 + warp] = sum;
        if (given.fault == not_released && warp == 1 && row == 2) continue;
        if (given.fault == one_releases && lane > 0) continue;
        if (given.fault != released_early) mbarrier_arrive(empty + place);
        if (given.fault == released_twice && warp == 0 && row == 5) mbarrier_arrive(empty + place);
    }
}

KERNEL(ring, Arguments, 160, 1) {
    char *shared = shared_memory();
    u64 *full = (u64 *)(shared + places * row_bytes), *empty = full + places;
    if (threadIdx.x == 128) {
        for (int place = 0; place < places; ++place) {
            mbarrier_init(full + place, given.bulk ? 1 : 32);
            mbarrier_init(empty + place, given.fault == one_releases ? 4 : 128);
        }
        if (given.fault != not_published) mbarrier_publish();
    }
    if (given.fault != no_barrier) __syncthreads();
    if (given.fault == overwritten && threadIdx.x == 3) full[1] = 0;
    if (given.fault == overwritten) __syncthreads();
    if (threadIdx.x >= 128) bring(given, shared, full, empty);
    else take(given, shared, full, empty);
}
