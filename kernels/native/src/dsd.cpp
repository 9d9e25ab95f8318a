// dsd on a CPU: Y[m, n] = W X with W block-sparse and packed, and the packing of W or its transpose.
#include "pool.h"
#include "tiles.h"

struct Product {  // mirrored in Python, field by field
    Matrix matrix;
    const Element *x;
    Element *y;
    Scalar *packed;  // [chunks, steps of k, chunk]: several chunks of the columns of X; null: they are multiplied where they lie
    int64_t k, n, chunk, chunks, x_down, x_along, down, along;  // strides of x and y; one of each two is 1
    Pool pool;
};

struct Packing {  // mirrored in Python, field by field
    const Element *data;  // [nnzb, b, b]
    const int32_t *indptr;
    const int32_t *positions;  // which block of `data` comes next; null: in their order, else each block transposed
    Scalar *values;
    int64_t block_size, grid_rows, panel_rows, abreast;
    Pool pool;
};

namespace {

// to[2 i] = first[i], to[2 i + 1] = second[i].
void interleave_rows(const Element *first, const Element *second, int64_t count, Scalar *to) {
    int64_t i = 0;
    if constexpr (!paired)
        for (; i + lanes <= count; i += lanes) {
            const Vector<lanes> a = load<lanes>(first + i), b = load<lanes>(second + i);
            store<lanes>(to + 2 * i, interleave<lanes, 0>(a, b));
            store<lanes>(to + 2 * i + lanes, interleave<lanes, 1>(a, b));
        }
    for (; i < count; ++i) __builtin_memcpy(to + 2 * i, first + i, sizeof(Element)), __builtin_memcpy(to + 2 * i + 1, second + i, sizeof(Element));
}

// One panel of one block: to[step / abreast][r][step % abreast] = the block's element (top + r, column), zero below its last row.
void pack_panel(const Element *block, bool turned, int64_t size, int64_t top, int64_t panel_rows, int64_t abreast, Scalar *to) {
    const int64_t rows = smaller(size - top, panel_rows), depth = steps_in(size);
    if (rows < panel_rows) __builtin_memset(to, 0, static_cast<unsigned long long>(depth * panel_rows) * sizeof(Scalar));
    if (!turned) return turn_for(abreast, block + top * size, size, rows, size, to, panel_rows);
    if (abreast == 2) {  // then a panel is `lanes` rows high
        for (int64_t column = 0; column < size; column += 2, to += 2 * lanes)
            interleave_rows(block + column * size + top, block + (column + 1) * size + top, lanes, to);
        return;
    }
    for (int64_t step = 0; step < depth; ++step)
        copy_long_step(block + step * pair * size + top, size, size - step * pair, rows, to + step * panel_rows);
}

// Steps of the whole sum: pairs do not reach from block to block.
int64_t steps_of(const Product &product) { return product.k / product.matrix.block_size * steps_in(product.matrix.block_size); }

// Copy the chunks of X that begin at `first` to product.packed: a strip of rows of all of them at a time, since a row of
// one chunk alone is too short a piece for the hardware to run ahead of. No strip reaches over the end of a block of odd size.
void pack_chunks(const Product &product, int64_t first, int64_t columns) {
    constexpr int64_t strip = 64;
    const int64_t chunk = product.chunk, steps = steps_of(product), abreast = product.matrix.abreast;
    const int64_t run = product.matrix.block_size % pair ? product.matrix.block_size : product.k, strips = divide_up(run, strip);
    share(product.pool, product.k / run * strips, [&](int64_t item, int64_t) {
        const int64_t inside = item % strips * strip, top = item / strips * run + inside, rows = smaller(strip, run - inside);
        const Element *from = product.x + top * product.x_down + first * product.x_along;
        Scalar *to = product.packed + (item / strips * steps_in(run) + inside / pair) * chunk;
        if (product.x_down == 1) {
            for (int64_t column = 0; column < columns; column += chunk)
                turn_for(abreast, from + column * product.x_along, product.x_along, smaller(chunk, columns - column), rows, to + column * steps, chunk);
            return;
        }
        for (int64_t row = 0; row < rows; row += pair * abreast)
            for (int64_t column = 0; column < columns; column += chunk) {
                const Element *piece = from + row * product.x_down + column;
                const int64_t count = smaller(chunk, columns - column);
                for (int64_t c = 0; c < count; c += 64 / sizeof(Scalar)) __builtin_prefetch(piece + 4 * product.x_down + c);
                Scalar *step = to + column * steps + row / pair * chunk;
                if (abreast == 2) interleave_rows(piece, piece + product.x_down, count, step);
                else copy_long_step(piece, product.x_down, rows - row, count, step);
            }
    });
}

}  // namespace

EXPORT const char *isa() { return paired ? ISA " " PAIR_PRODUCTS : ISA; }

// How bfloat16 would be multiplied, whatever the elements are here; empty: not at all.
EXPORT const char *pair_products() { return PAIR_PRODUCTS; }

// R of the tall tile, or 0 for the wide one: whichever needs fewer cycles for a row of values times n columns.
EXPORT int64_t tall_vectors(int64_t block_size, int64_t n) {
    if (block_size % lanes) return 0;
    const int vectors = block_size % (2 * lanes) ? 1 : 2;
    // Where a core loads one broadcast a cycle, both tiles wait for them at times; the factors 1.3 are measured.
    const double waits = broadcasts_a_cycle > 1 ? 0.5 : vectors == 2 || twofold ? 0.5 * 1.3 : 1.0;
    const double tall = static_cast<double>(n) / lanes * waits;
    const double wide = n <= lanes ? 1.0 : n <= 2 * lanes ? 1.3 : static_cast<double>(divide_up(n, lanes)) / 2;
    return n < lanes || tall < wide ? vectors : 0;
}

EXPORT int64_t panel_rows(int64_t block_size, int64_t vectors) {
    if (vectors) return vectors * lanes;
    return registers > 16 && block_size % 8 == 0 ? 8 : 4;
}

EXPORT int64_t abreast(int64_t vectors) { return twofold && vectors == 1 ? 2 : 1; }

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
                           packing.panel_rows, packing.abreast,
                           packing.values + (begin * panels + panel * count + block) * steps_in(size) * packing.panel_rows);
        }
    });
}

EXPORT void dsd(const Product *given) {
    const Product &product = *given;
    const Matrix &matrix = product.matrix;
    const int64_t panels = panels_of(matrix), chunk = product.chunk, together = chunk * product.chunks, steps = steps_of(product);
    const auto cost = [&](int64_t row) { return matrix.indptr[row + 1] - matrix.indptr[row] + 1; };
    for (int64_t first = 0; first < product.n; first += together) {
        const int64_t columns = smaller(together, product.n - first);
        if (product.packed) pack_chunks(product, first, columns);
        Ranges ranges(product.pool.threads, divide_up(columns, chunk), matrix.grid_rows, panels, cost);
        share(product.pool, ranges, [&](int64_t item, int64_t) {
            const int64_t panel = item % panels, row = item / panels % matrix.grid_rows;
            const int64_t left = item / (panels * matrix.grid_rows) * chunk, count = smaller(chunk, columns - left);
            const int64_t top = row * matrix.block_size + panel * matrix.panel_rows;
            const Scalar *in_place = reinterpret_cast<const Scalar *>(product.x + first + left);  // pairs never are
            const Columns factor = product.packed ? Columns{product.packed + left * steps, chunk, count}
                                                  : Columns{in_place, product.x_down, count};
            const Output to{product.y + top * product.down + (first + left) * product.along, product.down, product.along};
            multiply(matrix, row, panel, factor, to);
        });
    }
}
