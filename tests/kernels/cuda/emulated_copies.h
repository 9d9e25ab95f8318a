// Copies to shared memory that go on beside the threads: done at once, or only when somebody must wait for them.
#pragma once
#include "emulated_boxes.h"

namespace emulated {

enum Kind { bulk_copy, box_copy, arrival_after_copies };

struct Pending {  // asynchronous, and waited for through an mbarrier
    Kind kind;
    Fibre *thread;
    Mbarrier *barrier;
    char *to;
    const void *from;   // of a box, its map
    u32 bytes, copies;  // copies: how many of the thread's an arrival comes after
    int x, y;
};
static Pending *pending;
static int pending_count, pending_room;

ENGINE Copy &copy_number(Fibre &thread, u32 number) { return thread.copies[number & (thread.room - 1)]; }

ENGINE void move_bytes(Copy &copy) {
    if (copy.valid) memcpy(copy.to, copy.from, copy.bytes);
    else memset(copy.to, 0, copy.bytes);
    copy.done = true;
}

ENGINE void begin_copy(void *shared, const void *global, u32 bytes, bool valid) {
    const u32 offset = shared_offset(shared, bytes, bytes, "copy_async");
    if (valid) check_global(global, bytes, "copy_async");
    Fibre &thread = *now;
    begin_write(*thread.cta, thread, offset, bytes, "copy_async");
    if (thread.count - thread.first == thread.room) {
        const u32 room = thread.room ? 2 * thread.room : 16;
        Copy *copies = (Copy *)malloc(room * sizeof(Copy));
        for (u32 i = thread.first; i != thread.count; ++i) copies[i & (room - 1)] = copy_number(thread, i);
        free(thread.copies);
        thread.copies = copies, thread.room = room;
    }
    Copy &copy = copy_number(thread, thread.count++);
    copy = Copy{(char *)shared, global, bytes, valid, false};
    if (at_once()) move_bytes(copy);
}

ENGINE void finish_copies(Fibre &thread, u32 last) {
    if ((int)(last - thread.first) <= 0) return;
    const u32 time = event(thread);
    for (; thread.first != last; ++thread.first) {
        Copy &copy = copy_number(thread, thread.first);
        if (!copy.done) move_bytes(copy);
        end_write(*thread.cta, thread, (u32)(copy.to - thread.cta->memory), copy.bytes, stored, time);
    }
}

ENGINE void commit_copies() {
    Fibre &thread = *now;
    constexpr u32 most = sizeof thread.groups / sizeof thread.groups[0];
    if (thread.group_count - thread.first_group == most) fault("more than %u groups of copies wait for copy_wait", most);
    thread.groups[thread.group_count++ % most] = thread.count;
}

ENGINE void wait_for_copies(u32 left) {
    Fibre &thread = *now;
    constexpr u32 most = sizeof thread.groups / sizeof thread.groups[0];
    while (thread.group_count - thread.first_group > left) finish_copies(thread, thread.groups[thread.first_group++ % most]);
}

ENGINE void finish(const Pending &one) {
    Fibre &thread = *one.thread;
    if (one.kind == arrival_after_copies) {
        finish_copies(thread, one.copies);
        arrive(*one.barrier, thread, "mbarrier_arrive_after_copies");
        return;
    }
    Cta &cta = *one.barrier->cta;
    const char *piece = one.kind == box_copy ? "copy_box" : "copy_bulk";
    const u32 offset = (u32)(one.to - cta.memory), time = event(thread);
    visit(cta, thread, time, piece);
    if (one.kind == box_copy) bring_box(map_at(*(const TensorMap *)one.from, piece), one.x, one.y, cta.memory, offset);
    else memcpy(one.to, one.from, one.bytes);
    end_write(cta, thread, offset, one.bytes, brought, time);
    join(one.barrier->arriving, thread.clock);
    count_bytes(*one.barrier, -(long long)one.bytes, piece);
    end_phase_if_over(*one.barrier);
}

ENGINE void begin_pending(const Pending &one) {
    if (at_once()) return finish(one);
    if (pending_count == pending_room) {
        pending_room = pending_room ? 2 * pending_room : 64;
        pending = (Pending *)realloc(pending, (size_t)pending_room * sizeof(Pending));
    }
    pending[pending_count++] = one;
}

ENGINE bool finish_something() {
    if (!pending_count) return false;
    const int chosen = run.options.copies == random_copies ? (int)random_below((u32)pending_count) : 0;
    const Pending one = pending[chosen];
    memmove(pending + chosen, pending + chosen + 1, (size_t)(--pending_count - chosen) * sizeof(Pending));
    finish(one);
    return true;
}

ENGINE void copy_bulk_begin(void *shared, const void *global, u32 bytes, u64 *pointer) {
    const u32 offset = shared_offset(shared, bytes, 16, "copy_bulk");
    check_global(global, 16, "copy_bulk");
    if (bytes % 16 || !bytes) fault("copy_bulk of %u bytes, no multiple of 16", bytes);
    Mbarrier &barrier = published_mbarrier_at(pointer, *now->cta, "copy_bulk");
    begin_write(*now->cta, *now, offset, bytes, "copy_bulk");
    begin_pending({bulk_copy, now, &barrier, (char *)shared, global, bytes, 0, 0, 0});
}

// To the same place of the memory of each CTA in `ranks`, whose mbarriers at the same place count the bytes.
ENGINE void copy_box_begin(void *shared, const TensorMap &map, int x, int y, u64 *pointer, u32 ranks) {
    const char *piece = "copy_box";
    const u32 bytes = box_bytes(map_at(map, piece)), offset = shared_offset(shared, bytes, 128, piece);
    for (u32 rank = 0; rank < 16; ++rank) {
        if (!(ranks >> rank & 1)) continue;
        Cta &cta = cta_of_cluster(rank, piece);
        Mbarrier &barrier = published_mbarrier_at(pointer, cta, piece);
        visit(cta, *now, event(*now), piece);
        begin_write(cta, *now, offset, bytes, piece);
        begin_pending({box_copy, now, &barrier, cta.memory + offset, &map, bytes, 0, x, y});
    }
}

ENGINE void arrive_at(const u64 *pointer, u32 rank) {
    const char *piece = "mbarrier_arrive_at";
    Cta &cta = cta_of_cluster(rank, piece);
    Mbarrier &barrier = published_mbarrier_at(pointer, cta, piece);
    visit(cta, *now, event(*now), piece);
    arrive(barrier, *now, piece);
}

}  // namespace emulated
