// Blocks below 64 of the kernels of dsd by wgmma: a warpgroup's sums are D[64 tokens, b] for each block row of the group, kept apart.
//
// Each kept block is a product of its own, with its fence and its commit, for ptxas closes a group where a branch around it
// ends; the others are skipped. With REGISTER_A the tokens are loaded into registers once
// for all block rows; otherwise each product reads its 64 tokens from shared memory, 16 cycles for 16 elements. Many rows share
// X best, many tokens share what it costs to look for the blocks that are kept: which is better is to be measured.
#pragma once
#include "wgmma_tile.h"

static const int width = BLOCK;
static const int halves = TOKENS / (64 * WARPGROUPS), kinds = slots;  // 64 tokens, one block row
static const int along = column_bytes / 32;                           // products along a block
static const int behind = REGISTER_A ? 0 : 1;                         // steps that may still be multiplied when one ends
static const int block_step = TURNED ? 16 * column_bytes : 32;        // bytes from one to the next
static const u64 any_slot = ((u64)1 << slots) - 1;
static const int together = 4;  // block rows asked for at once, before each alone
static const u64 any_together = ((u64)1 << together) - 1;

struct Sums {
    float at[halves][kinds][width / 2];
};

#if REGISTER_A
// Columns from the first; the tokens of one are loaded where any block row keeps it.
DEVICE void multiply_step(Sums& sums, const char* stage, int group, u64 kept) {
    const int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane % 16;
    const u64 b = descriptor<column_bytes>(stage + blocks_at);
    u32 a[listed][halves][along][4];
    UNROLL for (int column = 0; column < listed; ++column)
        if (kept >> (column * slots) & any_slot)
            UNROLL for (int half = 0; half < halves; ++half)
                UNROLL for (int i = 0; i < along; ++i) {
                    const int byte = column % in_panel * column_bytes + 32 * i + lane / 16 * 16;
                    const u32 at = swizzled<line>(((group * halves + half) * 64 + row) * line + byte);
                    load_matrix(a[column][half][i], stage + column / in_panel * panel_bytes + at);
                }
    UNROLL for (int column = 0; column < listed; ++column)
        UNROLL for (int first = 0; first < slots; first += together) {
            if (!(kept >> (column * slots + first) & any_together)) continue;
            UNROLL for (int slot = first; slot < first + together; ++slot) {
                if (!(kept >> (column * slots + slot) & 1)) continue;
                wgmma_fence();
                UNROLL for (int half = 0; half < halves; ++half)
                    UNROLL for (int i = 0; i < along; ++i)
                        multiply_wide<width, Element, TURNED>(
                            sums.at[half][slot], a[column][half][i],
                            b + descriptor_step((column * slots + slot) * piece_bytes + block_step * i), true);
                wgmma_commit();
            }
        }
    wgmma_wait<behind>();
}
#else
// Block rows from the first, of each the columns that it keeps. The bits of `kept` are pairs: column * slots + slot.
DEVICE void multiply_step(Sums& sums, const char* stage, int group, u64 kept) {
    const u64 a = descriptor<line>(stage + group * halves * 64 * line);
    const u64 b = descriptor<column_bytes>(stage + blocks_at);
    u64 every = 0;
    UNROLL for (int i = 0; i < listed; ++i) every |= (u64)1 << (i * slots);
    UNROLL for (int slot = 0; slot < slots; ++slot)
        for (u64 bits = kept >> slot & every; bits; bits &= bits - 1) {
            const int first = __ffsll((long long)bits) - 1, column = first / slots;
            const u64 tokens = a + descriptor_step(column / in_panel * panel_bytes + column % in_panel * column_bytes);
            const u64 block = b + descriptor_step((first + slot) * piece_bytes);
            wgmma_fence();
            UNROLL for (int half = 0; half < halves; ++half)
                UNROLL for (int i = 0; i < along; ++i)
                    multiply_wide<width, Element, false, TURNED>(
                        sums.at[half][slot], tokens + descriptor_step(half * 64 * line + 32 * i),
                        block + descriptor_step(block_step * i), true);
            wgmma_commit();
        }
    wgmma_wait<behind>();  // every column that is listed keeps a block: what may go on is of this step
}
#endif

// Sums of a warp's 16 tokens and 16 rows from the given one on to shared memory, at place(token, row).
template <class Place> DEVICE void lay_sums(const float* sum, int row, int lane, Place place) {
    if (Element::bytes == 2) {
        const u32 both[4] = {pair(sum), pair(sum + 2), pair(sum + 4), pair(sum + 6)};
        store_matrix(place(lane % 16, row + lane / 16 * 8), both);
    } else {
        UNROLL for (int i = 0; i < 8; i += 2)
            *(float2*)place(i / 2 % 2 * 8 + lane / 4, row + i / 4 * 8 + lane % 4 * 2) = make_float2(sum[i], sum[i + 1]);
    }
}
DEVICE const float* sums_of(const Sums& sums, int half, int row) { return sums.at[half][row / BLOCK] + row % BLOCK / 2; }

// Each warp its own 16 tokens, 128 bytes of rows at a time.
template <class Given>
DEVICE void store_sums(const Given& given, const Sums& sums, const Tile& tile, char* room, int group, int thread) {
    const int pitch = line + 16, rows = line / Element::bytes, lane = thread % 32, warp = thread / 32;
    room += warp * 16 * pitch;
    UNROLL for (int half = 0; half < halves; ++half)
        UNROLL for (int first = 0; first < ROWS; first += rows) {
            UNROLL for (int row = 0; row < rows; row += 16)
                lay_sums(sums_of(sums, half, first + row), row, lane,
                         [=](int token, int at) { return room + token * pitch + at * Element::bytes; });
            __syncwarp();
            UNROLL for (int token = lane / 8; token < 16; token += 4)
                store_chunk(given, tile, (group * halves + half) * 64 + warp * 16 + token,
                            first + lane % 8 * per_chunk, room + token * pitch + lane % 8 * 16);
            __syncwarp();
        }
}
