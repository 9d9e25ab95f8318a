// The PTX pieces the kernels are made of, one small function each. tests/kernels/cuda/emulated.h has the same functions for a CPU.
// Names and fragments: PTX ISA, "Matrix multiply-accumulate operations", "Asynchronous copy", "mbarrier".
#pragma once

#define DEVICE __device__ __forceinline__
#define UNROLL _Pragma("unroll")

// KERNEL(name, Arguments, threads, ctas) { body } : `given` is its one argument, by value; `ctas` of them share a multiprocessor.
#define KERNEL(name, Arguments, threads, ctas) \
    extern "C" __global__ void __launch_bounds__(threads, ctas) name(const __grid_constant__ Arguments given)
// The same in clusters of so many CTAs, neighbours in x.
#define CLUSTERED(name, Arguments, threads, ctas, cluster) \
    extern "C" __global__ void __cluster_dims__(cluster, 1, 1) __launch_bounds__(threads, ctas) name(const __grid_constant__ Arguments given)

DEVICE char* shared_memory() {  // the dynamic shared memory of this CTA, aligned to 1024 bytes
    extern __shared__ __align__(1024) char memory[];
    return memory;
}

DEVICE u32 shared_address(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

DEVICE float bits_float(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 float_bits(float value) { return __float_as_uint(value); }

DEVICE u32 pack_bf16(float low, float high) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
DEVICE u32 pack_f16(float low, float high) {
    u32 both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
DEVICE float f16_float(u16 stored) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(stored));
    return value;
}
DEVICE u32 round_tf32(u32 bits) {  // a float's bits, to nearest (ties away) with 10 bits of fraction
    u32 rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(bits_float(bits)));
    return rounded;
}

// Copies from global to shared memory that go on beside the arithmetic. Not `valid`: zeros are written, nothing is read.
template <int BYTES> DEVICE void copy_async(void* shared, const void* global, bool valid) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async moves 4, 8 or 16 bytes");
    if (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(valid ? 16 : 0) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global), "n"(BYTES), "r"(valid ? BYTES : 0) : "memory");
}
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT> DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }

// Four 8x8 matrices of 16-bit elements. Lane l gives the address of row l % 8 of matrix l / 8 (16 bytes, aligned).
DEVICE void load_matrix(u32 (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)) : "memory");
}
DEVICE void load_matrix_turned(u32 (&to)[4], const void* row) {  // each matrix transposed on the way
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)) : "memory");
}
DEVICE void load_matrix(u32 (&to)[2], const void* row) {  // two matrices, lanes 0 to 15 give addresses
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(to[0]), "=r"(to[1]) : "r"(shared_address(row)) : "memory");
}
DEVICE void load_matrix_turned(u32 (&to)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(to[0]), "=r"(to[1]) : "r"(shared_address(row)) : "memory");
}

// sum += a b, a warp together: a 16x16 by 16x8 of 16-bit elements, or 16x8 by 8x8 of tf32. a by rows, b by columns.
DEVICE void multiply(float (&sum)[4], const u32 (&a)[4], const u32 (&b)[2], Bfloat16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DEVICE void multiply(float (&sum)[4], const u32 (&a)[4], const u32 (&b)[2], Float16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DEVICE void multiply(float (&sum)[4], const u32 (&a)[4], const u32 (&b)[2], Tf32) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Barriers among `threads` threads of a CTA (a multiple of 32), by number (1 to 15; 0 is __syncthreads).
DEVICE void barrier_wait(int number, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory"); }
DEVICE void barrier_arrive(int number, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory"); }

// mbarriers (8 bytes of shared memory): a phase ends when `count` arrivals and all expected bytes are in. Initialised by one
// thread, then mbarrier_publish() by it and a barrier of all.
DEVICE void mbarrier_init(u64* barrier, u32 count) { asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory"); }
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
DEVICE void mbarrier_publish() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void mbarrier_expect(u64* barrier, u32 bytes) {  // arrives, and adds bytes that copy_bulk will bring
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}
DEVICE void mbarrier_wait(u64* barrier, u32 parity) {  // until the phase of that parity has ended
    asm volatile("{\n.reg .pred done;\nAGAIN:\nmbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n@done bra DONE;\nbra AGAIN;\nDONE:\n}"
                 ::"r"(shared_address(barrier)), "r"(parity) : "memory");
}
DEVICE void copy_bulk(void* shared, const void* global, u32 bytes, u64* barrier) {  // one thread; multiples of 16 bytes
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(shared_address(shared)), "l"(global), "r"(bytes), "r"(shared_address(barrier)) : "memory");
}
// The box of a matrix at column x and row y, as its map says how large, how swizzled: one thread. `shared` a multiple of 128 bytes, and
// of 1024 where swizzled() is to find it. Outside the matrix are zeros, which count as bytes too.
DEVICE void copy_box(void* shared, const TensorMap& map, int x, int y, u64* barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
                 ::"r"(shared_address(shared)), "l"(&map), "r"(x), "r"(y), "r"(shared_address(barrier)) : "memory");
}
// The same to the same place of each CTA of the cluster whose bit is in `ranks`, counted by the mbarrier at the same place there.
DEVICE void copy_box_to(u16 ranks, void* shared, const TensorMap& map, int x, int y, u64* barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;"
                 ::"r"(shared_address(shared)), "l"(&map), "r"(x), "r"(y), "r"(shared_address(barrier)), "h"(ranks) : "memory");
}
// The way back: the box that lies at `shared` as copy_box would lay it, to column x and row y; what is outside the matrix is not written.
// One thread, after a proxy_fence of those who wrote it and a barrier.
DEVICE void store_box(const TensorMap& map, int x, int y, const void* shared) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map), "r"(x), "r"(y), "r"(shared_address(shared)) : "memory");
}
DEVICE void store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until all but the LEFT groups of this thread committed last have read shared memory, which may be written or given up then.
template <int LEFT> DEVICE void store_wait() { asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(LEFT) : "memory"); }
DEVICE void prefetch_map(const TensorMap& map) { asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }

// Between the CTAs of a cluster. All their threads that have not exited, whole warps together.
DEVICE void cluster_barrier() { asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory"); }
DEVICE void mbarrier_arrive_at(u64* barrier, u32 rank) {  // at the same place of CTA `rank`, perhaps this one
    asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\nmbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n}"
                 ::"r"(shared_address(barrier)), "r"(rank) : "memory");
}
DEVICE void mbarrier_wait_cluster(u64* barrier, u32 parity) {  // mbarrier_wait where other CTAs arrive
    asm volatile("{\n.reg .pred done;\nAGAIN:\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n@done bra DONE;\nbra AGAIN;\nDONE:\n}"
                 ::"r"(shared_address(barrier)), "r"(parity) : "memory");
}
// Makes this thread's ordinary writes to shared memory (copy_async's too, once waited for) visible to wgmma and copy_bulk.
DEVICE void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
template <int REGISTERS> DEVICE void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS)); }
template <int REGISTERS> DEVICE void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS)); }
#endif
DEVICE void mbarrier_arrive(u64* barrier) { asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared.b64 state, [%0];\n}" ::"r"(shared_address(barrier)) : "memory"); }
// Arrives once all copies this thread has begun are in; counts as one of `count`.
DEVICE void mbarrier_arrive_after_copies(u64* barrier) { asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(barrier)) : "memory"); }

// Between CTAs, in global memory: each word is written and read as a whole, by operations that the memory model calls strong, so that
// those of two CTAs are no data race. They go to the L2 cache, never to L1, and order nothing else. A vector is words in any order.
DEVICE void store_relaxed(u32* to, u32 word) { asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(word) : "memory"); }
DEVICE void store_relaxed(uint2* to, uint2 words) {
    asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(words.x), "r"(words.y) : "memory");
}
DEVICE uint4 load_relaxed(const uint4* from) {
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from) : "memory");
    return v;
}
// In a loop that waits for another CTA by loads: each takes half a microsecond anyway. The emulator lets other threads run.
DEVICE void relax() {}
DEVICE float fast_exp(float x) { return __expf(x); }
