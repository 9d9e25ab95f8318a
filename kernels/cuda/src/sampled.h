// What sdd reads: for each stage of DEPTH tokens, ROWS columns of G and the job's listed columns of X, lines of both tiles being tokens.
//
// A job of the plan is [first row, 3 unused; columns: COLS / BLOCK, -1 beyond the last; units: 4 ints each], units in `bins` bins of
// UNITS. Its ints stay in shared memory behind the stages.
#pragma once

#include "tile.h"

typedef ELEMENT Element;
typedef Element::Storage Storage;
typedef Pick<FLOATS, Float32, Element>::Type Output;

struct Sampled {  // mirrored in Python, field by field
    const Storage *grad, *x;  // [n, grad_line], [n, x_line]
    void *blocks;             // [nnzb, BLOCK, BLOCK], or a float one for each part of the tokens
    const int *jobs;          // [jobs, job_ints]
    int n, grad_line, x_line, numbers, part_tokens;  // numbers: of `blocks`; part_tokens: of a part, a multiple of DEPTH
};

constexpr int unit = BLOCK < UNIT ? BLOCK : UNIT;  // side of a unit
constexpr int per_chunk = 16 / Element::bytes;
constexpr int listed_columns = COLS / BLOCK;
constexpr int columns_at = 4, units_at = columns_at + (listed_columns + 3) / 4 * 4, job_ints = units_at + 4 * BINS * UNITS;
constexpr int bins = BINS;

// Words of 32 bits are read by 4 lines times 8 floats.
typedef Tile<ROWS / per_chunk, Element::bytes / 2> RowTile;
typedef Tile<COLS / per_chunk, Element::bytes / 2> ColTile;

constexpr int row_bytes = DEPTH * RowTile::line_bytes, stage_bytes = row_bytes + DEPTH * ColTile::line_bytes;

struct Unit {
    int row, other, col;  // in the tiles; of 8 rows, `other` are those of a second unit beside the same columns
    int to, other_to;     // of the first element in `blocks`, -1 without

    DEVICE bool present() const { return to >= 0; }
    DEVICE int rows() const { return row << 16 | other; }
};

struct Job {
    const Sampled& given;
    const int* from;
    char* memory;
    int first_token, last_token, count, thread;

    DEVICE char* rows(int stage) const { return memory + stage % STAGES * stage_bytes; }
    DEVICE char* cols(int stage) const { return rows(stage) + row_bytes; }
    DEVICE int* ints() const { return (int*)(memory + STAGES * stage_bytes); }
    DEVICE Unit unit_at(int index) const {
        const Vector<int, 4> packed = *(const Vector<int, 4>*)(ints() + units_at + 4 * index);
        return {packed.at[0] & 0xffff, packed.at[0] >> 16, packed.at[1], packed.at[2], packed.at[3]};
    }

    // WIDTH elements of each token's line go to `tile`; column_of gives a chunk's column in memory, or -1 where none is read.
    template <class T, int WIDTH, class Column>
    DEVICE void fetch_lines(char* tile, const Storage* matrix, int line, int stage, Column column_of) const {
        constexpr int chunks = WIDTH / per_chunk, together = THREADS < chunks ? 1 : THREADS / chunks;
        for (int chunk = thread % chunks; chunk < chunks; chunk += THREADS) {
            const int column = column_of(chunk * per_chunk);
            if (column < 0) continue;
            const int inner = THREADS < chunks ? 0 : thread / chunks, token = first_token + stage * DEPTH + inner;
            const Storage* from = matrix + (u64)token * line + column;
            UNROLL for (int more = 0; more < DEPTH; more += together)
                if (DEPTH % together == 0 || inner + more < DEPTH)
                    copy_async<16>(tile + T::at(inner + more, chunk), from + (u64)more * line, token + more < last_token);
        }
    }
    DEVICE void fetch(int stage) const {
        if (stage < count) {
            const int* job = ints();
            const int first = job[0], rest = given.grad_line - first;
            fetch_lines<RowTile, ROWS>(rows(stage), given.grad, given.grad_line, stage,
                                       [=](int row) { return row < rest ? first + row : -1; });
            fetch_lines<ColTile, COLS>(cols(stage), given.x, given.x_line, stage, [=](int col) {
                const int column = job[columns_at + col / BLOCK];
                return column < 0 ? -1 : column + col % BLOCK;
            });
        }
        copy_commit();
    }
    DEVICE void begin() const {
        for (int i = thread; i < job_ints / 4; i += THREADS) copy_async<16>(ints() + 4 * i, from + 4 * i, true);
        copy_commit();
        copy_wait<0>();
        __syncthreads();
        UNROLL for (int stage = 0; stage < STAGES - 1; ++stage) fetch(stage);
    }
    DEVICE void next(int stage) const {  // `stage` is there, the one before it is done with
        copy_wait<STAGES - 2>();
        __syncthreads();
        fetch(stage + STAGES - 1);
    }
};

DEVICE Job job_of(const Sampled& given, char* memory, int number, int part) {
    const int first = part * given.part_tokens, left = given.n - first;
    const int tokens = left < given.part_tokens ? left : given.part_tokens;
    return {given, given.jobs + (u64)number * job_ints, memory, first, first + tokens, (tokens + DEPTH - 1) / DEPTH, (int)threadIdx.x};
}
