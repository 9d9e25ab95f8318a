// What the kernels of dsd by wgmma agree on: a tile of the output, a step of its reduction, and what a stage of the ring
// holds.
//
// A stage holds 128 bytes of the reduction (times PANELS): TOKENS lines of X and, at a fixed place each, the blocks that
// the row group keeps in those columns. In a cluster of CLUSTER CTAs, if there are any, neighbours in tokens share the
// blocks of 64 and 128, and neighbours in rows share X where blocks are smaller.
#pragma once
#include "wgmma_ring.h"

#ifndef CLUSTER
#define CLUSTER 1
#endif

typedef ELEMENT Element;
typedef Element::Storage Storage;

static const int column_bytes = BLOCK * Element::bytes;          // of one listed column in one line of X
static const int per_chunk = 16 / Element::bytes;                // elements of a copy
static const int parts = column_bytes > line ? column_bytes / line : 1;  // steps that one listed column takes
static const int in_panel = column_bytes < line ? line / column_bytes : 1;
static const int steps_in_line = line / 32;                     // products along a line
static const int listed = in_panel * PANELS;                     // columns of a step
static const int slots = ROWS / BLOCK;                           // block rows of a group
static const int pairs = listed * slots;
static const bool tall = BLOCK >= 64;                            // 64 rows of blocks a warpgroup, else 64 tokens
static const int piece_bytes = tall ? 64 * line : BLOCK * column_bytes;  // of a block in a stage
static const int pieces = tall ? WARPGROUPS : pairs;
static const int panel_bytes = TOKENS * line;
static const int blocks_at = PANELS * panel_bytes;                // in a stage, behind X
static const int stage_bytes = blocks_at + pieces * piece_bytes;
static const int output_bytes = 64 * (line + 16);  // a warpgroup's room to rearrange its sums

static_assert(column_bytes >= 32, "a line holds whole products");
static_assert(pairs <= 64 && (parts == 1 || PANELS == 1), "a step is listed in one 64-bit word");
static_assert(!tall || (ROWS == 64 * WARPGROUPS && PANELS == 1), "a warpgroup multiplies 64 rows");
static_assert(tall || TOKENS % (64 * WARPGROUPS) == 0, "a warpgroup multiplies 64 tokens");
static_assert(!TURNED || Element::bytes == 2, "wgmma turns 16-bit operands only");

struct Tile {  // of the output: one row group, TOKENS tokens
    int group, token, first, count, steps;
    template <class Given> static DEVICE uint4 load(const Given& given, int number) {
        return *(const uint4*)(given.tiles + 4 * number);
    }
    DEVICE Tile(const uint4& tile) {  // of a cluster's CTAs each its own
        const int rank = blockIdx.x % CLUSTER, groups_on = tall ? 0 : rank;
        count = tile.w, group = tile.x + groups_on, first = tile.z + groups_on * count;
        token = tile.y + (rank - groups_on) * TOKENS;
        steps = (count + listed - 1) / listed * parts;
    }
};

struct Step {  // what a step gathers, spread over a warp: lane l holds column l and the blocks of pairs l, l + 32
    int column, block[(pairs + 31) / 32], part;
    template <class Given> DEVICE Step(const Given& given, const Tile& tile, int step, int lane) {
        const int begin = step / parts * listed, left = step < tile.steps ? min(listed, tile.count - begin) : 0;
        part = step % parts;
        column = lane < left ? given.columns[tile.first + begin + lane] : -1;
        UNROLL for (int i = 0; i < (pairs + 31) / 32; ++i) {
            const int pair = 32 * i + lane;
            block[i] = pair < left * slots ? given.blocks[(tile.first + begin) * slots + pair] : -1;
        }
    }
    DEVICE u64 kept() const {
        u64 bits = 0;
        UNROLL for (int i = 0; i < (pairs + 31) / 32; ++i) bits |= (u64)__ballot_sync(0xffffffffu, block[i] >= 0) << (32 * i);
        return bits;
    }
};

DEVICE u32 pack(float, float, Tf32) { return 0; }  // never called
DEVICE u32 pair(const float* sum) { return pack(sum[0], sum[1], Element()); }

// 16 bytes of a line to Y. `row` is the first of them in the row group.
template <class Given>
DEVICE void store_chunk(const Given& given, const Tile& tile, int token, int row, const char* from) {
    row += tile.group * ROWS;
    if (tile.token + token < given.n && row < given.m)
        *(uint4*)(given.y + (u64)(tile.token + token) * given.m + row) = *(const uint4*)from;
}
