// dsd on a CPU: Y[m, n] = W X with W block-sparse and packed, and the packing of W or its transpose.
#include "pool.h"
#include "tiles.h"

struct Product {  // mirrored in Python, field by field
    Matrix matrix;
    const Element *x;
    Element *y;
    Scalar *packed;  // several chunks of the columns of X, [chunks, steps of k, chunk] or [chunks, chunk, stride] where they lie;
                     // null: they are multiplied where they are
    int64_t k, n, chunk, chunks, stride, x_down, x_along, down, along;  // strides of x and y; one of each two is 1
    int64_t rooms, room;  // in `packed`, for so many threads one each, so far apart; or one for all
    Pool pool;
};

struct Packing {  // mirrored in Python, field by field
    const Element *data;  // [nnzb, b, b]
    const int32_t *indptr;
    const int32_t *positions;  // which block of `data` comes next; null: in their order, else each block transposed
    Scalar *values;
    int64_t block_size, grid_rows, lying, abreast;
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

// `rows` rows of one block: to[step / abreast][r][step % abreast] = the block's element (top + r, column).
void pack_panel(const Element *block, bool turned, int64_t size, int64_t top, int64_t rows, int64_t abreast, Scalar *to) {
    if (!turned) return turn_for(abreast, block + top * size, size, rows, size, to, rows);
    if (abreast == 2) {
        for (int64_t column = 0; column < size; column += 2, to += 2 * rows)
            interleave_rows(block + column * size + top, block + (column + 1) * size + top, rows, to);
        return;
    }
    for (int64_t column = 0; column < size; column += pair)
        copy_long_step(block + column * size + top, size, size - column, rows, to + column / pair * rows);
}

// Steps of the whole sum: pairs do not reach from block to block.
int64_t steps_of(const Product &product) { return product.k / product.matrix.block_size * steps_in(product.matrix.block_size); }

// Strips of the rows of X that become steps of standing columns. None reaches over the end of a block of odd size.
struct Strips {
    static constexpr int64_t strip = 64;
    int64_t run, per_run, count;

    explicit Strips(const Product &product)
        : run(product.matrix.block_size % pair ? product.matrix.block_size : product.k), per_run(divide_up(run, strip)),
          count(product.k / run * per_run) {}
};

// Copy a strip of the chunks of X that begin at `first` to where they stand: of all of them at a time, since a row of one chunk
// alone is too short a piece for the hardware to run ahead of.
void stand(const Product &product, const Strips &strips, int64_t item, int64_t first, int64_t columns, Scalar *packed) {
    const int64_t chunk = product.chunk, steps = steps_of(product), abreast = product.matrix.abreast;
    const int64_t inside = item % strips.per_run * strips.strip, top = item / strips.per_run * strips.run + inside;
    const int64_t rows = smaller(strips.strip, strips.run - inside);
    const Element *from = product.x + top * product.x_down + first * product.x_along;
    Scalar *to = packed + (item / strips.per_run * steps_in(strips.run) + inside / pair) * chunk;
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
}

// Copy the columns of X that begin at `first` to product.packed, where they lie: some of their elements at a time.
void pack_lying(const Product &product, int64_t first, int64_t columns) {
    constexpr int64_t strip = 64;
    share(product.pool, divide_up(product.k, strip), [&](int64_t item, int64_t) {
        const int64_t top = item * strip, count = smaller(strip, product.k - top);
        const Element *from = product.x + top * product.x_down + first * product.x_along;
        Scalar *to = product.packed + top / pair;
        if (product.x_down == 1) {
            for (int64_t column = 0; column < columns; ++column)
                __builtin_memcpy(to + column * product.stride, from + column * product.x_along, static_cast<unsigned long long>(count) * sizeof(Element));
            return;
        }
        if constexpr (!paired) {
            turn(from, product.x_down, count, columns, to, product.stride);
            return;
        }
        for (int64_t column = 0; column < columns; ++column)
            for (int64_t step = 0; step < count; step += pair)
                to[column * product.stride + step / pair] = pair_of(from[step * product.x_down + column], from[(step + 1) * product.x_down + column]);
    });
}

constexpr int64_t near_bytes = 96 << 10;  // twice what the nearest cache holds

// What is known of a matrix and its operands; of a layer, whose columns no product turns, neither rows, columns nor elements.
struct Shape {
    int64_t block_size, n, lies;     // lies: whether the operands do
    int64_t rows, columns, elements;  // kept ones
};

constexpr bool few = registers <= 16;  // then standing tiles read X from the second-level cache again for each few rows

// Products of vectors, or time like theirs, for each element of a block and all n columns; two are done at once. What is no
// product was measured in times of one: to turn the right factor and the sums, to begin a block and a tile, and to wait for
// columns that no cache holds.
double standing_work(const Shape &shape, int64_t abreast) {
    const int64_t n = shape.n;
    if (abreast == 1 && n < lanes)
        return static_cast<double>(n * divide_up(shape.block_size, low_rows)) / static_cast<double>(shape.block_size);
    const int64_t vectors = divide_up(n * abreast, lanes);
    double turned = shape.lies ? 1.2 : 1.0;
    if (shape.lies && shape.rows)
        turned = (few ? 0.7 + 3.0 * static_cast<double>(divide_up(shape.block_size, low_rows)) / static_cast<double>(shape.block_size) : 1.0) +
                 (few ? 1.5 : 1.0) * lanes * (0.8 * static_cast<double>(shape.columns) + 1.0 * static_cast<double>(shape.rows)) /
                     static_cast<double>(shape.elements + 1);
    return turned * static_cast<double>(vectors < 2 ? 2 : vectors) / static_cast<double>(abreast);
}

double lying_work(const Shape &shape) {
    const Panels panels(shape.block_size, true, 1);
    const double size = static_cast<double>(shape.block_size), n = static_cast<double>(shape.n);
    double vectors = 0;
    for (int64_t panel = 0; panel < panels.count(); ++panel) {
        const int64_t rows = panels.rows(panel), abreast = panels.abreast(rows);
        vectors += static_cast<double>(divide_up(rows * abreast, lanes)) / static_cast<double>(abreast);
    }
    double work = vectors * n / size;
    if (shape.lies && shape.rows) {
        const double tiles = static_cast<double>(panels.count()) * n / lying_columns;
        work += (few ? 0 : 24) * tiles / (size * size) + 200 * tiles * static_cast<double>(shape.rows) / size / static_cast<double>(shape.elements + 1);
        if (shape.columns * lying_columns * static_cast<int64_t>(sizeof(Scalar)) > near_bytes) work *= 1.1 + 4.8 / size;
    }
    return (shape.lies || shape.n < lanes ? 1.0 : 2.0) * work;  // else their sums are scattered
}

constexpr int64_t rows_together = 64;

struct Tiling {
    int64_t lying, abreast;
};

// Whatever takes the least time.
Tiling tiling(const Shape &shape) {
    const bool even = shape.block_size % 2 == 0, two = twofold && even && shape.n * 2 >= lanes;
    const double one = standing_work(shape, 1), both = two ? standing_work(shape, 2) : one;
    const int64_t abreast = both < one ? 2 : 1;
    if (paired && !even) return {0, abreast};  // a pair would reach into the next block
    return {lying_work(shape) < (both < one ? both : one) || (shape.n < lanes && shape.block_size >= lanes), abreast};
}

}  // namespace

EXPORT const char *isa() { return paired ? ISA " " PAIR_PRODUCTS : ISA; }

// How bfloat16 would be multiplied, whatever the elements are here; empty: not at all.
EXPORT const char *pair_products() { return PAIR_PRODUCTS; }

// Whether columns are to lie.
EXPORT int64_t lying(int64_t block_size, int64_t n, int64_t lies, int64_t rows, int64_t columns, int64_t elements) {
    return tiling({block_size, n, lies, rows, columns, elements}).lying;
}

EXPORT int64_t abreast(int64_t block_size, int64_t n, int64_t lies, int64_t rows, int64_t columns, int64_t elements) {
    return tiling({block_size, n, lies, rows, columns, elements}).abreast;
}

EXPORT void pack(const Packing *given) {
    const Packing &packing = *given;
    const int64_t size = packing.block_size;
    const Panels panels(size, packing.lying, packing.abreast);
    const auto cost = [&](int64_t row) { return packing.indptr[row + 1] - packing.indptr[row] + 1; };
    Ranges ranges(packing.pool.threads, 1, packing.grid_rows, cost);
    share(packing.pool, ranges, [&](int64_t row, int64_t) {
        const int64_t begin = packing.indptr[row], count = packing.indptr[row + 1] - begin;
        for (int64_t block = 0; block < count; ++block) {
            const int64_t position = packing.positions ? packing.positions[begin + block] : begin + block;
            for (int64_t panel = 0; panel < panels.count(); ++panel) {
                const int64_t top = panels.top(panel), rows = panels.rows(panel);
                pack_panel(packing.data + position * size * size, packing.positions, size, top, rows, panels.abreast(rows),
                           packing.values + (begin * size + top * count + rows * block) * steps_in(size));
            }
        }
    });
}

EXPORT void dsd(const Product *given) {
    const Product &product = *given;
    const Matrix &matrix = product.matrix;
    const Panels panels(matrix);
    const int64_t chunk = product.chunk, together = chunk * product.chunks, column = matrix.lying ? product.stride : steps_of(product);
    // Items are so many block rows that what is written of a column fills its lines, and that few counters wait for stores;
    // standing, not more than leave each thread a few of them.
    const int64_t grid = matrix.grid_rows, full = divide_up(rows_together, matrix.block_size), few = grid / (8 * product.pool.threads);
    const int64_t rows = matrix.lying || few >= full ? full : few > 1 ? few : 1, groups = divide_up(grid, rows);
    const auto cost = [&](int64_t group) {
        return matrix.indptr[smaller((group + 1) * rows, grid)] - matrix.indptr[group * rows] + 1;
    };
    for (int64_t first = 0; first < product.n; first += together) {
        const int64_t columns = smaller(together, product.n - first);
        const Strips strips(product);
        // What another core has written takes longer to come than it takes to be turned once more.
        const bool own = product.packed && !matrix.lying && product.rooms >= product.pool.threads;
        bool stands[most_threads] = {};
        if (product.packed && matrix.lying) pack_lying(product, first, columns);
        else if (product.packed && !own)
            share(product.pool, strips.count, [&](int64_t item, int64_t) { stand(product, strips, item, first, columns, product.packed); });
        Ranges ranges(product.pool.threads, divide_up(columns, chunk), groups, cost);
        share(product.pool, ranges, [&](int64_t item, int64_t thread) {
            Scalar *packed = product.packed + (own ? thread * product.room : 0);
            if (own && !stands[thread]) {
                for (int64_t each = 0; each < strips.count; ++each) stand(product, strips, each, first, columns, packed);
                stands[thread] = true;
            }
            const int64_t group = item % groups, left = item / groups * chunk, count = smaller(chunk, columns - left);
            const Scalar *x = product.packed ? packed + left * column
                                             : reinterpret_cast<const Scalar *>(product.x) + (first + left) * product.x_along;  // no pairs
            const auto one = [&](int64_t row, int64_t panel, int64_t skipped, int64_t width) {
                const int64_t top = row * matrix.block_size + panels.top(panel);
                const Output to{product.y + top * product.down + (first + left + skipped) * product.along, product.down, product.along};
                multiply(matrix, panels, row, panel, {x + skipped * product.stride, product.stride, width}, to);
            };
            const int64_t end = smaller((group + 1) * rows, grid), top = group * rows * matrix.block_size;
            const auto all = [&](int64_t skipped, int64_t width) {
                for (int64_t row = group * rows; row < end; ++row)
                    for (int64_t panel = 0; panel < panels.count(); ++panel) one(row, panel, skipped, width);
            };
            if (!matrix.lying) return all(0, count);
            for (int64_t skipped = 0; skipped < count;) {
                const int64_t width = lying_width(count - skipped), next = skipped + width;
                if (product.down == 1)  // the lines of the next tile: they take as long to come as this one to be computed
                    for (int64_t each = next; each < smaller(next + lying_columns, count); ++each)
                        claim(product.y + (first + left + each) * product.along + top, end * matrix.block_size - top);
                all(skipped, width);
                skipped = next;
            }
        });
    }
}

// A product that differs from another one in its addresses, and in how many threads compute it.
EXPORT void dsd_again(const Product *given, const Element *x, Element *y, Scalar *packed, int64_t threads) {
    Product product = *given;
    product.x = x, product.y = y, product.packed = packed, product.pool.threads = threads;
    dsd(&product);
}
