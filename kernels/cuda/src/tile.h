// Tiles in shared memory: lines of 16-byte chunks whose chunks change places from line to line, so that what a warp reads at
// once lies in different banks.
#pragma once

#include "device.h"

// LINE: chunks of a line, a power of two or a multiple of 8. STRIDE 1: eight lines at one chunk are free of bank conflicts (load_matrix);
// 2: four lines at two neighbouring chunks are (32 floats, one a lane).
template <int LINE, int STRIDE = 1> struct Tile {
    static_assert(LINE % 8 == 0 || LINE == 4 || LINE == 2 || LINE == 1, "chunks are exchanged within powers of two");
    static const int line_bytes = 16 * LINE;

    static DEVICE int at(int line, int chunk) {  // bytes from the tile's begin
        constexpr int turns = LINE < 8 ? LINE : 8;
        return line * line_bytes + 16 * (chunk ^ (line / (8 / turns) * STRIDE % turns));
    }
    // One element of 32 bits, where STRIDE is 2: line and column are multiples of 4 and 8, to which each lane adds less than that.
    static DEVICE u32 word(const char* tile, int line, int lane_line, int column, int lane_column) {
        const int place = at(lane_line, lane_column / 4) + lane_column % 4 * 4;  // written so that lines and columns stay constants
        return *(const u32*)(tile + line * line_bytes + (place ^ (column / 4 % 8 * 16)) + column / 32 * 128);
    }
};

template <class T, int COUNT> struct alignas(COUNT * sizeof(T)) Vector {
    T at[COUNT];
};

template <bool FIRST, class T, class U> struct Pick {
    typedef T Type;
};
template <class T, class U> struct Pick<false, T, U> {
    typedef U Type;
};
