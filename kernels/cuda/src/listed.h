// What dsd reads, stage by stage, as the plan lists it.
//
// A CTA makes ROWS rows of the output, for TOKENS tokens. Its list names, in order, the columns of the sparse matrix where any of
// these rows keeps a block, and is cut into stages of DEPTH elements of the reduction. Of each stage the tokens' elements at the
// listed columns are gathered into one tile, and the pieces of blocks that are kept into fixed places of another, as in a dense
// matrix; places of pieces that are not kept hold anything and are not read. Blocks taller than ROWS or wider than DEPTH are cut
// into pieces.
//
// An entry of the list travels with the copies of an earlier stage, so that nothing waits for an index.
#pragma once

#include "tile.h"

typedef ELEMENT Element;
typedef Element::Storage Storage;

struct Product {  // mirrored in Python, field by field
    const Storage *values, *x;  // [nnzb, BLOCK, BLOCK], [n, x_line]
    void *out;                  // [n, out_line], or a float one for each part of a divided reduction
    const int *groups;          // [groups, 4]: first row, first stage, stages
    const int *stages;          // [stages, entry]: see Entry
    int n, x_line, out_line, parts;
};

constexpr int per_chunk = 16 / Element::bytes;
constexpr int high = BLOCK < ROWS ? BLOCK : ROWS, wide = BLOCK < DEPTH ? BLOCK : DEPTH;  // of a piece
constexpr int columns = DEPTH / wide, heights = ROWS / high;
constexpr int column_at = 0, mask_at = columns, count_at = 2 * columns, piece_at = 2 * columns + 1;
constexpr int entry = (piece_at + columns * heights + 3) / 4 * 4;  // ints
constexpr u32 zeros = 0xffffffu;  // instead of a piece's place in `values`
constexpr bool paired = BLOCK == 8 && Element::bytes == 2;  // two blocks beside one another make a step of the reduction
constexpr bool all_kept = heights == 1 && columns == 1;

typedef Tile<DEPTH / per_chunk> TokenTile;
// Turned, lines are elements of the reduction; words are read by 4 lines times 8 floats then.
typedef Pick<TURNED, Tile<ROWS / per_chunk, Element::bytes / 2>, Tile<DEPTH / per_chunk>>::Type RowTile;

constexpr int token_bytes = TOKENS * DEPTH * Element::bytes, stage_bytes = token_bytes + ROWS * DEPTH * Element::bytes;
constexpr int ring = 2 * STAGES;  // entries: of the stages in work or on their way, and of as many to come

struct Listed {
    const Product& given;
    const int* stages;  // of this CTA
    char* memory;
    int count, first_token, thread;

    DEVICE char* tokens(int stage) const { return memory + stage % STAGES * stage_bytes; }
    DEVICE char* rows(int stage) const { return tokens(stage) + token_bytes; }
    DEVICE int* listed(int stage) const { return (int*)(memory + STAGES * stage_bytes) + stage % ring * entry; }

    DEVICE void fetch_entry(int stage) const {
        if (stage >= count) return;
        UNROLL for (int first = 0; first < entry / 4; first += THREADS)
            if (first + thread < entry / 4)
                copy_async<16>(listed(stage) + 4 * (first + thread), stages + stage * entry + 4 * (first + thread), true);
    }
    DEVICE void fetch_tokens(int stage) const {
        constexpr int line = DEPTH / per_chunk, together = THREADS / line;
        static_assert(THREADS % line == 0, "a thread keeps to one chunk of the lines");
        const int chunk = thread % line, token = thread / line, column = listed(stage)[column_at + chunk * per_chunk / wide];
        const Storage* from = given.x + (u64)(first_token + token) * given.x_line + (column < 0 ? 0 : column) + chunk * per_chunk % wide;
        const int left = column < 0 ? 0 : given.n - first_token - token;
        UNROLL for (int more = 0; more < TOKENS; more += together)
            if (TOKENS % together == 0 || token + more < TOKENS)
                copy_async<16>(tokens(stage) + TokenTile::at(token + more, chunk), from + (u64)more * given.x_line, more < left);
    }
    DEVICE void fetch_rows(int stage) const {
        constexpr int line = (TURNED ? high : wide) / per_chunk, lines = TURNED ? wide : high;  // of a piece
        constexpr int together = THREADS / line, abreast = together > lines ? together / lines : 1;  // lines, pieces
        const int chunk = thread % line, inner = thread / line % lines;
        const int* listed_pieces = listed(stage) + piece_at;
        const int pieces = listed(stage)[count_at];
        for (int i = thread / line / lines; i < pieces; i += abreast) {
            const u32 piece = (u32)listed_pieces[i];
            const int down = (int)(piece & 255u) / columns * high, along = (int)(piece & 255u) % columns * wide;
            const bool valid = !paired || piece >> 8 != zeros;
            const Storage* from = given.values + (valid ? (u64)(piece >> 8) * 16 : 0) + inner * BLOCK + chunk * per_chunk;
            UNROLL for (int more = 0; more < lines; more += together) {
                const int to = TURNED ? RowTile::at(along + inner + more, down / per_chunk + chunk)
                                      : RowTile::at(down + inner + more, along / per_chunk + chunk);
                copy_async<16>(rows(stage) + to, from + more * BLOCK, valid);
            }
        }
    }
    DEVICE void fetch(int stage) const {
        if (stage < count) {
            fetch_entry(stage + STAGES - 1);
            fetch_tokens(stage);
            fetch_rows(stage);
        }
        copy_commit();
    }
    DEVICE void begin() const {
        UNROLL for (int stage = 0; stage < STAGES - 1; ++stage) fetch_entry(stage);
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

// The list of this CTA: `group` in the order of the plan, part of its stages.
DEVICE Listed listed(const Product& given, char* memory, int group, int part, int tokens) {
    const int first = given.groups[group * 4 + 1], stages = given.groups[group * 4 + 2];
    const int begin = (int)((u64)stages * part / given.parts), end = (int)((u64)stages * (part + 1) / given.parts);
    return {given, given.stages + (u64)(first + begin) * entry, memory, end - begin, tokens * TOKENS, (int)threadIdx.x};
}
