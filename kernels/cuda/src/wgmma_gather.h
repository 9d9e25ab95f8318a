// What the gathering warpgroup of products_wgmma.cu brings by cp.async: listed columns of X, and the blocks kept in them.
#pragma once
#include "wgmma_tile.h"

struct Arguments {  // mirrored in Python, field by field
    const Storage *values, *x;  // [nnzb, b, b] and [n, k]
    Storage* y;                 // [n, m]
    const int* tiles;           // [tiles, 4]: row group, first token, where the group's columns begin in the list, how many
    const int* begins;          // [CTAs + 1]: where the tiles of a CTA begin
    const int* columns;         // [listed]: block columns that any row of the group keeps
    const int* blocks;          // [listed, slots]: which block of `values`, by block row of the group; -1 is empty
    int n, k, m;
};

typedef RingOf<stage_bytes, WARPGROUPS * output_bytes> StageRing;

DEVICE void gather_x(const Arguments& given, const Tile& tile, const Step& step, char* to, int thread) {
    const int chunk = 16 * (thread % 8), row = thread / 8;
    UNROLL for (int panel = 0; panel < PANELS; ++panel) {
        const int column = __shfl_sync(0xffffffffu, step.column, panel * in_panel + chunk / column_bytes % in_panel);
        if (column < 0) continue;
        const char* from = (const char*)given.x + (u64)column * column_bytes + step.part * line + chunk % column_bytes;
        UNROLL for (int down = 0; down < TOKENS; down += 16) {
            const int token = tile.token + row + down;
            const bool valid = token < given.n;
            copy_async<16>(to + panel * panel_bytes + down * line + swizzled<line>(16 * thread),
                           from + (u64)(valid ? token : 0) * given.k * Element::bytes, valid);
        }
    }
}

#if BLOCK >= 64
// 64 lines for each warpgroup: its rows of the block, or for the transpose the part's rows, of which it takes its columns.
DEVICE void gather_blocks(const Arguments& given, const Step& step, char* to, int thread) {
    UNROLL for (int group = 0; group < WARPGROUPS; ++group) {
        const int block = __shfl_sync(0xffffffffu, step.block[0], group * 64 / BLOCK), piece = group * 64 % BLOCK;
        if (block < 0) continue;
        const int row = TURNED ? step.part * 64 : piece, byte = TURNED ? piece * Element::bytes : step.part * line;
        const u64 first = (u64)block * BLOCK + row + thread / 8;
        const char* from = (const char*)given.values + first * column_bytes + byte + 16 * (thread % 8);
        UNROLL for (int down = 0; down < 64; down += 16)
            copy_async<16>(to + group * piece_bytes + down * line + swizzled<line>(16 * thread),
                           from + down * column_bytes, true);
    }
}
#else
// Whole blocks, one a warp at a time.
DEVICE void gather_blocks(const Arguments& given, const Step& step, char* to, int thread) {
    const int lane = thread % 32;
    UNROLL for (int first = 0; first < pairs; first += 4) {
        const int pair = first + thread / 32;
        const int block = __shfl_sync(0xffffffffu, step.block[first / 32], pair % 32);
        if (block < 0 || pair >= pairs) continue;
        const char* from = (const char*)given.values + (u64)block * piece_bytes;
        UNROLL for (int byte = 0; byte < piece_bytes; byte += 512)
            copy_async<16>(to + pair * piece_bytes + swizzled<column_bytes>(byte + 16 * lane),
                           from + byte + 16 * lane, true);
    }
}
#endif
