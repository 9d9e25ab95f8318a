// Fragments of `multiply` from tiles in shared memory. A step of the reduction is 32 bytes: 16 elements of 16 bits, or 8 of 32.
//
// "Along": lines of the tile are rows (or columns) of the product, the reduction runs along them. "Across": lines are elements of the
// reduction. 16-bit matrices are turned by load_matrix_turned; those of 32 bits are read word by word.
#pragma once

#include "tile.h"

#ifndef ROUND
#define ROUND 1  // Tf32: to nearest; the tensor cores cut off the lower bits
#endif

template <class T> struct Fragments {
    static const int depth = 32 / T::bytes;  // elements of the reduction in a step

    template <int COUNT> static DEVICE void round(u32 (&)[COUNT]) {}

    // The left operand, 16 rows from `row`.
    template <class Tile> static DEVICE void left_along(u32 (&to)[4], const char* tile, int row, int step, int lane) {
        load_matrix(to, tile + Tile::at(row + lane % 16, step * 2 + lane / 16));
        round(to);
    }
    // 8 rows from `row` and 8 from `other`.
    template <class Tile>
    static DEVICE void left_across(u32 (&to)[4], const char* tile, int row, int other, int step, int lane) {
        const int chunk = (lane / 8 % 2 ? other : row) / 8;
        load_matrix_turned(to, tile + Tile::at(step * depth + lane % 8 + lane / 16 * 8, chunk));
    }
    // The right operand, 8 * COUNT columns from `column`.
    template <class Tile, int COUNT>
    static DEVICE void right_along(u32 (&to)[COUNT][2], const char* tile, int column, int step, int lane) {
        UNROLL for (int i = 0; i + 1 < COUNT; i += 2) {
            u32 four[4];
            load_matrix(four, tile + Tile::at(column + i * 8 + lane % 8 + lane / 16 * 8, step * 2 + lane / 8 % 2));
            spread(to[i], to[i + 1], four);
        }
        if (COUNT % 2) {
            load_matrix(to[COUNT - 1], tile + Tile::at(column + (COUNT - 1) * 8 + lane % 8, step * 2 + lane / 8 % 2));
            round(to[COUNT - 1]);
        }
    }
    template <class Tile, int COUNT>
    static DEVICE void right_across(u32 (&to)[COUNT][2], const char* tile, int column, int step, int lane) {
        const int line = step * depth + lane % 16;
        UNROLL for (int i = 0; i + 1 < COUNT; i += 2) {
            u32 four[4];
            load_matrix_turned(four, tile + Tile::at(line, column / 8 + i + lane / 16));
            spread(to[i], to[i + 1], four);
        }
        if (COUNT % 2) load_matrix_turned(to[COUNT - 1], tile + Tile::at(line, column / 8 + COUNT - 1));
    }
    static DEVICE void spread(u32 (&first)[2], u32 (&second)[2], u32 (&four)[4]) {
        round(four);
        first[0] = four[0], first[1] = four[1], second[0] = four[2], second[1] = four[3];
    }

    // Two neighbouring sums.
    static DEVICE void put(float* to, float first, float second) { *(Vector<float, 2>*)to = {{first, second}}; }
    static DEVICE void put(u16* to, float first, float second) { *(u32*)to = pack(first, second, T()); }
};

template <> template <int COUNT> DEVICE void Fragments<Tf32>::round(u32 (&words)[COUNT]) {
    if (ROUND) UNROLL for (int i = 0; i < COUNT; ++i) words[i] = round_tf32(words[i]);
}
template <> template <class Tile>
DEVICE void Fragments<Tf32>::left_across(u32 (&to)[4], const char* tile, int row, int other, int step, int lane) {
    UNROLL for (int i = 0; i < 4; ++i)
        to[i] = Tile::word(tile, step * depth + i / 2 * 4, lane % 4, i % 2 ? other : row, lane / 4);
    round(to);
}
template <> template <class Tile, int COUNT>
DEVICE void Fragments<Tf32>::right_across(u32 (&to)[COUNT][2], const char* tile, int column, int step, int lane) {
    UNROLL for (int i = 0; i < COUNT; ++i) {
        UNROLL for (int half = 0; half < 2; ++half)
            to[i][half] = Tile::word(tile, step * depth + half * 4, lane % 4, column + i * 8, lane / 4);
        round(to[i]);
    }
}
