// sdd on a CPU: the blocks of G X^T at the kept places of a pattern and no others; G: [m, n], X: [k, n].
//
// The n products of each element are summed chunk by chunk, so that a chunk of X stays in the second-level cache. The
// chunk of X is packed block column by block column, [chunk, b] each with b padded to whole vectors; a block row of G
// is packed panel by panel, [chunk, P] each. The register tile holds the sums of P rows times V vectors, which may
// belong to different blocks of one block row.
#include "pool.h"

struct Sampled {  // mirrored by native_products.py
    const Scalar *grad, *x;
    Scalar *blocks;   // [nnzb, b, b]
    Scalar *columns;  // [grid_cols, chunk, width]
    Scalar *panels;   // [threads, panel_rows_together(b), chunk]
    const int32_t *indices, *indptr;
    int64_t grad_down, grad_along, x_down, x_along;  // strides; one of each two is 1
    int64_t n, chunk, block_size, width, grid_rows, grid_cols;
    Pool pool;
};

namespace {

constexpr int most_rows = registers > 16 ? 8 : 4, most_vectors = 3;
constexpr int rows_together = 64;

struct Group {  // up to V vectors of columns
    const Scalar *x[most_vectors];
    Scalar *to[most_vectors];
    int64_t used[most_vectors];  // elements of the vector that are columns of the block
};

struct Chunk {
    int64_t begin, steps;
};

// `whole`: every row of the panel and every element of the vectors belongs to the blocks.
template <int N, int P, int V, bool whole>
void sampled_tile(const Sampled &job, const Chunk &chunk, const Group &group, const Scalar *panel, int64_t rows) {
    Vector<N> sums[P][V] = {};
    const Scalar *x[V];
    UNROLL for (int v = 0; v < V; ++v) x[v] = group.x[v];
    for (int64_t step = 0, offset = 0; step < chunk.steps; ++step, panel += P, offset += job.width) {
        Vector<N> columns[V];
        UNROLL for (int v = 0; v < V; ++v) columns[v] = load<N>(x[v] + offset);
        UNROLL for (int r = 0; r < P; ++r)
            UNROLL for (int v = 0; v < V; ++v) sums[r][v] += columns[v] * panel[r];
    }
    UNROLL for (int r = 0; r < P; ++r) {
        if (!whole && r >= rows) return;
        UNROLL for (int v = 0; v < V; ++v) {
            Scalar *to = group.to[v] + r * job.block_size;
            const int64_t used = whole ? N : group.used[v];
            store_some<N>(to, chunk.begin > 0 ? sums[r][v] + load_some<N>(to, used) : sums[r][v], used);
        }
    }
}

template <int N, int P, int V>
void run_tile(const Sampled &job, const Chunk &chunk, const Group &group, int held, const Scalar *panel, int64_t rows) {
    if constexpr (V > 1)
        if (held < V) return run_tile<N, P, V - 1>(job, chunk, group, held, panel, rows);
    bool whole = rows == P;
    UNROLL for (int v = 0; v < V; ++v) whole = whole && group.used[v] == N;
    if (whole) return sampled_tile<N, P, V, true>(job, chunk, group, panel, rows);
    sampled_tile<N, P, V, false>(job, chunk, group, panel, rows);
}

// All kept blocks of one block row, a group of vectors after the other: a group's columns stay in the first-level cache.
template <int N, int P> void sample_row(const Sampled &job, const Chunk &chunk, int64_t row, const Scalar *panels) {
    const int64_t size = job.block_size, last = job.indptr[row + 1];
    Group group;
    int held = 0;
    for (int64_t block = job.indptr[row]; block < last; ++block)
        for (int64_t left = 0; left < size; left += N) {
            group.x[held] = job.columns + job.indices[block] * chunk.steps * job.width + left;
            group.to[held] = job.blocks + block * size * size + left;
            group.used[held] = smaller(N, size - left);
            if (++held < most_vectors && (block + 1 < last || left + N < size)) continue;
            for (int64_t top = 0; top < size; top += P) {
                run_tile<N, P, most_vectors>(job, chunk, group, held, panels + top * chunk.steps, smaller(P, size - top));
                for (int vector = 0; vector < held; ++vector) group.to[vector] += P * size;
            }
            held = 0;
        }
}

// The rows of `count` block rows of G, panel by panel. Column by column, G is read in long pieces: hence several rows.
template <int P> void pack_panels(const Sampled &job, const Chunk &chunk, int64_t first, int64_t count, Scalar *panels) {
    const int64_t size = job.block_size, even = size / P * P, padded = divide_up(size, P) * P * chunk.steps;
    const Scalar *from = job.grad + first * size * job.grad_down + chunk.begin * job.grad_along;
    if (even < size) __builtin_memset(panels, 0, sizeof(Scalar) * static_cast<unsigned long long>(count * padded));
    if (job.grad_along == 1) {
        for (int64_t row = 0; row < count; ++row)
            for (int64_t top = 0; top < size; top += P)
                turn(from + (row * size + top) * job.grad_down, job.grad_down, smaller(P, size - top), chunk.steps,
                     panels + row * padded + top * chunk.steps, P);
        return;
    }
    for (int64_t step = 0; step < chunk.steps; ++step)
        for (int64_t row = 0; row < count; ++row) {
            const Scalar *piece = from + step * job.grad_along + row * size;
            Scalar *to = panels + row * padded + step * P;
            for (int64_t top = 0; top < even; top += P) store<P>(to + top * chunk.steps, load<P>(piece + top));
            copy_row(piece + even, size - even, to + even * chunk.steps);
        }
}

// Block column `col` of the chunk of X.
void pack_columns(const Sampled &job, const Chunk &chunk, int64_t col) {
    const int64_t size = job.block_size;
    const Scalar *from = job.x + col * size * job.x_down + chunk.begin * job.x_along;
    Scalar *to = job.columns + col * chunk.steps * job.width;
    if (size < job.width) __builtin_memset(to, 0, sizeof(Scalar) * static_cast<unsigned long long>(chunk.steps * job.width));
    if (job.x_along == 1) return turn(from, job.x_down, size, chunk.steps, to, job.width);
    for (int64_t step = 0; step < chunk.steps; ++step) copy_row(from + step * job.x_along, size, to + step * job.width);
}

template <int N> void sample(const Sampled &job) {
    constexpr int P = most_rows;
    const int64_t together = divide_up(rows_together, job.block_size), groups = divide_up(job.grid_rows, together);
    const int64_t padded = divide_up(job.block_size, P) * P;
    const auto end = [&](int64_t group) { return smaller((group + 1) * together, job.grid_rows); };
    Ranges ranges(job.pool.threads, 1, groups, 1,
                  [&](int64_t group) { return job.indptr[end(group)] - job.indptr[group * together] + 1; });
    for (int64_t begin = 0; begin < job.n; begin += job.chunk) {
        const Chunk chunk{begin, smaller(job.chunk, job.n - begin)};
        share(job.pool, job.grid_cols, [&](int64_t col, int64_t) { pack_columns(job, chunk, col); });
        share(job.pool, ranges, [&](int64_t group, int64_t thread) {
            const int64_t first = group * together, count = end(group) - first;
            Scalar *panels = job.panels + thread * together * padded * job.chunk;
            pack_panels<P>(job, chunk, first, count, panels);
            for (int64_t row = 0; row < count; ++row) sample_row<N, P>(job, chunk, first + row, panels + row * padded * chunk.steps);
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

EXPORT int64_t sampled_width(int64_t block_size) { return width_for<lanes>(block_size); }

EXPORT int64_t panel_rows_together(int64_t block_size) {
    return divide_up(rows_together, block_size) * divide_up(block_size, most_rows) * most_rows;
}

EXPORT void sdd(const Sampled *job) { sample_with<lanes>(*job); }
