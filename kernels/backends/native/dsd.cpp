// dsd on a CPU: Y[m, n] = W X with W block-sparse and packed, and the packing of W or its transpose.
#include "pool.h"
#include "tiles.h"

struct Product {  // mirrored by native_products.py
    Matrix matrix;
    const Scalar *x;
    Scalar *y;
    Scalar *packed;  // [k, chunk]: a chunk of the columns of X; null: they are multiplied where they lie
    int64_t k, n, chunk, x_down, x_along, down, along;  // strides of x and y; one of each two is 1
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

namespace {

// One panel of one block: to[column][r] = the block's element (top + r, column), zero below its last row.
void pack_panel(const Scalar *block, bool turned, int64_t size, int64_t top, int64_t panel_rows, Scalar *to) {
    const int64_t rows = smaller(size - top, panel_rows);
    if (rows < panel_rows) __builtin_memset(to, 0, static_cast<unsigned long long>(size * panel_rows) * sizeof(Scalar));
    if (!turned) return turn(block + top * size, size, rows, size, to, panel_rows);
    for (int64_t column = 0; column < size; ++column)
        copy_row(block + column * size + top, rows, to + column * panel_rows);
}

// Copy the chunk of X that begins at `column` to product.packed.
void pack_columns(const Product &product, int64_t column, int64_t columns) {
    constexpr int64_t strip = 64;
    share(product.pool, divide_up(product.k, strip), [&](int64_t item, int64_t) {
        const int64_t top = item * strip, rows = smaller(strip, product.k - top);
        const Scalar *from = product.x + top * product.x_down + column * product.x_along;
        Scalar *to = product.packed + top * product.chunk;
        if (product.x_down == 1) return turn(from, product.x_along, columns, rows, to, product.chunk);
        for (int64_t row = 0; row < rows; ++row) copy_row(from + row * product.x_down, columns, to + row * product.chunk);
    });
}

}  // namespace

EXPORT const char *isa() { return isa_name; }

// R of the tall tile, or 0 for the wide one: whichever needs fewer cycles for a row of values times n columns.
EXPORT int64_t tall_vectors(int64_t block_size, int64_t n) {
    if (block_size % lanes) return 0;
    const int vectors = block_size % (2 * lanes) ? 1 : 2;
    // Where a core loads one broadcast a cycle, both tiles wait for them at times; the factors 1.3 are measured.
    const double waits = broadcasts_a_cycle > 1 ? 0.5 : vectors == 2 ? 0.5 * 1.3 : 1.0;
    const double tall = static_cast<double>(n) / lanes * waits;
    const double wide = n <= lanes ? 1.0 : n <= 2 * lanes ? 1.3 : static_cast<double>(divide_up(n, lanes)) / 2;
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

EXPORT void dsd(const Product *given) {
    const Product &product = *given;
    const Matrix &matrix = product.matrix;
    const int64_t panels = panels_of(matrix);
    Ranges ranges(product.pool.threads, 1, matrix.grid_rows, panels,
                  [&](int64_t row) { return matrix.indptr[row + 1] - matrix.indptr[row] + 1; });
    for (int64_t column = 0; column < product.n; column += product.chunk) {
        const int64_t count = smaller(product.chunk, product.n - column);
        if (product.packed) pack_columns(product, column, count);
        const Columns columns{product.packed ? product.packed : product.x + column,
                              product.packed ? product.chunk : product.x_down, count};
        share(product.pool, ranges, [&](int64_t item, int64_t) {
            const int64_t panel = item % panels, row = item / panels;
            const int64_t top = row * matrix.block_size + panel * matrix.panel_rows;
            const Output to{product.y + top * product.down + column * product.along, product.down, product.along};
            multiply(matrix, row, panel, columns, to);
        });
    }
}
