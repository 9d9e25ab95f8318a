// What happened before what: a race between copies and warp-wide pieces is found whatever the order of the threads is.
//
// Each thread has a vector clock: clock[t] is the last event of thread t that it knows to be over. A barrier joins the
// clocks of those who meet; __syncthreads() begins an era instead, before which everything is over for everybody, where
// CTAs are alone. Each 2 bytes of shared memory know who wrote them last and who read them last, each 16 bytes when each
// warp read them last by a piece. In a cluster threads are numbered through, for others write there too.
#pragma once
#include "emulated_fibres.h"

namespace emulated {

constexpr int guard_bytes = 4096, most_named = 16, most_mbarriers = 64;
constexpr u32 reading = 0xffffffffu;  // the time of a read that goes on

enum State { untouched, flying, stored, brought };  // stored: by threads, or by copy_async; brought: by copy_bulk

struct Half {  // of 4 bytes
    u32 time, read_times[2];  // of the last store; of the last load that is not over for the last one, and of that
    u16 writer, state, readers[2];
};

struct Named {  // barriers 1 to 15
    int wanted, arrived;
    u32 *clock;
};

struct Cta;
struct Mbarrier {
    Cta *cta;
    u32 offset, count, pending, phase, begun;  // begun: the time of mbarrier_init
    int initialiser;
    bool published;
    long long bytes;  // expected and not yet in
    u32 *arriving, *done;
};

struct Cta {
    uint3 index;
    char *memory;  // shared, between two guards
    Fibre *fibres;
    int live, synchronising, rank;  // rank: in its cluster
    u32 era;                        // before it everything is over for everybody
    Half *halves;
    u32 *readers;  // [16 bytes, warp]
    u32 *atomics;  // a clock
    u32 *visits;   // a clock of what other CTAs of the cluster did here last
    u32 *left;     // a clock of the threads that have left
    Named named[most_named];
    Mbarrier mbarriers[most_mbarriers];
    int mbarrier_count;
};

ENGINE int clock_size() { return ((int)run.options.threads * run.cluster + 7) & ~7; }
ENGINE int warps_of_a_cta() { return (int)(run.options.threads + 31) / 32; }

static void fault(const char *format, ...) {
    char text[800];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    const uint3 at = now->cta->index;
    snprintf(run.message, sizeof run.message, "cta (%u, %u, %u), thread %d: %s", at.x, at.y, at.z, now->number, text);
    run.failed = true;
    void *unused;
    emulated_switch(&unused, run.caller);
    __builtin_unreachable();
}

typedef u32 Eight __attribute__((vector_size(32), aligned(4)));
ENGINE void join(u32 *into, const u32 *from) {
    for (int i = 0; i < clock_size(); i += 8) {
        const Eight a = *(const Eight *)(into + i), b = *(const Eight *)(from + i);
        *(Eight *)(into + i) = a > b ? a : b;
    }
}

ENGINE u32 event(Fibre &thread) { return thread.clock[thread.place] = ++run.time; }
// A thread of `cta` by its place in the cluster.
ENGINE Fibre &thread_at(const Cta &cta, int place) { return cta.fibres[place - cta.rank * (int)run.options.threads]; }
ENGINE bool over_for(const Fibre &thread, int other, u32 time) { return time < thread.cta->era || thread.clock[other] >= time; }

// A warp of `cta` reads by a piece of all its lanes: it is over once any of them is known to be further.
ENGINE bool read_over_for(const Fibre &thread, const Cta &cta, int warp, u32 time) {
    if (time < cta.era) return true;
    const int first = warp * lanes_of_a_warp, threads = (int)run.options.threads;
    for (int lane = 0; lane < lanes_of_a_warp && first + lane < threads; ++lane)
        if (thread.clock[cta.rank * threads + first + lane] >= time) return true;
    return false;
}

// Where a pointer to shared memory points, in bytes; all of `bytes` lie inside.
ENGINE u32 shared_offset(const void *pointer, u32 bytes, u32 alignment, const char *piece) {
    const long long offset = (const char *)pointer - now->cta->memory;
    if (offset < 0 || offset + bytes > run.options.shared_bytes)
        fault("%s at byte %lld of %u bytes of shared memory", piece, offset, run.options.shared_bytes);
    if (offset % alignment) fault("%s at byte %lld of shared memory, which is not aligned to %u", piece, offset, alignment);
    return (u32)offset;
}

ENGINE void check_global(const void *pointer, u32 alignment, const char *piece) {
    if ((size_t)pointer % alignment) fault("%s from global address %p, which is not aligned to %u", piece, pointer, alignment);
}

// `thread` begins to write to the memory of `cta`: nobody may still read or write there.
ENGINE void begin_write(Cta &cta, const Fibre &thread, u32 offset, u32 bytes, const char *piece) {
    for (u32 i = offset / 2; i < (offset + bytes) / 2; ++i) {
        Half &half = cta.halves[i];
        if (half.state == flying) fault("%s writes byte %u of shared memory, which a copy of thread %d is still bringing", piece, 2 * i, half.writer);
        if (!over_for(thread, half.writer, half.time)) fault("%s writes byte %u of shared memory, which thread %d wrote with no barrier between", piece, 2 * i, half.writer);
        for (int other = 0; other < 2; ++other)
            if (!over_for(thread, half.readers[other], half.read_times[other]))
                fault("%s writes byte %u of shared memory, which thread %d read with no barrier between", piece, 2 * i, half.readers[other]);
        half.state = flying, half.writer = (u16)thread.place;
    }
    const int warps = warps_of_a_cta();
    for (u32 i = offset / 16; i < (offset + bytes + 15) / 16; ++i)
        for (int warp = 0; warp < warps; ++warp) {
            const u32 time = cta.readers[i * (u32)warps + (u32)warp];
            if (time >= cta.era && !read_over_for(thread, cta, warp, time))
                fault("%s writes byte %u of shared memory, which warp %d %s", piece, 16 * i, warp, time == reading ? "is still reading" : "read with no barrier between");
        }
}

ENGINE void end_write(Cta &cta, const Fibre &thread, u32 offset, u32 bytes, State state, u32 time) {
    for (u32 i = offset / 2; i < (offset + bytes) / 2; ++i) {
        Half &half = cta.halves[i];
        half.time = time, half.writer = (u16)thread.place, half.state = (u16)state;
    }
}

// `thread` reads: all of it is written, and known to be.
ENGINE void check_read(const Fibre &thread, u32 offset, u32 bytes, const char *piece) {
    const Half *halves = thread.cta->halves;
    bool known = false;
    for (u32 i = offset / 2; i < (offset + bytes) / 2; ++i) {
        const Half &half = halves[i];
        if (half.state == flying) fault("%s reads byte %u of shared memory, which a copy of thread %d is still bringing", piece, 2 * i, half.writer);
        if (!over_for(thread, half.writer, half.time)) fault("%s reads byte %u of shared memory, which thread %d wrote with no barrier between", piece, 2 * i, half.writer);
        known |= half.state != untouched;
    }
    for (u32 i = 0; i < bytes && !known; ++i) known = thread.cta->memory[offset + i] != (char)0xff;
    if (!known) fault("%s reads byte %u of shared memory, which was never written", piece, offset);
}

// `thread` reads 16 bytes for its warp, at `time`.
ENGINE void read_sixteen(const Fibre &thread, u32 offset, u32 time, const char *piece) {
    Cta &cta = *thread.cta;
    check_read(thread, offset, 16, piece);
    cta.readers[offset / 16 * (u32)warps_of_a_cta() + (u32)(thread.number / lanes_of_a_warp)] = time;
}

ENGINE void wake(Cta &cta, const void *key, const u32 *clock) {
    for (u32 i = 0; i < run.options.threads; ++i) {
        Fibre &thread = cta.fibres[i];
        if (thread.key != key) continue;
        if (clock) join(thread.clock, clock);
        thread.key = nullptr;
        thread.warp->ready |= 1u << thread.lane;
    }
    run.spins = 0;
}

static void deadlock() {
    char text[700] = "";
    size_t length = 0;
    bool told[2048] = {};
    const int count = run.cta_count * (int)run.options.threads;
    for (int i = 0, kinds = 0; i < count && i < 2048 && kinds < 8; ++i) {
        const Fibre &first = run.fibres[i];
        if (!first.waits_for || told[i]) continue;
        int same = 0;
        for (int j = i; j < count; ++j) {
            const Fibre &other = run.fibres[j];
            if (!other.waits_for || strcmp(other.waits_for, first.waits_for) || other.waits_detail != first.waits_detail) continue;
            ++same;
            if (j < 2048) told[j] = true;
        }
        char detail[32] = "";
        if (first.waits_detail >= 0) snprintf(detail, sizeof detail, " %d", first.waits_detail);
        length += (size_t)snprintf(text + length, sizeof text - length, "%s%d wait at %s%s (the first is thread %d of cta %d)",
                                   kinds++ ? ", " : "", same, first.waits_for, detail, first.number, i / (int)run.options.threads);
        if (length >= sizeof text) break;
    }
    fault("deadlock: %s", text);
}

}  // namespace emulated
