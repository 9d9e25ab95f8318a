// Register tiles that multiply a packed block-sparse matrix with columns.
//
// The rows of a block are cut into panels. A panel's values are stored column by column, those of one column side by side, one
// panel of a whole block row after the other; nothing is padded. How depends on how the right factor lies:
//   lying: each of its columns is contiguous, as the activations of a network are. A tile is a panel of up to two vectors of
//   rows times single columns, whose elements are broadcast.
//   standing: each of its rows is. A tile is a low panel's single rows, which are broadcast, times vectors of columns, the last
//   one stepped back so that it ends with the last column.
// A vector of rows that is not full ends with rows of the next column of values; they are computed and not stored.
// A column is a step of the sum: of bfloat16 two columns, in pairs; a block of odd size ends with half a pair and zeros.
// Two abreast, the values of two columns of W lie side by side: a vector holds two columns of values times half as many rows
// or, standing, two rows of X times half as many columns (and they must lie side by side there), so that less of it is wasted
// where they are few. Then each broadcast brings two elements, too.
#pragma once
#include "vectors.h"

struct Matrix {  // mirrored in Python, field by field
    const Scalar *values;  // or pairs
    const int32_t *indices, *indptr;
    int64_t block_size, grid_rows;
    int64_t lying;    // whether the right factor does
    int64_t abreast;  // of standing factors
};

namespace {

// Sums that fit in the registers beside the values and columns they are made of.
constexpr int lying_columns = (registers - 3) / 2 / 2 * 2;
constexpr bool twofold = vector_bytes == 64 && !paired && sizeof(Scalar) == 4;  // elsewhere vectors are filled without
constexpr int low_rows = registers > 16 ? 8 : 6;  // of a low panel, at most: as many as leave registers for two vectors of columns
constexpr int wide_vectors(int rows) { return (registers - 4) / rows < 6 ? (registers - 4) / rows : 6; }

// How the rows of a block are cut.
struct Panels {
    bool lying;
    int64_t size, tall, talls, rest, lows, standing_abreast;

    Panels(int64_t block_size, bool is_lying, int64_t abreast_standing)
        : lying(is_lying), size(block_size), tall(2 * lanes), talls(is_lying ? block_size / tall : 0), rest(block_size - talls * tall),
          lows(divide_up(rest, low_rows)), standing_abreast(abreast_standing) {}

    explicit Panels(const Matrix &matrix) : Panels(matrix.block_size, matrix.lying, matrix.abreast) {}

    // Lying, the rest is halved while that leaves full vectors, two abreast where there are few rows.
    int64_t first_of(int64_t left) const {
        if (left >= lanes) return lanes * (left < 2 * lanes && (twofold_size() || left == lanes) ? 1 : 2);
        return twofold_size() && left >= lanes / 2 ? lanes / 2 : left;
    }

    bool twofold_size() const { return twofold && size % 2 == 0; }

    int64_t count() const {
        if (!lying) return lows;
        int64_t panels = talls;
        for (int64_t left = rest; left > 0; left -= smaller(left, first_of(left))) ++panels;
        return panels;
    }

    // The first row of a panel, or of the one after the last: the block size.
    int64_t top(int64_t panel) const {
        if (!lying) return panel == lows ? size : 2 * divide_up(size * panel, 2 * lows);  // even, as tiles are, where it can be
        if (panel <= talls) return panel * tall;
        int64_t left = rest;
        for (; panel > talls; --panel) left -= smaller(left, first_of(left));
        return size - left;
    }

    int64_t rows(int64_t panel) const { return top(panel + 1) - top(panel); }

    int64_t abreast(int64_t rows) const { return !lying ? standing_abreast : twofold_size() && rows <= lanes ? 2 : 1; }
};

// Step s of a column is x[column * stride + s] where they lie, else x[s * stride + column], or two abreast with both rows of
// each two steps in turns.
struct Columns {
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
    int64_t depth, rows;  // steps of a block; rows of the panel
};

// Values come from beyond the second-level cache in pieces too short for the hardware to run ahead of.
template <int count> inline void prefetch(const Scalar *values) {
    constexpr int ahead = 2048 / sizeof(Scalar), line = 64 / sizeof(Scalar);
    UNROLL for (int i = 0; i < count; i += line) __builtin_prefetch(values + ahead + i);
}

// Fetch lines that will be written. Stores wait for theirs one after the other, and work items and their counters with them:
// where few blocks are kept, far longer than the product takes.
inline void claim(const Element *first, int64_t count) {
    for (int64_t i = 0; i < count; i += 64 / sizeof(Element)) __builtin_prefetch(first + i, 1);
}

// The first `rows` rows of R vectors of sums of C columns; A = 2 of them are one.
template <int A, int R, int C> inline void store_columns(Vector<lanes> (&sums)[R][C], const Output &to, int64_t rows) {
    constexpr int vectors = A == 1 ? R : 1;
    UNROLL for (int c = 0; c < C; ++c) {
        Vector<lanes> totals[vectors];
        if constexpr (A == 1) UNROLL for (int r = 0; r < R; ++r) totals[r] = sums[r][c];
        else totals[0] = add_neighbours(sums[0][c], sums[R - 1][c]);
        if (to.down == 1) {
            UNROLL for (int r = 0; r < vectors; ++r)
                if (rows > r * lanes) store_some_sums<lanes>(to.y + c * to.along + r * lanes, totals[r], smaller(lanes, rows - r * lanes));
        } else {
            Scalar all[vectors * lanes];
            UNROLL for (int r = 0; r < vectors; ++r) store<lanes>(all + r * lanes, totals[r]);
            for (int64_t r = 0; r < rows; ++r) to.y[r * to.down + c * to.along] = all[r];
        }
    }
}

// R vectors of sums, each of `lanes` / A rows, times C columns.
template <int A, int R, int C> void lying_tile(const Tile &tile) {
    constexpr int chains = R * C <= 2 ? 4 : R * C <= 5 ? 2 : 1;  // independent sums, to hide the latency of an addition
    constexpr int near = 4, groups = divide_up(C, near);         // columns whose addresses share a register
    Vector<lanes> sums[chains][R][C] = {};
    if (tile.to.down == 1)
        UNROLL for (int c = 0; c < C; ++c) claim(tile.to.y + c * tile.to.along, R * lanes / A);
    const Scalar *values = tile.values;
    const int64_t height = tile.rows * A, stride = tile.stride;
    for (const int32_t *block = tile.first; block != tile.last; ++block) {
        const Scalar *x[groups];
        UNROLL for (int group = 0; group < groups; ++group) x[group] = tile.x + *block * tile.depth + group * near * stride;
        const auto add = [&](Vector<lanes> (&to)[R][C]) {
            prefetch<R * lanes>(values);
            Vector<lanes> column[R];
            UNROLL for (int r = 0; r < R; ++r) in_register(column[r] = load<lanes>(values + r * lanes));
            UNROLL for (int c = 0; c < C; ++c) {
                const Scalar *from = x[c / near] + c % near * stride;
                if constexpr (A == 1) {
                    UNROLL for (int r = 0; r < R; ++r) add_products<lanes>(to[r][c], column[r], *from);
                } else {
                    const Vector<lanes> both = broadcast_two(from);
                    UNROLL for (int r = 0; r < R; ++r) to[r][c] += column[r] * both;
                }
            }
            UNROLL for (int group = 0; group < groups; ++group) x[group] += A;
            values += height;
        };
        int64_t step = 0;
        for (; step + A * chains <= tile.depth; step += A * chains)
            UNROLL for (int chain = 0; chain < chains; ++chain) add(sums[chain]);
        for (; step < tile.depth; step += A) add(sums[0]);
    }
    UNROLL for (int chain = 1; chain < chains; ++chain)
        UNROLL for (int c = 0; c < C; ++c)
            UNROLL for (int r = 0; r < R; ++r) sums[0][r][c] += sums[chain][r][c];
    store_columns<A, R, C>(sums[0], tile.to, tile.rows);
}

// The sums of P rows and N columns, of which `rows` and `columns` are wanted, at element (0, column) of the output.
template <int P, int N> inline void store_rows(Vector<N> (&sums)[P], const Output &to, int64_t column, int64_t rows, int64_t columns) {
    Element *first = to.y + column * to.along;
    if (to.along == 1) {
        UNROLL for (int r = 0; r < P; ++r)
            if (r < rows) store_some_sums<N>(first + r * to.down, sums[r], columns);
        return;
    }
    constexpr int height = P <= 4 ? 4 : 8;
    Vector<N> all[height] = {};
    UNROLL for (int r = 0; r < P; ++r) all[r] = sums[r];
    store_exchanged<height, N>(all, first, to.along, rows, columns);
}

// Rows of a low panel times C standing columns.
template <int C> void narrow_tile(const Tile &tile) {
    constexpr int N = 8;
    static_assert(low_rows <= N, "a column of values is one vector");
    Vector<N> sums[C] = {};
    const Scalar *values = tile.values;
    for (const int32_t *block = tile.first; block != tile.last; ++block) {
        const Scalar *x = tile.x + *block * tile.depth * tile.stride;
        for (int64_t step = 0; step < tile.depth; ++step, x += tile.stride, values += tile.rows) {
            const Vector<N> column = load<N>(values);
            UNROLL for (int c = 0; c < C; ++c) add_products<N>(sums[c], column, x[c]);
        }
    }
    const Output &to = tile.to;
    for (int64_t r = 0; r < tile.rows; ++r)
        UNROLL for (int c = 0; c < C; ++c) to.y[r * to.down + c * to.along] = sums[c][r];
}

// Up to P rows times V vectors of `A` steps each, the last one at column `last`. Of `columns` < a vector's there is V = 1: those
// after them are whatever lies there, and not stored, as of rows.
template <int A, int P, int V> void wide_tile(const Tile &tile, int64_t last, int64_t columns) {
    constexpr int each = lanes / A;  // columns of a vector
    Vector<lanes> sums[P][V] = {};
    if (tile.to.along == 1)  // else the next item's atomic counter would wait until these stores have found their lines
        UNROLL for (int r = 0; r < P; ++r)
            UNROLL for (int v = 0; v < V; ++v) __builtin_prefetch(tile.to.y + r * tile.to.down + v * each, 1);
    const Scalar *values = tile.values;
    for (const int32_t *block = tile.first; block != tile.last; ++block) {
        const Scalar *x = tile.x + *block * tile.depth * tile.stride;
        for (int64_t step = 0; step < tile.depth; step += A, x += A * tile.stride, values += A * tile.rows) {
            prefetch<A * P>(values);
            Vector<lanes> columns_of[V];
            UNROLL for (int v = 0; v < V; ++v) in_register(columns_of[v] = load<lanes>(x + A * (v < V - 1 ? v * each : last)));
            UNROLL for (int r = 0; r < P; ++r) {
                if constexpr (A == 1) {
                    UNROLL for (int v = 0; v < V; ++v) add_products<lanes>(sums[r][v], columns_of[v], values[r]);
                } else {
                    const Vector<lanes> both = broadcast_two(values + 2 * r);
                    UNROLL for (int v = 0; v < V; ++v) sums[r][v] += both * columns_of[v];
                }
            }
        }
    }
    const int64_t wanted = smaller(each, columns);
    UNROLL for (int v = 0; v < V; ++v) {
        const int64_t column = v < V - 1 ? v * each : last;
        if constexpr (A == 1) {
            Vector<lanes> rows[P];
            UNROLL for (int r = 0; r < P; ++r) rows[r] = sums[r][v];
            store_rows<P, lanes>(rows, tile.to, column, tile.rows, wanted);
        } else {
            Vector<each> rows[P];
            UNROLL for (int r = 0; r < P; ++r) rows[r] = first_half(add_neighbours(sums[r][v], sums[r][v]));
            store_rows<P, each>(rows, tile.to, column, tile.rows, wanted);
        }
    }
}

// Columns of the next of as few tiles as do for `columns`. Of the many widths above 8 only the even ones are compiled.
inline int64_t lying_width(int64_t columns) {
    const int64_t tiles = divide_up(columns, lying_columns), width = columns / tiles;
    if (width <= 8 || width % 2 == 0) return width;
    return tiles > 1 ? width + 1 : divide_up(width, 2);
}

// The tile of `columns` <= C columns, or `vectors` <= V vectors, as a compile-time constant.
template <int A, int R, int C> void run_lying(int64_t columns, const Tile &tile) {
    if constexpr (C > 1)
        if (columns < C) return run_lying<A, R, C - (C > 8 ? 2 : 1)>(columns, tile);
    lying_tile<A, R, C>(tile);
}

template <int C> void run_narrow(int64_t columns, const Tile &tile) {
    if constexpr (C > 1)
        if (columns < C) return run_narrow<C - 1>(columns, tile);
    narrow_tile<C>(tile);
}

template <int A, int P, int V> void run_wide(int64_t vectors, const Tile &tile, int64_t last, int64_t columns) {
    if constexpr (V > 1)
        if (vectors < V) return run_wide<A, P, V - 1>(vectors, tile, last, columns);
    wide_tile<A, P, V>(tile, last, columns);
}

template <int A, int R> void lying_panel(Tile tile, int64_t columns) {
    while (columns > 0) {
        const int64_t width = lying_width(columns);
        run_lying<A, R, lying_columns>(width, tile);
        tile.x += width * tile.stride, tile.to.y += width * tile.to.along, columns -= width;
    }
}

template <int A, int P> void wide_panel(Tile tile, int64_t columns) {
    constexpr int most = wide_vectors(P), each = lanes / A;
    if constexpr (A == 1)  // two abreast, the columns are in a buffer that goes on
        if (columns < each) return run_narrow<each - 1>(columns, tile);
    int64_t vectors = divide_up(columns, each);
    for (int64_t tiles = divide_up(vectors, most); tiles > 0; --tiles) {
        const int64_t width = vectors / tiles;
        const int64_t last = columns < each ? 0 : width * each < columns ? (width - 1) * each : columns - each;
        run_wide<A, P, most>(width, tile, last, columns);
        tile.x += A * width * each, tile.to.y += width * each * tile.to.along;
        columns -= width * each, vectors -= width;
    }
}

template <int A, int P> void low_panel(const Tile &tile, int64_t columns) {
    if constexpr (P > 4)
        if (tile.rows <= P - 2) return low_panel<A, P - 2>(tile, columns);
    wide_panel<A, P>(tile, columns);
}

template <bool two> void any_panel(const Tile &tile, int64_t columns, const Panels &panels) {
    const int64_t abreast = panels.abreast(tile.rows);
    if constexpr (two) {  // else no such tile is made
        if (!panels.lying && abreast == 2) return low_panel<1 + two, low_rows>(tile, columns);
        if (abreast == 2) return tile.rows <= lanes / 2 ? lying_panel<1 + two, 1>(tile, columns) : lying_panel<1 + two, 2>(tile, columns);
    }
    if (!panels.lying) return low_panel<1, low_rows>(tile, columns);
    return tile.rows <= lanes ? lying_panel<1, 1>(tile, columns) : lying_panel<1, 2>(tile, columns);
}

// `samples` rows of `features` elements, turned into columns as tiles with so many steps abreast read them.
template <class From> inline void turn_for(int64_t abreast, const From *from, int64_t from_stride, int64_t samples, int64_t features, Scalar *to, int64_t stride) {
    if (abreast == 1) return turn(from, from_stride, samples, features, to, stride);
    turn_twos(reinterpret_cast<const Two *>(from), from_stride / 2, samples, features / 2, reinterpret_cast<Two *>(to), stride);
}

// Rows of panel `panel` of block row `row`, times `columns`, into `to` (which begins with the panel's first row).
inline void multiply(const Matrix &matrix, const Panels &panels, int64_t row, int64_t panel, const Columns &columns, const Output &to) {
    const int64_t begin = matrix.indptr[row], count = matrix.indptr[row + 1] - begin, depth = steps_in(matrix.block_size);
    Tile tile;
    tile.values = matrix.values + (begin * matrix.block_size + panels.top(panel) * count) * depth;
    tile.first = matrix.indices + begin, tile.last = tile.first + count;
    tile.x = columns.x, tile.stride = columns.stride, tile.to = to, tile.depth = depth, tile.rows = panels.rows(panel);
    any_panel<twofold>(tile, columns.count, panels);
}

// Where columns that are multiplied wait, in the order in which they are.
struct Room {
    Scalar *first;
    int64_t stride;
    bool lying;
    int64_t abreast;

    Room(const Matrix &matrix, Scalar *place, int64_t given_stride)
        : first(place), stride(given_stride), lying(matrix.lying), abreast(lying ? 1 : matrix.abreast) {}

    Scalar *at(int64_t feature, int64_t column) const {
        return lying ? first + column * stride + feature : first + feature * stride + column * abreast;
    }

    Columns columns(int64_t column, int64_t count) const { return {at(0, column), stride, count}; }

    // `samples` rows of `features` scalars become columns from `column` on, at `feature` and after it.
    void fill(const Scalar *from, int64_t from_stride, int64_t samples, int64_t features, int64_t feature, int64_t column) const {
        Scalar *to = at(feature, column);
        if (lying)
            for (int64_t sample = 0; sample < samples; ++sample)
                __builtin_memcpy(to + sample * stride, from + sample * from_stride, static_cast<unsigned long long>(features) * sizeof(Scalar));
        else turn_for(abreast, from, from_stride, samples, features, to, stride);
    }
};

}  // namespace
