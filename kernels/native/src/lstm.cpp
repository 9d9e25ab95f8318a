// One LSTM layer over all time steps on a CPU, with block-sparse weights; gates in torch's order i, f, g, o.
//
// Outside, everything lies as torch has it: [steps, batch, features]. The columns that a step multiplies are kept as its tiles
// want them (tiles.h): lying, [batch, features], or standing, [features, batch]. The inputs of several steps are weighted together, as many as make wide products. A work item is some
// hidden units for a chunk of the batch, in all four gates: it multiplies into a scratch buffer, computes the gates there,
// and turns what the next step needs.
#include "gates.h"
#include "parts.h"

static_assert(!paired, "a layer is of float or double");

struct Forward {  // mirrored in Python, field by field
    Matrix recurrent;         // [4 hidden, hidden]
    const Scalar *x;          // [steps, batch, into]
    const Scalar *projected;  // [steps, batch, 4 hidden]: the weighted inputs, or null
    const Scalar *bias;       // [4 hidden]
    const Scalar *h0, *c0;    // [batch, hidden]
    Scalar *y;                // [steps, batch, hidden]
    Scalar *last_cell;        // [batch, hidden]
    Scalar *saved;            // [slots, batch * hidden * kept]: step s in slot s % slots
    Scalar *states;           // [2], columns of hidden elements for the batch
    Scalar *inputs;           // columns of `into` elements for together * batch samples; null where x is multiplied where it is
    Scalar *scratch;          // [threads, 4, chunk, span]
    int64_t steps, batch, hidden, into, chunk, together, slots;
    int64_t state_stride, state_size, input_stride;  // of columns, and the elements of each of the two states
    Matrix input;  // [4 hidden, into]; none where `projected` is given
    Pool pool;
};

struct Backward {  // mirrored in Python, field by field
    Matrix recurrent;               // the transpose: [hidden, 4 hidden]
    const Scalar *grad_y;           // [steps, batch, hidden], or null
    const Scalar *grad_h, *grad_c;  // [batch, hidden], of the last states, or null
    const Scalar *saved, *c0;
    Scalar *grad_x;                 // [steps, batch, into], or null
    Scalar *grad_projected;         // [steps, batch, 4 hidden], or null
    Scalar *panels;                 // what sdd reads, [4 hidden, padded by block row, / P, steps * batch, P]; or rows so far apart
                                    // as `panel_stride` is, if it is not 0; or null
    Scalar *grad_h0, *grad_c0;      // [batch, hidden]
    Scalar *grad_bias;              // [chunks, 4 hidden]
    Scalar *columns;                // [2], columns of 4 hidden elements for together * batch samples
    Scalar *scratch;                // [threads, 4, chunk, span]
    int64_t steps, batch, hidden, into, chunk, together;
    int64_t panel_stride, column_stride, column_size;  // of columns, and the elements of each of the two
    Matrix input;  // the transpose: [into, 4 hidden]; none where `grad_x` is not wanted
    Pool pool;
};

namespace {

template <class Layer> Scalar *scratch_of(const Layer &layer, int64_t thread) {
    return layer.scratch + thread * 4 * layer.chunk * span;
}

constexpr int64_t strip = 64;  // inputs that an item places

// The inputs of the steps from `first` on as columns, `strip` of them.
void place_inputs(const Forward &layer, int64_t item, int64_t first, int64_t steps) {
    const Room room(layer.input, layer.inputs, layer.input_stride);
    const int64_t left = item * strip;
    room.fill(layer.x + first * layer.batch * layer.into + left, layer.into, steps * layer.batch, smaller(strip, layer.into - left), left, 0);
}

// The weighted inputs of the steps from `first` on, where the gates of those steps will be.
void weight_inputs(const Forward &layer, const Part &part, int64_t grid, int64_t first, int64_t steps) {
    const int64_t batch = layer.batch;
    Scalar *where_they_are = const_cast<Scalar *>(layer.x) + first * batch * layer.into;
    const Room room(layer.input, layer.inputs ? layer.inputs : where_they_are, layer.input_stride);
    for (int64_t gate = 0; gate < 4; ++gate)
        for (int64_t step = 0; step < steps; ++step) {
            const Kept own(layer.saved, (first + step) % layer.slots, layer.hidden, batch, part);
            const Columns columns = room.columns(step * batch + part.column, part.columns);
            multiply_part(layer.input, gate * grid, part, columns, own.at(0, gate), kept * part.rows);
        }
}

// The columns that `step` multiplies.
Room state_of(const Forward &layer, int64_t step) {
    return {layer.recurrent, layer.states + step % 2 * layer.state_size, layer.state_stride};
}

void forward_item(const Forward &layer, const Part &part, int64_t step, int64_t grid, Scalar *scratch) {
    const int64_t batch = layer.batch, hidden = layer.hidden, plane = layer.chunk * span;
    const Columns state = state_of(layer, step).columns(part.column, part.columns);
    const Kept own(layer.saved, step % layer.slots, hidden, batch, part);
    const bool keeps = layer.slots == layer.steps;  // gates, which nothing else needs
    for (int64_t gate = 0; gate < 4; ++gate) {
        if (keeps) claim(own.at(0, 0) + gate * part.columns * kept * part.rows / 4, divide_up(part.columns * kept * part.rows, 4));
        multiply_part(layer.recurrent, gate * grid, part, state, scratch + gate * plane, span);
    }
    for (int64_t c = 0; c < part.columns; ++c) claim(layer.y + (step * batch + part.column + c) * hidden + part.row, part.rows);
    const Kept before(layer.saved, (step + layer.slots - 1) % layer.slots, hidden, batch, part);
    for (int64_t c = 0; c < part.columns; ++c) {
        const int64_t sample = part.column + c, at = step * batch + sample;
        const Scalar *old_cell = step ? before.at(c, cell) : layer.c0 + sample * hidden + part.row;
        for (int64_t r = 0; r < part.rows; r += lanes) {
            const int64_t used = smaller(lanes, part.rows - r), unit = part.row + r;
            Scalar *sums = scratch + c * span + r;
            Vector<lanes> gates[4];
            UNROLL for (int gate = 0; gate < 4; ++gate) {
                const Scalar *weighted = layer.projected ? layer.projected + (at * 4 + gate) * hidden + unit : own.at(c, gate) + r;
                const Vector<lanes> sum = load<lanes>(sums + gate * plane) + load_some<lanes>(weighted, used) +
                                          load_some<lanes>(layer.bias + gate * hidden + unit, used);
                gates[gate] = gate == 2 ? tangent(sum) : sigmoid(sum);
                if (keeps) store_some<lanes>(own.at(c, gate) + r, gates[gate], used);
            }
            const Vector<lanes> next = gates[1] * load_some<lanes>(old_cell + r, used) + gates[0] * gates[2];
            store_some<lanes>(own.at(c, cell) + r, next, used);
            if (step + 1 == layer.steps) store_some<lanes>(layer.last_cell + sample * hidden + unit, next, used);
            store<lanes>(sums + plane, next);
            store<lanes>(sums, gates[3]);
        }
    }
    for (int64_t c = 0; c < part.columns; ++c)  // apart: each waits for its cell, and many of them wait at once
        for (int64_t r = 0; r < part.rows; r += lanes) {
            Scalar *place = scratch + c * span + r;
            const Vector<lanes> output = load<lanes>(place) * tangent(load<lanes>(place + plane));
            store_some<lanes>(layer.y + (step * batch + part.column + c) * hidden + part.row + r, output, smaller(lanes, part.rows - r));
            store<lanes>(place, output);
        }
    state_of(layer, step + 1).fill(scratch, span, part.columns, part.rows, part.row, part.column);
}

// Gradients of the gates of one time step for `lanes` units, one sample after the other; their sums go to `grad_bias`.
void backward_units(const Backward &layer, const Part &part, int64_t step, int64_t r, Scalar *scratch, Scalar *grad_bias) {
    const int64_t batch = layer.batch, hidden = layer.hidden, plane = layer.chunk * span;
    const int64_t used = smaller(lanes, part.rows - r), unit = part.row + r;
    const bool last = step + 1 == layer.steps;
    const Kept own(const_cast<Scalar *>(layer.saved), step, hidden, batch, part);
    const Kept before(const_cast<Scalar *>(layer.saved), step ? step - 1 : 0, hidden, batch, part);
    Vector<lanes> sums[4];
    UNROLL for (int gate = 0; gate < 4; ++gate)
        sums[gate] = last ? Vector<lanes>{} : load_some<lanes>(grad_bias + gate * hidden + unit, used);
    for (int64_t c = 0; c < part.columns; ++c) {
        const int64_t sample = part.column + c, at = step * batch + sample, state = sample * hidden + unit;
        Scalar *place = scratch + c * span + r;
        Vector<lanes> grad_h = {}, grad_c = {}, gates[4], grads[4];
        if (!last) grad_h = load<lanes>(place), grad_c = load_some<lanes>(layer.grad_c0 + state, used);
        if (last && layer.grad_h) grad_h = load_some<lanes>(layer.grad_h + state, used);
        if (last && layer.grad_c) grad_c = load_some<lanes>(layer.grad_c + state, used);
        if (layer.grad_y) grad_h += load_some<lanes>(layer.grad_y + at * hidden + unit, used);
        UNROLL for (int gate = 0; gate < 4; ++gate) gates[gate] = load_some<lanes>(own.at(c, gate) + r, used);
        const Vector<lanes> squashed = tangent(load_some<lanes>(own.at(c, cell) + r, used));
        const Scalar *old_cell = step ? before.at(c, cell) + r : layer.c0 + state;
        grad_c += grad_h * gates[3] * (one - squashed * squashed);
        grads[0] = grad_c * gates[2] * gates[0] * (one - gates[0]);
        grads[1] = grad_c * load_some<lanes>(old_cell, used) * gates[1] * (one - gates[1]);
        grads[2] = grad_c * gates[0] * (one - gates[2] * gates[2]);
        grads[3] = grad_h * squashed * gates[3] * (one - gates[3]);
        store_some<lanes>(layer.grad_c0 + state, grad_c * gates[1], used);
        UNROLL for (int gate = 0; gate < 4; ++gate) {
            sums[gate] += grads[gate];
            store<lanes>(place + gate * plane, grads[gate]);
            if (layer.grad_projected) store_some<lanes>(layer.grad_projected + (at * 4 + gate) * hidden + unit, grads[gate], used);
        }
    }
    UNROLL for (int gate = 0; gate < 4; ++gate) store_some<lanes>(grad_bias + gate * hidden + unit, sums[gate], used);
}

// Where the gradients of one gate of an item go, in the panels that sdd reads: visit(row, rows, place). Each block row begins one.
template <class Visit> void each_panel(const Backward &layer, const Split &split, const Part &part, int64_t gate, int64_t step, const Visit &visit) {
    constexpr int64_t P = sampled_rows;
    const int64_t heights = divide_up(split.size, P), places = layer.steps * layer.batch, column = step * layer.batch + part.column;
    for (int64_t row = 0; row < part.rows;) {
        const int64_t block_row = (part.row + row) / split.size, inside = (part.row + row) % split.size;
        const int64_t rows = smaller(smaller(P, split.size - inside), part.rows - row);
        visit(row, rows, layer.panels + (((gate * split.grid + block_row) * heights + inside / P) * places + column) * P);
        row += rows;
    }
}

// Where rows are panels, the place of the first of an item.
Scalar *panel_rows(const Backward &layer, const Part &part, int64_t gate, int64_t step) {
    return layer.panels + (gate * layer.hidden + part.row) * layer.panel_stride + step * layer.batch + part.column;
}

void claim_panels(const Backward &layer, const Split &split, const Part &part, int64_t gate, int64_t step) {
    if (!layer.panels) return;
    if (layer.panel_stride)
        for (int64_t row = 0; row < part.rows; ++row) claim(panel_rows(layer, part, gate, step) + row * layer.panel_stride, part.columns);
    else each_panel(layer, split, part, gate, step, [&](int64_t, int64_t, const Scalar *to) { claim(to, part.columns * sampled_rows); });
}

void fill_panels(const Backward &layer, const Split &split, const Part &part, int64_t gate, int64_t step, const Scalar *grads) {
    constexpr int64_t P = sampled_rows;
    if (layer.panel_stride) return turn(grads, span, part.columns, part.rows, panel_rows(layer, part, gate, step), layer.panel_stride);
    each_panel(layer, split, part, gate, step, [&](int64_t row, int64_t rows, Scalar *to) {
        for (int64_t c = 0; c < part.columns; ++c) store_some<P>(to + c * P, load_some<P>(grads + c * span + row, rows), rows);
    });
}

// The columns that `step` leaves for the one before it, and for the gradients of the inputs.
Room columns_of(const Backward &layer, int64_t step) {
    return {layer.recurrent, layer.columns + step / layer.together % 2 * layer.column_size, layer.column_stride};
}

void backward_item(const Backward &layer, const Split &split, const Part &part, int64_t step, Scalar *scratch) {
    const int64_t hidden = layer.hidden, plane = layer.chunk * span;
    const auto place = [&](int64_t each) { return each % layer.together * layer.batch + part.column; };
    if (step + 1 < layer.steps)
        multiply_part(layer.recurrent, 0, part, columns_of(layer, step + 1).columns(place(step + 1), part.columns), scratch, span);
    Scalar *grad_bias = layer.grad_bias + part.column / layer.chunk * 4 * hidden;
    const int64_t rounds = divide_up(part.rows, lanes);
    for (int64_t round = 0; round < rounds; ++round) {
        for (int64_t gate = 4 * round / rounds; gate < 4 * (round + 1) / rounds; ++gate) claim_panels(layer, split, part, gate, step);
        backward_units(layer, part, step, round * lanes, scratch, grad_bias);
    }
    for (int64_t gate = 0; gate < 4; ++gate) {
        const Scalar *grads = scratch + gate * plane;
        columns_of(layer, step).fill(grads, span, part.columns, part.rows, gate * hidden + part.row, place(step));
        if (layer.panels) fill_panels(layer, split, part, gate, step, grads);
    }
}

// Gradients of the inputs of the steps from `first` on.
void weight_gradients(const Backward &layer, const Part &part, int64_t first, int64_t steps) {
    const int64_t batch = layer.batch;
    for (int64_t step = 0; step < steps; ++step)
        multiply_part(layer.input, 0, part, columns_of(layer, first).columns(step * batch + part.column, part.columns),
                      layer.grad_x + ((first + step) * batch + part.column) * layer.into + part.row, layer.into);
}

}  // namespace

EXPORT void lstm_forward(const Forward *given) {
    const Forward &layer = *given;
    const int64_t grid = layer.hidden / layer.recurrent.block_size;
    const Split split(layer.recurrent, grid, layer.batch, layer.chunk);
    const Ranges steps = split.ranges(layer.pool, layer.recurrent.indptr, 4);
    const Ranges inputs = split.ranges(layer.pool, layer.projected ? layer.recurrent.indptr : layer.input.indptr, 4);
    const Ranges strips(layer.pool.threads, divide_up(layer.into, strip));
    state_of(layer, 0).fill(layer.h0, layer.hidden, layer.batch, layer.hidden, 0, 0);
    team(layer.pool, [&](Worker worker) {
        for (int64_t step = 0; step < layer.steps; ++step) {
            if (!layer.projected && step % layer.together == 0) {
                const int64_t count = smaller(layer.together, layer.steps - step);
                if (layer.inputs) worker.share(strips, [&](int64_t item, int64_t) { place_inputs(layer, item, step, count); });
                worker.share(inputs, [&](int64_t item, int64_t) { weight_inputs(layer, split.part(item), grid, step, count); });
            }
            const auto one = [&](int64_t item, int64_t thread) { forward_item(layer, split.part(item), step, grid, scratch_of(layer, thread)); };
            if (step + 1 < layer.steps) worker.share(steps, one);
            else worker.end(steps, one);
        }
    });
}

EXPORT void lstm_backward(const Backward *given) {
    const Backward &layer = *given;
    const Split split(layer.recurrent, layer.hidden / layer.recurrent.block_size, layer.batch, layer.chunk);
    const Matrix &into = layer.grad_x ? layer.input : layer.recurrent;
    const Split across(into, (layer.grad_x ? layer.into : layer.hidden) / into.block_size, layer.batch, layer.chunk);
    const Ranges steps = split.ranges(layer.pool, layer.recurrent.indptr, 1);
    const Ranges inputs = across.ranges(layer.pool, into.indptr, 1);
    team(layer.pool, [&](Worker worker) {
        for (int64_t step = layer.steps - 1; step >= 0; --step) {
            worker.share(steps, [&](int64_t item, int64_t thread) {
                backward_item(layer, split, split.part(item), step, scratch_of(layer, thread));
            });
            if (!layer.grad_x || step % layer.together) continue;
            const int64_t count = smaller(layer.together, layer.steps - step);
            worker.share(inputs, [&](int64_t item, int64_t) { weight_gradients(layer, across.part(item), step, count); });
        }
        worker.end(steps, [&](int64_t item, int64_t) {
            const Part part = split.part(item);
            Scalar *to = layer.grad_h0 + part.column * layer.hidden + part.row;
            multiply_part(layer.recurrent, 0, part, columns_of(layer, 0).columns(part.column, part.columns), to, layer.hidden);
        });
    });
}
