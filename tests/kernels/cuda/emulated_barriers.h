// __syncthreads, barriers by number, of a cluster, and mbarriers.
#pragma once
#include "emulated_warp.h"

namespace emulated {

constexpr u64 mbarrier_mark = 0xb0ba11edb0ba11edull;  // what an mbarrier's 8 bytes hold here

// All threads of some CTAs know what each of them knows.
ENGINE void join_all(const Cta *ctas, int count) {
    const size_t size = (size_t)clock_size();
    u32 *most = (u32 *)calloc(size, 4);
    const Fibre *first = ctas->fibres, *end = first + (size_t)count * run.options.threads;
    for (const Fibre *each = first; each < end; ++each) join(most, each->clock);
    for (const Fibre *each = first; each < end; ++each) memcpy(each->clock, most, size * 4);
    free(most);
}

// Everybody is at __syncthreads(): whatever was before is over for all of this CTA. What others of its cluster do has eras of
// its own, so that there clocks are joined instead.
ENGINE void end_synchronising(Cta &cta) {
    cta.synchronising = 0;
    if (run.cluster > 1) join_all(&cta, 1);
    else cta.era = ++run.time;
    wake(cta, &cta.synchronising, nullptr);
}

ENGINE void synchronise_cta() {
    Cta &cta = *now->cta;
    if (++cta.synchronising == cta.live) end_synchronising(cta);
    else wait("__syncthreads", &cta.synchronising);
}

ENGINE void end_cluster_barrier() {
    run.synchronising = 0;
    join_all(run.ctas, run.cluster);
    for (int i = 0; i < run.cluster; ++i) wake(run.ctas[i], &run.synchronising, nullptr);
}

ENGINE void synchronise_cluster() {
    if (++run.synchronising == run.live) end_cluster_barrier();
    else wait("cluster_barrier", &run.synchronising);
}

// Its shared memory is another's when all its threads have left: nobody may come to it then, nor may have come unknown to them.
ENGINE void leave_cluster(Cta &cta) {
    join(cta.left, now->clock);
    if (cta.live == 0)
        for (int place = 0; place < (int)run.options.threads * run.cluster; ++place)
            if (cta.visits[place] > cta.left[place])
                fault("exits while thread %d of its cluster may still come to its shared memory", place);
    if (run.synchronising && run.synchronising == run.live - 1) end_cluster_barrier();
}

ENGINE void leave_cta() {
    Cta &cta = *now->cta;
    --cta.live;
    if (run.cluster > 1) leave_cluster(cta);
    if (cta.synchronising && cta.synchronising == cta.live) end_synchronising(cta);
}

// `thread` does something in the memory of `cta`, perhaps another one's, at `time`.
ENGINE void visit(Cta &cta, const Fibre &thread, u32 time, const char *piece) {
    if (&cta == thread.cta) return;
    if (cta.live == 0) fault("%s comes to shared memory of cta (%u, %u, %u), which has exited", piece, cta.index.x, cta.index.y, cta.index.z);
    cta.visits[thread.place] = time;
}

ENGINE Cta &cta_of_cluster(u32 rank, const char *piece) {
    if (rank >= (u32)run.cluster) fault("%s: there is no CTA %u in a cluster of %d", piece, rank, run.cluster);
    return run.cluster > 1 ? run.ctas[rank] : *now->cta;
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

// The mbarrier of `cta` at the place that `pointer` has in the calling thread's own.
ENGINE Mbarrier &mbarrier_at(const u64 *pointer, Cta &cta, const char *piece) {
    const u32 offset = shared_offset(pointer, 8, 8, piece);
    for (int i = 0; i < cta.mbarrier_count; ++i) {
        Mbarrier &barrier = cta.mbarriers[i];
        if (barrier.offset != offset) continue;
        if (*(const u64 *)(cta.memory + offset) != (mbarrier_mark ^ offset)) fault("%s: the mbarrier at byte %u of shared memory was overwritten", piece, offset);
        if (!over_for(*now, barrier.initialiser, barrier.begun)) fault("%s: the mbarrier at byte %u was initialised by thread %d with no barrier between", piece, offset, barrier.initialiser);
        return barrier;
    }
    fault("%s: there is no mbarrier at byte %u of shared memory", piece, offset);
}
ENGINE Mbarrier &mbarrier_at(const u64 *pointer, const char *piece) { return mbarrier_at(pointer, *now->cta, piece); }

// One that others than the threads of its own CTA see: copies, and other CTAs.
ENGINE Mbarrier &published_mbarrier_at(const u64 *pointer, Cta &cta, const char *piece) {
    Mbarrier &barrier = mbarrier_at(pointer, cta, piece);
    if (!barrier.published) fault("%s: thread %d has not called mbarrier_publish() after mbarrier_init", piece, barrier.initialiser);
    return barrier;
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
    barrier.cta = &cta, barrier.offset = offset, barrier.count = barrier.pending = count, barrier.phase = 0, barrier.bytes = 0;
    barrier.initialiser = now->place, barrier.published = false, barrier.begun = event(*now);
    *pointer = mbarrier_mark ^ offset;
}

ENGINE void publish_mbarriers() {
    for (int i = 0; i < now->cta->mbarrier_count; ++i)
        if (now->cta->mbarriers[i].initialiser == now->place) now->cta->mbarriers[i].published = true;
}

ENGINE void end_phase_if_over(Mbarrier &barrier) {
    if (barrier.pending || barrier.bytes) return;
    barrier.phase ^= 1, barrier.pending = barrier.count;
    memcpy(barrier.done, barrier.arriving, (size_t)clock_size() * 4);
    wake(*barrier.cta, &barrier, nullptr);
}

// Bytes that a phase waits for, or that are in.
ENGINE void count_bytes(Mbarrier &barrier, long long bytes, const char *piece) {
    barrier.bytes += bytes;
    if (llabs(barrier.bytes) >= 1 << 20) fault("%s: an mbarrier counts fewer than %d bytes", piece, 1 << 20);
}

ENGINE void arrive(Mbarrier &barrier, const Fibre &thread, const char *piece) {
    if (barrier.pending == 0) fault("%s: more than %u arrivals at the mbarrier at byte %u", piece, barrier.count, barrier.offset);
    join(barrier.arriving, thread.clock);
    --barrier.pending;
    end_phase_if_over(barrier);
}

ENGINE void wait_for_phase(const u64 *pointer, u32 parity) {
    Mbarrier &barrier = mbarrier_at(pointer, "mbarrier_wait");
    if (parity > 1) fault("mbarrier_wait: parity %u", parity);
    while (barrier.phase == parity) wait("mbarrier_wait at byte", &barrier, (int)barrier.offset);
    join(now->clock, barrier.done);
}

}  // namespace emulated
