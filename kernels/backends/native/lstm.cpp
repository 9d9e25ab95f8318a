// One LSTM layer over all time steps on a CPU, with a block-sparse recurrent weight; gates in torch's order i, f, g, o.
//
// Outside, everything lies as torch has it: [steps, batch, features]. The columns that a step multiplies are kept turned,
// [features, batch], in two buffers that take turns. A work item is some rows of one block row for a chunk of the batch,
// in all four gates: it multiplies into a scratch buffer, computes the gates there, and turns what the next step needs.
#include "gates.h"
#include "pool.h"
#include "tiles.h"

struct Forward {  // mirrored by native_lstm.py
    Matrix matrix;  // [4 hidden, hidden]
    const Scalar *projected;  // [steps, batch, 4 hidden]: the weighted inputs
    const Scalar *bias;       // [4 hidden]
    const Scalar *h0, *c0;    // [batch, hidden]
    Scalar *y, *cells;        // [steps, batch, hidden]
    Scalar *gates;            // [steps, batch, 4 hidden], after their nonlinearities
    Scalar *columns;          // [2, hidden, batch]
    Scalar *scratch;          // [threads, 4, chunk, span]
    int64_t steps, batch, hidden, chunk;
    Pool pool;
};

struct Backward {  // mirrored by native_lstm.py
    Matrix matrix;  // [hidden, 4 hidden]: the transpose
    const Scalar *grad_y;            // [steps, batch, hidden], or null
    const Scalar *grad_h, *grad_c;   // [batch, hidden], of the last states, or null
    const Scalar *gates, *cells, *c0;
    Scalar *grad_gates;              // [steps, batch, 4 hidden], before the nonlinearities
    Scalar *grad_h0, *grad_c0;       // [batch, hidden]
    Scalar *grad_bias;               // [chunks, 4 hidden]
    Scalar *columns;                 // [2, 4 hidden, batch]
    Scalar *scratch;                 // [threads, 4, chunk, span]
    int64_t steps, batch, hidden, chunk;
    Pool pool;
};

namespace {

constexpr int64_t span = 32;  // rows of an item, at most; native_lstm.py allocates as many
static_assert(span % lanes == 0 && span >= 2 * lanes, "a panel of tall tiles fits");

struct Part {  // what one item computes
    int64_t block_row, panel, panels;
    int64_t row, rows;        // hidden units
    int64_t column, columns;  // of the batch
};

struct Items {
    int64_t panels, per_item, groups, grid, chunks;

    template <class Layer> explicit Items(const Layer &layer)
        : panels(panels_of(layer.matrix)), per_item(smaller(panels, span / layer.matrix.panel_rows)),
          groups(divide_up(panels, per_item)), grid(layer.hidden / layer.matrix.block_size),
          chunks(divide_up(layer.batch, layer.chunk)) {}

    template <class Layer> Part part(const Layer &layer, int64_t item) const {
        const int64_t group = item % groups, row = item / groups % grid, column = item / (groups * grid) * layer.chunk;
        const int64_t panel = group * per_item, top = panel * layer.matrix.panel_rows;
        return {row, panel, smaller(per_item, panels - panel), row * layer.matrix.block_size + top,
                smaller(per_item * layer.matrix.panel_rows, layer.matrix.block_size - top),
                column, smaller(layer.chunk, layer.batch - column)};
    }
};

// Some rows of `block_row` of the matrix times `columns`, into to[column][row].
void multiply_rows(const Matrix &matrix, int64_t block_row, const Part &part, const Columns &columns, Scalar *to, int64_t along) {
    for (int64_t panel = 0; panel < part.panels; ++panel)
        multiply(matrix, block_row, part.panel + panel, columns, {to + panel * matrix.panel_rows, 1, along});
}

void forward_item(const Forward &layer, const Part &part, int64_t step, int64_t grid, Scalar *scratch) {
    const int64_t batch = layer.batch, hidden = layer.hidden, plane = layer.chunk * span;
    const Scalar *before = layer.columns + step % 2 * hidden * batch + part.column;
    for (int64_t gate = 0; gate < 4; ++gate)
        multiply_rows(layer.matrix, gate * grid + part.block_row, part, {before, batch, part.columns}, scratch + gate * plane, span);
    for (int64_t c = 0; c < part.columns; ++c) {
        const int64_t at = step * batch + part.column + c;
        const Scalar *cell = step ? layer.cells + (at - batch) * hidden : layer.c0 + at * hidden;
        for (int64_t r = 0; r < part.rows; r += lanes) {
            const int64_t used = smaller(lanes, part.rows - r), unit = part.row + r;
            Scalar *own = scratch + c * span + r, *saved = layer.gates + at * 4 * hidden + unit;
            Vector<lanes> gates[4];
            UNROLL for (int gate = 0; gate < 4; ++gate) {
                const Vector<lanes> sum = load_some<lanes>(own + gate * plane, used) +
                                          load_some<lanes>(layer.projected + (at * 4 + gate) * hidden + unit, used) +
                                          load_some<lanes>(layer.bias + gate * hidden + unit, used);
                gates[gate] = gate == 2 ? tangent(sum) : sigmoid(sum);
                store_some<lanes>(saved + gate * hidden, gates[gate], used);
            }
            const Vector<lanes> next = gates[1] * load_some<lanes>(cell + unit, used) + gates[0] * gates[2];
            const Vector<lanes> output = gates[3] * tangent(next);
            store_some<lanes>(layer.cells + at * hidden + unit, next, used);
            store_some<lanes>(layer.y + at * hidden + unit, output, used);
            store_some<lanes>(own, output, used);
        }
    }
    Scalar *after = layer.columns + (step + 1) % 2 * hidden * batch;
    turn(scratch, span, part.columns, part.rows, after + part.row * batch + part.column, batch);
}

// Gradients of the gates of one time step for `lanes` units, one sample after the other; their sums go to `grad_bias`.
void backward_units(const Backward &layer, const Part &part, int64_t step, int64_t r, Scalar *scratch, Scalar *grad_bias) {
    const int64_t batch = layer.batch, hidden = layer.hidden, plane = layer.chunk * span;
    const int64_t used = smaller(lanes, part.rows - r), unit = part.row + r;
    const bool last = step + 1 == layer.steps;
    Vector<lanes> sums[4];
    UNROLL for (int gate = 0; gate < 4; ++gate)
        sums[gate] = last ? Vector<lanes>{} : load_some<lanes>(grad_bias + gate * hidden + unit, used);
    for (int64_t c = 0; c < part.columns; ++c) {
        const int64_t at = step * batch + part.column + c, state = (part.column + c) * hidden + unit;
        Scalar *own = scratch + c * span + r;
        Vector<lanes> grad_h = {}, grad_c = {}, gates[4], grads[4];
        if (!last) grad_h = load_some<lanes>(own, used), grad_c = load_some<lanes>(layer.grad_c0 + state, used);
        if (last && layer.grad_h) grad_h = load_some<lanes>(layer.grad_h + state, used);
        if (last && layer.grad_c) grad_c = load_some<lanes>(layer.grad_c + state, used);
        if (layer.grad_y) grad_h += load_some<lanes>(layer.grad_y + at * hidden + unit, used);
        UNROLL for (int gate = 0; gate < 4; ++gate)
            gates[gate] = load_some<lanes>(layer.gates + (at * 4 + gate) * hidden + unit, used);
        const Vector<lanes> squashed = tangent(load_some<lanes>(layer.cells + at * hidden + unit, used));
        const Scalar *before = step ? layer.cells + (at - batch) * hidden + unit : layer.c0 + state;
        grad_c += grad_h * gates[3] * (one - squashed * squashed);
        grads[0] = grad_c * gates[2] * gates[0] * (one - gates[0]);
        grads[1] = grad_c * load_some<lanes>(before, used) * gates[1] * (one - gates[1]);
        grads[2] = grad_c * gates[0] * (one - gates[2] * gates[2]);
        grads[3] = grad_h * squashed * gates[3] * (one - gates[3]);
        store_some<lanes>(layer.grad_c0 + state, grad_c * gates[1], used);
        UNROLL for (int gate = 0; gate < 4; ++gate) {
            sums[gate] += grads[gate];
            store_some<lanes>(layer.grad_gates + (at * 4 + gate) * hidden + unit, grads[gate], used);
            store_some<lanes>(own + gate * plane, grads[gate], used);
        }
    }
    UNROLL for (int gate = 0; gate < 4; ++gate) store_some<lanes>(grad_bias + gate * hidden + unit, sums[gate], used);
}

void backward_item(const Backward &layer, const Part &part, int64_t step, Scalar *scratch) {
    const int64_t batch = layer.batch, hidden = layer.hidden, plane = layer.chunk * span;
    const Scalar *after = layer.columns + (step + 1) % 2 * 4 * hidden * batch + part.column;
    if (step + 1 < layer.steps) multiply_rows(layer.matrix, part.block_row, part, {after, batch, part.columns}, scratch, span);
    Scalar *grad_bias = layer.grad_bias + part.column / layer.chunk * 4 * hidden;
    for (int64_t r = 0; r < part.rows; r += lanes) backward_units(layer, part, step, r, scratch, grad_bias);
    Scalar *turned = layer.columns + step % 2 * 4 * hidden * batch + part.row * batch + part.column;
    for (int64_t gate = 0; gate < 4; ++gate)
        turn(scratch + gate * plane, span, part.columns, part.rows, turned + gate * hidden * batch, batch);
}

template <class Layer> Scalar *scratch_of(const Layer &layer, int64_t thread) {
    return layer.scratch + thread * 4 * layer.chunk * span;
}

}  // namespace

EXPORT void lstm_forward(const Forward *given) {
    const Forward &layer = *given;
    const Items items(layer);
    const int32_t *indptr = layer.matrix.indptr;
    const auto cost = [&](int64_t row) {
        int64_t blocks = 1;
        for (int64_t gate = 0; gate < 4; ++gate) blocks += indptr[gate * items.grid + row + 1] - indptr[gate * items.grid + row];
        return blocks;
    };
    Ranges ranges(layer.pool.threads, items.chunks, items.grid, items.groups, cost);
    turn(layer.h0, layer.hidden, layer.batch, layer.hidden, layer.columns, layer.batch);
    for (int64_t step = 0; step < layer.steps; ++step)
        share(layer.pool, ranges, [&](int64_t item, int64_t thread) {
            forward_item(layer, items.part(layer, item), step, items.grid, scratch_of(layer, thread));
        });
}

EXPORT void lstm_backward(const Backward *given) {
    const Backward &layer = *given;
    const Items items(layer);
    const int32_t *indptr = layer.matrix.indptr;
    Ranges ranges(layer.pool.threads, items.chunks, items.grid, items.groups,
                  [&](int64_t row) { return indptr[row + 1] - indptr[row] + 1; });
    for (int64_t step = layer.steps - 1; step >= 0; --step)
        share(layer.pool, ranges, [&](int64_t item, int64_t thread) {
            backward_item(layer, items.part(layer, item), step, scratch_of(layer, thread));
        });
    share(layer.pool, ranges, [&](int64_t item, int64_t) {
        const Part part = items.part(layer, item);
        Scalar *to = layer.grad_h0 + part.column * layer.hidden + part.row;
        multiply_rows(layer.matrix, part.block_row, part, {layer.columns + part.column, layer.batch, part.columns}, to, layer.hidden);
    });
}
