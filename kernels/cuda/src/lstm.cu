// One LSTM layer with a block-sparse recurrent weight: the time steps from `begin` to `end`, forward or backward. Gates in
// torch's order i, f, g, o; the inputs were weighted before, and the gradients of the weights and inputs are taken afterwards.
//
// A cooperative launch does all steps: a CTA keeps its weights in shared memory and its cells in registers, and at each step
// waits, lane by lane, for just the elements that its weights are multiplied by, which are their own message (lstm.h): every
// step has its place in memory, filled beforehand with what no output can be. So an output takes a store to the L2 cache and a
// load from there to the CTAs that need it, and no CTA waits for more. An ordinary launch does one step, and waits for nobody.
#include "lstm.h"

struct Forward {  // mirrored in Python, field by field
    Plan plan;
    const Storage *values, *projected;  // projected: [steps, batch, 4 hidden], the weighted inputs
    const Storage *bias_ih, *bias_hh;   // [4 hidden]
    const Storage *h0, *c0;             // [batch, hidden]
    Storage *states;                    // [steps + 1, batch, hidden]: h0, then every step's output; `absent` if it does many
    Storage *last_cell;                 // [batch, hidden]
    float *kept;                        // [steps, batch, hidden / 2, 4, 2]: the gates, or null where there is no way back
    float *cells;                       // [steps, batch, hidden]; [batch, hidden] where `kept` is null
    int begin, end, steps, batch, hidden, most_items, rows;  // rows: samples of a CTA, at most 16 * TILES
};

struct Backward {  // mirrored in Python, field by field
    Plan plan;
    const Storage *values;
    const Storage *grad_y;           // [steps, batch, hidden], or null
    const Storage *grad_h, *grad_c;  // [batch, hidden], or null
    const Storage *c0;
    const float *kept, *cells;
    Storage *grads;    // [steps, batch, 4 hidden]: of what goes into the gates; `absent` if it does many steps
    Storage *grad_h0;  // [batch, hidden], or null
    float *carry;      // [batch, hidden]: gradient of the cells before `end`; in the end, of c0
    float *grad_bias;  // [groups of samples, 4 hidden]
    int begin, end, steps, batch, hidden, most_items, rows;  // rows: samples of a CTA, at most 16 * TILES
};

KERNEL(lstm_forward, Forward, lstm_threads, CTAS) {
    const Part<false> part(given);
    const int hidden = given.hidden, unit = part.own_unit();
    Pair bias[4], cell[lstm_pairs];
    UNROLL for (int gate = 0; gate < 4; ++gate)
        bias[gate] = load_pair(given.bias_ih + gate * hidden + unit) + load_pair(given.bias_hh + gate * hidden + unit);
    UNROLL for (int which = 0; which < lstm_pairs; ++which)
        if (part.exists(which))
            cell[which] = given.begin ? load_pair(given.cells + part.at(given.kept ? given.begin - 1 : 0, which) * hidden + unit)
                                      : load_pair(given.c0 + part.at(0, which) * hidden + unit);

    for (int step = given.begin; step < given.end; ++step) {
        Pair gates[lstm_pairs][4];
        UNROLL for (int which = 0; which < lstm_pairs; ++which)
            UNROLL for (int gate = 0; gate < 4; ++gate)
                if (part.exists(which)) gates[which][gate] = load_pair(given.projected + (part.at(step, which) * 4 + gate) * hidden + unit);
        part.multiply_items(step ? given.states + part.batch * (u64)step * hidden : given.h0, hidden, step > given.begin);
        __syncthreads();
        UNROLL for (int which = 0; which < lstm_pairs; ++which) {
            if (!part.exists(which)) continue;
            UNROLL for (int gate = 0; gate < 4; ++gate) {
                const Pair sum = gates[which][gate] + bias[gate] + part.total(gate, part.row(which), part.pair());
                gates[which][gate] = gate == 2 ? tangent(sum) : sigmoid(sum);
            }
            cell[which] = gates[which][1] * cell[which] + gates[which][0] * gates[which][2];
            publish_pair(given.states + part.at(step + 1, which) * hidden + unit, gates[which][3] * tangent(cell[which]));
        }
        UNROLL for (int which = 0; which < lstm_pairs; ++which) {  // nobody waits for this
            if (!part.exists(which)) continue;
            const u64 place = part.at(step, which) * hidden + unit, state = part.at(0, which) * hidden + unit;
            if (given.kept) UNROLL for (int gate = 0; gate < 4; ++gate) store_pair(given.kept + 4 * place + 2 * gate, gates[which][gate]);
            if (given.kept || step + 1 == given.end) store_pair(given.cells + (given.kept ? place : state), cell[which]);
            if (step + 1 == given.steps) store_pair(given.last_cell + state, cell[which]);
            if (step == 0) store_pair(given.states + state, load_pair(given.h0 + state));
        }
    }
}

// What each thread has summed, summed over the samples of the CTA, into the gradient of the biases.
DEVICE void add_up(const Backward &given, const Part<true> &part, const Pair (&sums)[4]) {
    __syncthreads();
    UNROLL for (int gate = 0; gate < 4; ++gate) store_pair(part.memory + 2 * (gate * lstm_threads + (int)threadIdx.x), sums[gate]);
    __syncthreads();
    for (int at = (int)threadIdx.x; at < 4 * unit_pairs; at += lstm_threads) {
        const int gate = at / unit_pairs, pair = at % unit_pairs;
        float *to = given.grad_bias + ((u64)blockIdx.y * 4 + gate) * given.hidden + part.unit + 2 * pair;
        Pair sum = {0.0f, 0.0f};
        if (given.end < given.steps) sum = load_pair(to);
        for (int thread = pair; thread < lstm_threads; thread += unit_pairs) sum = sum + load_pair(part.memory + 2 * (gate * lstm_threads + thread));
        store_pair(to, sum);
    }
}

KERNEL(lstm_backward, Backward, lstm_threads, CTAS) {
    const Part<true> part(given);
    const int hidden = given.hidden, unit = part.own_unit();
    const u64 step_size = (u64)given.batch * 4 * hidden;
    const Pair zero = {0.0f, 0.0f}, one = {1.0f, 1.0f};
    Pair sums[4] = {}, carry[lstm_pairs] = {};
    UNROLL for (int which = 0; which < lstm_pairs; ++which) {
        if (!part.exists(which)) continue;
        const u64 state = part.at(0, which) * hidden + unit;
        if (given.end < given.steps) carry[which] = load_pair(given.carry + state);
        else if (given.grad_c) carry[which] = load_pair(given.grad_c + state);
    }

    for (int step = given.end - 1; step >= given.begin; --step) {
        const bool last = step + 1 == given.steps;
        Pair gates[lstm_pairs][4], cell[lstm_pairs], before[lstm_pairs], grad_y[lstm_pairs];
        UNROLL for (int which = 0; which < lstm_pairs; ++which) {
            if (!part.exists(which)) continue;
            const u64 place = part.at(step, which) * hidden + unit, state = part.at(0, which) * hidden + unit;
            UNROLL for (int gate = 0; gate < 4; ++gate) gates[which][gate] = load_pair(given.kept + 4 * place + 2 * gate);
            cell[which] = load_pair(given.cells + place);
            before[which] = step ? load_pair(given.cells + part.at(step - 1, which) * hidden + unit) : load_pair(given.c0 + state);
            grad_y[which] = given.grad_y ? load_pair(given.grad_y + place) : zero;
            if (last && given.grad_h) grad_y[which] = grad_y[which] + load_pair(given.grad_h + state);
        }
        if (!last) {
            part.multiply_items(given.grads + (step + 1) * step_size, 4 * hidden, step + 1 < given.end);
            __syncthreads();
        }
        UNROLL for (int which = 0; which < lstm_pairs; ++which) {
            if (!part.exists(which)) continue;
            const Pair i = gates[which][0], f = gates[which][1], g = gates[which][2], o = gates[which][3];
            const Pair squashed = tangent(cell[which]);
            const Pair grad_h = last ? grad_y[which] : grad_y[which] + part.total(0, part.row(which), part.pair());
            const Pair grad_c = carry[which] + grad_h * o * (one - squashed * squashed);
            const Pair grads[4] = {grad_c * g * i * (one - i), grad_c * before[which] * f * (one - f), grad_c * i * (one - g * g),
                                   grad_h * squashed * o * (one - o)};
            carry[which] = grad_c * f;
            UNROLL for (int gate = 0; gate < 4; ++gate) {
                sums[gate] = sums[gate] + grads[gate];
                publish_pair(given.grads + (part.at(step, which) * 4 + gate) * hidden + unit, grads[gate]);
            }
        }
    }

    add_up(given, part, sums);
    UNROLL for (int which = 0; which < lstm_pairs; ++which)
        if (part.exists(which)) store_pair(given.carry + part.at(0, which) * hidden + unit, carry[which]);
    if (!given.grad_h0) return;
    part.multiply_items(given.grads, 4 * hidden, given.begin < given.end);
    __syncthreads();
    UNROLL for (int which = 0; which < lstm_pairs; ++which)
        if (part.exists(which)) store_pair(given.grad_h0 + part.at(0, which) * hidden + unit, part.total(0, part.row(which), part.pair()));
}
