// dsd on a CPU: Y[m, n] = W X with W block-sparse, all row-major. SCALAR (float or double) is set by the compiler's flags.
//
// The rows of a block are cut into panels of P rows; a panel's values are stored column by column, P of them side by
// side, one panel of a whole block row after the other. Two register tiles multiply a panel with a tile of columns:
//   tall: one vector of P rows times C single columns (P fills a vector, or few columns are left);
//   wide: P single rows times V vectors of columns (P is narrower than a vector).
// A work item is one panel times one chunk of columns. Each thread owns a range of items and helps with the others'.
// No C++ library is used: zig would build its own first, for more than a minute.
#include <stdint.h>

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

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
constexpr int tall_columns = registers - 4;  // the rest holds the values and broadcast columns
constexpr int wide_vectors(int rows) { return (registers - 4) / rows > 6 ? 6 : (registers - 4) / rows; }

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

template <int P, int C> void tall_tile(const Tile &tile) {
    constexpr int chains = C <= 2 ? 4 : C <= 5 ? 2 : 1;  // independent sums, enough to hide the latency of an add
    Vector<P> sums[chains][C] = {};
    const Scalar *values = tile.values;
    for (const int32_t *block = tile.first; block != tile.last; ++block) {
        const Scalar *x = tile.x + *block * tile.block_size * tile.n;
        int64_t column = 0;
        for (; column + chains <= tile.block_size; column += chains)
            for (int chain = 0; chain < chains; ++chain, x += tile.n, values += P) {
                const Vector<P> weights = load<P>(values);
                for (int c = 0; c < C; ++c) sums[chain][c] += weights * x[c];
            }
        for (; column < tile.block_size; ++column, x += tile.n, values += P)
            for (int c = 0; c < C; ++c) sums[0][c] += load<P>(values) * x[c];
    }
    Scalar turned[C][P];
    for (int c = 0; c < C; ++c) {
        for (int chain = 1; chain < chains; ++chain) sums[0][c] += sums[chain][c];
        __builtin_memcpy(turned[c], &sums[0][c], sizeof turned[c]);
    }
    for (int64_t r = 0; r < tile.rows; ++r)
        for (int c = 0; c < C; ++c) tile.y[r * tile.n + c] = turned[c][r];
}

template <int P, int V> void wide_tile(const Tile &tile) {
    Vector<lanes> sums[P][V] = {};
    const Scalar *values = tile.values;
    for (const int32_t *block = tile.first; block != tile.last; ++block) {
        const Scalar *x = tile.x + *block * tile.block_size * tile.n;
        for (int64_t column = 0; column < tile.block_size; ++column, x += tile.n, values += P) {
            Vector<lanes> columns[V];
            for (int v = 0; v < V; ++v) columns[v] = load<lanes>(x + v * lanes);
            for (int r = 0; r < P; ++r)
                for (int v = 0; v < V; ++v) sums[r][v] += columns[v] * values[r];
        }
    }
    for (int64_t r = 0; r < tile.rows; ++r)
        for (int v = 0; v < V; ++v) __builtin_memcpy(tile.y + r * tile.n + v * lanes, &sums[r][v], sizeof sums[r][v]);
}

// The tile of `columns` <= C columns, or `vectors` <= V vectors, as a compile-time constant.
template <int P, int C> void run_tall(int64_t columns, const Tile &tile) {
    if constexpr (C > 1)
        if (columns < C) return run_tall<P, C - 1>(columns, tile);
    tall_tile<P, C>(tile);
}

template <int P, int V> void run_wide(int64_t vectors, const Tile &tile) {
    if constexpr (V > 1)
        if (vectors < V) return run_wide<P, V - 1>(vectors, tile);
    wide_tile<P, V>(tile);
}

// All columns of a panel, whose rows fill a vector.
void full_panel(Tile tile, int64_t columns) {
    const int64_t tiles = (columns + tall_columns - 1) / tall_columns;
    for (int64_t t = tiles; t > 0; --t) {
        const int64_t width = columns / t;
        run_tall<lanes, tall_columns>(width, tile);
        tile.x += width, tile.y += width, columns -= width;
    }
}

// All columns of a panel narrower than a vector.
template <int P> void narrow_panel(Tile tile, int64_t columns) {
    constexpr int most = wide_vectors(P);
    const bool can_step_back = columns >= lanes;
    while (columns >= lanes) {
        const int64_t vectors = columns / lanes < most ? columns / lanes : most;
        run_wide<P, most>(vectors, tile);
        tile.x += vectors * lanes, tile.y += vectors * lanes, columns -= vectors * lanes;
    }
    if (columns > P && can_step_back) {  // cheaper to compute a few columns twice than many of them singly
        tile.x -= lanes - columns, tile.y -= lanes - columns;
        wide_tile<P, 1>(tile);
    } else if (columns > 0) {
        run_tall<P, lanes - 1>(columns, tile);
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
    if (product.panel_rows == lanes) return full_panel(tile, columns);
    if constexpr (lanes > 8)
        if (product.panel_rows == 8) return narrow_panel<8>(tile, columns);
    if constexpr (lanes > 4) narrow_panel<4>(tile, columns);
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

EXPORT int panel_rows(int block_size) {
    if (block_size % lanes == 0 || lanes <= 4) return lanes;
    return lanes > 8 && block_size % 8 == 0 ? 8 : 4;
}

EXPORT void dsd(Product *product) {
    for (int64_t t = 0; t < product->threads; ++t) product->next[t * 8] = product->starts[t];
    if (product->threads > 1)
        product->parallel(work, product, static_cast<unsigned>(product->threads), 0);
    else
        work(product);
}
