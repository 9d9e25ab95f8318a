// Blocks of 64 and 128 of the kernels of dsd by wgmma: a warpgroup's sums are D[64 rows, TOKENS] = block rows times tokens.
//
// X is the wide operand: a step of 16 elements reads 2 KB of blocks and 32 TOKENS bytes of X from shared memory for 64 TOKENS
// products each, which at TOKENS = 256 is 80 bytes a cycle of the 128 there are.
#pragma once
#include "wgmma_tile.h"

static const int width = TOKENS;
static const int halves = 1, kinds = 1;
static const int behind = 1;  // steps that may still be multiplied when one ends

struct Sums {
    float at[halves][kinds][width / 2];
};

// Commit and wait stand where the products are: past the end of a branch around them ptxas would close their group by itself,
// and the one committed would be empty. A block of 128 is a row group's only one, so that every column listed has it.
DEVICE void multiply_step(Sums& sums, const char* stage, int group, u64 kept) {
    if (BLOCK < 128 && !(kept >> (group * 64 / BLOCK) & 1)) {
        wgmma_wait<0>();  // the step before may still be multiplied, and its stage is let go next
        return;
    }
    wgmma_fence();
    const u64 a = descriptor<line>(stage + blocks_at + group * piece_bytes), b = descriptor<line>(stage);
    UNROLL for (int i = 0; i < steps_in_line; ++i)
        multiply_wide<width, Element, TURNED>(sums.at[0][0], a + descriptor_step((TURNED ? 16 * line : 32) * i),
                                              b + descriptor_step(32 * i), true);
    wgmma_commit();
    wgmma_wait<behind>();
}

// Sums of 64 rows and 16 tokens from the j-th on to shared memory, at place(token, row).
template <class Place> DEVICE void lay_sums(const float* sum, int j, int thread, Place place) {
    const int lane = thread % 32, warp = thread / 32;
    if (Element::bytes == 2) {
        const u32 both[4] = {pair(sum), pair(sum + 2), pair(sum + 4), pair(sum + 6)};
        store_matrix_turned(place(j + lane / 16 * 8 + lane % 8, 16 * warp + lane / 8 % 2 * 8), both);
    } else {
        UNROLL for (int i = 0; i < 8; ++i)
            *(float*)place(j + i / 4 * 8 + 2 * (lane % 4) + i % 2, 16 * warp + i / 2 % 2 * 8 + lane / 4) = sum[i];
    }
}

template <class Given>
DEVICE void store_sums(const Given& given, const Sums& sums, const Tile& tile, char* room, int group, int thread) {
    const int pitch = 64 * Element::bytes + 16, chunks = 64 * Element::bytes / 16;
    const int across = min(TOKENS, 128 / Element::bytes);
    UNROLL for (int first = 0; first < TOKENS; first += across) {
        UNROLL for (int j = 0; j < across; j += 16)
            lay_sums(sums.at[0][0] + (first + j) / 2, j, thread,
                     [=](int token, int row) { return room + token * pitch + row * Element::bytes; });
        barrier_wait(1 + group, 128);
        for (int i = thread; i < across * chunks; i += 128)
            store_chunk(given, tile, first + i / chunks, 64 * group + i % chunks * per_chunk,
                        room + i / chunks * pitch + i % chunks * 16);
        barrier_wait(1 + group, 128);
    }
}
