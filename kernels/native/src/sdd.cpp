// sdd on a CPU: the blocks of G X^T at the kept places of a pattern and no others; G: [m, n], X: [k, n].
//
// The n products of each element are summed chunk by chunk. A chunk of X is packed vector by vector, [steps, N] each, and
// a chunk of G panel by panel, [steps, P] each (or all of G came that way, [n, P] each), both padded to whole vectors and
// panels; a step is a column, or of bfloat16 a pair of columns. The register tile holds the sums of P rows
// times V vectors, which may belong to different blocks of one block row. A work item is some block rows times
// a stretch of block columns whose packed vectors stay in the second-level cache from item to item.
//
// Blocks that fill no vectors are summed along vectors of n instead: rows of G and of X are read where they are, or turned if
// they do not lie in memory row by row, up to 5 x 5 of them together, and the elements of each vector of sums added at last.
#include "pool.h"

struct Sampled {  // mirrored in Python, field by field
    const Element *grad;     // null where `panels` holds it already, [grid_rows * panels, n, P]
    const Element *x;
    const Element *x_first;  // the first columns of X, as `x` column by column; the others are in `x`; not of bfloat16
    Element *blocks;         // [nnzb, b, b]
    Scalar *sums;            // the same before the last chunk; of bfloat16 only, and null where one chunk is all
    Scalar *columns;         // [grid_cols * vectors, steps of a chunk, N]
    Scalar *panels;          // [grid_rows * panels, steps of a chunk, P]
    const int32_t *indices, *indptr;
    int64_t grad_down, grad_along, x_down, x_along;  // strides; one of each two is 1
    int64_t n, first, chunk, stretch, block_size, grid_rows, grid_cols;  // first: columns in `x_first`
    // Along vectors: `panels` and `columns` are rows so far apart, or null where G and X are read in place.
    int64_t along, panel_stride, column_stride;
    Pool pool;
};

namespace {

constexpr int P = sampled_rows, most_vectors = 3;
constexpr int rows_together = 64;  // or columns, that are packed at a time

struct Chunk {  // some columns of G and X
    int64_t begin, count, steps;
    bool last;
};

struct Group {  // up to V vectors of columns
    const Scalar *x[most_vectors];
    Element *to[most_vectors];
    int64_t used[most_vectors];  // elements of the vector that are columns of the block
};

// Where the sums that go to `to` wait for the next chunk.
inline Scalar *waiting(const Sampled &job, Element *to) {
    return paired ? job.sums + (to - job.blocks) : reinterpret_cast<Scalar *>(to);
}

// `whole`: every row of the panel and every element of the vectors belongs to the blocks. Tiles are functions of their own: where
// many are inlined into one, g++ keeps their sums in memory.
template <int N, int V, bool whole>
__attribute__((noinline)) void sampled_tile(const Sampled &job, const Chunk &chunk, const Group &group, const Scalar *panel, int64_t rows) {
    Vector<N> sums[P][V] = {};
    const Scalar *x[V];
    UNROLL for (int v = 0; v < V; ++v) x[v] = group.x[v];
    for (int64_t step = 0; step < chunk.steps; ++step, panel += P) {
        Vector<N> columns[V];
        UNROLL for (int v = 0; v < V; ++v) in_register(columns[v] = load<N>(x[v] + step * N));
        UNROLL for (int r = 0; r < P; ++r)
            UNROLL for (int v = 0; v < V; ++v) add_products<N>(sums[r][v], columns[v], panel[r]);
    }
    UNROLL for (int r = 0; r < P; ++r) {
        if (!whole && r >= rows) return;
        UNROLL for (int v = 0; v < V; ++v) {
            Element *to = group.to[v] + r * job.block_size;
            const int64_t used = whole ? N : group.used[v];
            const Vector<N> sum = chunk.begin > 0 ? sums[r][v] + load_some<N>(waiting(job, to), used) : sums[r][v];
            if (paired && !chunk.last) store_some<N>(waiting(job, to), sum, used);
            else store_some_sums<N>(to, sum, used);
        }
    }
}

template <int N, int V>
void run_tile(const Sampled &job, const Chunk &chunk, const Group &group, int held, const Scalar *panel, int64_t rows) {
    if constexpr (V > 1)
        if (held < V) return run_tile<N, V - 1>(job, chunk, group, held, panel, rows);
    bool whole = rows == P;
    UNROLL for (int v = 0; v < V; ++v) whole = whole && group.used[v] == N;
    if (whole) return sampled_tile<N, V, true>(job, chunk, group, panel, rows);
    sampled_tile<N, V, false>(job, chunk, group, panel, rows);
}

int64_t steps_of_a_panel(const Sampled &job, const Chunk &chunk) { return job.grad ? chunk.steps : job.n; }

// The kept blocks `first` .. `last` of a block row, a group of vectors after the other: its columns stay in the first-level
// cache while the panels pass.
template <int N> void sample_blocks(const Sampled &job, const Chunk &chunk, int64_t first, int64_t last, const Scalar *panels) {
    const int64_t size = job.block_size, vectors = divide_up(size, N), steps = steps_of_a_panel(job, chunk);
    Group group;
    int held = 0;
    for (int64_t block = first; block < last; ++block)
        for (int64_t vector = 0; vector < vectors; ++vector) {
            group.x[held] = job.columns + (job.indices[block] * vectors + vector) * chunk.steps * N;
            group.to[held] = job.blocks + block * size * size + vector * N;
            group.used[held] = smaller(N, size - vector * N);
            if (++held < most_vectors && (block + 1 < last || vector + 1 < vectors)) continue;
            for (int64_t top = 0; top < size; top += P) {
                run_tile<N, most_vectors>(job, chunk, group, held, panels + top * steps, smaller(P, size - top));
                for (int each = 0; each < held; ++each) group.to[each] += P * size;
            }
            held = 0;
        }
}

// The first kept block of `row` at or right of block column `col`.
int64_t first_from(const Sampled &job, int64_t row, int64_t col) {
    int64_t low = job.indptr[row], high = job.indptr[row + 1];
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (job.indices[middle] < col) low = middle + 1;
        else high = middle;
    }
    return low;
}

int64_t padded_rows(int64_t size) { return divide_up(size, P) * P; }

// Pieces of memory that are far apart: the hardware does not run ahead of them by itself.
inline void ahead(const Element *piece, int64_t count) {
    for (int64_t i = 0; i < count; i += 64 / sizeof(Element)) __builtin_prefetch(piece + i);
}

// The rows of `count` block rows of G, panel by panel. Column by column, G is read in long pieces: hence several rows.
void pack_panels(const Sampled &job, const Chunk &chunk, int64_t first, int64_t count) {
    const int64_t size = job.block_size, even = size / P * P, padded = padded_rows(size) * chunk.steps;
    const Element *from = job.grad + first * size * job.grad_down + chunk.begin * job.grad_along;
    Scalar *panels = job.panels + first * padded;
    if (even < size) __builtin_memset(panels, 0, sizeof(Scalar) * static_cast<unsigned long long>(count * padded));
    if (job.grad_along == 1) {
        for (int64_t row = 0; row < count; ++row)
            for (int64_t top = 0; top < size; top += P)
                turn(from + (row * size + top) * job.grad_down, job.grad_down, smaller(P, size - top), chunk.count,
                     panels + row * padded + top * chunk.steps, P);
        return;
    }
    for (int64_t step = 0; step < chunk.steps; ++step)
        for (int64_t row = 0; row < count; ++row) {
            const Element *piece = from + step * pair * job.grad_along + row * size;
            Scalar *to = panels + row * padded + step * P;
            const int64_t left = chunk.count - step * pair;
            ahead(piece + 4 * job.grad_along, size);
            for (int64_t top = 0; top < even; top += P) copy_step<P>(piece + top, job.grad_along, left, P, to + top * chunk.steps);
            copy_long_step(piece + even, job.grad_along, left, size - even, to + even * chunk.steps);
        }
}

// Block columns `first` .. `last` of the chunk of X, vector by vector.
template <int N> void pack_vectors(const Sampled &job, const Chunk &chunk, int64_t first, int64_t last) {
    const int64_t size = job.block_size, vectors = divide_up(size, N), length = chunk.steps * N;
    if (size % N) __builtin_memset(job.columns + first * vectors * length, 0, sizeof(Scalar) * static_cast<unsigned long long>((last - first) * vectors * length));
    if (job.x_down != 1) {
        for (int64_t col = first; col < last; ++col)
            for (int64_t vector = 0; vector < vectors; ++vector)
                turn(job.x + (col * size + vector * N) * job.x_down + chunk.begin, job.x_down, smaller(N, size - vector * N),
                     chunk.count, job.columns + (col * vectors + vector) * length, N);
        return;
    }
    for (int64_t step = 0; step < chunk.steps; ++step) {
        const int64_t column = chunk.begin + step * pair, left = chunk.count - step * pair;
        const Element *from = column < job.first ? job.x_first + column * job.x_along : job.x + (column - job.first) * job.x_along;
        ahead(from + 4 * job.x_along + first * size, (last - first) * size);
        for (int64_t col = first; col < last; ++col)
            for (int64_t vector = 0; vector < vectors; ++vector) {
                const int64_t used = smaller(N, size - vector * N);
                copy_step<N>(from + col * size + vector * N, job.x_along, left, used,
                             job.columns + (col * vectors + vector) * length + step * N);
            }
    }
}

template <int N> void sample(const Sampled &job) {
    const int64_t together = divide_up(rows_together, job.block_size), groups = divide_up(job.grid_rows, together);
    const int64_t stretches = divide_up(job.grid_cols, job.stretch), padded = padded_rows(job.block_size);
    const int64_t column_groups = divide_up(job.grid_cols, together);
    const auto end = [&](int64_t group) { return smaller((group + 1) * together, job.grid_rows); };
    Ranges ranges(job.pool.threads, stretches, groups,
                  [&](int64_t group) { return job.indptr[end(group)] - job.indptr[group * together] + 1; });
    for (int64_t begin = 0; begin < job.n; begin += job.chunk) {
        const int64_t count = smaller(job.chunk, job.n - begin);
        const Chunk chunk{begin, count, steps_in(count), begin + count == job.n};
        share(job.pool, column_groups + (job.grad ? groups : 0), [&](int64_t item, int64_t) {
            const int64_t group = item - column_groups;
            if (group < 0) pack_vectors<N>(job, chunk, item * together, smaller((item + 1) * together, job.grid_cols));
            else pack_panels(job, chunk, group * together, end(group) - group * together);
        });
        share(job.pool, ranges, [&](int64_t item, int64_t) {
            const int64_t group = item % groups, left = item / groups * job.stretch;
            for (int64_t row = group * together; row < end(group); ++row)
                sample_blocks<N>(job, chunk, first_from(job, row, left), first_from(job, row, left + job.stretch),
                                 job.panels + row * padded * steps_of_a_panel(job, chunk) + (job.grad ? 0 : begin * P));
        });
    }
}

constexpr int most_rows = registers > 16 ? 5 : 3, fewest_rows = registers > 16 ? 3 : 2;  // of G, and of X, read together

// Rows of G and X, and where they come from.
struct Lines {
    const Scalar *first;
    int64_t stride;
};

// The totals of R x C vectors, one after the other.
template <int R, int C> inline void add_up(Vector<lanes> (&sums)[R][C], Scalar *totals) {
    UNROLL for (int first = 0; first < R * C; first += lanes) {
        Vector<lanes> vectors[lanes] = {};
        UNROLL for (int i = 0; i < lanes; ++i)
            if (first + i < R * C) vectors[i] = sums[(first + i) / C][(first + i) % C];
        UNROLL for (int left = lanes / 2; left > 0; left /= 2)
            UNROLL for (int i = 0; i < left; ++i) vectors[i] = add_neighbours(vectors[2 * i], vectors[2 * i + 1]);
        store<lanes>(totals + first, vectors[0]);
    }
}

// to[r * size + c], or what is added to it, = the products of R rows of G and C rows of X over `count` columns.
template <int R, int C> __attribute__((noinline)) void along_tile(const Lines &g, const Lines &x, int64_t count, Scalar *to, int64_t size, bool more) {
    Vector<lanes> sums[R][C] = {};
    int64_t at = 0;
    for (; at + lanes <= count; at += lanes) {
        Vector<lanes> columns[C];
        UNROLL for (int c = 0; c < C; ++c) in_register(columns[c] = load<lanes>(x.first + c * x.stride + at));
        UNROLL for (int r = 0; r < R; ++r) {
            Vector<lanes> row = load<lanes>(g.first + r * g.stride + at);
            in_register(row);
            UNROLL for (int c = 0; c < C; ++c) sums[r][c] += row * columns[c];
        }
    }
    if (at < count)
        UNROLL for (int r = 0; r < R; ++r)
            UNROLL for (int c = 0; c < C; ++c)
                sums[r][c] += load_some<lanes>(g.first + r * g.stride + at, count - at) * load_some<lanes>(x.first + c * x.stride + at, count - at);
    Scalar totals[divide_up(R * C, lanes) * lanes + 8];
    add_up<R, C>(sums, totals);
    UNROLL for (int r = 0; r < R; ++r) {
        const Vector<8> found = load_some<8>(totals + r * C, C);
        store_some<8>(to + r * size, more ? found + load_some<8>(to + r * size, C) : found, C);
    }
}

template <int R, int C> void run_along(int64_t rows, int64_t cols, const Lines &g, const Lines &x, int64_t count, Scalar *to, int64_t size, bool more) {
    if constexpr (R > fewest_rows)
        if (rows < R) return run_along<R - 1, C>(rows, cols, g, x, count, to, size, more);
    if constexpr (C > fewest_rows)
        if (cols < C) return run_along<R, C - 1>(rows, cols, g, x, count, to, size, more);
    along_tile<R, C>(g, x, count, to, size, more);
}

// One block, in tiles of about equal height and width.
void along_block(const Lines &g, const Lines &x, int64_t count, Scalar *to, int64_t size, bool more) {
    const int64_t parts = divide_up(size, most_rows);
    for (int64_t row = 0; row < parts; ++row)
        for (int64_t col = 0; col < parts; ++col) {
            const int64_t top = size * row / parts, left = size * col / parts;
            run_along<most_rows, most_rows>(size * (row + 1) / parts - top, size * (col + 1) / parts - left, {g.first + top * g.stride, g.stride},
                                            {x.first + left * x.stride, x.stride}, count, to + top * size + left, size, more);
        }
}

// As `turn`, of rows that are far apart.
void turn_far(const Element *from, int64_t from_stride, int64_t rows, int64_t cols, Scalar *to, int64_t to_stride) {
    constexpr int64_t strip = 16;
    for (int64_t row = 0; row < rows; row += strip) {
        for (int64_t next = row + strip; next < smaller(row + 2 * strip, rows); ++next) ahead(from + next * from_stride, cols);
        turn(from + row * from_stride, from_stride, smaller(strip, rows - row), cols, to + row, to_stride);
    }
}

// `rows` rows of X from `first` on, in the chunk, where they lie column by column.
void turn_rows(const Sampled &job, const Chunk &chunk, int64_t first, int64_t rows) {
    Scalar *to = job.columns + first * job.column_stride;
    const int64_t head = chunk.begin < job.first ? smaller(job.first - chunk.begin, chunk.count) : 0;
    if (head) turn_far(job.x_first + chunk.begin * job.x_along + first, job.x_along, head, rows, to, job.column_stride);
    if (head == chunk.count) return;
    turn_far(job.x + (chunk.begin + head - job.first) * job.x_along + first, job.x_along, chunk.count - head, rows, to + head, job.column_stride);
}

void sample_along(const Sampled &job) {
    const int64_t size = job.block_size, together = divide_up(rows_together, size), groups = divide_up(job.grid_rows, together);
    const int64_t column_groups = job.columns ? divide_up(job.grid_cols, together) : 0, stretches = divide_up(job.grid_cols, job.stretch);
    const bool turned = job.grad && job.panels;
    const auto end = [&](int64_t group) { return smaller((group + 1) * together, job.grid_rows); };
    Ranges ranges(job.pool.threads, stretches, groups,
                  [&](int64_t group) { return job.indptr[end(group)] - job.indptr[group * together] + 1; });
    for (int64_t begin = 0; begin < job.n; begin += job.chunk) {
        const int64_t count = smaller(job.chunk, job.n - begin);
        const Chunk chunk{begin, count, count, begin + count == job.n};
        share(job.pool, column_groups + (turned ? groups : 0), [&](int64_t item, int64_t) {
            const int64_t group = item - column_groups, first = (group < 0 ? item : group) * together * size;
            if (group < 0) return turn_rows(job, chunk, first, smaller(together * size, job.grid_cols * size - first));
            turn_far(job.grad + begin * job.grad_along + first, job.grad_along, count, (end(group) - group * together) * size,
                 job.panels + first * job.panel_stride, job.panel_stride);
        });
        const Scalar *in_place = reinterpret_cast<const Scalar *>(job.grad) + begin, *x = reinterpret_cast<const Scalar *>(job.x) + begin;
        const Lines g{!job.grad ? job.panels + begin : turned ? job.panels : in_place, job.panels ? job.panel_stride : job.grad_down};
        const Lines columns{job.columns ? job.columns : x, job.columns ? job.column_stride : job.x_down};
        share(job.pool, ranges, [&](int64_t item, int64_t) {
            const int64_t group = item % groups, left = item / groups * job.stretch;
            for (int64_t row = group * together; row < end(group); ++row)
                for (int64_t block = first_from(job, row, left); block < first_from(job, row, left + job.stretch); ++block)
                    along_block({g.first + row * size * g.stride, g.stride},
                                {columns.first + job.indices[block] * size * columns.stride, columns.stride}, count,
                                reinterpret_cast<Scalar *>(job.blocks) + block * size * size, size, begin > 0);
        });
    }
}

template <int N> void sample_with(const Sampled &job) {
    if constexpr (N > 1)
        if (job.block_size < N) return sample_with<N / 2>(job);
    sample<N>(job);
}

template <int N> int64_t width_for(int64_t block_size) {
    if constexpr (N > 1)
        if (block_size < N) return width_for<N / 2>(block_size);
    return divide_up(block_size, N) * N;
}

}  // namespace

// A block's columns and rows, padded to whole vectors and panels.
EXPORT int64_t sampled_width(int64_t block_size) { return width_for<lanes>(block_size); }

EXPORT int64_t sampled_height(int64_t block_size) { return padded_rows(block_size); }

EXPORT int64_t along(int64_t block_size, int64_t n) { return sums_along(block_size, n); }

EXPORT void sdd(const Sampled *job) {
    if constexpr (!paired)
        if (job->along) return sample_along(*job);
    sample_with<lanes>(*job);
}
