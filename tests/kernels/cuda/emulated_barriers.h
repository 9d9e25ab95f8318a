// __syncthreads, barriers by number, and mbarriers.
#pragma once
#include "emulated_warp.h"

namespace emulated {

constexpr u64 mbarrier_mark = 0xb0ba11edb0ba11edull;  // what an mbarrier's 8 bytes hold here

// Everybody is at __syncthreads(): whatever was before is over for all.
ENGINE void end_synchronising(Cta &cta) {
    cta.synchronising = 0;
    cta.era = ++cta.time;
    wake(cta, &cta.synchronising, nullptr);
}

ENGINE void synchronise_cta() {
    Cta &cta = *now->cta;
    if (++cta.synchronising == cta.live) end_synchronising(cta);
    else wait("__syncthreads", &cta.synchronising);
}

ENGINE void leave_cta() {
    Cta &cta = *now->cta;
    --cta.live;
    if (cta.synchronising && cta.synchronising == cta.live) end_synchronising(cta);
}

ENGINE void named_barrier(int number, int threads, bool waits) {
    const char *piece = waits ? "barrier_wait" : "barrier_arrive";
    if (number < 1 || number >= most_named) fault("%s: barrier %d is none of 1 to 15", piece, number);
    if (threads <= 0 || threads % lanes_of_a_warp) fault("%s: %d threads are no whole warps", piece, threads);
    Cta &cta = *now->cta;
    Named &barrier = cta.named[number];
    if (barrier.arrived && barrier.wanted != threads)
        fault("%s: barrier %d is for %d threads here and %d elsewhere", piece, number, threads, barrier.wanted);
    barrier.wanted = threads;
    join(barrier.clock, now->clock);
    if (++barrier.arrived < threads) {
        if (waits) wait("barrier_wait", &barrier, number);
        return;
    }
    barrier.arrived = 0;
    if (waits) join(now->clock, barrier.clock);
    wake(cta, &barrier, barrier.clock);
    memset(barrier.clock, 0, (size_t)clock_size() * 4);
}

ENGINE Mbarrier &mbarrier_at(const u64 *pointer, const char *piece) {
    const u32 offset = shared_offset(pointer, 8, 8, piece);
    Cta &cta = *now->cta;
    for (int i = 0; i < cta.mbarrier_count; ++i) {
        Mbarrier &barrier = cta.mbarriers[i];
        if (barrier.offset != offset) continue;
        if (*pointer != (mbarrier_mark ^ offset)) fault("%s: the mbarrier at byte %u of shared memory was overwritten", piece, offset);
        if (!over_for(*now, barrier.initialiser, barrier.begun)) fault("%s: the mbarrier at byte %u was initialised by thread %d with no barrier between", piece, offset, barrier.initialiser);
        return barrier;
    }
    fault("%s: there is no mbarrier at byte %u of shared memory", piece, offset);
}

ENGINE void initialise_mbarrier(u64 *pointer, u32 count) {
    const u32 offset = shared_offset(pointer, 8, 8, "mbarrier_init");
    Cta &cta = *now->cta;
    int i = 0;
    while (i < cta.mbarrier_count && cta.mbarriers[i].offset != offset) ++i;
    if (i == most_mbarriers) fault("more than %d mbarriers", most_mbarriers);
    if (count == 0 || count >= 1u << 20) fault("mbarrier_init: %u arrivals", count);
    if (i == cta.mbarrier_count) ++cta.mbarrier_count;
    Mbarrier &barrier = cta.mbarriers[i];
    barrier.offset = offset, barrier.count = barrier.pending = count, barrier.phase = 0, barrier.bytes = 0;
    barrier.initialiser = now->number, barrier.published = false, barrier.begun = event(*now);
    *pointer = mbarrier_mark ^ offset;
}

ENGINE void publish_mbarriers() {
    for (int i = 0; i < now->cta->mbarrier_count; ++i)
        if (now->cta->mbarriers[i].initialiser == now->number) now->cta->mbarriers[i].published = true;
}

ENGINE void end_phase_if_over(Cta &cta, Mbarrier &barrier) {
    if (barrier.pending || barrier.bytes) return;
    barrier.phase ^= 1, barrier.pending = barrier.count;
    memcpy(barrier.done, barrier.arriving, (size_t)clock_size() * 4);
    wake(cta, &barrier, nullptr);
}

ENGINE void arrive(Mbarrier &barrier, const Fibre &thread, const char *piece) {
    if (barrier.pending == 0) fault("%s: more than %u arrivals at the mbarrier at byte %u", piece, barrier.count, barrier.offset);
    join(barrier.arriving, thread.clock);
    --barrier.pending;
    end_phase_if_over(*thread.cta, barrier);
}

ENGINE void wait_for_phase(const u64 *pointer, u32 parity) {
    Mbarrier &barrier = mbarrier_at(pointer, "mbarrier_wait");
    if (parity > 1) fault("mbarrier_wait: parity %u", parity);
    while (barrier.phase == parity) wait("mbarrier_wait at byte", &barrier, (int)barrier.offset);
    join(now->clock, barrier.done);
}

}  // namespace emulated
