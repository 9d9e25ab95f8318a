// Register tiles that multiply a packed block-sparse matrix with columns.
//
// The rows of a block are cut into panels of P rows; a panel's values are stored column by column, P of them side by
// side, one panel of a whole block row after the other. Two register tiles multiply a panel with a tile of columns:
//   tall: R vectors of rows times C single columns;
//   wide: P single rows times V vectors of columns, the last one stepped back so that it ends with the last column.
// A column is a step of the sum: of bfloat16 two columns, in pairs; a block of odd size ends with half a pair and zeros.
// Each multiplies every broadcast element by at least two vectors where it can: with 512-bit vectors a core loads one
// broadcast a cycle, but multiplies two vectors. Where a panel is one vector of floats high, two rows of X are broadcast
// at once and multiplied by two vectors, in which the values of two columns of W lie side by side.
#pragma once
#include "vectors.h"

struct Matrix {  // mirrored in Python, field by field
    const Scalar *values;  // or pairs
    const int32_t *indices, *indptr;
    int64_t block_size, grid_rows;
    int64_t panel_rows;    // P
    int64_t tall_vectors;  // R, or 0 for wide tiles
    int64_t abreast;       // columns whose values lie side by side, and so must the rows of X: 1 or 2
};

namespace {

constexpr int broadcasts_a_cycle = vector_bytes == 64 ? 1 : 2;
// Sums that fit in the registers beside the values and columns they are made of.
constexpr int tall_columns(int vectors) { return (registers - vectors - 1) / vectors < 28 ? (registers - vectors - 1) / vectors : 28; }
constexpr int twofold_columns = registers / 2 - 2;
constexpr bool twofold = broadcasts_a_cycle == 1 && !paired && sizeof(Scalar) == 4;
constexpr int wide_vectors(int rows) { return (registers - 4) / rows < 6 ? (registers - 4) / rows : 6; }

struct Columns {  // step s of a column of the right factor is x[s * stride + column]; two abreast: each step two rows, as twos
    const Scalar *x;
    int64_t stride, count;
};

struct Output {  // element (row, column) is y[row * down + column * along]; one of the two is 1
    Element *y;
    int64_t down, along;
};

struct Tile {  // one panel times some columns
    const Scalar *values;
    const int32_t *first, *last;  // block columns of the kept blocks
    const Scalar *x;
    int64_t stride;
    Output to;
    int64_t depth, rows;  // steps of a block; rows <= P: the last panel of a block may be padded
};

// Values come from beyond the second-level cache in pieces too short for the hardware to run ahead of.
template <int count> inline void prefetch(const Scalar *values) {
    constexpr int ahead = 2048 / sizeof(Scalar), line = 64 / sizeof(Scalar);
    UNROLL for (int i = 0; i < count; i += line) __builtin_prefetch(values + ahead + i);
}

template <int N, int R, int C> void tall_tile(const Tile &tile) {
    constexpr int chains = R * C <= 2 ? 4 : R * C <= 5 ? 2 : 1;  // independent sums, to hide the latency of an addition
    Vector<N> sums[chains][R][C] = {};
    const Scalar *values = tile.values;
    for (const int32_t *block = tile.first; block != tile.last; ++block) {
        const Scalar *x = tile.x + *block * tile.depth * tile.stride;
        int64_t step = 0;
        for (; step + chains <= tile.depth; step += chains)
            UNROLL for (int chain = 0; chain < chains; ++chain, x += tile.stride, values += R * N) {
                prefetch<R * N>(values);
                UNROLL for (int c = 0; c < C; ++c)
                    UNROLL for (int r = 0; r < R; ++r) add_products<N>(sums[chain][r][c], load<N>(values + r * N), x[c]);
            }
        for (; step < tile.depth; ++step, x += tile.stride, values += R * N)
            UNROLL for (int c = 0; c < C; ++c)
                UNROLL for (int r = 0; r < R; ++r) add_products<N>(sums[0][r][c], load<N>(values + r * N), x[c]);
    }
    UNROLL for (int chain = 1; chain < chains; ++chain)
        UNROLL for (int c = 0; c < C; ++c)
            UNROLL for (int r = 0; r < R; ++r) sums[0][r][c] += sums[chain][r][c];
    const Output &to = tile.to;
    if (to.down == 1 && tile.rows == R * N) {
        UNROLL for (int c = 0; c < C; ++c)
            UNROLL for (int r = 0; r < R; ++r) store_sums<N>(to.y + c * to.along + r * N, sums[0][r][c]);
        return;
    }
    Scalar turned[C][R * N];
    UNROLL for (int c = 0; c < C; ++c)
        UNROLL for (int r = 0; r < R; ++r) store<N>(turned[c] + r * N, sums[0][r][c]);
    for (int64_t r = 0; r < tile.rows; ++r)
        for (int c = 0; c < C; ++c) to.y[r * to.down + c * to.along] = turned[c][r];
}

// As tall_tile with one vector, two steps abreast.
template <int C> void twofold_tile(const Tile &tile) {
    constexpr int chains = C <= 1 ? 4 : C <= 3 ? 2 : 1;
    typedef Two Twos __attribute__((vector_size(lanes / 2 * sizeof(Two))));
    Vector<lanes> sums[chains][C][2] = {};
    const Scalar *values = tile.values;
    for (const int32_t *block = tile.first; block != tile.last; ++block) {
        const Scalar *x = tile.x + *block * tile.depth * tile.stride;
        for (int64_t step = 0; step < tile.depth; step += 2 * chains)  // `lanes` divide the depth
            UNROLL for (int chain = 0; chain < chains; ++chain, x += 2 * tile.stride, values += 2 * lanes) {
                prefetch<2 * lanes>(values);
                const Vector<lanes> first = load<lanes>(values), second = load<lanes>(values + lanes);
                UNROLL for (int c = 0; c < C; ++c) {
                    Two two;
                    __builtin_memcpy(&two, x + 2 * c, sizeof two);
                    const Vector<lanes> both = same_bits<Vector<lanes>>(Twos{} + two);
                    sums[chain][c][0] += first * both, sums[chain][c][1] += second * both;
                }
            }
    }
    const Output &to = tile.to;
    Vector<lanes> totals[C];
    UNROLL for (int c = 0; c < C; ++c) {
        UNROLL for (int chain = 1; chain < chains; ++chain)
            UNROLL for (int half = 0; half < 2; ++half) sums[0][c][half] += sums[chain][c][half];
        totals[c] = add_neighbours(sums[0][c][0], sums[0][c][1]);
    }
    if (to.down == 1) {
        UNROLL for (int c = 0; c < C; ++c) store_sums<lanes>(to.y + c * to.along, totals[c]);
        return;
    }
    for (int64_t r = 0; r < lanes; ++r)
        UNROLL for (int c = 0; c < C; ++c) to.y[r * to.down + c * to.along] = totals[c][r];
}

template <int P, int V> void wide_tile(const Tile &tile, int64_t last) {
    Vector<lanes> sums[P][V] = {};
    if (tile.to.along == 1)  // else the next item's atomic counter would wait until these stores have found their lines
        UNROLL for (int r = 0; r < P; ++r)
            UNROLL for (int v = 0; v < V; ++v) __builtin_prefetch(tile.to.y + r * tile.to.down + v * lanes, 1);
    const Scalar *values = tile.values;
    for (const int32_t *block = tile.first; block != tile.last; ++block) {
        const Scalar *x = tile.x + *block * tile.depth * tile.stride;
        for (int64_t step = 0; step < tile.depth; ++step, x += tile.stride, values += P) {
            prefetch<P>(values);
            Vector<lanes> columns[V];
            UNROLL for (int v = 0; v < V; ++v) columns[v] = load<lanes>(x + (v < V - 1 ? v * lanes : last));
            UNROLL for (int r = 0; r < P; ++r)
                UNROLL for (int v = 0; v < V; ++v) add_products<lanes>(sums[r][v], columns[v], values[r]);
        }
    }
    const Output &to = tile.to;
    if (to.along == 1) {
        UNROLL for (int r = 0; r < P; ++r)
            if (r < tile.rows)
                UNROLL for (int v = 0; v < V; ++v)
                    store_sums<lanes>(to.y + r * to.down + (v < V - 1 ? v * lanes : last), sums[r][v]);
        return;
    }
    UNROLL for (int v = 0; v < V; ++v) {
        Vector<lanes> rows[P];
        UNROLL for (int r = 0; r < P; ++r) rows[r] = sums[r][v];
        Element *first = to.y + (v < V - 1 ? v * lanes : last) * to.along;
        if (tile.rows == P) {
            store_exchanged<P, lanes>(rows, first, to.along);
            continue;
        }
        Scalar turned[P][lanes];
        UNROLL for (int r = 0; r < P; ++r) store<lanes>(turned[r], rows[r]);
        turn(turned[0], lanes, tile.rows, lanes, first, to.along);
    }
}

// The tile of `columns` <= C columns, or `vectors` <= V vectors, as a compile-time constant.
template <int N, int R, int C> void run_tall(int64_t columns, const Tile &tile) {
    if constexpr (C > 1)
        if (columns < C) return run_tall<N, R, C - 1>(columns, tile);
    tall_tile<N, R, C>(tile);
}

template <int C> void run_twofold(int64_t columns, const Tile &tile) {
    if constexpr (C > 1)
        if (columns < C) return run_twofold<C - 1>(columns, tile);
    twofold_tile<C>(tile);
}

template <int P, int V> void run_wide(int64_t vectors, const Tile &tile, int64_t last) {
    if constexpr (V > 1)
        if (vectors < V) return run_wide<P, V - 1>(vectors, tile, last);
    wide_tile<P, V>(tile, last);
}

template <int R> void tall_panel(Tile tile, int64_t columns) {
    constexpr int most = tall_columns(R);
    for (int64_t tiles = divide_up(columns, most); tiles > 0; --tiles) {
        const int64_t width = columns / tiles;
        run_tall<lanes, R, most>(width, tile);
        tile.x += width, tile.to.y += width * tile.to.along, columns -= width;
    }
}

template <int most> void twofold_panel(Tile tile, int64_t columns) {
    for (int64_t tiles = divide_up(columns, most); tiles > 0; --tiles) {
        const int64_t width = columns / tiles;
        run_twofold<most>(width, tile);
        tile.x += 2 * width, tile.to.y += width * tile.to.along, columns -= width;
    }
}

template <bool two> void single_panel(const Tile &tile, int64_t columns) {
    if constexpr (two) twofold_panel<two * twofold_columns>(tile, columns);
    else tall_panel<1>(tile, columns);
}

template <int P> void wide_panel(Tile tile, int64_t columns) {
    if (columns < lanes) return run_tall<P, 1, lanes - 1>(columns, tile);
    constexpr int most = wide_vectors(P);
    int64_t vectors = divide_up(columns, lanes);
    for (int64_t tiles = divide_up(vectors, most); tiles > 0; --tiles) {
        const int64_t width = vectors / tiles;
        const int64_t last = width * lanes < columns ? (width - 1) * lanes : columns - lanes;
        run_wide<P, most>(width, tile, last);
        tile.x += width * lanes, tile.to.y += width * lanes * tile.to.along;
        columns -= width * lanes, vectors -= width;
    }
}

// `samples` rows of `features` elements, turned into columns as tiles with so many steps abreast read them.
inline void turn_for(int64_t abreast, const Element *from, int64_t from_stride, int64_t samples, int64_t features, Scalar *to, int64_t stride) {
    if (abreast == 1) return turn(from, from_stride, samples, features, to, stride);
    turn_twos(reinterpret_cast<const Two *>(from), from_stride / 2, samples, features / 2, reinterpret_cast<Two *>(to), stride);
}

inline int64_t panels_of(const Matrix &matrix) { return divide_up(matrix.block_size, matrix.panel_rows); }

// Rows of panel `panel` of block row `row`, times `columns`, into `to` (which begins with the panel's first row).
inline void multiply(const Matrix &matrix, int64_t row, int64_t panel, const Columns &columns, const Output &to) {
    const int64_t begin = matrix.indptr[row], count = matrix.indptr[row + 1] - begin, depth = steps_in(matrix.block_size);
    Tile tile;
    tile.values = matrix.values + (begin * panels_of(matrix) + panel * count) * depth * matrix.panel_rows;
    tile.first = matrix.indices + begin, tile.last = tile.first + count;
    tile.x = columns.x, tile.stride = columns.stride, tile.to = to, tile.depth = depth;
    tile.rows = smaller(matrix.block_size - panel * matrix.panel_rows, matrix.panel_rows);
    if (matrix.tall_vectors == 2) return tall_panel<2>(tile, columns.count);
    if (matrix.tall_vectors == 1) return single_panel<twofold>(tile, columns.count);
    if constexpr (registers > 16)
        if (matrix.panel_rows == 8) return wide_panel<8>(tile, columns.count);
    wide_panel<4>(tile, columns.count);
}

}  // namespace
