// dsd on a CPU: Y[m, n] = W X with W block-sparse and packed, and the packing of W or its transpose.
#include "pool.h"
#include "tiles.h"

struct Product {  // mirrored by native_products.py
    Matrix matrix;
    const Scalar *x;  // chunk q of the columns begins at x + q * x_chunk; its rows are x_stride apart
    Scalar *y;
    int64_t n, chunk, x_stride, x_chunk;
    int64_t down, along;  // strides of y
    Pool pool;
};

struct Packing {  // mirrored by native_products.py
    const Scalar *data;  // [nnzb, b, b]
    const int32_t *indptr;
    const int32_t *positions;  // which block of `data` comes next; null: in their order, else each block transposed
    Scalar *values;
    int64_t block_size, grid_rows, panel_rows;
    Pool pool;
};

struct Turning {  // mirrored by native_products.py
    const Scalar *from;  // [n, k]
    Scalar *to;          // one [k, chunk] after the other
    int64_t n, k, chunk;
    Pool pool;
};

namespace {

// One panel of one block: to[column][r] = the block's element (top + r, column), zero below its last row.
void pack_panel(const Scalar *block, bool turned, int64_t size, int64_t top, int64_t panel_rows, Scalar *to) {
    const int64_t rows = smaller(size - top, panel_rows);
    if (rows < panel_rows) __builtin_memset(to, 0, static_cast<unsigned long long>(size * panel_rows) * sizeof(Scalar));
    if (!turned) return turn(block + top * size, size, rows, size, to, panel_rows);
    for (int64_t column = 0; column < size; ++column)
        copy_row(block + column * size + top, rows, to + column * panel_rows);
}

}  // namespace

EXPORT const char *isa() { return isa_name; }

// R of the tall tile, or 0 for the wide one: whichever needs fewer cycles for a row of values times n columns.
EXPORT int64_t tall_vectors(int64_t block_size, int64_t n) {
    if (block_size % lanes) return 0;
    const int vectors = block_size % (2 * lanes) ? 1 : 2;
    const double tall = static_cast<double>(n) / lanes / (vectors * broadcasts_a_cycle < 2 ? 1 : 2);
    const double wide = n <= 2 * lanes ? 1.0 : static_cast<double>(divide_up(n, lanes)) / 2;
    return n < lanes || tall < wide ? vectors : 0;
}

EXPORT int64_t panel_rows(int64_t block_size, int64_t vectors) {
    if (vectors) return vectors * lanes;
    return registers > 16 && block_size % 8 == 0 ? 8 : 4;
}

EXPORT void pack(const Packing *given) {
    const Packing &packing = *given;
    const int64_t size = packing.block_size, panels = divide_up(size, packing.panel_rows);
    const auto cost = [&](int64_t row) { return packing.indptr[row + 1] - packing.indptr[row] + 1; };
    Ranges ranges(packing.pool.threads, 1, packing.grid_rows, 1, cost);
    share(packing.pool, ranges, [&](int64_t row, int64_t) {
        const int64_t begin = packing.indptr[row], count = packing.indptr[row + 1] - begin;
        for (int64_t block = 0; block < count; ++block) {
            const int64_t position = packing.positions ? packing.positions[begin + block] : begin + block;
            for (int64_t panel = 0; panel < panels; ++panel)
                pack_panel(packing.data + position * size * size, packing.positions, size, panel * packing.panel_rows,
                           packing.panel_rows,
                           packing.values + (begin * panels + panel * count + block) * size * packing.panel_rows);
        }
    });
}

// [n, k] -> one [k, chunk] after the other, the last one padded.
EXPORT void turn_columns(const Turning *given) {
    const Turning &turning = *given;
    constexpr int64_t strip = 64;
    const int64_t strips = divide_up(turning.k, strip), chunks = divide_up(turning.n, turning.chunk);
    share(turning.pool, chunks * strips, [&](int64_t item, int64_t) {
        const int64_t chunk = item / strips, top = item % strips * strip, column = chunk * turning.chunk;
        turn(turning.from + column * turning.k + top, turning.k, smaller(turning.chunk, turning.n - column),
             smaller(strip, turning.k - top), turning.to + (chunk * turning.k + top) * turning.chunk, turning.chunk);
    });
}

EXPORT void dsd(const Product *given) {
    const Product &product = *given;
    const Matrix &matrix = product.matrix;
    const int64_t panels = panels_of(matrix), rows = matrix.grid_rows, chunks = divide_up(product.n, product.chunk);
    const auto cost = [&](int64_t row) { return matrix.indptr[row + 1] - matrix.indptr[row] + 1; };
    Ranges ranges(product.pool.threads, chunks, rows, panels, cost);
    share(product.pool, ranges, [&](int64_t item, int64_t) {
        const int64_t panel = item % panels, row = item / panels % rows, chunk = item / (panels * rows);
        const int64_t top = row * matrix.block_size + panel * matrix.panel_rows, column = chunk * product.chunk;
        const Columns columns{product.x + chunk * product.x_chunk, product.x_stride, smaller(product.chunk, product.n - column)};
        const Output to{product.y + top * product.down + column * product.along, product.down, product.along};
        multiply(matrix, row, panel, columns, to);
    });
}
