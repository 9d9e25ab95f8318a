// The blocks of G^T X at the kept places of a pattern and no others, on tensor cores; G: [n, m], X: [n, k], the reduction runs over
// the n tokens.
//
// A CTA has a job of the plan: ROWS columns of G (rows of W), up to COLS listed columns of X, and the kept blocks among
// them, cut into units. Both are tiles of DEPTH tokens in shared memory, and every warp makes a unit after the other from them, each with
// its own place in the tiles: sums lie in registers for what is kept only. Units of 16 x 16 read 1/4 byte of shared memory a
// product, half of it again where two that follow each other share their rows; those of 64 x 64 read 1/16.
#include "sampled.h"
#include "fragments.h"

typedef Fragments<Element> Read;

constexpr int tall = BLOCK < 16 ? 16 : unit, across = unit;  // an mma has 16 rows: two blocks of 8 are paired
constexpr int steps = DEPTH / Read::depth;
constexpr bool hold = UNITS > 1;  // rows for the next unit

static_assert(bins == WARPS && THREADS == 32 * WARPS, "a warp's units are a bin");

struct Sums {
    float at[UNITS][tall / 16][across / 8][4];
};

DEVICE void multiply_unit(float (&sums)[tall / 16][across / 8][4], u32 (&left)[hold ? steps : 1][tall / 16][4], bool held, Unit at,
                          const char* rows, const char* cols, int lane) {
    UNROLL for (int step = 0; step < steps; ++step) {
        u32 (&these)[tall / 16][4] = left[hold ? step : 0];
        if (!held)
            UNROLL for (int r = 0; r < tall / 16; ++r)
                Read::template left_across<RowTile>(these[r], rows, at.row + 16 * r, at.other + 16 * r, step, lane);
        u32 right[across / 8][2];
        Read::template right_across<ColTile>(right, cols, at.col, step, lane);
        UNROLL for (int r = 0; r < tall / 16; ++r)
            UNROLL for (int c = 0; c < across / 8; ++c) multiply(sums[r][c], these[r], right[c], Element());
    }
}

DEVICE void store_unit(Output::Storage* to, const float (&sums)[tall / 16][across / 8][4], Unit at, int lane) {
    UNROLL for (int r = 0; r < tall / 16; ++r)
        UNROLL for (int c = 0; c < across / 8; ++c)
            UNROLL for (int half = 0; half < 2; ++half) {
                const int first = half ? at.other_to : at.to;
                if (first >= 0)
                    Read::put(to + first + (16 * r + lane / 4) * BLOCK + 8 * c + lane % 4 * 2, sums[r][c][2 * half], sums[r][c][2 * half + 1]);
            }
}

// Grid: jobs, parts of the tokens.
KERNEL(sdd, Sampled, THREADS, CTAS) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const Job job = job_of(given, shared_memory(), blockIdx.x, blockIdx.y);
    Sums sums = {};
    job.begin();
    for (int stage = 0; stage < job.count; ++stage) {
        job.next(stage);
        u32 left[hold ? steps : 1][tall / 16][4];
        int held = -1;
        UNROLL for (int u = 0; u < UNITS; ++u) {
            const Unit at = job.unit_at(warp * UNITS + u);
            if (at.present()) {
                multiply_unit(sums.at[u], left, hold && held == at.rows(), at, job.rows(stage), job.cols(stage), lane);
                held = at.rows();
            }
        }
    }
    Output::Storage* to = (Output::Storage*)given.blocks + (u64)blockIdx.y * given.numbers;
    UNROLL for (int u = 0; u < UNITS; ++u) {
        const Unit at = job.unit_at(warp * UNITS + u);
        if (at.present()) store_unit(to, sums.at[u], at, lane);
    }
}
