// The functions of ptx.h, by the same names.
#pragma once
#include "emulated_copies.h"

ENGINE char *shared_memory() { return emulated::now->cta->memory; }
ENGINE u32 shared_address(const void *pointer) { return (u32)((const char *)pointer - emulated::now->cta->memory) + 1024; }

ENGINE float bits_float(u32 bits) { return __builtin_bit_cast(float, bits); }
ENGINE u32 float_bits(float value) { return __builtin_bit_cast(u32, value); }
ENGINE u32 pack_bf16(float low, float high) { return emulated::to_bf16(low) | emulated::to_bf16(high) << 16; }
ENGINE u32 pack_f16(float low, float high) { return emulated::to_f16(low) | emulated::to_f16(high) << 16; }
ENGINE float f16_float(u16 stored) { return emulated::f16_value(stored); }
ENGINE u32 round_tf32(u32 bits) { return emulated::to_tf32(bits); }

template <int BYTES> ENGINE void copy_async(void *shared, const void *global, bool valid) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async moves 4, 8 or 16 bytes");
    emulated::begin_copy(shared, global, BYTES, valid);
}
ENGINE void copy_commit() { emulated::commit_copies(); }
template <int LEFT> ENGINE void copy_wait() { emulated::wait_for_copies(LEFT); }

ENGINE void load_matrix(u32 (&to)[4], const void *row) { emulated::load_matrices<4, false>(to, row); }
ENGINE void load_matrix_turned(u32 (&to)[4], const void *row) { emulated::load_matrices<4, true>(to, row); }
ENGINE void load_matrix(u32 (&to)[2], const void *row) { emulated::load_matrices<2, false>(to, row); }
ENGINE void load_matrix_turned(u32 (&to)[2], const void *row) { emulated::load_matrices<2, true>(to, row); }
ENGINE void store_matrix(void *row, const u32 (&from)[4]) { emulated::store_matrices((char *)row, from, false, "store_matrix"); }
ENGINE void store_matrix_turned(void *row, const u32 (&from)[4]) { emulated::store_matrices((char *)row, from, true, "store_matrix_turned"); }

ENGINE void multiply(float (&sum)[4], const u32 (&a)[4], const u32 (&b)[2], Bfloat16) {
    emulated::multiply_halves<emulated::bf16_value>(sum, a, b, "multiply bf16");
}
ENGINE void multiply(float (&sum)[4], const u32 (&a)[4], const u32 (&b)[2], Float16) {
    emulated::multiply_halves<emulated::f16_value>(sum, a, b, "multiply f16");
}
ENGINE void multiply(float (&sum)[4], const u32 (&a)[4], const u32 (&b)[2], Tf32) { emulated::multiply_tf32(sum, a, b); }

ENGINE void barrier_wait(int number, int threads) { emulated::named_barrier(number, threads, true); }
ENGINE void barrier_arrive(int number, int threads) { emulated::named_barrier(number, threads, false); }

ENGINE void mbarrier_init(u64 *barrier, u32 count) { emulated::initialise_mbarrier(barrier, count); }
ENGINE void mbarrier_publish() { emulated::publish_mbarriers(); }
ENGINE void mbarrier_expect(u64 *barrier, u32 bytes) {
    emulated::Mbarrier &its = emulated::mbarrier_at(barrier, "mbarrier_expect");
    emulated::count_bytes(its, bytes, "mbarrier_expect");
    emulated::arrive(its, *emulated::now, "mbarrier_expect");
}
ENGINE void mbarrier_wait(u64 *barrier, u32 parity) { emulated::wait_for_phase(barrier, parity); }
ENGINE void mbarrier_arrive(u64 *barrier) {
    emulated::arrive(emulated::mbarrier_at(barrier, "mbarrier_arrive"), *emulated::now, "mbarrier_arrive");
}
ENGINE void mbarrier_arrive_after_copies(u64 *barrier) {
    emulated::Mbarrier &its = emulated::mbarrier_at(barrier, "mbarrier_arrive_after_copies");
    emulated::begin_pending({emulated::arrival_after_copies, emulated::now, &its, nullptr, nullptr, 0, emulated::now->count, 0, 0});
}
ENGINE void copy_bulk(void *shared, const void *global, u32 bytes, u64 *barrier) {
    emulated::copy_bulk_begin(shared, global, bytes, barrier);
}
ENGINE void prefetch_map(const TensorMap &map) { emulated::map_at(map, "prefetch_map"); }
ENGINE void copy_box(void *shared, const TensorMap &map, int x, int y, u64 *barrier) {
    emulated::copy_box_begin(shared, map, x, y, barrier, 1u << emulated::now->cta->rank);
}
ENGINE void copy_box_to(u16 ranks, void *shared, const TensorMap &map, int x, int y, u64 *barrier) {
    emulated::copy_box_begin(shared, map, x, y, barrier, ranks);
}
ENGINE void store_box(const TensorMap &map, int x, int y, const void *shared) { emulated::store_box_begin(map, x, y, shared); }
ENGINE void store_commit() { ++emulated::now->store_groups; }
template <int LEFT> ENGINE void store_wait() { emulated::wait_for_stores(LEFT); }
ENGINE void cluster_barrier() { emulated::synchronise_cluster(); }
ENGINE void mbarrier_arrive_at(u64 *barrier, u32 rank) { emulated::arrive_at(barrier, rank); }
ENGINE void mbarrier_wait_cluster(u64 *barrier, u32 parity) { emulated::wait_for_phase(barrier, parity); }
ENGINE void proxy_fence() { emulated::now->fenced = emulated::event(*emulated::now); }
template <int REGISTERS> ENGINE void give_registers() {}
template <int REGISTERS> ENGINE void take_registers() {}

// After each word of a store other threads run, so that what is half written is seen by whoever looks there.
ENGINE void store_relaxed(u32 *to, u32 word) {
    *to = word;
    emulated::run.spins = 0;
    emulated::let_others_run("store_relaxed");
}
ENGINE void store_relaxed(uint2 *to, uint2 words) {
    u32 *place = (u32 *)to;
    const bool forward = emulated::pick_lane(3u) == 0;
    store_relaxed(place + !forward, forward ? words.x : words.y);
    store_relaxed(place + forward, forward ? words.y : words.x);
}
ENGINE uint4 load_relaxed(const uint4 *from) { return *from; }
ENGINE void relax() { emulated::let_others_run("relax"); }
ENGINE float fast_exp(float x) { return expf(x); }
