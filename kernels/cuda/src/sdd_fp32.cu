// The blocks of G^T X at the kept places of a pattern and no others, in exact float32; G: [n, m], X: [n, k].
//
// As sdd.cu, but a job's units are whole blocks and a thread makes 8 x 8 sums of one of them: BLOCK / 8 squared threads a block, each with
// four neighbouring rows and columns in either half of it, so that the lanes of a warp read neighbouring chunks.
#include "sampled.h"

constexpr int side = BLOCK / 8, half = BLOCK / 2;

static_assert(bins == 1 && unit == BLOCK && UNITS * side * side == THREADS, "a thread makes 64 sums of one block");

typedef Vector<float, 4> Four;

struct Sums {
    float at[8][8];
};

DEVICE void multiply_stage(Sums& sums, const char* rows, const char* cols, int row, int col) {
    UNROLL for (int token = 0; token < DEPTH; ++token) {
        Four left[2], right[2];
        UNROLL for (int h = 0; h < 2; ++h) {
            left[h] = *(const Four*)(rows + RowTile::at(token, (row + h * half) / 4));
            right[h] = *(const Four*)(cols + ColTile::at(token, (col + h * half) / 4));
        }
        UNROLL for (int r = 0; r < 8; ++r)
            UNROLL for (int c = 0; c < 8; ++c) sums.at[r][c] += left[r / 4].at[r % 4] * right[c / 4].at[c % 4];
    }
}

// Grid: jobs, parts of the tokens.
KERNEL(sdd, Sampled, THREADS, CTAS) {
    const int place = threadIdx.x % (side * side), down = place / side * 4, along = place % side * 4;
    const Job job = job_of(given, shared_memory(), blockIdx.x, blockIdx.y);
    Sums sums = {};
    job.begin();
    const Unit at = job.unit_at(threadIdx.x / (side * side));
    for (int stage = 0; stage < job.count; ++stage) {
        job.next(stage);
        if (at.present()) multiply_stage(sums, job.rows(stage), job.cols(stage), at.row + down, at.col + along);
    }
    copy_wait<0>();
    if (!at.present()) return;
    float* to = (float*)given.blocks + (u64)blockIdx.y * given.numbers + at.to + down * BLOCK + along;
    UNROLL for (int r = 0; r < 8; ++r)
        UNROLL for (int h = 0; h < 2; ++h) {
            Four line;
            UNROLL for (int c = 0; c < 4; ++c) line.at[c] = sums.at[r][h * 4 + c];
            *(Four*)(to + (r / 4 * half + r % 4) * BLOCK + h * half) = line;
        }
}
