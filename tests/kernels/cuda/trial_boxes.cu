// Boxes of a matrix, as TMA brings and takes them: one alone shown as it lies, two on their way back, and a ring that two
// CTAs of a cluster fill for each other.
#include "device.h"

struct Arguments {
    TensorMap map;
    u32 *out;
    int x, y, bytes, fault;
    u64 unused[5];  // to a multiple of 64 bytes
};

enum Fault {
    none, too_few_bytes, too_many_bytes, full_not_awaited, peer_not_awaited, exits_early, no_first_barrier,
    not_published, misaligned, not_shared, unknown_rank, no_map, not_fenced, not_synchronised, not_committed, not_read,
    written_too_early
};

KERNEL(box, Arguments, 32, 1) {  // out: `bytes` of shared memory
    char *shared = shared_memory();
    u64 *full = (u64 *)(shared + given.bytes);
    if (threadIdx.x == 0) mbarrier_init(full, 1), mbarrier_publish();
    __syncthreads();
    if (threadIdx.x == 0) {
        prefetch_map(given.map);
        mbarrier_expect(full, (u32)given.bytes);
        copy_box(shared, given.map, given.x, given.y, full);
    }
    mbarrier_wait(full, 0);
    for (int i = (int)threadIdx.x; i < given.bytes / 4; i += 32) given.out[i] = ((u32 *)shared)[i];
}

// out's first `bytes`, as they lie in shared memory, to the box at (x, y), and as many more to the one 64 rows below.
KERNEL(back, Arguments, 64, 1) {
    char *shared = shared_memory();
    const int thread = (int)threadIdx.x, words = given.bytes / 4, fault = given.fault;
    for (int turn = 0; turn < 2; ++turn) {
        for (int i = thread; i < words; i += 64) ((u32 *)shared)[i] = given.out[turn * words + i];
        if (fault != not_fenced) proxy_fence();
        if (fault != not_synchronised) __syncthreads();
        if (thread == 0) {
            store_box(given.map, given.x, given.y + turn * 64, shared);
            if (fault != not_committed) store_commit();
            if (fault != not_read && (fault != written_too_early || turn == 1)) store_wait<0>();
        }
        __syncthreads();
    }
}

// Stages of 16 lines of 128 bytes, of which CTA r of two brings the 8 lines from 8 r on to both. Four warps of each sum 512
// bytes.
static const int places = 3, half_bytes = 1024, place_bytes = 2 * half_bytes;

DEVICE void bring(const Arguments &given, char *ring, u64 *full, u64 *empty) {
    const int rank = (int)blockIdx.x % 2, fault = given.fault;
    for (int stage = 0; stage < given.y; ++stage) {
        const int place = stage % places;
        if (stage >= places) mbarrier_wait_cluster(empty + place, (u32)(stage / places + 1) % 2);
        const int wrong = stage != 4 ? 0 : fault == too_many_bytes ? 128 : fault == too_few_bytes ? -128 : 0;
        mbarrier_expect(full + place, (u32)(place_bytes + wrong));
        char *to = ring + place * place_bytes + rank * half_bytes + (fault == misaligned ? 16 : 0);
        if (fault == not_shared) copy_box(to, given.map, 0, 16 * stage + 8 * rank, full + place);
        else copy_box_to(3, to, given.map, 0, 16 * stage + 8 * rank, full + place);
    }
}

DEVICE void take(const Arguments &given, const char *ring, u64 *full, u64 *empty) {
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, rank = (int)blockIdx.x % 2;
    const int fault = given.fault;
    for (int stage = 0; stage < given.y; ++stage) {
        const int place = stage % places;
        if (fault != full_not_awaited) mbarrier_wait(full + place, (u32)(stage / places) % 2);
        u32 four[4], sum = 0;
        load_matrix(four, ring + place * place_bytes + warp * 512 + lane * 16);
        for (int i = 0; i < 4; ++i) sum += (four[i] & 0xffff) + (four[i] >> 16);
        for (int bit = 1; bit < 32; bit *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bit);
        if (lane == 0) given.out[stage * 8 + rank * 4 + warp] = sum;
        __syncwarp();
        if (fault == peer_not_awaited ? lane == rank : lane < 2)
            mbarrier_arrive_at(empty + place, (u32)(fault == unknown_rank ? 2 : lane));
    }
}

CLUSTERED(shared_ring, Arguments, 160, 1, 2) {  // y: stages
    char *shared = shared_memory();
    u64 *full = (u64 *)(shared + places * place_bytes), *empty = full + places;
    const int fault = given.fault;
    if (threadIdx.x == 128) {
        for (int place = 0; place < places; ++place) {
            mbarrier_init(full + place, 1);
            mbarrier_init(empty + place, fault == peer_not_awaited ? 4 : 8);
        }
        if (fault != not_published) mbarrier_publish();
    }
    if (fault == no_first_barrier) __syncthreads();
    else cluster_barrier();
    if (threadIdx.x == 128) bring(given, shared, full, empty);
    else if (threadIdx.x < 128) take(given, shared, full, empty);
    __syncwarp();
    if (fault != exits_early) cluster_barrier();
}
