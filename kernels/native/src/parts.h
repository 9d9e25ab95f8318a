// How the rows of an LSTM layer are cut into work items, and where an item's share of the saved state lies.
#pragma once
#include "pool.h"
#include "tiles.h"

namespace {

constexpr int64_t span = 32;  // rows of an item, at most; Python allocates as many
static_assert(span % lanes == 0 && span >= 2 * lanes && span >= low_rows, "a panel fits");

struct Part {  // what one item computes
    int64_t block_row, block_rows;  // several whole block rows, or
    int64_t panel, panels;          // some panels of one
    int64_t row, rows;              // the same in elements
    int64_t column, columns;        // of the batch
};

// Block rows of `matrix` (or of each of its gates) in items of at most `span` rows, times chunks of the batch.
struct Split {
    Panels panels;
    int64_t size, grid, together, panels_together, per_row, parts, chunk, batch, chunks;

    Split(const Matrix &matrix, int64_t grid_rows, int64_t samples, int64_t samples_together)
        : panels(matrix), size(matrix.block_size), grid(grid_rows), together(size < span ? smaller(span / size, grid_rows) : 1),
          panels_together(size <= span ? panels.count() : span / (matrix.lying ? panels.tall : low_rows)),
          per_row(divide_up(panels.count(), panels_together)), parts(divide_up(grid, together) * per_row),
          chunk(samples_together), batch(samples), chunks(divide_up(samples, samples_together)) {}

    Part part(int64_t item) const {
        const int64_t place = item % parts, column = item / parts * chunk;
        const int64_t block_row = place / per_row * together, block_rows = smaller(together, grid - block_row);
        const int64_t panel = place % per_row * panels_together, here = smaller(panels_together, panels.count() - panel);
        const int64_t top = panels.top(panel), rows = (block_rows - 1) * size + panels.top(panel + here) - top;
        return {block_row, block_rows, panel, here, block_row * size + top, rows, column, smaller(chunk, batch - column)};
    }

    // Items of about equal cost for each thread; a part is as dear as its blocks in each of the `gates` of the matrix.
    Ranges ranges(const Pool &pool, const int32_t *indptr, int64_t gates) const {
        return Ranges(pool.threads, chunks, parts, [&](int64_t item) {
            const Part here = part(item);
            int64_t blocks = 1;
            for (int64_t gate = 0; gate < gates; ++gate) {
                const int32_t *first = indptr + gate * grid + here.block_row;
                blocks += first[here.block_rows] - first[0];
            }
            return blocks;
        });
    }
};

// The rows of `part`, in block rows shifted by `shift`, times `columns`, into to[column * along + row].
inline void multiply_part(const Matrix &matrix, int64_t shift, const Part &part, const Columns &columns, Scalar *to, int64_t along) {
    const Panels panels(matrix);
    const int64_t top = panels.top(part.panel);
    for (int64_t row = 0; row < part.block_rows; ++row)
        for (int64_t panel = part.panel; panel < part.panel + part.panels; ++panel)
            multiply(matrix, panels, shift + part.block_row + row, panel, columns,
                     {to + row * matrix.block_size + panels.top(panel) - top, 1, along});
}

// For every step, sample and unit, the forward pass keeps the four gates after their nonlinearities and the cell. What an
// item computes lies together, sample by sample, `rows` of each in turn, so that memory is read and written in order.
constexpr int64_t kept = 5, cell = 4;

struct Kept {
    Scalar *first;  // of the item in this step
    int64_t rows;

    Kept(Scalar *all, int64_t slot, int64_t hidden, int64_t batch, const Part &part)
        : first(all + (slot * batch * hidden + part.column * hidden + part.row * part.columns) * kept), rows(part.rows) {}

    Scalar *at(int64_t column, int64_t plane) const { return first + (column * kept + plane) * rows; }
};

}  // namespace
