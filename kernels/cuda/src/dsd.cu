// Y[n, m] = X[n, k] W^T with a block-sparse W[m, k], or TURNED its transpose, on tensor cores: Bfloat16, Float16, Tf32.
//
// Tokens are the 16 rows of an mma and rows of W its 8 columns: a fragment's sums then lie along a line of Y, and only 8 rows
// of W, not 16, must share what is kept. A warp's tile of R rows times T tokens reads 2 (R + T) / (R T) bytes of shared memory
// for a product of 16-bit numbers: 1/16 at 64 x 64, where 128 bytes a clock feed 2048 products a clock; at 32 tokens and
// blocks of 16 rows kept with density d, about 1/16 + (1 - (1 - d)^(R / 16)) / (d R / 2). Warps that differ in tokens
// only do the same work whatever the pattern, which warps that differ in rows do not.
#include "fragments.h"
#include "listed.h"

typedef Fragments<Element> Read;
typedef Pick<PARTS, Float32, Element>::Type Output;
typedef Pick<WARPS_DEPTH != 1, Float32, Output>::Type Staged;  // how sums are exchanged between threads

constexpr int warp_rows = ROWS / WARPS_ROWS, warp_tokens = TOKENS / WARPS_TOKENS;
constexpr int unit = high < warp_rows ? high : warp_rows, units = warp_rows / unit;  // rows kept or not together
constexpr int batch = unit >= 64 ? 1 : (64 / unit < units ? 64 / unit : units);      // units whose loads are under way at once
constexpr u32 any_unit = units == 32 ? ~0u : (1u << units) - 1, any_of_batch = (1u << batch) - 1;
constexpr int steps = DEPTH / Read::depth;
constexpr int staged_line = ROWS + 8;  // the padding keeps eight tokens in different banks

static_assert(THREADS == 32 * WARPS_ROWS * WARPS_TOKENS * WARPS_DEPTH && steps % WARPS_DEPTH == 0, "warps");
static_assert(warp_tokens % 16 == 0 && unit % 8 == 0 && units <= 32, "a warp's tile is made of fragments");

struct Warp {
    int lane, row, token, depth;  // its tile begins at row and token, its steps at depth
};

struct Sums {
    float at[warp_tokens / 16][warp_rows / 8][4];
};

DEVICE void read_rows(u32 (&to)[unit / 8][2], const char* rows, const Warp& warp, int index, int step) {
    if (TURNED) Read::template right_across<RowTile>(to, rows, warp.row + index * unit, step, warp.lane);
    else Read::template right_along<RowTile>(to, rows, warp.row + index * unit, step, warp.lane);
}

DEVICE void multiply_step(Sums& sums, const char* tokens, const char* rows, const Warp& warp, int step, u32 kept) {
    u32 left[warp_tokens / 16][4], right[batch][unit / 8][2];
    UNROLL for (int t = 0; t < warp_tokens / 16; ++t)
        Read::template left_along<TokenTile>(left[t], tokens, warp.token + 16 * t, step, warp.lane);
    UNROLL for (int first = 0; first < units; first += batch) {
        if (!all_kept && !(kept >> first & any_of_batch)) continue;
        UNROLL for (int u = 0; u < batch; ++u)
            if (all_kept || kept >> (first + u) & 1) read_rows(right[u], rows, warp, first + u, step);
        UNROLL for (int u = 0; u < batch; ++u)
            if (all_kept || kept >> (first + u) & 1) {
                UNROLL for (int t = 0; t < warp_tokens / 16; ++t)
                    UNROLL for (int r = 0; r < unit / 8; ++r)
                        multiply(sums.at[t][(first + u) * (unit / 8) + r], left[t], right[u][r], Element());
            }
    }
}

DEVICE void multiply_stage(Sums& sums, const Listed& list, int stage, const Warp& warp) {
    const int* masks = list.listed(stage) + mask_at;
    UNROLL for (int i = 0; i < steps / WARPS_DEPTH; ++i) {
        const int step = i * WARPS_DEPTH + warp.depth;
        const u32 kept = all_kept ? ~0u : (u32)masks[step * Read::depth / wide] >> (warp.row / high);
        if (all_kept || kept & any_unit)
            multiply_step(sums, list.tokens(stage), list.rows(stage), warp, step, kept);
    }
}

DEVICE void stage_sums(Staged::Storage* staged, const Sums& sums, const Warp& warp) {
    UNROLL for (int t = 0; t < warp_tokens / 16; ++t)
        UNROLL for (int r = 0; r < warp_rows / 8; ++r)
            UNROLL for (int half = 0; half < 2; ++half) {
                const int token = warp.token + 16 * t + 8 * half + warp.lane / 4, row = warp.row + 8 * r + warp.lane % 4 * 2;
                Read::put(staged + (warp.depth * TOKENS + token) * staged_line + row, sums.at[t][r][2 * half], sums.at[t][r][2 * half + 1]);
            }
}

// Lines of `out` from what the warps have staged.
DEVICE void store_sums(const Product& given, const Staged::Storage* staged, int first_token, int first_row, int part) {
    constexpr int chunk = 16 / Output::bytes;
    typedef Output::Storage Number;
    Number* out = (Number*)given.out + (u64)part * given.n * given.out_line;
    for (int i = threadIdx.x; i < TOKENS * ROWS / chunk; i += THREADS) {
        const int token = i / (ROWS / chunk), row = i % (ROWS / chunk) * chunk;
        if (first_token + token >= given.n || first_row + row >= given.out_line) continue;
        const Staged::Storage* from = staged + token * staged_line + row;
        Vector<Number, chunk>* to = (Vector<Number, chunk>*)(out + (u64)(first_token + token) * given.out_line + first_row + row);
        if constexpr (WARPS_DEPTH == 1) *to = *(const Vector<Number, chunk>*)from;
        else {
            Vector<Number, chunk> line;
            UNROLL for (int e = 0; e < chunk; ++e) {
                float sum = 0.0f;
                UNROLL for (int depth = 0; depth < WARPS_DEPTH; ++depth) sum += from[depth * TOKENS * staged_line + e];
                line.at[e] = Convert<Output>::narrow(sum);
            }
            *to = line;
        }
    }
}

// Grid: tiles of tokens, groups of rows, parts.
KERNEL(dsd, Product, THREADS, CTAS) {
    char* memory = shared_memory();
    const int thread = threadIdx.x, number = thread / 32;
    const Warp warp = {thread % 32, number % WARPS_ROWS * warp_rows, number / WARPS_ROWS % WARPS_TOKENS * warp_tokens,
                       number / (WARPS_ROWS * WARPS_TOKENS)};
    const Listed list = listed(given, memory, blockIdx.y, blockIdx.z, blockIdx.x);
    Sums sums = {};
    list.begin();
    for (int stage = 0; stage < list.count; ++stage) {
        list.next(stage);
        multiply_stage(sums, list, stage, warp);
    }
    copy_wait<0>();
    __syncthreads();  // the last stage is read by all
    stage_sums((Staged::Storage*)memory, sums, warp);
    __syncthreads();
    store_sums(given, (const Staged::Storage*)memory, list.first_token, given.groups[blockIdx.y * 4], blockIdx.z);
}
