// sdd by wgmma (sm_90a): the kept blocks of G^T X, a reduction over n tokens; G [n, m] and X [n, k] token-major, 16-bit.
//
// A CTA takes a strip of block rows, 64 rows (128 where blocks are 128), and gathers, for each warpgroup, COLUMNS of the
// columns that any of them keeps; a warpgroup's sums are D[64 rows, COLUMNS]. Tokens are the lines of both operands, which are
// read turned. Where a strip has several block rows, blocks that are not kept are multiplied with the others and dropped.
// The last strips may be divided: a task is then a part of the tokens, and what it leaves are floats for add_parts.
#include "wgmma_ring.h"

typedef ELEMENT Element;
typedef Element::Storage Storage;

struct Arguments {  // mirrored in Python, field by field
    const Storage *grad, *x;  // [n, m], [n, k]
    Storage* values;          // [nnzb, b, b]
    float* parts;             // [parts, numbers]: of the blocks from `divided` on
    const int* tasks;         // [tasks, 8]: strip, where its columns begin in the list, how many; tokens; part, -1: whole
    const int* begins;        // [CTAs + 1]: where the tasks of a CTA begin
    const int* columns;       // [listed]: block columns
    const int* blocks;        // [listed, heights]: which block of `values`, by block row of the strip; -1 is not kept
    int n, k, m, divided, numbers;
};

static const int strips = BLOCK == 128 ? 2 : 1;            // of 64 rows; one a warpgroup where there are two
static const int spans = BLOCK == 128 ? 1 : WARPGROUPS;    // of COLUMNS columns, likewise
static const int heights = strips * 64 / BLOCK;            // block rows
static const int parts = spans * COLUMNS / 64;             // columns that share a line
static const int part_bytes = DEPTH * line;
static const int across = COLUMNS / BLOCK;                 // block columns of a span
static const int per_chunk = 8;                            // elements
typedef RingOf<(strips + parts) * part_bytes, 0> Ring;

static_assert(Element::bytes == 2, "wgmma turns 16-bit operands only");
static_assert(DEPTH % 16 == 0 && COLUMNS % BLOCK == 0 && WARPGROUPS == 2, "a warpgroup has whole blocks");

struct Task {
    int strip, first, count, begin, end, part;
    DEVICE Task(const Arguments& given, int number) {
        const uint4* task = (const uint4*)(given.tasks + 8 * number);
        const uint4 what = task[0], when = task[1];
        strip = what.x, first = what.y, count = what.z, begin = what.w, end = when.x, part = when.y;
    }
};

struct Lines {  // where a thread's 16 bytes of a line come from; null: nowhere
    const Storage *grad[strips], *x[parts];
    DEVICE Lines(const Arguments& given, const Task& task, int chunk) {
        UNROLL for (int i = 0; i < strips; ++i) {
            const int row = (task.strip * strips + i) * 64 + chunk * per_chunk;
            grad[i] = row < given.m ? given.grad + row : nullptr;
        }
        UNROLL for (int i = 0; i < parts; ++i) {
            const int column = i * 64 + chunk * per_chunk, place = column / BLOCK;
            const u64 block = place < task.count ? given.columns[task.first + place] : 0;
            x[i] = place < task.count ? given.x + block * BLOCK + column % BLOCK : nullptr;
        }
    }
};

// `any`: an address that may be read, for lines that come from nowhere and are zeros.
DEVICE void copy_line(char* to, const Storage* line, u64 at, const Storage* any, bool valid) {
    copy_async<16>(to, line ? line + at : any, valid && line);
}

DEVICE void gather(const Arguments& given, const Lines& lines, char* to, int token, int thread) {
    UNROLL for (int down = 0; down < DEPTH; down += 16) {
        const bool valid = token + down < given.n;
        const u64 at = valid ? token + down : 0;
        char* place = to + down * line + swizzled<line>(16 * thread);
        UNROLL for (int i = 0; i < strips; ++i)
            copy_line(place + i * part_bytes, lines.grad[i], at * given.m, given.grad, valid);
        UNROLL for (int i = 0; i < parts; ++i)
            copy_line(place + (strips + i) * part_bytes, lines.x[i], at * given.k, given.x, valid);
    }
}

DEVICE void produce(const Arguments& given, const Ring& ring, int thread) {
    int filled = 0;
    for (int number = given.begins[blockIdx.x], end = given.begins[blockIdx.x + 1]; number < end; ++number) {
        const Task task(given, number);
        const Lines lines(given, task, thread % 8);
        for (int token = task.begin; token < task.end; token += DEPTH, ++filled) {
            ring.wait_empty(filled);
            gather(given, lines, ring.at(filled), token + thread / 8, thread);
            ring.filled(filled);
        }
    }
    ring.close(filled);
}

DEVICE void sum_task(float (&sum)[COLUMNS / 2], const Task& task, const Ring& ring, int group, int& used) {
    const int strip = strips == 2 ? group : 0, span = spans == 2 ? group : 0;
    UNROLL for (int i = 0; i < COLUMNS / 2; ++i) sum[i] = 0.0f;
    settle(sum);
    for (int token = task.begin; token < task.end; token += DEPTH, ++used) {
        ring.wait_full(used);
        wgmma_fence();
        const u64 a = descriptor<line>(ring.at(used) + strip * part_bytes);
        const u64 b = descriptor<line>(ring.at(used) + (strips + span * (COLUMNS / 64)) * part_bytes, part_bytes);
        UNROLL for (int i = 0; i < DEPTH / 16; ++i)
            multiply_wide<COLUMNS, Element, true, true>(sum, a + descriptor_step(16 * line * i),
                                                        b + descriptor_step(16 * line * i), true);
        wgmma_commit();
        wgmma_wait<1>();
        if (token > task.begin) ring.release(used - 1);
    }
    wgmma_wait<0>();
    ring.release(used - 1);
    settle(sum);
}

DEVICE void store_values(Storage* to, const float* pairs) {
    UNROLL for (int j = 0; j < BLOCK / 8; ++j) {
        const float* pair = pairs + 4 * j;
        *(u32*)(to + 8 * j) = pack(pair[0], pair[1], Element());
        *(u32*)(to + 8 * BLOCK + 8 * j) = pack(pair[2], pair[3], Element());
    }
}
DEVICE void store_part(float* to, const float* pairs) {
    UNROLL for (int j = 0; j < BLOCK / 8; ++j) {
        const float* pair = pairs + 4 * j;
        *(float2*)(to + 8 * j) = make_float2(pair[0], pair[1]);
        *(float2*)(to + 8 * BLOCK + 8 * j) = make_float2(pair[2], pair[3]);
    }
}

// Each thread holds pairs of neighbours in two rows of each block.
DEVICE void store(const float (&sum)[COLUMNS / 2], const Arguments& given, const Task& task, int group, int thread) {
    const int row = thread / 32 * 16 + thread % 32 / 4, inner = (strips == 2 ? group * 64 + row : row) % BLOCK;
    UNROLL for (int column = 0; column < across; ++column) {
        const int place = (spans == 2 ? group * across : 0) + column;
        const int entry = (task.first + place) * heights + (strips == 2 ? 0 : row / BLOCK);
        const int block = place < task.count ? given.blocks[entry] : -1;
        if (block < 0) continue;
        const u64 at = inner * BLOCK + thread % 4 * 2;
        const float* pairs = sum + column * (BLOCK / 2);
        if (task.part < 0) {
            store_values(given.values + (u64)block * BLOCK * BLOCK + at, pairs);
        } else {
            float* part = given.parts + (u64)task.part * given.numbers;
            store_part(part + (u64)(block - given.divided) * BLOCK * BLOCK + at, pairs);
        }
    }
}

DEVICE void consume(const Arguments& given, const Ring& ring, int group, int thread) {
    float sum[COLUMNS / 2];
    const int begin = given.begins[blockIdx.x], end = given.begins[blockIdx.x + 1];
    Task next(given, begin);  // no CTA is without tasks
    for (int number = begin, used = 0; number < end; ++number) {
        const Task task = next;
        next = Task(given, min(number + 1, end - 1));  // early: it comes while this one is multiplied
        sum_task(sum, task, ring, group, used);
        store(sum, given, task, group, thread);
    }
}

KERNEL(sdd, Arguments, 128 * (WARPGROUPS + 1), 1) {
    const Ring ring;
    const int thread = threadIdx.x % 128, group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
    ring.open();
    if (group == WARPGROUPS) {
        give_registers<gatherer_registers>();
        produce(given, ring, thread);
    } else {
        take_registers<multiplier_registers>();
        consume(given, ring, group, thread);
    }
}
