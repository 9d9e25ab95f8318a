// Threads as fibres: each has a stack of its own, and one at a time runs until it waits for others.
//
// A thread that cannot go on calls wait() and the next one runs, switched to directly. A warp runs until none of its lanes
// can go on; then the order decides: the next warp up (forward), down (reverse), or any (random). So a warp is as far ahead
// of the others as barriers allow, which is what shows a missing one.
#pragma once
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

// The emulator's own functions: their loads and stores are not those of the kernel, see emulated_watch.h.
#define ENGINE __attribute__((no_sanitize("thread"))) inline

struct uint3 {
    u32 x, y, z;
};
struct dim3 {
    u32 x, y, z;
};

namespace emulated {

enum Order { forward, reverse, random_order };
enum Copies { early, late, random_copies };

struct Options {  // mirrored in Python, field by field
    u32 grid[3], threads, shared_bytes, cooperative, order, copies;
    u64 seed;
};

struct Cta;
struct Warp;
struct Tensor;
constexpr int lanes_of_a_warp = 32, stack_bytes = 64 * 1024, spare_bytes = 4096;
constexpr const char *too_deep = "a thread needs more than %d bytes of stack";
constexpr int stack_stride = stack_bytes + 1088;  // else the stacks' ends would share a few sets of the cache
constexpr u64 canary = 0x5afe57acc5afe57aull;

struct Copy {  // begun by copy_async
    char *to;
    const void *from;
    u32 bytes;
    bool valid, done;
};

struct Fibre {
    void *stack_pointer;
    char *stack;  // its lowest byte
    Cta *cta;
    Warp *warp;
    uint3 thread;
    int number, lane;  // in the CTA, in the warp
    int place;         // in the cluster: what clocks count by
    const char *waits_for;
    int waits_detail;
    const void *key;  // what wake() is given
    u32 *clock;       // what happened before, see emulated_clocks.h
    u32 fenced;       // when proxy_fence() was last called
    u32 store_groups; // of store_box, so far
    Copy *copies;     // a ring of `room`; those before `first` are over, `count` were begun in all
    u32 first, count, room;
    u32 groups[64], first_group, group_count;  // `count` at each copy_commit, a ring too
};

struct Meeting {  // of the lanes in `mask`, at a warp-wide piece
    u32 mask, arrived;
    const char *piece;
};

struct Warp {
    Fibre *lanes;
    u32 ready, live;
    bool kept;  // a piece was done since its lanes were last listed
    Meeting meetings[4];
    void *given[lanes_of_a_warp];
    Tensor *first, *last;      // of wgmma, that go on
    u32 commits, begun, story;  // groups and products so far; a checksum of the products
    bool fenced;
    const u32 *loaded[16];  // where load_matrix wrote to since the last wgmma_fence
    u32 loaded_count;
};

struct Run {
    Options options;
    Cta *ctas;
    Warp *warps, *warp;
    Fibre *fibres;
    int cta_count, warp_count, live;
    int cluster, synchronising;  // CTAs of a cluster, and how many threads of it are at cluster_barrier()
    u32 time;                    // of the last event
    u32 todo;  // lanes of `warp` that run before another warp does
    u64 random, spins;
    void *caller;  // the stack to go back to
    void (*body)(const void *given);
    const void *given;
    bool failed;
    char message[1024];
};
static Run run;
static Fibre *now;

ENGINE void leave_cta();         // by a thread that is over
ENGINE void check_stores();
ENGINE bool finish_something();  // an asynchronous operation that nobody has asked for yet; false where there is none

ENGINE u32 random_below(u32 count) {
    run.random ^= run.random << 13, run.random ^= run.random >> 7, run.random ^= run.random << 17;
    return (u32)((run.random >> 32) * count >> 32);
}

// Whether an asynchronous operation is done at once.
ENGINE bool at_once() {
    return run.options.copies == early || (run.options.copies == random_copies && random_below(2));
}

// Keeps the registers that a function must keep, and goes on where the other stack stopped.
#if defined(__x86_64__) && defined(__ELF__)
extern "C" __attribute__((visibility("hidden"))) void emulated_switch(void **from, void *to);
asm(".pushsection .text\n.type emulated_switch, @function\nemulated_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
    ".size emulated_switch, .-emulated_switch\n.popsection\n");
ENGINE void *fresh_stack(char *top, void (*begin)()) {
    void **words = (void **)((size_t)top & ~(size_t)15);
    words[-2] = (void *)begin;
    return words - 8;
}
#elif defined(__aarch64__) && defined(__ELF__)
extern "C" __attribute__((visibility("hidden"))) void emulated_switch(void **from, void *to);
asm(".pushsection .text\n.type emulated_switch, %function\nemulated_switch:\n"
    "sub sp, sp, #160\n"
    "stp x19, x20, [sp]\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\nstp x25, x26, [sp, #48]\nstp x27, x28, [sp, #64]\n"
    "stp x29, x30, [sp, #80]\nstp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\nstp d12, d13, [sp, #128]\nstp d14, d15, [sp, #144]\n"
    "mov x2, sp\nstr x2, [x0]\nmov sp, x1\n"
    "ldp x19, x20, [sp]\nldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\nldp x25, x26, [sp, #48]\nldp x27, x28, [sp, #64]\n"
    "ldp x29, x30, [sp, #80]\nldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\nldp d12, d13, [sp, #128]\nldp d14, d15, [sp, #144]\n"
    "add sp, sp, #160\nret\n"
    ".size emulated_switch, .-emulated_switch\n.popsection\n");
ENGINE void *fresh_stack(char *top, void (*begin)()) {
    void **words = (void **)((size_t)top & ~(size_t)15) - 20;
    words[11] = (void *)begin;
    return words;
}
#else
#error "the emulator switches stacks on x86-64 and aarch64 with ELF only"
#endif

// Ends the launch with a message.
[[noreturn]] __attribute__((noinline, cold, format(printf, 1, 2))) static void fault(const char *format, ...);

// The next thread that can go on; null where the launch is over.
ENGINE int pick_lane(u32 lanes) {
    if (run.options.order == forward) return __builtin_ctz(lanes);
    if (run.options.order == reverse) return 31 - __builtin_clz(lanes);
    for (u32 skipped = random_below((u32)__builtin_popcount(lanes)); skipped > 0; --skipped) lanes &= lanes - 1;
    return __builtin_ctz(lanes);
}

ENGINE Warp *pick_warp() {
    const int count = run.warp_count, at = (int)(run.warp - run.warps);
    const int first = run.options.order == random_order ? (int)random_below((u32)count) : at;
    for (int step = 1; step <= count; ++step) {
        const int other = run.options.order == forward ? first + step : first - step;
        Warp *warp = run.warps + (other + count) % count;
        if (warp->ready) return warp;
    }
    return nullptr;
}

[[noreturn]] __attribute__((cold)) static void deadlock();

ENGINE Fibre *next() {
    while (!run.todo) {
        Warp *warp = run.warp;
        if (run.options.copies == random_copies && random_below(8) == 0) finish_something();
        if (!(warp->kept && warp->ready && run.options.order != random_order)) warp = pick_warp();
        if (warp) run.warp = warp, run.todo = warp->ready, warp->kept = false;
        else if (!finish_something()) deadlock();
    }
    const int lane = pick_lane(run.todo);
    run.todo &= ~(1u << lane), run.warp->ready &= ~(1u << lane);
    return run.warp->lanes + lane;
}

ENGINE void go_on(Fibre *other) {
    Fibre *self = now;
    if ((char *)__builtin_frame_address(0) < self->stack + spare_bytes) fault(too_deep, stack_bytes);
    if (other == self) return;
    now = other;
    emulated_switch(&self->stack_pointer, other->stack_pointer);
}

// Until somebody calls wake() with this key (or, for a warp-wide piece, until the last lane has come).
ENGINE void wait(const char *what, const void *key, int detail = -1) {
    now->waits_for = what, now->waits_detail = detail, now->key = key;
    go_on(next());
    now->waits_for = nullptr, now->key = nullptr;
}

// Other threads run first. Nothing but this for a long time, by all threads that can go on, is a deadlock.
ENGINE void let_others_run(const char *what) {
    const u64 live = (u64)run.live;
    if (++run.spins % (16 * live) == 0 && finish_something()) run.spins = 0;
    now->waits_for = what, now->waits_detail = -1;
    if (run.spins > 256 * live + 20000) deadlock();
    now->warp->ready |= 1u << now->lane;
    go_on(next());
    now->waits_for = nullptr;
}

ENGINE void begin_fibre() {
    run.body(run.given);
    if (*(u64 *)now->stack != canary) fault(too_deep, stack_bytes);
    Warp *warp = now->warp;
    const u32 lane = 1u << now->lane;
    for (Meeting &meeting : warp->meetings)
        if (meeting.mask & lane) fault("exits while other lanes of its warp wait for it at %s", meeting.piece);
    if (warp->first) fault("exits while products go on: wgmma_wait is missing");
    check_stores();
    warp->live &= ~lane;
    run.spins = 0;
    leave_cta();
    void *unused;
    if (--run.live == 0) emulated_switch(&unused, run.caller);
    Fibre *other = next();
    now = other;
    emulated_switch(&unused, other->stack_pointer);
}

}  // namespace emulated
