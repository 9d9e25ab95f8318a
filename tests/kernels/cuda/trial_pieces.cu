// Kernels that show what each piece gives, for test_emulator.py.
#include "device.h"

struct Arguments {
    const u32 *in;
    u32 *out;
    int kind, count;
};

DEVICE float as_float(u32 bits) { return bits_float(bits); }

// One warp: matrices of 16-bit elements at shared byte 0, each lane's registers out. kind: 0 x4, 1 x4 turned, 2 x2, 3 x2 turned,
// 4 and 5: x4, and stored again (turned) behind.
KERNEL(matrices, Arguments, 32, 1) {
    char *shared = shared_memory();
    const u32 lane = threadIdx.x;
    copy_async<16>(shared + 16 * lane, given.in + 4 * lane, true);
    copy_commit();
    copy_wait<0>();
    __syncwarp();
    u32 four[4] = {}, two[2] = {};
    const char *row = shared + 16 * lane;
    if (given.kind == 0 || given.kind >= 4) load_matrix(four, row);
    if (given.kind == 1) load_matrix_turned(four, row);
    if (given.kind == 2) load_matrix(two, row);
    if (given.kind == 3) load_matrix_turned(two, row);
    if (given.kind == 4) store_matrix(shared + 512 + 16 * lane, four);
    if (given.kind == 5) store_matrix_turned(shared + 512 + 16 * lane, four);
    __syncwarp();
    for (int i = 0; i < 4; ++i)
        given.out[4 * lane + i] = given.kind >= 4 ? ((u32 *)(shared + 512))[4 * lane + i] : given.kind >= 2 ? two[i % 2] : four[i];
}

// One warp: fragments in (4 of a, 2 of b, 4 sums a lane), sums out. kind: 0 bf16, 1 f16, 2 tf32.
KERNEL(product, Arguments, 32, 1) {
    const u32 *in = given.in + 10 * threadIdx.x;
    const u32 a[4] = {in[0], in[1], in[2], in[3]}, b[2] = {in[4], in[5]};
    float sum[4] = {as_float(in[6]), as_float(in[7]), as_float(in[8]), as_float(in[9])};
    if (given.kind == 0) multiply(sum, a, b, Bfloat16());
    if (given.kind == 1) multiply(sum, a, b, Float16());
    if (given.kind == 2) multiply(sum, a, b, Tf32());
    for (int i = 0; i < 4; ++i) given.out[4 * threadIdx.x + i] = float_bits(sum[i]);
}

// `count` values: kind 0 float to bf16, 1 float to f16, 2 f16 to float, 3 float to tf32.
KERNEL(convert, Arguments, 256, 1) {
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < (u32)given.count; i += gridDim.x * blockDim.x) {
        const u32 bits = given.in[i];
        u32 answer = 0;
        if (given.kind == 0) answer = pack_bf16(as_float(bits), 1.0f);
        if (given.kind == 1) answer = pack_f16(as_float(bits), 1.0f);
        if (given.kind == 2) answer = float_bits(f16_float((u16)bits));
        if (given.kind == 3) answer = round_tf32(bits);
        given.out[i] = answer;
    }
}

// 16 answers a lane.
KERNEL(lanes, Arguments, 64, 1) {
    const int lane = (int)(threadIdx.x % 32);
    const u32 value = given.in[threadIdx.x], all = 0xffffffffu;
    u32 *out = given.out + 16 * threadIdx.x;
    out[0] = __shfl_sync(all, value, 5);
    out[1] = __shfl_sync(all, value, lane + 1, 8);
    out[2] = __shfl_xor_sync(all, value, 16);
    out[3] = __shfl_down_sync(all, value, 3);
    out[4] = __shfl_up_sync(all, value, 3, 16);
    out[5] = __ballot_sync(all, value & 1);
    out[6] = (u32)__any_sync(all, value == given.in[7]);
    out[7] = (u32)__popc(value), out[8] = (u32)__ffs((int)value), out[9] = (u32)__clz((int)value);
    if (lane < 16) out[10] = __shfl_xor_sync(0xffffu, value, 1);
    else out[10] = __shfl_xor_sync(0xffff0000u, value, 2);
    out[11] = float_bits(__shfl_xor_sync(all, (float)lane, 1));
    out[12] = shared_address(shared_memory() + 16) % 1024;
    out[13] = (u32)min(3, 2) + max(5u, 4u);
    out[14] = threadIdx.x + 100 * blockIdx.x + 10000 * blockDim.x + 1000000 * gridDim.x;
    out[15] = float_bits(fmaf(2.0f, 3.0f, rsqrtf(4.0f)) + fast_exp(0.0f));
}

// The sum of 256 values through shared memory. kind 1: a barrier is missing.
KERNEL(reduction, Arguments, 256, 1) {
    u32 *shared = (u32 *)shared_memory();
    shared[threadIdx.x] = given.in[threadIdx.x];
    for (u32 half = 128; half > 0; half /= 2) {
        if (given.kind == 0 || half != 64) __syncthreads();
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    }
    if (threadIdx.x == 0) given.out[0] = shared[0], atomicMax(given.out + 1, shared[0]);
    atomicAdd(given.out + 2, 1u);
    if (threadIdx.x == 7) atomicCAS(given.out + 3, given.in[0], 5u);
}

// Each thread stores 2 bytes and loads its neighbour's, twice. kind 1: nothing between store and load; 2: nothing between load
// and the next store; 3: a load of what nobody wrote; 4: one outside; 5: __syncwarp only; 6: an mbarrier instead; 7: atomics.
KERNEL(neighbours, Arguments, 64, 1) {
    u16 *shared = (u16 *)shared_memory();
    u64 *barrier = (u64 *)(shared + 128);
    u32 *arrived = (u32 *)(shared + 256);
    const u32 thread = threadIdx.x, other = given.kind == 5 ? thread ^ 1 : (thread + 1) % 64;
    if (thread == 0) mbarrier_init(barrier, 64), *arrived = 0;
    __syncthreads();
    u32 sum = 0;
    for (u32 round = 0; round < 2; ++round) {
        shared[thread] = (u16)(given.in[thread] + round);
        if (given.kind == 5) __syncwarp();
        else if (given.kind == 6) mbarrier_arrive(barrier), mbarrier_wait(barrier, 0);
        else if (given.kind == 7) {
            atomicAdd(arrived, 1u);
            while (atomicAdd(arrived, 0u) < 64 + 64 * round) relax();
        } else if (given.kind != 1) barrier_wait(3, 64);
        sum += shared[other];
        if (given.kind == 3 && thread == 9) sum += shared[64];
        if (given.kind == 4 && thread == 9) sum += shared[(u32)given.count];
        if (given.kind == 5) __syncwarp();
        else if (given.kind != 2) __syncthreads();
        if (given.kind == 6 && round == 0) mbarrier_arrive(barrier), mbarrier_wait(barrier, 1);
    }
    given.out[thread] = sum;
}

// Each of `count` rounds, every CTA adds its number + 1 to a place of its own, and after a barrier of the grid sums all.
// out: [flag, CTAs' values, sums]. kind 1: a CTA does not wait; 2: one does not arrive.
KERNEL(rounds, Arguments, 64, 1) {
    u32 *flag = given.out, *values = given.out + 1, *sums = values + gridDim.x, wanted = 0;
    for (int round = 0; round < given.count; ++round) {
        for (int half = 0; half < 2; ++half) {
            if (half == 0 && threadIdx.x == 63) values[blockIdx.x] += blockIdx.x + 1;
            if (half == 1 && threadIdx.x == 40) {
                u32 sum = 0;
                for (u32 i = 0; i < gridDim.x; ++i) sum += values[i];
                sums[round * (int)gridDim.x + (int)blockIdx.x] = sum;
            }
            __syncthreads();
            wanted += gridDim.x;
            if (threadIdx.x == 0) {
                if (given.kind != 2 || blockIdx.x != 1) atomicAdd(flag, 1u);
                while (atomicAdd(flag, 0u) < wanted && (given.kind != 1 || blockIdx.x != 2)) relax();
            }
            __syncthreads();
        }
    }
}
