// dsd on a CPU: Y[m, n] = W X with W block-sparse, all row-major. SCALAR (float or double) is set by the compiler's flags.
//
// The rows of a block are cut into panels of P rows; a panel's values are stored column by column, P of them side by
// side, one panel of a whole block row after the other. Two register tiles multiply a panel with a tile of columns:
//   tall: R vectors of rows times C single columns;
//   wide: P single rows times V vectors of columns, the last one stepped back so that it ends with the last column.
// Each multiplies every broadcast element by at least two vectors where it can: with 512-bit vectors a core loads one
// broadcast a cycle, but multiplies two vectors.
// A work item is one panel times one chunk of columns. Each thread owns a range of items and helps with the others'.
// No C++ library is used: zig would build its own first, for more than a minute.
#include <stdint.h>

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

#define UNROLL _Pragma("GCC unroll 32")  // sums that are indexed by a loop variable would live in memory

namespace {

using Scalar = SCALAR;

#if defined(__AVX512F__)
constexpr int vector_bytes = 64, registers = 32;
constexpr const char *isa_name = "avx512";
#elif defined(__AVX__)
constexpr int vector_bytes = 32, registers = 16;
constexpr const char *isa_name = "avx";
#elif defined(__aarch64__)
constexpr int vector_bytes = 16, registers = 32;
constexpr const char *isa_name = "neon";
#else
constexpr int vector_bytes = 16, registers = 16;
constexpr const char *isa_name = "128-bit";
#endif

constexpr int lanes = vector_bytes / static_cast<int>(sizeof(Scalar));
constexpr int broadcasts_a_cycle = vector_bytes == 64 ? 1 : 2;
// Sums that fit in the registers beside the values and columns they are made of.
constexpr int tall_columns(int vectors) { return (registers - vectors - 1) / vectors < 28 ? (registers - vectors - 1) / vectors : 28; }
constexpr int wide_vectors(int rows) { return (registers - 4) / rows < 6 ? (registers - 4) / rows : 6; }

template <int N> struct VectorOf {
    typedef Scalar type __attribute__((vector_size(N * sizeof(Scalar))));
};
template <int N> using Vector = typename VectorOf<N>::type;

template <int N> inline Vector<N> load(const Scalar *from) {
    Vector<N> vector;
    __builtin_memcpy(&vector, from, sizeof vector);
    return vector;
}

}  // namespace

struct Product {  // mirrored by native.py
    const Scalar *values;
    const int32_t *indices, *indptr;
    const Scalar *x;
    Scalar *y;
    int64_t n, block_size, grid_rows, panel_rows, panels, chunk;
    int64_t tall_vectors;  // 0: wide tiles
    int64_t threads;
    const int64_t *starts;  // [threads + 1]: thread t owns the items starts[t] .. starts[t + 1]
    int64_t *next;          // [threads * 8]: the next item of each range, a cache line apart
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
    int (*thread_number)();
};

namespace {

struct Tile {  // one panel times some columns
    const Scalar *values;
    const int32_t *first, *last;  // block columns of the kept blocks
    const Scalar *x;
    Scalar *y;
    int64_t n, block_size, rows;  // rows <= P: the last panel of a block may be padded
};

template <int N, int R, int C> void tall_tile(const Tile &tile) {
    constexpr int chains = R * C <= 2 ? 4 : R * C <= 5 ? 2 : 1;  // independent sums, to hide the latency of an addition
    Vector<N> sums[chains][R][C] = {};
    const Scalar *values = tile.values;
    for (const int32_t *block = tile.first; block != tile.last; ++block) {
        const Scalar *x = tile.x + *block * tile.block_size * tile.n;
        int64_t column = 0;
        for (; column + chains <= tile.block_size; column += chains)
            UNROLL for (int chain = 0; chain < chains; ++chain, x += tile.n, values += R * N)
                UNROLL for (int c = 0; c < C; ++c)
                    UNROLL for (int r = 0; r < R; ++r) sums[chain][r][c] += load<N>(values + r * N) * x[c];
        for (; column < tile.block_size; ++column, x += tile.n, values += R * N)
            UNROLL for (int c = 0; c < C; ++c)
                UNROLL for (int r = 0; r < R; ++r) sums[0][r][c] += load<N>(values + r * N) * x[c];
    }
    Scalar turned[C][R * N];
    UNROLL for (int c = 0; c < C; ++c)
        UNROLL for (int r = 0; r < R; ++r) {
            UNROLL for (int chain = 1; chain < chains; ++chain) sums[0][r][c] += sums[chain][r][c];
            __builtin_memcpy(turned[c] + r * N, &sums[0][r][c], sizeof(Vector<N>));
        }
    for (int64_t r = 0; r < tile.rows; ++r)
        for (int c = 0; c < C; ++c) tile.y[r * tile.n + c] = turned[c][r];
}

template <int P, int V> void wide_tile(const Tile &tile, int64_t last) {
    Vector<lanes> sums[P][V] = {};
    const Scalar *values = tile.values;
    for (const int32_t *block = tile.first; block != tile.last; ++block) {
        const Scalar *x = tile.x + *block * tile.block_size * tile.n;
        for (int64_t column = 0; column < tile.block_size; ++column, x += tile.n, values += P) {
            Vector<lanes> columns[V];
            UNROLL for (int v = 0; v < V; ++v) columns[v] = load<lanes>(x + (v < V - 1 ? v * lanes : last));
            UNROLL for (int r = 0; r < P; ++r)
                UNROLL for (int v = 0; v < V; ++v) sums[r][v] += columns[v] * values[r];
        }
    }
    UNROLL for (int r = 0; r < P; ++r)
        if (r < tile.rows)
            UNROLL for (int v = 0; v < V; ++v)
                __builtin_memcpy(tile.y + r * tile.n + (v < V - 1 ? v * lanes : last), &sums[r][v], sizeof sums[r][v]);
}

// The tile of `columns` <= C columns, or `vectors` <= V vectors, as a compile-time constant.
template <int N, int R, int C> void run_tall(int64_t columns, const Tile &tile) {
    if constexpr (C > 1)
        if (columns < C) return run_tall<N, R, C - 1>(columns, tile);
    tall_tile<N, R, C>(tile);
}

template <int P, int V> void run_wide(int64_t vectors, const Tile &tile, int64_t last) {
    if constexpr (V > 1)
        if (vectors < V) return run_wide<P, V - 1>(vectors, tile, last);
    wide_tile<P, V>(tile, last);
}

template <int R> void tall_panel(Tile tile, int64_t columns) {
    constexpr int most = tall_columns(R);
    for (int64_t tiles = (columns + most - 1) / most; tiles > 0; --tiles) {
        const int64_t width = columns / tiles;
        run_tall<lanes, R, most>(width, tile);
        tile.x += width, tile.y += width, columns -= width;
    }
}

template <int P> void wide_panel(Tile tile, int64_t columns) {
    if (columns < lanes) return run_tall<P, 1, lanes - 1>(columns, tile);
    constexpr int most = wide_vectors(P);
    int64_t vectors = (columns + lanes - 1) / lanes;
    for (int64_t tiles = (vectors + most - 1) / most; tiles > 0; --tiles) {
        const int64_t width = vectors / tiles;
        const int64_t last = width * lanes < columns ? (width - 1) * lanes : columns - lanes;
        run_wide<P, most>(width, tile, last);
        tile.x += width * lanes, tile.y += width * lanes, columns -= width * lanes, vectors -= width;
    }
}

void run_item(const Product &product, int64_t item) {
    const int64_t panels = product.panels, size = product.block_size, n = product.n;
    const int64_t panel = item % panels, row = item / panels % product.grid_rows;
    const int64_t column = item / (panels * product.grid_rows) * product.chunk;
    const int64_t begin = product.indptr[row], count = product.indptr[row + 1] - begin;
    const int64_t top = panel * product.panel_rows;
    Tile tile;
    tile.values = product.values + (begin * panels + panel * count) * size * product.panel_rows;
    tile.first = product.indices + begin, tile.last = tile.first + count;
    tile.x = product.x + column, tile.y = product.y + (row * size + top) * n + column;
    tile.n = n, tile.block_size = size;
    tile.rows = size - top < product.panel_rows ? size - top : product.panel_rows;
    const int64_t columns = n - column < product.chunk ? n - column : product.chunk;
    if (product.tall_vectors == 2) return tall_panel<2>(tile, columns);
    if (product.tall_vectors == 1) return tall_panel<1>(tile, columns);
    if constexpr (registers > 16)
        if (product.panel_rows == 8) return wide_panel<8>(tile, columns);
    wide_panel<4>(tile, columns);
}

void work(void *argument) {
    const Product &product = *static_cast<const Product *>(argument);
    const int64_t self = product.threads > 1 ? product.thread_number() : 0;
    for (int64_t step = 0; step < product.threads; ++step) {
        const int64_t owner = (self + step) % product.threads;
        for (;;) {
            const int64_t item = __atomic_fetch_add(product.next + owner * 8, 1, __ATOMIC_RELAXED);
            if (item >= product.starts[owner + 1]) break;
            run_item(product, item);
        }
    }
}

}  // namespace

EXPORT const char *isa() { return isa_name; }

// R of the tall tile, or 0 for the wide one: whichever needs fewer cycles for a row of values times n columns.
EXPORT int64_t tall_vectors(int64_t block_size, int64_t n) {
    if (block_size % lanes) return 0;
    const int vectors = block_size % (2 * lanes) ? 1 : 2;
    const double tall = static_cast<double>(n) / lanes / (vectors * broadcasts_a_cycle < 2 ? 1 : 2);
    const double wide = n <= 2 * lanes ? 1.0 : static_cast<double>((n + lanes - 1) / lanes) / 2;
    return n < lanes || tall < wide ? vectors : 0;
}

EXPORT int64_t panel_rows(int64_t block_size, int64_t vectors) {
    if (vectors) return vectors * lanes;
    return registers > 16 && block_size % 8 == 0 ? 8 : 4;
}

EXPORT void dsd(Product *product) {
    for (int64_t t = 0; t < product->threads; ++t) product->next[t * 8] = product->starts[t];
    if (product->threads > 1)
        product->parallel(work, product, static_cast<unsigned>(product->threads), 0);
    else
        work(product);
}
