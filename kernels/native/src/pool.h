// Work items shared among the threads of torch's own OpenMP pool, whose entry points the caller hands over.
//
// Each thread owns a contiguous range of items of about equal cost and then helps with the others'. What an item writes
// does not depend on the thread that runs it, so results do not either.
#pragma once
#include "vectors.h"

struct Pool {  // mirrored in Python, field by field
    int64_t threads;  // at most most_threads
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
    int (*thread_number)();
};

namespace {

constexpr int most_threads = 128;

struct Ranges {
    int64_t starts[most_threads + 1];  // thread t owns the items starts[t] .. starts[t + 1]
    int64_t next[most_threads * 8];    // the next item of each range, a cache line apart

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

template <class Body> struct Job {
    const Pool &pool;
    Ranges &ranges;
    const Body &body;

    static void work(void *argument) {
        const Job &job = *static_cast<const Job *>(argument);
        const int64_t threads = job.pool.threads, self = threads > 1 ? job.pool.thread_number() : 0;
        for (int64_t step = 0; step < threads; ++step) {
            const int64_t owner = (self + step) % threads;
            for (;;) {
                const int64_t item = __atomic_fetch_add(job.ranges.next + owner * 8, 1, __ATOMIC_RELAXED);
                if (item >= job.ranges.starts[owner + 1]) break;
                job.body(item, self);
            }
        }
    }
};

// Run body(item, thread) for every item, and return when all have ended.
template <class Body> void share(const Pool &pool, Ranges &ranges, const Body &body) {
    for (int64_t t = 0; t < pool.threads; ++t) ranges.next[t * 8] = ranges.starts[t];
    Job<Body> job{pool, ranges, body};
    if (pool.threads > 1)
        pool.parallel(Job<Body>::work, &job, static_cast<unsigned>(pool.threads), 0);
    else
        Job<Body>::work(&job);
}

template <class Body> void share(const Pool &pool, int64_t items, const Body &body) {
    Ranges ranges(pool.threads, items);
    share(pool, ranges, body);
}

}  // namespace
