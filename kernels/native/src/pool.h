// Work items shared among the threads of torch's own OpenMP pool, whose entry points the caller hands over.
//
// Each thread owns a contiguous range of items of about equal cost and then helps with the others'. What an item writes
// does not depend on the thread that runs it, so results do not either. Threads that meet again and again, as at each
// time step of a layer, are a team: called once, they wait for the items and not for each other, so that one that the
// pool did not send, or that the system has stopped, holds nobody up longer than its own item does.
#pragma once
#if defined(_WIN32)
extern "C" __declspec(dllimport) void __stdcall Sleep(unsigned long);
#else
#include <sched.h>
#include <time.h>
#endif

#include "vectors.h"

struct Pool {  // mirrored in Python, field by field
    int64_t threads;  // at most most_threads
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
    int (*thread_number)();
    int64_t patience;  // pauses of the processor for which a thread waits before it lets others have it
};

namespace {

constexpr int most_threads = 128;

struct Ranges {
    int64_t starts[most_threads + 1];  // thread t owns the items starts[t] .. starts[t + 1]

    Ranges(int64_t threads, int64_t items) {
        for (int64_t t = 0; t <= threads; ++t) starts[t] = items * t / threads;
    }

    // An item for each row, in `rounds` rounds over the rows. cost(row): of its item.
    template <class Cost> Ranges(int64_t threads, int64_t rounds, int64_t rows, const Cost &cost) {
        int64_t whole = 0, spent = 0, item = 0, t = 1;
        for (int64_t row = 0; row < rows; ++row) whole += cost(row);
        starts[0] = 0, starts[threads] = rounds * rows;
        for (int64_t round = 0; round < rounds && t < threads; ++round)
            for (int64_t row = 0; row < rows && t < threads; ++row, ++item) {
                for (; t < threads && spent * threads >= whole * rounds * t; ++t) starts[t] = item;
                spent += cost(row);
            }
        for (; t < threads; ++t) starts[t] = starts[threads];
    }
};

constexpr int64_t turns = 4096;  // that a thread which waits leaves to others, some milliseconds, before it sleeps

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");  // `yield` takes no time on most of them
#endif
}

inline void leave_to_others(bool for_long) {
#if defined(_WIN32)
    Sleep(for_long ? 1 : 0);
#else
    const timespec while_away{0, 100000};
    if (for_long) nanosleep(&while_away, nullptr);
    else sched_yield();
#endif
}

// What the threads of a team have in common: which items are taken, and how many have ended.
struct Board {
    struct alignas(64) Counter { uint64_t value; };  // the phase in its upper half, the next item of a range in its lower one:
                                                     // of neither are there ever 2^32

    const int64_t threads, patience;
    alignas(64) int64_t ended = 0;  // items of all phases
    Counter next[most_threads];

    explicit Board(const Pool &pool) : threads(pool.threads), patience(pool.patience) {
        for (int64_t t = 0; t < threads; ++t) next[t].value = 0;
    }
};

// One thread of a team. All go through the same phases, one after the other, and share the items of each.
struct Worker {
    Board &board;
    const int64_t self;
    uint64_t phase = 0;
    int64_t due = 0;  // items of all phases so far

    // Run body(item, thread) for the items of the next phase that nobody else takes, and return when all of it has ended.
    template <class Body> void share(const Ranges &ranges, const Body &body) {
        due += ranges.starts[board.threads];
        ++phase;
        if (all_ended()) return;  // who comes late
        if (const int64_t done = run(ranges, body)) __atomic_fetch_add(&board.ended, done, __ATOMIC_RELEASE);
        for (int64_t waited = 0; !all_ended(); ++waited)
            if (waited < board.patience) pause();
            else leave_to_others(waited - board.patience >= turns);
    }

    // The same of the last phase: whoever called the team waits for its items.
    template <class Body> void end(const Ranges &ranges, const Body &body) {
        ++phase;
        run(ranges, body);
    }

private:
    bool all_ended() const { return __atomic_load_n(&board.ended, __ATOMIC_ACQUIRE) >= due; }

    template <class Body> int64_t run(const Ranges &ranges, const Body &body) {
        int64_t done = 0;
        for (int64_t step = 0; step < board.threads; ++step) {
            const int64_t owner = (self + step) % board.threads;
            for (int64_t item; (item = take(ranges, owner)) >= 0; ++done) body(item, self);
        }
        return done;
    }

    // An item of `owner` that nobody has taken, -1 where there is none: then all are, or the phase is over.
    int64_t take(const Ranges &ranges, int64_t owner) {
        uint64_t &next = board.next[owner].value, seen = __atomic_load_n(&next, __ATOMIC_RELAXED);
        for (;;) {
            const uint64_t at = seen >> 32;
            const int64_t item = at == phase ? static_cast<int64_t>(seen & UINT32_MAX) : ranges.starts[owner];
            if (at > phase || item >= ranges.starts[owner + 1]) return -1;
            const uint64_t taken = phase << 32 | static_cast<uint64_t>(item + 1);
            if (__atomic_compare_exchange_n(&next, &seen, taken, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return item;
        }
    }
};

template <class Body> struct Job {
    const Pool &pool;
    Board &board;
    const Body &body;

    static void work(void *argument) {
        const Job &job = *static_cast<const Job *>(argument);
        job.body(Worker{job.board, job.pool.threads > 1 ? job.pool.thread_number() : 0});
    }
};

// Run body(worker) in a team of as many threads as the pool sends, and return when all have ended.
template <class Body> void team(const Pool &pool, const Body &body) {
    Board board(pool);
    Job<Body> job{pool, board, body};
    if (pool.threads > 1)
        pool.parallel(Job<Body>::work, &job, static_cast<unsigned>(pool.threads), 0);
    else
        Job<Body>::work(&job);
}

// Run body(item, thread) for every item, and return when all have ended.
template <class Body> void share(const Pool &pool, const Ranges &ranges, const Body &body) {
    team(pool, [&](Worker worker) { worker.end(ranges, body); });
}

template <class Body> void share(const Pool &pool, int64_t items, const Body &body) {
    share(pool, Ranges(pool.threads, items), body);
}

}  // namespace
