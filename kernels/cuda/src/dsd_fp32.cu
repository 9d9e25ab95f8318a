// Y[n, m] = X[n, k] W^T with a block-sparse W[m, k], or TURNED its transpose, in exact float32: fused multiply-adds of ordinary threads.
//
// A warp's 4 x 8 lanes take tokens and rows in turn: lane (t, r) holds tokens t, t + 4, ... and rows r, r + 8, ..., so that 8
// consecutive rows, which are kept or not together, lie in different lanes and the warp skips them as one. Turned, a lane's
// rows go by twos or fours, where blocks are tall enough, to be read at once.
#include "listed.h"

constexpr int warp_rows = ROWS / WARPS_ROWS, warp_tokens = TOKENS / WARPS_TOKENS;
constexpr int lane_rows = warp_rows / 8, lane_tokens = warp_tokens / 4;
constexpr int widest = high / 8 < 4 ? high / 8 : 4;
constexpr int together = !TURNED ? 1 : widest < lane_rows ? widest : lane_rows;  // rows of a lane that are neighbours
constexpr int unit = 8 * together, units = warp_rows / unit, bits = high / unit;

static_assert(THREADS == 32 * WARPS_ROWS * WARPS_TOKENS && lane_rows % together == 0 && warp_tokens % 4 == 0, "warps");

typedef Vector<float, 4> Four;

struct Lane {
    int token, row;  // its first ones in the tiles
};

struct Sums {
    float at[lane_tokens][lane_rows];
};

// Four steps of the reduction, one chunk of the tokens' lines, times the rows of one unit.
DEVICE void multiply_unit(Sums& sums, const Four (&left)[lane_tokens], const char* rows, const Lane& lane, int u, int chunk) {
    if constexpr (!TURNED) {
        const Four right = *(const Four*)(rows + RowTile::at(lane.row + u * 8, chunk));
        UNROLL for (int t = 0; t < lane_tokens; ++t)
            UNROLL for (int e = 0; e < 4; ++e) sums.at[t][u] += left[t].at[e] * right.at[e];
    } else
        UNROLL for (int e = 0; e < 4; ++e) {
            const int row = lane.row + u * unit;
            const char* place = rows + RowTile::at(4 * chunk + e, row / 4) + row % 4 * 4;
            const Vector<float, together> right = *(const Vector<float, together>*)place;
            UNROLL for (int t = 0; t < lane_tokens; ++t)
                UNROLL for (int r = 0; r < together; ++r) sums.at[t][u * together + r] += left[t].at[e] * right.at[r];
        }
}

DEVICE void multiply_stage(Sums& sums, const Listed& list, int stage, const Lane& lane, int warp_row) {
    const char *tokens = list.tokens(stage), *rows = list.rows(stage);
    UNROLL for (int chunk = 0; chunk < DEPTH / 4; ++chunk) {
        const u32 kept = all_kept ? ~0u : (u32)list.listed(stage)[mask_at + chunk * 4 / wide] >> (warp_row / high);
        if (!all_kept && !kept) continue;
        Four left[lane_tokens];
        UNROLL for (int t = 0; t < lane_tokens; ++t) left[t] = *(const Four*)(tokens + TokenTile::at(lane.token + 4 * t, chunk));
        UNROLL for (int u = 0; u < units; ++u)
            if (all_kept || kept >> (u / bits) & 1) multiply_unit(sums, left, rows, lane, u, chunk);
    }
}

// Grid: tiles of tokens, groups of rows, parts.
KERNEL(dsd, Product, THREADS, CTAS) {
    const int warp = threadIdx.x / 32, place = threadIdx.x % 32;
    const int warp_row = warp % WARPS_ROWS * warp_rows;
    const Lane lane = {warp / WARPS_ROWS * warp_tokens + place / 8, warp_row + place % 8 * together};
    const Listed list = listed(given, shared_memory(), blockIdx.y, blockIdx.z, blockIdx.x);
    Sums sums = {};
    list.begin();
    for (int stage = 0; stage < list.count; ++stage) {
        list.next(stage);
        multiply_stage(sums, list, stage, lane, warp_row);
    }
    copy_wait<0>();
    const int first_row = given.groups[blockIdx.y * 4] + lane.row;
    float* out = (float*)given.out + (u64)blockIdx.z * given.n * given.out_line;
    UNROLL for (int t = 0; t < lane_tokens; ++t)
        UNROLL for (int u = 0; u < units; ++u) {
            const int token = list.first_token + lane.token + 4 * t, row = first_row + u * unit;
            if (token >= given.n || row >= given.out_line) continue;
            Vector<float, together> line;
            UNROLL for (int r = 0; r < together; ++r) line.at[r] = sums.at[t][u * together + r];
            *(Vector<float, together>*)(out + (u64)token * given.out_line + row) = line;
        }
}
