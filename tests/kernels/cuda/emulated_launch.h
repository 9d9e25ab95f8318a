// One launch of a kernel: its CTAs one after another, those of a cluster together, or all together where it is cooperative.
#pragma once
#include <setjmp.h>
#include <signal.h>
#include "emulated_wgmma.h"

namespace emulated {

static void *mapped[16];
static size_t mapped_bytes[16];
static int mapped_count;

template <class T> ENGINE T *room_for(size_t count) {  // zeros, on pages that exist once they are used
    const size_t bytes = count * sizeof(T) + 64;
    void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) abort();
    mapped[mapped_count] = memory, mapped_bytes[mapped_count++] = bytes;
    return (T *)memory;
}

ENGINE size_t shared_stride() { return ((size_t)run.options.shared_bytes + 2 * guard_bytes + 1023) & ~(size_t)1023; }

static char *shared_blocks, *stacks;
static u32 *thread_clocks, *barrier_clocks;
constexpr size_t clocks_of_a_cta = 3 + most_named + 2 * most_mbarriers;

ENGINE void make_room() {
    const size_t ctas = (size_t)run.cta_count, threads = ctas * run.options.threads, sixteens = run.options.shared_bytes / 16 + 1;
    run.ctas = room_for<Cta>(ctas);
    run.warps = room_for<Warp>(ctas * (size_t)warps_of_a_cta());
    run.fibres = room_for<Fibre>(threads);
    stacks = room_for<char>(threads * stack_stride);
    thread_clocks = room_for<u32>(threads * (size_t)clock_size());
    barrier_clocks = room_for<u32>(ctas * clocks_of_a_cta * (size_t)clock_size());
    shared_blocks = (char *)(((size_t)room_for<char>(ctas * shared_stride() + 1024) + 1023) & ~(size_t)1023);
    Half *halves = room_for<Half>(ctas * sixteens * 8);
    u32 *readers = room_for<u32>(ctas * sixteens * (size_t)warps_of_a_cta());
    for (size_t i = 0; i < ctas; ++i) {
        run.ctas[i].halves = halves + i * sixteens * 8;
        run.ctas[i].readers = readers + i * sixteens * (size_t)warps_of_a_cta();
    }
}

ENGINE void begin_cta(size_t place, uint3 index) {
    Cta &cta = run.ctas[place];
    const size_t threads = run.options.threads, size = (size_t)clock_size();
    cta.index = index;
    cta.fibres = run.fibres + place * threads;
    cta.rank = run.cluster > 1 ? (int)place : 0;
    cta.live = (int)threads, cta.synchronising = 0, cta.mbarrier_count = 0, cta.era = ++run.time;
    cta.memory = shared_blocks + place * shared_stride() + guard_bytes;
    memset(cta.memory - guard_bytes, 0xff, (size_t)run.options.shared_bytes + 2 * guard_bytes);
    memset(cta.halves, 0, run.options.shared_bytes / 2 * sizeof(Half));
    u32 *clock = barrier_clocks + place * clocks_of_a_cta * size;
    memset(clock, 0, clocks_of_a_cta * size * 4);
    cta.atomics = clock, cta.visits = clock += size, cta.left = clock += size;
    for (Named &barrier : cta.named) barrier = Named{0, 0, clock += size};
    for (Mbarrier &barrier : cta.mbarriers) barrier = Mbarrier{}, barrier.arriving = clock += size, barrier.done = clock += size;
    for (size_t i = 0; i < threads; ++i) {
        Fibre &thread = cta.fibres[i];
        const size_t number = place * threads + i;
        Copy *copies = thread.copies;
        const u32 room = thread.room;
        thread = Fibre{};
        thread.copies = copies, thread.room = room;
        thread.stack = stacks + number * stack_stride;
        *(u64 *)thread.stack = canary;
        thread.stack_pointer = fresh_stack(thread.stack + stack_bytes, begin_fibre);
        thread.cta = &cta, thread.warp = run.warps + place * (size_t)warps_of_a_cta() + i / lanes_of_a_warp;
        thread.thread = uint3{(u32)i, 0, 0}, thread.number = (int)i, thread.place = cta.rank * (int)threads + (int)i, thread.lane = (int)(i % lanes_of_a_warp);
        thread.clock = thread_clocks + number * size;
        if (thread.lane == 0) *thread.warp = Warp{}, thread.warp->lanes = &thread;
        thread.warp->ready |= 1u << thread.lane, thread.warp->live |= 1u << thread.lane;
    }
    run.live += (int)threads;
}

ENGINE void check_guards(const Cta &cta) {
    const unsigned char *bytes = (const unsigned char *)cta.memory;
    const long long size = run.options.shared_bytes;
    for (long long i = -guard_bytes; i < size + guard_bytes; i = i == -1 ? size : i + 1)
        if (bytes[i] != 0xff) {
            snprintf(run.message, sizeof run.message, "cta (%u, %u, %u): byte %lld of %lld bytes of shared memory was written",
                     cta.index.x, cta.index.y, cta.index.z, i, size);
            run.failed = true;
            return;
        }
}

// The four warps of a warpgroup must begin the same products.
ENGINE void check_warpgroups(const Cta &cta) {
    const Warp *warps = cta.fibres->warp;
    for (int i = 0; i < warps_of_a_cta(); ++i) {
        if (warps[i].story == warps[i & ~3].story) continue;
        snprintf(run.message, sizeof run.message, "cta (%u, %u, %u): warps %d and %d of a warpgroup began other products of wgmma",
                 cta.index.x, cta.index.y, cta.index.z, i & ~3, i);
        run.failed = true;
        return;
    }
}

// Accesses of memory that is not there end the launch, not the process.
static sigjmp_buf before_launch;
ENGINE void on_signal(int) {
    snprintf(run.message, sizeof run.message, "cta (%u, %u, %u), thread %d: an access of memory that does not exist",
             now->cta->index.x, now->cta->index.y, now->cta->index.z, now->number);
    run.failed = true;
    siglongjmp(before_launch, 1);
}

struct Signals {  // caught on a stack of their own while it lives
    struct sigaction before[2];
    stack_t stack_before;
    Signals() {
        static char stack[32768];
        const stack_t ours = {stack, 0, sizeof stack};
        sigaltstack(&ours, &stack_before);
        struct sigaction action = {};
        action.sa_handler = on_signal, action.sa_flags = SA_ONSTACK;
        sigaction(SIGSEGV, &action, before), sigaction(SIGBUS, &action, before + 1);
    }
    ~Signals() {
        sigaction(SIGSEGV, before, nullptr), sigaction(SIGBUS, before + 1, nullptr);
        sigaltstack(&stack_before, nullptr);
    }
};

ENGINE void run_ctas() {
    run.warp = run.options.order == reverse ? run.warps : run.warps + run.warp_count - 1;
    run.todo = 0, run.spins = 0, run.synchronising = 0, pending_count = 0, store_count = 0;
    now = next();
    const Signals caught;
    if (sigsetjmp(before_launch, 1) == 0) emulated_switch(&run.caller, now->stack_pointer);
    now = nullptr;
    for (int i = 0; i < run.cta_count && !run.failed; ++i) check_guards(run.ctas[i]), check_warpgroups(run.ctas[i]);
    if (!run.failed && pending_count) {
        snprintf(run.message, sizeof run.message, "the kernel ends while %d copies go on that an mbarrier would wait for", pending_count);
        run.failed = true;
    }
}

// A number of a CTA in launch order -> its place in the grid, every place once.
ENGINE u64 shuffled(u64 number, u64 count, u64 step) {
    if (run.options.order == forward) return number;
    if (run.options.order == reverse) return count - 1 - number;
    return (number * step + run.options.seed) % count;
}

ENGINE u64 common_divisor(u64 a, u64 b) { return b ? common_divisor(b, a % b) : a; }

ENGINE uint3 cta_index(u64 number) {
    const u32 *grid = run.options.grid;
    return uint3{(u32)(number % grid[0]), (u32)(number / grid[0] % grid[1]), (u32)(number / grid[0] / grid[1])};
}

// Null, or what went wrong.
ENGINE const char *launch(void (*body)(const void *), const void *given, const Options &options, int cluster) {
    if (options.grid[0] % (u32)cluster) return "a grid of clusters has whole clusters";
    if (cluster > 1 && options.cooperative) return "cooperative launches of clusters are not emulated";
    run = Run{};
    run.cluster = cluster;
    run.options = options, run.body = body, run.given = given, run.random = options.seed * 2654435761u + 88172645463325252ull;
    const u64 count = (u64)options.grid[0] * options.grid[1] * options.grid[2] / (u64)cluster;
    u64 step = count / 3 * 2 + 1;
    while (common_divisor(step, count) != 1) ++step;
    const u64 together = options.cooperative ? count : 1;  // of clusters, which are CTAs as a rule
    run.cta_count = (int)together * cluster;
    run.warp_count = run.cta_count * warps_of_a_cta();
    make_room();
    for (u64 number = 0; number < count && !run.failed; number += together) {
        for (int place = 0; place < run.cta_count; ++place) {
            const u64 which = shuffled(number + (u64)(place / cluster), count, step);
            begin_cta((size_t)place, cta_index(which * (u64)cluster + (u64)(place % cluster)));
        }
        run_ctas();
    }
    for (u64 i = 0; i < (u64)run.cta_count * options.threads; ++i) free(run.fibres[i].copies);
    while (mapped_count) --mapped_count, munmap(mapped[mapped_count], mapped_bytes[mapped_count]);
    return run.failed ? run.message : nullptr;
}

}  // namespace emulated

// KERNEL(name, Arguments, threads, ctas) { body }, of clusters or not: emulator.py calls emulated_NAME.
#define KERNEL(name, Arguments, threads, ctas) CLUSTERED(name, Arguments, threads, ctas, 1)
#define CLUSTERED(name, Arguments, threads_, ctas, cluster)                                                                  \
    static void name(const Arguments &given);                                                                                \
    extern "C" __attribute__((visibility("default"))) const char *emulated_##name(const void *given, unsigned long long size, \
                                                                                  const emulated::Options *options) {         \
        if (options->threads < 1 || options->threads > 1024 || options->shared_bytes > 227 * 1024)                           \
            return "a CTA has 1 to 1024 threads and at most 227 KB of shared memory";                                        \
        if (size != sizeof(Arguments)) return "the arguments have another size than " #Arguments;                            \
        if (options->threads > (threads_)) return "launched with more threads than KERNEL tells";                            \
        return emulated::launch([](const void *all) { name(*(const Arguments *)all); }, given, *options, cluster);           \
    }                                                                                                                        \
    static void name(const Arguments &given)
