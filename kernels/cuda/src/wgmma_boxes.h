// What one warp of products_wgmma_tma.cu brings by TMA: boxes of X and of the kept blocks, as their tensor maps describe
// them.
//
// A box lands swizzled as swizzled() says and as gather_x and gather_blocks lay lines, so that who multiplies sees no
// difference; tokens past the last are zeros. In a cluster of two each CTA brings half of what both need to both
// (multicast): of blocks of 64 and 128 every other 64 lines of the blocks, while each has its own tokens; of smaller ones
// half of the tokens, while each has its own block rows.
#pragma once
#include "wgmma_tile.h"

struct Arguments {  // mirrored in Python, field by field
    TensorMap x_map, values_map, y_map;  // of X [n, k], the kept blocks, one below the other [nnzb * b, b], and Y [n, m]
    const int* tiles;    // [tiles, 4]: as in wgmma_gather.h, of a whole cluster
    const int* begins;   // [clusters + 1]: where the tiles of a cluster begin
    const int* columns;  // [listed]: block columns; of blocks below 64 all of them, for each row group
    const int* blocks;   // [listed, slots]: which block, by block row of the group; -1 is empty
    u64 unused_0, unused_1, unused_2, unused_3;  // to a multiple of 64 bytes
};

static const int bringer_registers = 40, summer_registers = 232;  // of 168 each
static const int per_line = line / Element::bytes;                // elements
static const int block_bytes = BLOCK * column_bytes / parts;      // of a block in a step
static const int x_bytes = PANELS * panel_bytes;
static const int buffer_bytes = 64 * line;                        // of sums on their way out
typedef RingOf<stage_bytes, WARPGROUPS * 2 * buffer_bytes> StageRing;
static const u16 whole_cluster = (1 << CLUSTER) - 1;
static_assert(tall || REGISTER_A, "a step may keep no block, after which no product of the one before may go on");
static_assert(CLUSTER == 1 || (CLUSTER == 2 && WARPGROUPS % CLUSTER == 0), "two CTAs share what they read");

struct BoxRing : StageRing {
    // By all threads of the cluster, before any of its mbarriers is used and before any CTA's memory is given up.
    DEVICE void meet() const {
        __syncwarp();  // the cluster's barrier wants whole warps, and one thread may have been at work
        if (CLUSTER > 1) cluster_barrier();
        else __syncthreads();
    }
    DEVICE void open() const {
        if (threadIdx.x == 0) {
            UNROLL for (int i = 0; i < STAGES; ++i) {
                mbarrier_init(full + i, 1);
                mbarrier_init(empty + i, 4 * WARPGROUPS * CLUSTER);
            }
            mbarrier_publish();
        }
        meet();
    }
    // Both CTAs of a cluster write to a stage of each: it is empty when the warps of both have read theirs.
    DEVICE void wait_empty(int number) const {
        if (CLUSTER > 1) mbarrier_wait_cluster(empty + number % STAGES, (number / STAGES & 1) ^ 1);
        else StageRing::wait_empty(number);
    }
    DEVICE void release(int number) const {
        if (CLUSTER == 1) return StageRing::release(number);
        __syncwarp();
        const u32 lane = threadIdx.x % 32;
        if (lane < CLUSTER) mbarrier_arrive_at(empty + number % STAGES, lane);
    }
    // One thread, before its copies: what else is in the stage, and the bytes that both CTAs will bring there.
    DEVICE void expect(int number, u64 blocks) const {
        kept[number % STAGES] = blocks;
        mbarrier_expect(full + number % STAGES, x_bytes + __popcll(blocks) * block_bytes);
    }
};

DEVICE void bring(bool shared, char* to, const TensorMap& map, int x, int y, u64* full) {
    if (shared) copy_box_to(whole_cluster, to, map, x, y, full);
    else copy_box(to, map, x, y, full);
}

// Step `at` of a tile. Of blocks below 64 every column of X comes in turn, 128 bytes of them in a box.
DEVICE void bring_x(const Arguments& given, const Tile& tile, const Step& step, int at, char* to, u64* full, int lane) {
    const int column = __shfl_sync(0xffffffffu, step.column, 0), rank = blockIdx.x % CLUSTER;
    const int halves_on = tall ? 0 : rank, tokens_on = halves_on * (TOKENS / CLUSTER);
    if (lane != 0) return;
    UNROLL for (int panel = 0; panel < PANELS; ++panel) {
        const int x = tall ? column * BLOCK + step.part * per_line : (at * PANELS + panel) * per_line;
        bring(CLUSTER > 1 && !tall, to + panel * panel_bytes + tokens_on * line, given.x_map,
              x, tile.token + tokens_on, full);
    }
}

#if BLOCK >= 64
// 64 lines for each warpgroup: see gather_blocks.
DEVICE void bring_blocks(const Arguments& given, const Step& step, char* to, u64* full, int lane) {
    UNROLL for (int group = 0; group < WARPGROUPS; ++group) {
        const int block = __shfl_sync(0xffffffffu, step.block[0], group * 64 / BLOCK), piece = group * 64 % BLOCK;
        if (lane != 0 || block < 0 || group % CLUSTER != blockIdx.x % CLUSTER) continue;
        const int row = TURNED ? step.part * 64 : piece, column = TURNED ? piece : step.part * per_line;
        bring(CLUSTER > 1, to + group * piece_bytes, given.values_map, column, block * BLOCK + row, full);
    }
}
#else
DEVICE void bring_blocks(const Arguments& given, const Step& step, char* to, u64* full, int lane) {
    UNROLL for (int i = 0; i < (pairs + 31) / 32; ++i)
        if (step.block[i] >= 0)
            bring(false, to + (32 * i + lane) * piece_bytes, given.values_map, 0, step.block[i] * BLOCK, full);
}
#endif
