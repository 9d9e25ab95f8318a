// What the LSTM kernels share: a CTA's part of a layer, and the product of one time step.
//
// A CTA owns UNITS hidden units for at most TILES * 16 samples, all time steps. Its weights (forward: the rows of its units in all
// four gates; backward, TURNED: the columns of its units) are gathered once into shared memory, in the order in which lanes multiply
// them. What they are multiplied by comes straight from the L2 cache into registers, every step, 16 bytes a lane.
//
// A `piece` is 16 bytes of one row: 8 columns of 16-bit elements or 4 of float. An item is four pieces, of any columns, that are
// multiplied together: lane l holds piece l % 4 of samples l / 4 and l / 4 + 8, and of weight row l / 4. Which of its columns is
// which k of the instruction does not matter, as long as both sides agree: so neither side is ever rearranged by ldmatrix.
// Columns that the same gates keep share an item, so that what a lane loaded serves all these gates. A warp has one tile of 16
// samples and every SPLIT-th item; the SPLIT sums meet in shared memory.
//
// What one CTA computes and others multiply is its own message: there are no flags. Before the launch its place is filled with
// `absent`, words of ones, which are NaNs that nobody publishes; whoever needs 16 bytes of it loads them until no word is absent.
// That is right by the PTX memory model:
// - Each word (two 16-bit elements, or a float) is stored once in a launch, by one store, and stores and loads of it are relaxed
//   at GPU scope, of the same size: so strong, no race, and a load gives the word of the fill, which ended before this kernel
//   began, or the word stored, nothing between. Coherence forbids the former after the latter.
// - The 16 bytes of a load are four loads in any order; each of the four words is looked at.
// - Nothing is concluded from a word about any other memory, so nothing must be ordered: no fence, no release, no acquire. What
//   else a launch writes (gates, cells, gradients of cells and biases) is read by its own thread or by later launches alone.
// - A store becomes visible in finite time, and a CTA stores all of a step before it waits for the next, which all CTAs of a
//   cooperative launch do side by side: so every wait ends. h0, samples beyond the batch and places of no piece are never waited
//   for, nor is anything where a launch does one step: what an earlier launch wrote may be any bits, so may what a user gives.
#pragma once
#include "device.h"

typedef ELEMENT Element;
typedef Element::Storage Storage;

constexpr int lstm_piece = 16 / Element::bytes;
constexpr int lstm_samples = 16 * TILES;
constexpr int lstm_threads = 32 * TILES * SPLIT;
constexpr int unit_tiles = UNITS / 8;
constexpr int unit_pairs = UNITS / 2;
constexpr int lstm_pairs = (lstm_samples * unit_pairs + lstm_threads - 1) / lstm_threads;  // of neighbouring units, a thread's
static_assert(BLOCK % UNITS == 0 && UNITS % 8 == 0, "a CTA's units lie in one block, in eights");

struct alignas(16) Item {
    int column[4];  // where each piece begins in a row of what is multiplied; -1: no such piece
    int gates;      // bit g: gate g keeps these columns
    int slot;       // of the first of these gates' weights, counted from the CTA's first; the others follow
    int unused[2];
};

struct Plan {  // mirrored in Python, field by field
    const Item *items;
    const int *first_item, *first_slot;  // [hidden / BLOCK + 1]: the items and slots of each block of units
    const int *sources;                  // [slots, 4]: where each piece begins in the values; -1: zeros
};

struct alignas(8) Pair {  // two neighbouring units
    float x, y;
};
DEVICE Pair operator+(Pair a, Pair b) { return {a.x + b.x, a.y + b.y}; }
DEVICE Pair operator-(Pair a, Pair b) { return {a.x - b.x, a.y - b.y}; }
DEVICE Pair operator*(Pair a, Pair b) { return {a.x * b.x, a.y * b.y}; }
DEVICE float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }
DEVICE Pair sigmoid(Pair a) { return {sigmoid(a.x), sigmoid(a.y)}; }
DEVICE Pair tangent(Pair a) { return {2.0f * sigmoid(2.0f * a.x) - 1.0f, 2.0f * sigmoid(2.0f * a.y) - 1.0f}; }

DEVICE Pair load_pair(const float *from) { return *(const Pair *)from; }
DEVICE Pair load_pair(const u16 *from) {
    const u32 both = *(const u32 *)from;
    return {Convert<Element>::widen((u16)(both & 0xffffu)), Convert<Element>::widen((u16)(both >> 16))};
}
DEVICE void store_pair(float *to, Pair value) { *(Pair *)to = value; }
DEVICE void store_pair(u16 *to, Pair value) {
    *(u32 *)to = (u32)Convert<Element>::narrow(value.x) | (u32)Convert<Element>::narrow(value.y) << 16;
}

DEVICE uint4 zeros() {
    uint4 none;
    none.x = none.y = none.z = none.w = 0;
    return none;
}

// A word that nobody has published yet.
constexpr u32 absent = 0xffffffffu;
DEVICE bool any_absent(uint4 piece) { return piece.x == absent || piece.y == absent || piece.z == absent || piece.w == absent; }

// What other CTAs may wait for: no element of it has the bits of `absent`, for a NaN is stored as the one whose sign is clear.
DEVICE float present(float value) { return value == value ? value : bits_float(0x7fffffffu); }
DEVICE void publish_pair(float *to, Pair value) {
    uint2 words;
    words.x = float_bits(present(value.x)), words.y = float_bits(present(value.y));
    store_relaxed((uint2 *)to, words);
}
DEVICE void publish_pair(u16 *to, Pair value) {
    store_relaxed((u32 *)to, (u32)Convert<Element>::narrow(present(value.x)) | (u32)Convert<Element>::narrow(present(value.y)) << 16);
}

// 16 bytes as the instruction wants them: tf32 rounded to nearest, as the instruction does not.
template <class T> DEVICE uint4 rounded(uint4 value, T) { return value; }
DEVICE uint4 rounded(uint4 value, Tf32) {
    value.x = round_tf32(value.x), value.y = round_tf32(value.y), value.z = round_tf32(value.z), value.w = round_tf32(value.w);
    return value;
}

// A sum of 16 samples x 8 units. In the end, in `total`, a lane has units 2 (l % 4) and the next of samples l / 4 and l / 4 + 8.
// `weight(place)` gives the 16 bytes of weight row place / 4, piece place % 4.
template <class T> struct Sum {  // by tensor cores
    float total[4] = {};
    template <class Weight> DEVICE void add(const uint4 (&x)[2], Weight weight, int lane) {
        const uint4 w = weight(lane);
        const u32 early[4] = {x[0].x, x[1].x, x[0].y, x[1].y}, late[4] = {x[0].z, x[1].z, x[0].w, x[1].w};
        const u32 early_weight[2] = {w.x, w.y}, late_weight[2] = {w.z, w.w};
        multiply(total, early, early_weight, T());
        multiply(total, late, late_weight, T());
    }
    DEVICE void finish(int) {}
};

template <> struct Sum<Float32> {  // exactly: a lane multiplies its own piece for all units, lanes are added in the end
    float own[2][8] = {};
    float total[4];
    template <class Weight> DEVICE void add(const uint4 (&x)[2], Weight weight, int lane) {
        UNROLL for (int unit = 0; unit < 8; ++unit) {
            const uint4 w = weight(unit * 4 + lane % 4);
            UNROLL for (int half = 0; half < 2; ++half) {
                own[half][unit] += bits_float(x[half].x) * bits_float(w.x);
                own[half][unit] += bits_float(x[half].y) * bits_float(w.y);
                own[half][unit] += bits_float(x[half].z) * bits_float(w.z);
                own[half][unit] += bits_float(x[half].w) * bits_float(w.w);
            }
        }
    }
    DEVICE void finish(int lane) {  // four lanes give each other the sums that are not theirs
        UNROLL for (int half = 0; half < 2; ++half) {
            float four[4];
            UNROLL for (int unit = 0; unit < 4; ++unit) {
                const float given = lane & 2 ? own[half][unit] : own[half][unit + 4];
                four[unit] = (lane & 2 ? own[half][unit + 4] : own[half][unit]) + __shfl_xor_sync(0xffffffffu, given, 2);
            }
            UNROLL for (int unit = 0; unit < 2; ++unit) {
                const float given = lane & 1 ? four[unit] : four[unit + 2];
                total[half * 2 + unit] = (lane & 1 ? four[unit + 2] : four[unit]) + __shfl_xor_sync(0xffffffffu, given, 1);
            }
        }
    }
};

// The part of a layer that this CTA computes. TURNED: its sums are over rows of the weight, not over columns.
template <bool TURNED> struct Part {
    static constexpr int gates = TURNED ? 1 : 4;
    static constexpr int sums = SPLIT * gates * lstm_samples * UNITS, scratch = 8 * lstm_threads;  // scratch: of add_up
    static constexpr int floats = sums > scratch ? sums : scratch;
    const Storage *values;
    const int *sources;  // of its first slot on
    int hidden, batch, unit, sample, samples, items;  // samples: as many as there are, from `sample` on
    float *memory;  // [SPLIT, gates, unit_tiles, lstm_samples, 8]: sums
    Item *item;
    uint4 *weights;  // [slots, unit_tiles, 32]

    template <class Given> DEVICE Part(const Given &given) : values(given.values), hidden(given.hidden), batch(given.batch) {
        const Plan &plan = given.plan;
        unit = (int)blockIdx.x * UNITS, sample = (int)blockIdx.y * given.rows, samples = min(given.rows, batch - sample);
        const int block = unit / BLOCK, first = plan.first_item[block], slot = plan.first_slot[block];
        const int slots = plan.first_slot[block + 1] - slot;
        items = plan.first_item[block + 1] - first;
        sources = plan.sources + 4 * slot;
        memory = (float *)shared_memory();
        item = (Item *)(memory + floats);
        weights = (uint4 *)(item + given.most_items);
        for (int at = (int)threadIdx.x; at < items; at += lstm_threads) item[at] = plan.items[first + at];
        if (RESIDENT)
            for (int at = (int)threadIdx.x; at < slots * unit_tiles * 32; at += lstm_threads)
                weights[at] = gather(at / 32 / unit_tiles, at / 32 % unit_tiles, at % 32);
        __syncthreads();
    }

    DEVICE uint4 gather(int slot, int tile, int place) const {
        const int source = sources[4 * slot + place % 4], own = unit % BLOCK + tile * 8 + place / 4;
        if (source < 0) return zeros();
        if (!TURNED) return rounded(*(const uint4 *)(values + source + own * BLOCK), Element());
        uint4 column;
        Storage *to = (Storage *)&column;
        UNROLL for (int row = 0; row < lstm_piece; ++row) to[row] = values[source + row * BLOCK + own];
        return rounded(column, Element());
    }

    // This warp's sums of weights times `from`, [batch, width], into shared memory, once all warps have read what lies there.
    // `awaited`: other CTAs publish `from` during this launch.
    DEVICE void multiply_items(const Storage *from, int width, bool awaited) const {
        const int lane = (int)threadIdx.x % 32, split = (int)threadIdx.x / 32 % SPLIT, tile = (int)threadIdx.x / 32 / SPLIT;
        const int row = 16 * tile + lane / 4;
        Sum<Element> sum[gates][unit_tiles];
        __syncwarp();  // no lane waits for what another lane of its warp has yet to publish
        for (int first = split; first < items; first += AHEAD * SPLIT) {
            uint4 x[AHEAD][2];
            const auto load = [&](int ahead, int half) {
                const int at = first + ahead * SPLIT, column = at < items ? item[at].column[lane % 4] : -1;
                if (column < 0 || row + 8 * half >= samples) return zeros();
                return load_relaxed((const uint4 *)(from + (u64)(sample + row + 8 * half) * width + column));
            };
            UNROLL for (int ahead = 0; ahead < AHEAD; ++ahead)
                UNROLL for (int half = 0; half < 2; ++half) x[ahead][half] = load(ahead, half);
            for (bool again = awaited; again;) {
                again = false;
                UNROLL for (int ahead = 0; ahead < AHEAD; ++ahead)
                    UNROLL for (int half = 0; half < 2; ++half)
                        if (any_absent(x[ahead][half])) x[ahead][half] = load(ahead, half), again = true;
                if (again) relax();
            }
            __syncwarp();
            UNROLL for (int ahead = 0; ahead < AHEAD; ++ahead) {
                const int at = first + ahead * SPLIT;
                if (at >= items) continue;
                const int kept = item[at].gates;
                int slot = item[at].slot;
                const uint4 now[2] = {rounded(x[ahead][0], Element()), rounded(x[ahead][1], Element())};
                UNROLL for (int gate = 0; gate < gates; ++gate)
                    if (kept >> gate & 1) {
                        UNROLL for (int each = 0; each < unit_tiles; ++each)
                            sum[gate][each].add(now, [&](int place) {
                                return RESIDENT ? weights[(slot * unit_tiles + each) * 32 + place] : gather(slot, each, place);
                            }, lane);
                        ++slot;
                    }
            }
        }
        __syncthreads();
        UNROLL for (int gate = 0; gate < gates; ++gate)
            UNROLL for (int each = 0; each < unit_tiles; ++each) {
                sum[gate][each].finish(lane);
                const float (&total)[4] = sum[gate][each].total;
                UNROLL for (int half = 0; half < 2; ++half)
                    if (row + 8 * half < samples)
                        store_pair(place(split, gate, row + 8 * half, each * 4 + lane % 4), {total[2 * half], total[2 * half + 1]});
            }
    }

    DEVICE float *place(int split, int gate, int row, int pair) const {
        return memory + (((split * gates + gate) * unit_tiles + pair / 4) * lstm_samples + row) * 8 + pair % 4 * 2;
    }
    DEVICE Pair total(int gate, int row, int pair) const {
        Pair sum = {0.0f, 0.0f};
        UNROLL for (int split = 0; split < SPLIT; ++split) sum = sum + load_pair(place(split, gate, row, pair));
        return sum;
    }

    // Thread t computes unit pair t % unit_pairs of these rows; `exists` where there is such a sample.
    DEVICE int pair() const { return (int)threadIdx.x % unit_pairs; }
    DEVICE int row(int which) const { return ((int)threadIdx.x + which * lstm_threads) / unit_pairs; }
    DEVICE bool exists(int which) const { return row(which) < samples; }
    DEVICE int own_unit() const { return unit + 2 * pair(); }
    // Number of the sample among those of all steps.
    DEVICE u64 at(int step, int which) const { return (u64)step * batch + sample + row(which); }
};
