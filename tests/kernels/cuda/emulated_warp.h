// Pieces that the 32 lanes of a warp do together: the last lane that comes does it for all.
#pragma once
#include "emulated_clocks.h"
#include "emulated_rounding.h"

namespace emulated {

// Whether this lane is the last of `mask`; it then does the piece and calls part(). `given` is what each lane brings.
ENGINE bool meet(const char *piece, u32 mask, void *given) {
    Warp &warp = *now->warp;
    const u32 lane = 1u << now->lane;
    if (!(mask & lane)) fault("calls %s for lanes %08x, and is none of them", piece, mask);
    if (mask & ~warp.live) fault("%s with lanes %08x, of which %08x have exited or never were", piece, mask, mask & ~warp.live);
    Meeting *mine = nullptr, *unused = nullptr;
    for (Meeting &meeting : warp.meetings) {
        if (!meeting.mask) unused = &meeting;
        else if (meeting.mask == mask && (meeting.piece == piece || !strcmp(meeting.piece, piece))) mine = &meeting;
        else if (meeting.arrived & mask && meeting.mask & lane)  // each waits for the other
            fault("lane %d comes to %s while lanes %08x of its warp wait at %s", now->lane, piece, meeting.arrived, meeting.piece);
    }
    if (!mine) {
        if (!unused) fault("the lanes of a warp wait at more than four pieces");
        mine = unused, *mine = Meeting{mask, 0, piece};
    }
    mine->arrived |= lane;
    warp.given[now->lane] = given;
    if (mine->arrived == mask) return true;
    wait(piece, nullptr);
    return false;
}

ENGINE void part(u32 mask) {
    Warp &warp = *now->warp;
    for (Meeting &meeting : warp.meetings)
        if (meeting.mask == mask) meeting.mask = 0;
    warp.ready |= mask & ~(1u << now->lane);
    warp.kept = true;
}

template <class Given> ENGINE Given &given_by(int lane) { return *(Given *)now->warp->given[lane]; }

constexpr u32 all_lanes = 0xffffffffu;

// A read or product of the whole warp: its lanes are at the same time then.
ENGINE u32 warp_event() {
    const u32 time = ++run.time;
    for (int lane = 0; lane < lanes_of_a_warp; ++lane) {
        Fibre &thread = now->warp->lanes[lane];
        thread.clock[thread.place] = time;
    }
    run.spins = 0;
    return time;
}

template <class Do> ENGINE void by_the_last(const char *piece, void *given, Do act) {
    if (!meet(piece, all_lanes, given)) return;
    act();
    part(all_lanes);
}

// What a wgmma_fence must come after before a product takes it from registers.
ENGINE void loaded(Warp &warp, const u32 *to) { warp.loaded[warp.loaded_count++ % 16] = to; }

struct Rows {
    u32 *to;
    const void *row;
};

template <int count, bool turned> ENGINE void load_matrices(u32 *to, const void *row) {
    const char *piece = count == 4 ? (turned ? "load_matrix_turned x4" : "load_matrix x4") : (turned ? "load_matrix_turned x2" : "load_matrix x2");
    if (now->lane < count * 8) shared_offset(row, 16, 16, piece);
    Rows mine = {to, row};
    if (!meet(piece, all_lanes, &mine)) return;
    const u32 time = warp_event();
    loaded(*now->warp, given_by<Rows>(0).to);
    u16 matrix[count][8][8];
    for (int lane = 0; lane < count * 8; ++lane) {
        const char *from = (const char *)given_by<Rows>(lane).row;
        read_sixteen(now->warp->lanes[lane], (u32)(from - now->cta->memory), time, piece);
        memcpy(matrix[lane / 8][lane % 8], from, 16);
    }
    for (int lane = 0; lane < lanes_of_a_warp; ++lane)
        for (int i = 0; i < count; ++i) {
            const int row = lane / 4, col = lane % 4 * 2;
            const u32 low = turned ? matrix[i][col][row] : matrix[i][row][col];
            const u32 high = turned ? matrix[i][col + 1][row] : matrix[i][row][col + 1];
            given_by<Rows>(lane).to[i] = low | high << 16;
        }
    part(all_lanes);
}

// Four 8x8 matrices to shared memory, the way back of load_matrix.
ENGINE void store_matrices(char *row, const u32 *from, bool turned, const char *piece) {
    struct Given {
        char *row;
        const u32 *from;
    } mine = {row, from};
    shared_offset(row, 16, 16, piece);
    if (!meet(piece, all_lanes, &mine)) return;
    warp_event();
    for (int at = 0; at < lanes_of_a_warp; ++at) {
        u16 values[8];
        for (int i = 0; i < 8; ++i) {
            const int line = turned ? i : at % 8, col = turned ? at % 8 : i;
            values[i] = (u16)(given_by<Given>(line * 4 + col / 2).from[at / 8] >> 16 * (col % 2));
        }
        Fibre &thread = now->warp->lanes[at];
        const u32 offset = (u32)(given_by<Given>(at).row - now->cta->memory);
        begin_write(*thread.cta, thread, offset, 16, piece);
        memcpy(given_by<Given>(at).row, values, 16);
        end_write(*thread.cta, thread, offset, 16, stored, event(thread));
    }
    part(all_lanes);
}

typedef float EightFloats __attribute__((vector_size(32), aligned(4)));

struct Fragments {
    float *sum;
    const u32 *a, *b;
};

ENGINE float bf16_value(u32 bits) { return __builtin_bit_cast(float, bits << 16); }
ENGINE float tf32_value(u32 bits) { return __builtin_bit_cast(float, bits & 0xffffe000u); }  // the hardware ignores the others

// sum[16][8] += a[16][depth] b[depth][8], the fragments of all lanes gathered.
template <int depth> ENGINE void multiply_gathered(const float (&a)[16][depth], const float (&b)[depth][8]) {
    for (int row = 0; row < 16; ++row) {
        EightFloats sum = {};
        for (int k = 0; k < depth; ++k) sum += *(const EightFloats *)b[k] * a[row][k];
        for (int col = 0; col < 8; ++col)
            given_by<Fragments>(row % 8 * 4 + col / 2).sum[row / 8 * 2 + col % 2] += sum[col];
    }
    part(all_lanes);
}

template <float (*value)(u32)> ENGINE void multiply_halves(float *sum, const u32 *a, const u32 *b, const char *piece) {
    Fragments mine = {sum, a, b};
    if (!meet(piece, all_lanes, &mine)) return;
    run.spins = 0;
    float left[16][16], right[16][8];
    for (int lane = 0; lane < lanes_of_a_warp; ++lane) {
        const Fragments &its = given_by<Fragments>(lane);
        const int row = lane / 4, col = lane % 4 * 2;
        for (int half = 0; half < 2; ++half) {
            left[row][col + half] = value(its.a[0] >> 16 * half & 0xffff);
            left[row + 8][col + half] = value(its.a[1] >> 16 * half & 0xffff);
            left[row][col + 8 + half] = value(its.a[2] >> 16 * half & 0xffff);
            left[row + 8][col + 8 + half] = value(its.a[3] >> 16 * half & 0xffff);
            right[col + half][row] = value(its.b[0] >> 16 * half & 0xffff);
            right[col + 8 + half][row] = value(its.b[1] >> 16 * half & 0xffff);
        }
    }
    multiply_gathered(left, right);
}

ENGINE void multiply_tf32(float *sum, const u32 *a, const u32 *b) {
    Fragments mine = {sum, a, b};
    if (!meet("multiply tf32", all_lanes, &mine)) return;
    run.spins = 0;
    float left[16][8], right[8][8];
    for (int lane = 0; lane < lanes_of_a_warp; ++lane) {
        const Fragments &its = given_by<Fragments>(lane);
        const int row = lane / 4, col = lane % 4;
        left[row][col] = tf32_value(its.a[0]), left[row + 8][col] = tf32_value(its.a[1]);
        left[row][col + 4] = tf32_value(its.a[2]), left[row + 8][col + 4] = tf32_value(its.a[3]);
        right[col][row] = tf32_value(its.b[0]), right[col + 4][row] = tf32_value(its.b[1]);
    }
    multiply_gathered(left, right);
}

// `pick` gives the lane that each lane reads from.
template <class T, class Pick> ENGINE T shuffle(const char *piece, u32 mask, T value, Pick pick) {
    struct Given {
        T value, answer;
        int from;
    } mine = {value, value, pick(now->lane)};
    if (meet(piece, mask, &mine)) {
        for (int lane = 0; lane < lanes_of_a_warp; ++lane) {
            if (!(mask >> lane & 1)) continue;
            Given &its = given_by<Given>(lane);
            if (!(mask >> its.from & 1)) fault("%s: lane %d reads from lane %d, which takes no part", piece, lane, its.from);
            its.answer = given_by<Given>(its.from).value;
        }
        part(mask);
    }
    return mine.answer;
}

ENGINE u32 ballot(const char *piece, u32 mask, bool vote) {
    struct Given {
        bool vote;
        u32 answer;
    } mine = {vote, 0};
    if (meet(piece, mask, &mine)) {
        u32 answer = 0;
        for (int lane = 0; lane < lanes_of_a_warp; ++lane)
            if (mask >> lane & 1 && given_by<Given>(lane).vote) answer |= 1u << lane;
        for (int lane = 0; lane < lanes_of_a_warp; ++lane)
            if (mask >> lane & 1) given_by<Given>(lane).answer = answer;
        part(mask);
    }
    return mine.answer;
}

ENGINE void synchronise_warp(u32 mask) {
    if (!meet("__syncwarp", mask, nullptr)) return;
    Fibre *lanes = now->warp->lanes;
    for (int lane = 0; lane < lanes_of_a_warp; ++lane)
        if (mask >> lane & 1 && lane != now->lane) join(now->clock, lanes[lane].clock);
    for (int lane = 0; lane < lanes_of_a_warp; ++lane)
        if (mask >> lane & 1 && lane != now->lane) memcpy(lanes[lane].clock, now->clock, (size_t)clock_size() * 4);
    part(mask);
}

}  // namespace emulated
