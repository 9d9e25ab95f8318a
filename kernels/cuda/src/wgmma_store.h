// How sums of products_wgmma_tma.cu go to Y: laid in shared memory as boxes, which TMA stores while the next are laid and
// while the next tile is multiplied. What of a box is past the last token or row is not written.
//
// Two buffers take turns: who stored from one waits until that box is read before anybody lays the one after next.
#pragma once
#include "wgmma_boxes.h"
#include "wgmma_sums.h"

static const int box_rows = per_line, box_tokens = tall ? (TOKENS < per_line ? TOKENS : per_line) : 16;  // of Y
static const int passes = tall ? TOKENS / box_tokens : halves * ROWS / box_rows;
static const int unread = passes % 2 ? 0 : 1;  // boxes that may be read while the next is laid: of an odd number none

DEVICE char* box_place(char* box, int token, int row) {
    return box + swizzled<line>(token * line + row * Element::bytes);
}

#if BLOCK >= 64
struct ByBoxes {  // of 64 rows, which are two boxes where elements have 4 bytes; a warpgroup lays them together
    static const int room_bytes = 2 * buffer_bytes;
    static DEVICE void write(const Arguments& given, const Sums& sums, const Tile& tile, char* room,
                             int group, int thread) {
        UNROLL for (int pass = 0; pass < passes; ++pass) {
            char* to = room + pass % 2 * buffer_bytes;
            const int first = pass * box_tokens, row = tile.group * ROWS + group * 64;
            if (thread == 0) store_wait<unread>();
            barrier_wait(1 + group, 128);
            UNROLL for (int j = 0; j < box_tokens; j += 16)
                lay_sums(sums.at[0][0] + (first + j) / 2, j, thread, [=](int token, int at) {
                    return box_place(to + at / box_rows * (box_tokens * line), token, at % box_rows);
                });
            proxy_fence();
            barrier_wait(1 + group, 128);
            if (thread != 0) continue;
            UNROLL for (int box = 0; box < 64 / box_rows; ++box)
                store_box(given.y_map, row + box * box_rows, tile.token + first, to + box * box_tokens * line);
            store_commit();
        }
    }
    static DEVICE void close(int thread) {
        if (thread == 0) store_wait<0>();
    }
};
#else
struct ByBoxes {  // of 16 tokens, each warp its own
    static const int room_bytes = 2 * buffer_bytes;
    static DEVICE void write(const Arguments& given, const Sums& sums, const Tile& tile, char* room,
                             int group, int thread) {
        const int lane = thread % 32, warp = thread / 32;
        UNROLL for (int pass = 0; pass < passes; ++pass) {
            char* to = room + (2 * warp + pass % 2) * (buffer_bytes / 4);
            const int half = pass / (ROWS / box_rows), first = pass % (ROWS / box_rows) * box_rows;
            if (lane == 0) store_wait<unread>();
            __syncwarp();
            UNROLL for (int row = 0; row < box_rows; row += 16)
                lay_sums(sums_of(sums, half, first + row), row, lane,
                         [=](int token, int at) { return box_place(to, token, at); });
            proxy_fence();
            __syncwarp();
            if (lane != 0) continue;
            const int token = (group * halves + half) * 64 + warp * 16;
            store_box(given.y_map, tile.group * ROWS + first, tile.token + token, to);
            store_commit();
        }
    }
    static DEVICE void close(int thread) {
        if (thread % 32 == 0) store_wait<0>();
    }
};
#endif
